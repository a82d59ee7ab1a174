"""What reward models learn from."""

import pytest

from aya_jax.arbitrage.preferences import preference_pairs
from aya_jax.errors import AyaError


def test_a_prompt_alone_teaches_nothing_and_is_told():
    good = {"prompt": "Giorno?", "language": "it", "completion": "lunedì"}
    with pytest.raises(AyaError, match="'Mese\\?': a reward model learns from"):
        preference_pairs([good, {"prompt": "Mese?", "language": "it"}])
