"""Records from a TFDS data set are checked as those of a file are."""

import numpy as np
import pytest

from aya_jax.data import sources
from aya_jax.errors import AyaError


@pytest.fixture
def tfds(monkeypatch):
    """Serve rows as `tfds.data_source` does: texts as bytes, numbers as NumPy scalars."""
    import tensorflow_datasets

    def serve(*rows):
        monkeypatch.setattr(tensorflow_datasets, "data_source", lambda *_, **__: list(rows))

    return serve


def test_rows_become_records(tfds):
    tfds(
        {"prompt": "Dzień?".encode(), "language": b"pl", "score": np.float32(0.5)},
        {"prompt": b"Giorno?", "language": b"it", "score": np.float32(1.0)},
    )
    assert sources.records(source="tfds:mine", languages=["pl"]) == [
        {"prompt": "Dzień?", "language": "pl", "score": 0.5}
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": b"Giorno?", "language": b"it"}, "field 'prompt' is missing"),
        ({"prompt": b"Giorno?", "language": b"ita"}, "unknown language 'ita'"),
        ({"prompt": np.int64(3)}, "field 'prompt' must be a string"),
    ],
)
def test_a_row_that_is_no_record_is_told(tfds, row, words):
    tfds({"prompt": b"Giorno?", "language": b"it"}, row)
    with pytest.raises(AyaError, match=f"tfds:mine: record 1: {words}"):
        sources.records(source="tfds:mine")
