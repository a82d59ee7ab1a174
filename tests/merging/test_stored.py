"""The merge on the disk has the bits of the merge in memory, however it is cut, stored and interrupted."""

import jax.numpy as jnp
import numpy as np
import pytest

from aya_jax.checkpoints import slices
from aya_jax.checkpoints.model_directory import load_lineage, params_fingerprint
from aya_jax.merging import outputs, reader, stored, writer
from aya_jax.merging.merge import merge
from aya_jax.merging.methods import METHODS, Settings, ranks
from aya_jax.merging.sources import open_source
from aya_jax.merging.trees import merge_trees
from aya_jax.models.architecture import hf_tensors

METHOD = ["linear", "slerp", "ties", "breadcrumbs", "della"]


MIXED, THEIRS = ("packed", "files", "hugging_face", "packed"), ("hugging_face",) * 4


@pytest.fixture(
    scope="module",
    params=[(jnp.float32, MIXED), (jnp.bfloat16, MIXED), (jnp.bfloat16, THEIRS)],
    ids=["float32", "bfloat16", "bfloat16 of Hugging Face"],
)
def kept(request, tiny, tmp_path_factory):
    """Three models and their base, and where they are on the disk: in forms of their own, or all in one."""
    place = tmp_path_factory.mktemp("models")
    dtype, forms = request.param
    # Of square matrices the shape does not tell which way round they are.
    config = tiny.config_of("cohere", intermediate_size=24 if forms == THEIRS else 40)
    trees = [tiny.params_of(config, seed, dtype) for seed in range(4)]
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
    monkeypatch.setattr(stored, "HELD", 6000)
    monkeypatch.setattr(stored, "AT_ONCE", 64)
    monkeypatch.setattr(reader, "AHEAD", 5000)
    monkeypatch.setattr(outputs, "CHUNK", 700)
    monkeypatch.setattr(outputs, "WHOLE", 2000)
    for name, size in (("PIECE", 50), ("RUNS", 20), ("RUN", 5)):
        monkeypatch.setattr(ranks, name, size)
    monkeypatch.setattr(writer, "SEALED", 2000)


@pytest.mark.parametrize("method", METHOD)
@pytest.mark.parametrize("form", ["aya", "hugging_face"])
def test_the_bits_are_those_of_the_merge_in_memory(kept, tmp_path, small, method, form):
    config, trees, paths = kept
    count = METHODS[method].models[1] or 3
    weights = [0.5, 0.3, 0.2] if count == 3 else [0.6, 0.4]
    of_models = {"density": 0.4, "gamma": 0.05, "epsilon": 0.1}
    settings = Settings(
        tuple(weights),
        normalize=METHODS[method].normalize,
        **{name: (value,) * count for name, value in of_models.items()},
    )
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
        seed=3,
        form=form,
        **{name: value for name, value in of_models.items() if name in METHODS[method].options},
    )
    assert load_lineage(out)["params_fingerprint"] == params_fingerprint(expected)
    with open_source(out) as written:
        for tensor in written.tensors:
            leaf = expected
            for key in tensor.leaf:
                leaf = leaf[key]
            entries = np.asarray(leaf[tensor.index])
            assert written.read(tensor).tobytes() == entries.tobytes(), tensor.name
    assert not [path.name for path in out.iterdir() if "journal" in path.name]
