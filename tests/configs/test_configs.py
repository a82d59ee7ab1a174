"""Every shipped gin file: it parses, its recipe can be planned, and its figures are true."""

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import gin
import jax
import pytest

import aya_jax
from aya_jax.data.languages import LANGUAGES, language_clusters
from aya_jax.errors import AyaError
from aya_jax.merging.settings import merge_config
from aya_jax.models.config import decoder_config
from aya_jax.models.decoder import init_params
from aya_jax.recipe.expanse import expanse
from aya_jax.recipe.job_settings import dpo_objective
from aya_jax.recipe.run import OPTIONAL_SCOPES
from aya_jax.recipe.settings import ROOT, check_scopes, effective_settings, parse_gin
from aya_jax.recipe.stages import Stage
from aya_jax.training.loop import train

CONFIGS = ROOT / "configs"
# The published config.json of each model, and the parameters that its sizes give.
PUBLISHED = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "rope_theta": 10000.0,
        "logit_scale": 0.125,
    },
    "32b": {
        "hidden_size": 8192,
        "intermediate_size": 24576,
        "num_hidden_layers": 40,
        "num_attention_heads": 64,
        "rope_theta": 4000000.0,
        "logit_scale": 0.0625,
    },
}
SHARED = {
    "vocab_size": 256000,
    "num_key_value_heads": 8,
    "norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "use_qk_norm": False,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "bos_token_id": 5,
    "eos_token_id": 255001,
}
PARAMETERS = {"8b": 8_028_033_024, "32b": 32_296_476_672}
DEVICES = {"h100_8": 8, "v5p_128": 64, "v5e_256": 256}


def gin_files(pattern: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in CONFIGS.glob(pattern))


def plan(file: str, bindings: list[str]) -> tuple[Stage, ...]:
    """Read a recipe as `aya run` does."""
    parse_gin([file], bindings)
    recipe = expanse()
    stages = recipe.stages
    check_scopes([*OPTIONAL_SCOPES, *recipe.left_out, *(stage.scope for stage in stages)])
    return stages


@pytest.fixture(autouse=True)
def _empty_gin():
    """All configurables registered, nothing bound before or after."""
    for module in pkgutil.walk_packages(aya_jax.__path__, "aya_jax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    """Bindings of the macros that a user edits, to paths that exist."""
    for name in ("base", "reward", "judge", "teacher"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lineage.json").write_text(json.dumps({"stage": name}))
    for name in ("recorded", "prompts", "evaluation"):
        row = {"prompt": "?", "completion": "!", "language": "en"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return [
        f"BASE_MODEL = '{tmp_path}/base'",
        f"REWARD_MODEL = '{tmp_path}/reward'",
        f"JUDGE_MODEL = '{tmp_path}/judge'",
        f"TEACHERS = {{'one': '{tmp_path}/teacher', 'recorded': '{tmp_path}/recorded.jsonl'}}",
        f"PROMPTS = '{tmp_path}/prompts.jsonl'",
        f"EVALUATION_PROMPTS = '{tmp_path}/evaluation.jsonl'",
    ]


@pytest.mark.parametrize("file", gin_files("**/*.gin"))
def test_every_file_parses(file):
    content = (ROOT / file).read_text("utf-8")
    # What a file leaves to the one that includes it.
    used, own = set(re.findall(r"%(\w+)", content)), set(re.findall(r"(?m)^(\w+) =", content))
    parse_gin([file], [f"{name} = 1" for name in sorted(used - own)])
    bound = gin.config_str()
    assert " = " in bound


@pytest.mark.parametrize("file", gin_files("recipes/*.gin"))
def test_every_recipe_has_a_plan_and_only_scopes_that_exist(file, own):
    stages = plan(file, own if "/expanse_" in file else [])
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    preferred = ("offline_dpo", "online_dpo_3")
    for stage in ("candidates", "arbitrage_sft", *(() if "_merging" in file else preferred)):
        assert stage in names


@pytest.mark.parametrize("size", PUBLISHED)
def test_settings_of_the_real_sizes_reach_their_stages(size, own):
    parse_gin([f"configs/recipes/expanse_{size}.gin"], own)
    rate = {"8b": 5e-7, "32b": 3e-7}[size]
    for stage in expanse().stages:
        if stage.name.startswith("online_dpo_") and train in stage.uses:
            settings = effective_settings(stage.uses, stage.scope)
            assert settings["train.learning_rate"] == rate
            assert settings["dpo_objective.beta"] == 0.1
            assert settings["lengths.max_length"] == 8192
    bound = effective_settings([train], "sft/western")
    assert (bound["train.epochs"], bound["train.batch_size"]) == (2.0, 64)


def test_beta_of_one_iteration_alone_can_be_set(own):
    line = "online_dpo/iteration_2/dpo_objective.beta = 0.3"
    parse_gin(["configs/recipes/expanse_8b.gin"], [*own, line])
    betas = {
        i: effective_settings([dpo_objective], f"online_dpo/iteration_{i}/western")
        for i in (1, 2, 3)
    }
    assert [b["dpo_objective.beta"] for b in betas.values()] == [0.1, 0.3, 0.1]


@pytest.mark.parametrize("macro", ["BASE_MODEL", "REWARD_MODEL", "TEACHERS"])
def test_a_path_that_was_not_edited_is_told_in_one_line(macro, own):
    kept = [line for line in own if not line.startswith(f"{macro} ")]
    parse_gin(["configs/recipes/expanse_8b.gin"], kept)
    with pytest.raises(AyaError, match=r"models/\w+") as told:
        expanse()
    assert "check the path" in str(told.value).splitlines()[0]


@pytest.mark.parametrize("file", gin_files("clusters/*.gin"))
def test_clusters_cover_the_languages_and_share_three(file):
    parse_gin([file], [])
    clusters = language_clusters()
    assert {code for languages in clusters.values() for code in languages} == set(LANGUAGES)
    assert len(LANGUAGES) == 23
    for languages in clusters.values():
        assert {"en", "es", "fr"} <= set(languages)
        assert len(set(languages)) == len(languages)
    # But for the shared ones, each language is in exactly one cluster.
    assert sum(len(languages) - 3 for languages in clusters.values()) == 20


@pytest.mark.parametrize("size", PUBLISHED)
def test_model_has_the_published_sizes(size):
    parse_gin([f"configs/models/aya_expanse_{size}.gin"], [])
    config = decoder_config()
    expected = {**SHARED, **PUBLISHED[size]}
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.head_dim == 128
    shapes = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[size]


@pytest.mark.parametrize(
    ("binding", "hint"),
    [
        ("expanse.base_modle = 'x'", "did you mean 'base_model'?"),
        ("ofline_dpo/train.steps = 1", "did you mean 'offline_dpo'?"),
        ("online_dpo/iteration_4/train.steps = 1", "did you mean 'iteration_"),
        ("online_dpo/trian.steps = 1", "did you mean 'train'?"),
        ("device_mesh.fdsp = 2", "did you mean 'fsdp'?"),
    ],
)
def test_a_misspelt_binding_names_the_nearest(binding, hint, own):
    with pytest.raises(AyaError) as told:
        plan("configs/recipes/expanse_8b.gin", [*own, binding])
    assert hint in str(told.value).splitlines()[0]


@pytest.mark.parametrize("size", PUBLISHED)
def test_figures_in_the_comments_of_a_recipe(size, own):
    file = f"configs/recipes/expanse_{size}.gin"
    text = " ".join((ROOT / file).read_text().replace("#", " ").split())
    count = PARAMETERS[size]

    def gigabytes(size_in_bytes: float) -> str:
        return f"{size_in_bytes / 1e9:.1f}"

    assert f"{count:,} parameters" in text
    assert f"parameters {gigabytes(4 * count)} GB" in text
    assert f"moments {gigabytes(8 * count)} GB = {gigabytes(12 * count)} GB" in text
    for n in (8, 64, 256):
        state, both = gigabytes(12 * count / n), gigabytes(16 * count / n)
        assert f"{n} devices {state} GB ({both}" in text
    parse_gin([file], own)
    made = [s for s in expanse().stages if {train, merge_config} & set(s.uses)]
    assert f"{len(made)} model directories, {len(made) * 4 * count / 1e12:.2g} TB" in text


PROGRAM = """
import json, sys
import jax, numpy as np
from aya_jax.models.config import decoder_config
from aya_jax.models.decoder import init_params, logical_axes
from aya_jax.recipe.settings import parse_gin
from aya_jax.sharding.mesh import device_mesh, logical_rules, shardings
import aya_jax.training.loop
import gin

out = {}
for size in ("8b", "32b"):
    gin.clear_config()
    parse_gin([f"configs/models/aya_expanse_{size}.gin", sys.argv[1]], [])
    config, mesh = decoder_config(), device_mesh()
    shapes = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    placed = shardings(logical_axes(config), mesh, logical_rules())
    local = jax.tree.map(lambda x, s: int(np.prod(s.shard_shape(x.shape))), shapes, placed)
    out[size] = sum(jax.tree.leaves(local))
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    out["micro_batch"] = 64 / gin.query_parameter("train.accumulate") / rows
print(json.dumps(out))
"""


@pytest.mark.parametrize("name", DEVICES)
def test_mesh_divides_every_parameter_evenly(name):
    """On as many devices as the machine has; a dimension that does not divide is an error."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES[name]}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"configs/meshes/{name}.gin"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    local = json.loads(done.stdout)
    for size, count in PARAMETERS.items():
        # All but the norms' weights are divided over all devices.
        assert local[size] == pytest.approx(count / DEVICES[name], rel=0.01)
    assert local["micro_batch"] == 1.0


def test_every_mesh_file_is_tested():
    assert {Path(file).stem for file in gin_files("meshes/*.gin")} == set(DEVICES)
