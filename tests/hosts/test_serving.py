"""Sampling, scoring and log-probabilities are the same whatever mesh and processes they run on."""

import json

import numpy as np
import pytest

ONE = {"fsdp": 1}
FOUR = [{"fsdp": 2, "tensor": 2}]
EIGHT = [{"data": 2, "fsdp": 2, "sequence": 2}]


@pytest.fixture(scope="module")
def serve(hosts, tiny_model, tiny_reward_model, tmp_path_factory):
    """Serve on meshes in real processes; return what each process got, by mesh."""

    def results(count, devices, meshes):
        out = tmp_path_factory.mktemp("served") / "out.json"
        command = ["tests/hosts/serving.py", tiny_model, tiny_reward_model, out, json.dumps(meshes)]
        ended = hosts.run(command, count=count, devices=devices)
        assert [each.status for each in ended] == [0] * count, [e.err[-3000:] for e in ended]
        return json.loads(out.read_text())

    return results


@pytest.fixture(scope="module")
def alone(serve):
    """What one device gives."""
    return serve(1, 1, [ONE])[0][0]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices", "meshes"), [(2, 4, FOUR), (1, 8, EIGHT)])
def test_every_process_and_mesh_gives_what_one_device_does(serve, alone, count, devices, meshes):
    for mesh, processes in zip(meshes, serve(count, devices, meshes), strict=True):
        for result in processes:
            assert result["texts"] == alone["texts"], mesh
            for name in ("logprobs", "rewards"):
                np.testing.assert_allclose(result[name], alone[name], rtol=0, atol=1e-5)
            # No process holds a whole model but where the mesh says so.
            if mesh.get("fsdp", 1) * mesh.get("tensor", 1) == devices:
                assert max(result["held"]) == 1 / count
