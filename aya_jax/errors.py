"""The one exception whose message is meant for the user, and the helper that words a near miss."""

import difflib
from collections.abc import Iterable


class AyaError(Exception):
    """A mistake in what the user gave us, told in one line: what, where, and what to do.

    The command line prints the message without a traceback and exits with status 1.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known word most like `word`, or a list of what is known."""
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known are: {', '.join(options)}" if options else ""
