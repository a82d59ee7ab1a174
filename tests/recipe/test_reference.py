"""Reference log-probabilities: those of the objective itself, worked out once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.data.examples import padded_pairs, tokenize_all
from aya_jax.errors import AyaError
from aya_jax.model import load
from aya_jax.recipe import reference
from aya_jax.recipe.reference import reference_logprobs
from aya_jax.training.objectives import DPO

COUNT, BATCH = 11, 2


@pytest.fixture(scope="module")
def model(tiny_model):
    return load(tiny_model, reward=False)


@pytest.fixture(scope="module")
def pairs(model):
    rows = [
        {
            "prompt": f"{i}?",
            "chosen": "ja" * (i % 3),
            "rejected": "nein" * (i % 4),
            "language": "de",
        }
        for i in range(COUNT)
    ]
    sides = (
        tokenize_all(rows, model.tokenizer, field=field, max_length=64)
        for field in ("chosen", "rejected")
    )
    (arrays,) = padded_pairs(*sides, multiple=8, max_length=64)
    return arrays


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """Two batches a file; counts the `calls` of the model, one a batch of a side, and ends in `killed_at`."""
    monkeypatch.setattr(reference, "BATCHES_AT_ONCE", 2)
    calls, run = [], reference.Model.run

    def counted(self, *args, **settings):
        calls.append(settings)
        if len(calls) == counted.killed_at:
            raise KeyboardInterrupt
        return run(self, *args, **settings)

    monkeypatch.setattr(reference.Model, "run", counted)
    counted.calls, counted.killed_at = calls, None
    return counted


def worked_out(model, pairs, place, key="data", **settings):
    return reference_logprobs(model, pairs, place, key, batch_size=BATCH, **settings)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("held", [jnp.float32, jnp.bfloat16])
def test_the_policy_is_its_own_reference_at_step_0(model, pairs, tmp_path, dtype, held):
    params = jax.tree.map(lambda leaf: leaf.astype(held), model.params)
    found = worked_out(model._replace(params=params), pairs, tmp_path, dtype=dtype)
    assert {name: (a.dtype, a.shape) for name, a in found.items()} == {
        f"reference_{side}": (np.float32, (COUNT,)) for side in ("chosen", "rejected")
    }
    # Training holds its parameters in float32.
    policy = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    objective = DPO(model.config, beta=0.5, dtype=dtype)
    total = jax.jit(objective)(policy, {**pairs, **found})
    for side in ("chosen", "rejected"):
        summed, count = total.metrics[f"rewards/{side}"]
        # Batches of another size may round the last bit of float32 otherwise.
        np.testing.assert_allclose(summed, 0, atol=1e-5)
        assert count == COUNT
    assert found["reference_chosen"].std() > 1


def test_a_second_attempt_works_nothing_out_again(model, pairs, tmp_path, asked):
    first = worked_out(model, pairs, tmp_path)
    # 11 pairs, 2 a batch, on two sides.
    assert len(asked.calls) == 12
    again = worked_out(model, pairs, tmp_path)
    assert len(asked.calls) == 12
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array)


def test_a_killed_attempt_leaves_what_it_had(model, pairs, tmp_path, asked):
    whole = worked_out(model, pairs, tmp_path / "whole")
    asked.calls.clear()
    asked.killed_at = 6  # in the second of three chunks of 4 calls
    with pytest.raises(KeyboardInterrupt):
        worked_out(model, pairs, tmp_path / "killed")
    asked.calls.clear()
    asked.killed_at = None
    found = worked_out(model, pairs, tmp_path / "killed")
    assert len(asked.calls) == 8
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], array)


def test_what_is_damaged_is_worked_out_again(model, pairs, tmp_path, asked):
    whole = worked_out(model, pairs, tmp_path)
    files = sorted(p for p in (tmp_path / "reference").rglob("*") if p.is_file())
    assert len(files) == 3
    content = files[1].read_bytes()
    for damaged in (b"", content[:-4], content[:40] + bytes([content[40] ^ 1]) + content[41:]):
        files[1].write_bytes(damaged)
        asked.calls.clear()
        found = worked_out(model, pairs, tmp_path)
        assert len(asked.calls) == 4 and files[1].read_bytes() == content
        for name, array in whole.items():
            np.testing.assert_array_equal(found[name], array)


def test_other_data_or_another_model_are_not_mixed_up(model, pairs, tmp_path, asked):
    first = worked_out(model, pairs, tmp_path)
    other = model._replace(
        params=jax.tree.map(lambda leaf: leaf * 1.1, model.params),
        lineage={"params_fingerprint": "another"},
    )
    second = worked_out(other, pairs, tmp_path)
    assert (first["reference_chosen"] != second["reference_chosen"]).all()
    asked.calls.clear()
    worked_out(model, pairs, tmp_path, key="other data")
    worked_out(model, pairs, tmp_path, dtype=jnp.bfloat16)
    assert len(asked.calls) == 24
    np.testing.assert_array_equal(
        worked_out(model, pairs, tmp_path)["reference_chosen"], first["reference_chosen"]
    )
    assert len(asked.calls) == 24


def test_a_full_disk_is_told(model, pairs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(AyaError, match="the disk is full"):
        worked_out(model, pairs, tmp_path)
    assert not [p for p in (tmp_path / "reference").rglob("*") if p.is_file()]
