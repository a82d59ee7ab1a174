"""The atlas: an instruction set in 23 languages with verifiable answers, made from Unicode CLDR.

Babel carries CLDR's names of territories, currencies, languages, months and days, and its formats;
nothing is downloaded.
"""

from aya_jax.data.atlas.build import build, poor_completions, text
from aya_jax.data.atlas.checker import Verdict, check
from aya_jax.data.atlas.kinds import KINDS

__all__ = ["KINDS", "Verdict", "build", "check", "poor_completions", "text"]
