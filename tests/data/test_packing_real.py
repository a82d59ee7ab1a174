"""Packing on real multilingual data is nearly without padding."""

from pathlib import Path

import pytest

from aya_jax.data.examples import best_fit
from aya_jax.data.records import read_records

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason="the multilingual data pack is not in ../shared/data")
@pytest.mark.parametrize("length", [1024, 2048, 8192])
def test_rows_of_real_data_are_nearly_full(length):
    records = []
    for name in ("instruct", "teacher_pool"):
        records += read_records(DATA / f"{name}.jsonl.gz", required=("prompt", "completion"))
    # A token of a large multilingual vocabulary is some three bytes long.
    sizes = [(len((r["prompt"] + r["completion"]).encode()) + 8) // 3 for r in records]
    fitting = [size for size in sizes if size <= length]
    assert len(fitting) > 20_000
    assert sum(fitting) / (len(best_fit(fitting, length)) * length) >= 0.97
