"""The names that the atlas takes from CLDR are of the language that it says, whoever asks first."""

import json
import subprocess
import sys

import pytest

NOVEMBER = {
    **{"ar": "نوفمبر", "cs": "listopad", "de": "November", "el": "Νοέμβριος", "en": "November"},
    **{"es": "noviembre", "fa": "نوامبر", "fr": "novembre", "he": "נובמבר", "hi": "नवंबर"},
    **{"id": "November", "it": "novembre", "ja": "11月", "ko": "11월", "nl": "november"},
    **{"pl": "listopad", "pt": "novembro", "ro": "noiembrie", "ru": "ноябрь", "tr": "Kasım"},
    **{"uk": "листопад", "vi": "tháng 11", "zh": "十一月"},
}
SCRIPT = """
import json, sys
from aya_jax.data.atlas.kinds import month
print(json.dumps({code: month("11", code)[0] for code in sys.argv[1:]}))
"""


@pytest.mark.parametrize("first", ["he", "zh"])
def test_months_do_not_depend_on_the_order_of_asking(first):
    """Babel keeps what it finds; see `kinds.locale`. Each order needs a process of its own."""
    order = sorted(NOVEMBER, key=lambda code: (code != first, code))
    command = [sys.executable, "-c", SCRIPT, *order]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    named = {code: name.casefold() for code, name in json.loads(done.stdout).items()}
    assert named == {code: name.casefold() for code, name in NOVEMBER.items()}
