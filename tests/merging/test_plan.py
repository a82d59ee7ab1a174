"""What does not fit together is told before anything is written; what a merge needs is known before it."""

import json
from collections import namedtuple

import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.checkpoints.model_directory import params_fingerprint
from aya_jax.data import files
from aya_jax.errors import AyaError
from aya_jax.merging.merge import merge
from aya_jax.merging.methods import Settings
from aya_jax.merging.plan import output_of, plan_of, work_of
from aya_jax.merging.sources import open_source


def one(tiny, place, seed=0, dtype=jnp.float32, **changed):
    config = tiny.config_of("llama", **changed)
    return tiny.make(place, "files", config, tiny.params_of(config, seed, dtype))


def equal(count):
    settings = Settings((1 / count,) * count, density=(0.5,) * count, normalize=True)
    return lambda *_: settings


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rope_theta": 5.0}, "differ in config.json at 'rope_theta': 5.0 against 10000.0"),
        ({"num_hidden_layers": 2}, "differ in config.json at 'num_hidden_layers': 2 against 3"),
        ({"vocab_size": 51}, "'vocab_size': 51 against 50; give a policy for vocabularies"),
    ],
)
def test_models_that_compute_otherwise_are_refused(tiny, tmp_path, changed, told):
    paths = [one(tiny, tmp_path / "one"), one(tiny, tmp_path / "other", **changed)]
    with (
        open_source(paths[0]) as a,
        open_source(paths[1]) as b,
        pytest.raises(AyaError) as error,
    ):
        work_of([a, b], None, method="linear", settings=equal(2))
    assert told in str(error.value)


def test_what_models_are_told_by_may_differ(tiny, tmp_path):
    other = one(tiny, tmp_path / "other", eos_token_id=3, max_position_embeddings=99)
    with open_source(one(tiny, tmp_path / "one")) as a, open_source(other) as b:
        assert work_of([a, b], None, method="linear", settings=equal(2)).config == a.config


def test_a_full_disk_and_a_place_that_is_taken_are_told_first(tiny, tmp_path, monkeypatch):
    models = [one(tiny, tmp_path / "one"), one(tiny, tmp_path / "two", seed=1)]
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(AyaError, match="exists already"):
        merge(models, out=models[0])
    usage = namedtuple("usage", "free")(1 << 20)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    for form in ("aya", "hugging_face"):
        with pytest.raises(AyaError, match=r"the disk is full: 1\.1 MiB are needed and 1\.0 free"):
            merge(models, out=tmp_path / "out", form=form)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_steps_of_a_training_need_its_config(tiny, tmp_path):
    config = tiny.config_of()
    params = [tiny.params_of(config, seed) for seed in range(2)]
    steps = [tiny.make(tmp_path / str(i), "step", config, each) for i, each in enumerate(params)]
    with pytest.raises(AyaError, match=r"step_00000007: has no config\.json; put the model's"):
        merge(steps, out=tmp_path / "out")
    for step in steps:
        tiny.tokenizer_in(step)
        (step / "config.json").write_text(json.dumps(config.to_hf()))
    with open_source(merge(steps, out=tmp_path / "out")) as source:
        mean = (params[0]["embedding"] + params[1]["embedding"]) / 2
        np.testing.assert_allclose(source.read(source.tensors[0]), mean.reshape(-1), rtol=1e-6)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_what_is_read_and_written_is_known(tiny, tmp_path, method):
    models = [one(tiny, tmp_path / str(seed), seed, jnp.bfloat16) for seed in range(3)]
    with open_source(models[0]) as a, open_source(models[1]) as b, open_source(models[2]) as c:
        work = work_of([a, b], c, method=method, settings=equal(2))
        size = sum(leaf.nbytes for leaf in a.leaves.values())
        plan = plan_of(work, output_of(work, tmp_path, dtype=np.float32))
    assert plan.tensors == 30
    # Linear has no use for a base, and reads none.
    assert plan.read == size * {"linear": 2, "ties": 3}[method]
    assert plan.written == 2 * size
    assert plan.disk > plan.written and plan.memory > 0


def test_one_model_is_itself_with_its_negative_zeros(tiny, tmp_path):
    config = tiny.config_of()
    params = tiny.params_of(config, 0)
    params["embedding"] = params["embedding"].copy()
    params["embedding"][0, :4] = [-0.0, 0.0, np.inf, np.float32(1e-40)]
    path = tiny.make(tmp_path / "one", "packed", config, params)
    out = merge([path], out=tmp_path / "out")
    with open_source(out) as source:
        assert source.read(source.tensors[0]).tobytes() == params["embedding"].tobytes()
        assert source.lineage["params_fingerprint"] == params_fingerprint(params)
