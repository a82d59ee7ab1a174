"""Models are read in parts as they are read whole, from every form that they have on the disk."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.checkpoints import slices
from aya_jax.errors import AyaError
from aya_jax.merging.sources import open_source


@pytest.fixture(scope="module", params=["cohere", "llama", "mixtral"])
def kind(request):
    return request.param


@pytest.fixture(params=["packed", "files", "hugging_face", "step"])
def made(request, tiny, kind, tmp_path, monkeypatch):
    """A model's folder, its configuration and its parameters."""
    monkeypatch.setattr(slices, "CHUNK", 600)
    config = tiny.config_of(kind)
    params = tiny.params_of(config, 0, jnp.bfloat16)
    return tiny.make(tmp_path / "model", request.param, config, params), config, params


def test_any_part_of_any_tensor_is_what_the_parameters_have(made):
    path, config, params = made
    rng = np.random.default_rng(0)
    with open_source(path, config) as source:
        assert {leaf.dtype for leaf in source.leaves.values()} == {np.dtype(jnp.bfloat16)}
        for tensor in source.tensors:
            leaf = params
            for key in tensor.leaf:
                leaf = leaf[key]
            assert source.leaves[tensor.leaf].shape == leaf.shape
            flat = leaf[tensor.index].reshape(-1)
            whole = source.read(tensor)
            assert whole.tobytes() == flat.tobytes()
            for _ in range(3):
                start, stop = sorted(rng.integers(0, flat.size + 1, 2).tolist())
                part = source.read(tensor, start, stop)
                assert part.tobytes() == flat[start:stop].tobytes()
                room = np.empty(2 * flat.size + 1, np.uint8)
                part = source.read(tensor, start, stop, room=room)
                assert part.tobytes() == flat[start:stop].tobytes()
            if source.is_turned(tensor):
                filed = source.read(tensor.as_filed(), 1, flat.size)
                turned = tensor.from_leaf(leaf[tensor.index]).reshape(-1)
                assert filed.tobytes() == turned[1:].tobytes()


def test_rows_are_taken_by_their_numbers(made):
    path, config, params = made
    rows = np.array([3, 4, 5, -1, 0, 49, 7, 7, -1])
    with open_source(path, config) as source:
        (embedding,) = (t for t in source.tensors if t.leaf == ("embedding",))
        found = source.read_rows(embedding, rows)
    expected = np.where(rows[:, None] < 0, 0, params["embedding"][rows])
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected.astype(found.dtype))


def damaged(path, file):
    content = bytearray((path / file).read_bytes())
    content[len(content) // 2] ^= 1
    (path / file).write_bytes(content)


def test_a_damaged_file_is_named_when_it_is_read(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "CHUNK", 600)
    config = tiny.config_of()
    path = tiny.make(tmp_path / "model", "files", config, tiny.params_of(config, 0))
    damaged(path, "params/layers.block.gate/1.2.0")
    with open_source(path) as source:
        rows = 600 // (4 * 40)
        row, gates = 40, [t for t in source.tensors if t.leaf == ("layers", "block", "gate")]
        source.read(gates[1], 0, 2 * rows * row)
        source.read(gates[0])
        # Whole, a part of it, and what reaches into it.
        for start, stop in ((2, 3), (2.5, 2.6), (0, 2.1)):
            with pytest.raises(AyaError, match=r"gate/1\.2\.0: is damaged; restore the checkpoint"):
                source.read(gates[1], int(start * rows * row), int(stop * rows * row))
    (path / "params/layers.block.gate/1.2.0").unlink()
    with pytest.raises(AyaError, match=r"gate/1\.2\.0: is missing; restore the checkpoint"):
        open_source(path)


def test_a_damaged_packed_file_is_named_before_anything_is_read(tiny, tmp_path):
    config = tiny.config_of()
    path = tiny.make(tmp_path / "model", "packed", config, tiny.params_of(config, 0))
    data = max((path / "params").rglob("d/*"), key=lambda file: file.stat().st_size)
    damaged(path, data.relative_to(path))
    with pytest.raises(AyaError, match="is damaged; restore the checkpoint"):
        open_source(path)


def test_what_is_no_model_is_told(tiny, tmp_path):
    config = tiny.config_of()
    path = tiny.make(tmp_path / "model", "packed", config, tiny.params_of(config, 0))
    with pytest.raises(AyaError, match="no such model directory"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(AyaError, match=r"'embedding' is \(50, 24\) there, and \(50, 48\) by"):
        open_source(path, tiny.config_of(hidden_size=48))
    (tmp_path / "empty").mkdir()
    with pytest.raises(AyaError, match="holds no whole checkpoint"):
        open_source(tmp_path / "empty")
    shutil.rmtree(path / "params")
    with pytest.raises(AyaError, match="is missing"):
        open_source(path)
