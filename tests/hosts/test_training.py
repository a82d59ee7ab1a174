"""`aya sft` and `aya dpo` end in the same losses and parameters whatever processes and mesh."""

import json

import jax
import numpy as np
import pytest

from aya_jax.checkpoints.model_directory import load_params
from aya_jax.data.records import write_records
from aya_jax.metrics import read_history

DAYS = ("Montag", "martes", "mercredi", "Donnerstag", "viernes", "samedi")
VERBS = ("sft", "dpo")


@pytest.fixture(scope="module")
def train(hosts, tiny_model, tmp_path_factory):
    """Train on meshes in real processes; return the folder that has a model of each verb and mesh."""
    place = tmp_path_factory.mktemp("records")
    others = (*DAYS[1:], *DAYS[:1])
    records = [
        {"prompt": day, "completion": other} for day, other in zip(DAYS, others, strict=True)
    ]
    pairs = [
        {"prompt": day, "chosen": other, "rejected": day}
        for day, other in zip(DAYS, others, strict=True)
    ]
    files = [
        write_records(place / "records.jsonl", records),
        write_records(place / "pairs.jsonl", pairs),
    ]

    def trained(count, devices, meshes):
        out = tmp_path_factory.mktemp("trained")
        command = ["tests/hosts/training.py", tiny_model, *files, out, json.dumps(meshes)]
        ended = hosts.run(command, count=count, devices=devices)
        assert [each.status for each in ended] == [0] * count, [e.err[-3000:] for e in ended]
        return out

    return trained


@pytest.fixture(scope="module")
def alone(train):
    """What one process with one device makes."""
    return train(1, 1, [{}])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices", "mesh"),
    [(2, 4, {"fsdp": 2, "tensor": 2}), (4, 4, {"data": 2, "fsdp": 2})],
)
def test_losses_and_parameters_are_those_of_one_process(train, alone, count, devices, mesh):
    made = train(count, devices, [mesh])
    for verb in VERBS:
        ours, theirs = made / f"{verb}_0", alone / f"{verb}_0"
        histories = [read_history(each)["loss"] for each in (ours, theirs)]
        assert len(histories[0]) == 4
        np.testing.assert_allclose(*histories, rtol=0, atol=1e-5)
        params = [jax.tree.leaves(load_params(each)) for each in (ours, theirs)]
        for a, b in zip(*params, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
