"""A batch without a loss is written out for a user to look at, with its texts and records."""

import json

import numpy as np
import pytest


@pytest.mark.parametrize(("verb", "data"), [("sft", "sft"), ("dpo", "pairs")])
def test_the_texts_of_a_bad_batch_are_told_with_their_records(aya, shelf, tmp_path, verb, data):
    out = tmp_path / "out"
    words = ("--model", shelf.model, "--data", getattr(shelf, data), "--out", out)
    # So large a step leaves no numbers for the second.
    rate = ("--gin_bindings", "train.learning_rate = 1e38", "--gin_bindings", "train.warmup = 0.0")
    status, _, told = aya(verb, *words, *rate)
    assert status == 1, told
    place = tmp_path / "out.partial" / "incidents" / "step_00000002.npz"
    assert f"at step 2; lower train.learning_rate, look at the batch in {place}" in told
    with np.load(place) as batch:
        rows = batch["rows"].tolist()
    lines = [json.loads(line) for line in place.with_suffix(".jsonl").read_text().splitlines()]
    assert {line["row"] for line in lines} == set(rows)
    by_id = {record["id"]: record for record in shelf.records}
    for line in lines:
        assert line["ids"]
        field = "language" if line["array"] == "rejected_tokens" else "completion"
        for record in (by_id[each] for each in line["ids"]):
            assert line["text"].endswith(record[field])
