"""The merge on the disk has the bits of the merge in memory, however it is cut, stored and interrupted."""

import jax.numpy as jnp
import pytest

from aya_jax.checkpoints import slices
from aya_jax.checkpoints.model_directory import load_lineage, load_params, params_fingerprint
from aya_jax.checkpoints.store import leaf_checksums
from aya_jax.merging import reader, stored, writer
from aya_jax.merging.merge import merge
from aya_jax.merging.methods import METHODS, Settings
from aya_jax.merging.trees import merge_trees
from aya_jax.models.architecture import hf_tensors

METHOD = ["linear", "slerp", "ties"]


@pytest.fixture(scope="module", params=[jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def kept(request, tiny, tmp_path_factory):
    """Three models and their base, and where they are on the disk: each in a form of its own."""
    place = tmp_path_factory.mktemp("models")
    config = tiny.config_of("cohere")
    trees = [tiny.params_of(config, seed, request.param) for seed in range(4)]
    forms = ("packed", "files", "hugging_face", "packed")
    paths = [
        tiny.make(place / str(i), form, config, tree)
        for i, (form, tree) in enumerate(zip(forms, trees, strict=True))
    ]
    return config, trees, paths


@pytest.fixture
def small(monkeypatch):
    """Parts of a few rows, most of them read again for a second look."""
    monkeypatch.setattr(slices, "CHUNK", 700)
    monkeypatch.setattr(stored, "PART", 3000)
    monkeypatch.setattr(stored, "TURNED", 6000)
    monkeypatch.setattr(stored, "AT_ONCE", 64)
    monkeypatch.setattr(reader, "AHEAD", 5000)
    monkeypatch.setattr(writer, "SEALED", 2000)


@pytest.mark.parametrize("method", METHOD)
@pytest.mark.parametrize("form", ["aya", "hugging_face"])
def test_the_bits_are_those_of_the_merge_in_memory(kept, tmp_path, small, method, form):
    config, trees, paths = kept
    count = METHODS[method].models[1] or 3
    weights = [0.5, 0.3, 0.2] if count == 3 else [0.6, 0.4]
    settings = Settings(tuple(weights), density=(0.4,) * count, normalize=METHODS[method].normalize)
    base = trees[3] if METHODS[method].needs_base else None
    expected = merge_trees(
        trees[:count], settings, method=method, base=base, seed=3, tensors=hf_tensors(config)
    )
    out = merge(
        paths[:count],
        base=paths[3],
        out=tmp_path / "merged",
        method=method,
        weights=weights,
        density=0.4,
        seed=3,
        form=form,
    )
    assert load_lineage(out)["params_fingerprint"] == params_fingerprint(expected)
    if form == "aya":
        assert leaf_checksums(load_params(out)) == leaf_checksums(expected)
    assert not [path.name for path in out.iterdir() if "journal" in path.name]
