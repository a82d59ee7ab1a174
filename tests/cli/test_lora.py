"""The training verbs with LoRA: a whole model, its adapters beside it, and the start as it was."""

import gin
import jax
import numpy as np
import pytest

from aya_jax.checkpoints.adapters import CONFIG, load_adapters
from aya_jax.checkpoints.model_directory import (
    load_config,
    load_lineage,
    load_params,
    params_fingerprint,
)
from aya_jax.model import load
from aya_jax.models.lora import merge
from aya_jax.recipe.jobs import load_start

LORA = ("lora.rank = 2", "lora.alpha = 6.0", "lora.targets = ('q', 'down')", "train.steps = 3")


def bound(*settings):
    return [word for setting in settings for word in ("--gin_bindings", setting)]


def leaves(path):
    flat = jax.tree_util.tree_leaves_with_path(load_params(path))
    return {
        jax.tree_util.keystr(name, simple=True, separator="/"): np.asarray(x) for name, x in flat
    }


def assert_adapted(shelf, out, *, changed):
    """Nothing but `changed` is another, and the adapters merged into the start are the model."""
    before, after = leaves(shelf.model), leaves(out)
    assert {name for name in after if not np.array_equal(after[name], before.get(name))} == changed
    lora, adapters = load_adapters(out / "adapter", shelf.config)
    merged = merge(lora, load_params(shelf.model), adapters)
    assert params_fingerprint(merged) == load_lineage(out)["params_fingerprint"]
    return lora


MATRICES = {"layers/block/q", "layers/block/down"}


@pytest.mark.parametrize("base_dtype", [None, "int8"])
def test_sft(aya, shelf, tmp_path, base_dtype):
    out = tmp_path / "made"
    settings = bound(*LORA, f"lora.base_dtype = {base_dtype!r}")
    status, told, _ = aya(
        "sft", "--model", shelf.model, "--data", shelf.sft, "--out", out, *settings
    )
    assert status == 0 and "loss" in told
    assert_adapted(shelf, out, changed=MATRICES)
    lineage = load_lineage(out)
    assert lineage["method"] == "sft"
    assert lineage["lora"] == {
        "rank": 2,
        "alpha": 6.0,
        "targets": ["q", "down"],
        "use_rslora": False,
        "base_dtype": base_dtype,
    }
    assert not (out / "checkpoints").exists()
    # What it made is a model as any other.
    assert aya("generate", "--model", out, "--prompt", "Hallo")[0] == 0


def test_dpo_and_reward(aya, shelf, tmp_path):
    settings = bound(
        *LORA,
        "lora.base_dtype = 'int8'",
        "merge_checkpoints.last = 2",
        "merge_checkpoints.decay = 0.25",
        "train.checkpoint_every = 2",
    )
    made = {verb: tmp_path / verb for verb in ("dpo", "reward")}
    for verb, out in made.items():
        status, _, error = aya(
            verb, "--model", shelf.model, "--data", shelf.pairs, "--out", out, *settings
        )
        assert status == 0, error
    # The mean of two checkpoints is an adapter of twice the rank.
    assert assert_adapted(shelf, made["dpo"], changed=MATRICES).rank == 4
    lineage = load_lineage(made["dpo"])
    assert (lineage["checkpoints"], lineage["decay"]) == ([2, 3], 0.25)
    assert assert_adapted(shelf, made["reward"], changed={*MATRICES, "score"}).rank == 4
    assert leaves(made["reward"])["score"].any()
    # Trained on, as any reward model.
    again = tmp_path / "again"
    args = ("--model", made["reward"], "--data", shelf.pairs, "--out", again)
    assert aya("reward", *args, *settings)[0] == 0
    changed = leaves(again)["score"] != leaves(made["reward"])["score"]
    assert changed.any()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("lora.rank = -1", "lora.rank is -1; it must be at least 1"),
        ("lora.targets = ['q', 'w']", "unknown matrix 'w'"),
        ("lora.base_dtype = 'int4'", "unknown dtype 'int4'; did you mean 'int8'"),
        ("lora.ranks = 2", "has no parameter 'ranks'; did you mean 'rank'"),
    ],
)
def test_a_wrong_setting_is_told_and_leaves_nothing(aya, shelf, tmp_path, setting, told):
    out = tmp_path / "made"
    args = ("--model", shelf.model, "--data", shelf.sft, "--out", out)
    status, _, error = aya("sft", *args, *bound("lora.rank = 2", setting))
    assert status == 1 and told in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_a_rank_there_is_none(aya, shelf, tmp_path):
    out = tmp_path / "made"
    assert aya("sft", "--model", shelf.model, "--data", shelf.sft, "--out", out)[0] == 0
    assert "lora" not in load_lineage(out) and not (out / "adapter" / CONFIG).exists()


def test_a_base_of_another_dtype_leaves_the_model_in_the_hosts_memory(shelf):
    kinds = {}
    for dtype in ("None", "'int8'"):
        gin.parse_config(["lora.rank = 2", f"lora.base_dtype = {dtype}"])
        params = load_start(shelf.model, reward=False).params
        (kinds[dtype],) = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(params)}
        jax.tree.map(np.testing.assert_array_equal, params, load_params(shelf.model))
    assert kinds == {"None": "device", "'int8'": "pinned_host"}


def test_an_adapter_is_merged_into_its_base(aya, shelf, tmp_path):
    made, again = tmp_path / "made", tmp_path / "again"
    trained = ("--data", shelf.sft, "--out", made, *bound(*LORA))
    assert aya("sft", "--model", shelf.model, *trained)[0] == 0
    merged = ("--models", shelf.model, "--adapter", made / "adapter", "--out", again)
    assert aya("merge", *merged)[0] == 0
    ours, theirs = load_lineage(again), load_lineage(made)
    assert ours["params_fingerprint"] == theirs["params_fingerprint"]
    assert (ours["kind"], ours["method"]) == ("merge", "lora")
    assert ours["parents"] == [{**theirs["parents"][0], "path": "model"}]
    assert load_config(again) == load_config(made)
    assert aya("generate", "--model", again, "--prompt", "Hallo")[0] == 0
    # Nothing is left of a merge that cannot be.
    wrong = {
        ("--adapter", tmp_path, "--models", shelf.model): "is no adapter of PEFT's",
        (
            "--adapter",
            made / "adapter",
            "--models",
            shelf.model,
            shelf.other,
        ): "goes into one model",
        ("--adapter", made / "adapter", "--models", shelf.model, "--density", "0.5"): "nothing but",
    }
    for arguments, told in wrong.items():
        status, _, error = aya("merge", *arguments, "--out", tmp_path / "no")
        assert status == 1 and told in error and not (tmp_path / "no").exists()


def test_an_adapter_with_a_head_makes_a_reward_model(aya, shelf, tmp_path):
    made, again = tmp_path / "made", tmp_path / "again"
    trained = ("--data", shelf.pairs, "--out", made, *bound(*LORA))
    assert aya("reward", "--model", shelf.model, *trained)[0] == 0
    merged = ("--models", shelf.model, "--adapter", made / "adapter", "--out", again)
    assert aya("merge", *merged)[0] == 0
    fingerprints = [load_lineage(place)["params_fingerprint"] for place in (made, again)]
    assert fingerprints[0] == fingerprints[1] and load_config(again) == load_config(made)
    assert load(again).is_reward_model
