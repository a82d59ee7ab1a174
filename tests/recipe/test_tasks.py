"""What a stage does with what the stages before it left."""

import io

import jax
import numpy as np

from aya_jax.data.records import write_records
from aya_jax.model import load
from aya_jax.progress import Terminal
from aya_jax.recipe import tasks
from aya_jax.recipe.stages import Context


def context(tmp_path, **inputs):
    directory = tmp_path / "stage"
    directory.mkdir()
    line = Terminal(io.StringIO()).stage("offline_dpo.western", 1, 1)
    return Context("offline_dpo.western", directory, inputs, line, tmp_path / "events")


def test_without_a_pair_the_model_stays_as_it_is(tmp_path, tiny_model):
    (tmp_path / "pairs").mkdir()
    write_records(tmp_path / "pairs" / "records.jsonl", [])
    stage = context(tmp_path, model=tiny_model, pairs=tmp_path / "pairs")
    assert tasks.dpo(stage, start="model", data="pairs", languages=("de",)) == {"pairs": 0}
    made, start = load(stage.directory), load(tiny_model)
    jax.tree.map(np.testing.assert_array_equal, made.params, start.params)
    assert made.lineage["parents"][0]["fingerprint"] == start.lineage["params_fingerprint"]
