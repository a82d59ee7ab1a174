"""How the page names things and writes numbers: the same way everywhere."""

from collections.abc import Mapping
from typing import Any

Figure = Mapping[str, Any]

# Metrics in the order in which they are shown: what they are called and what they mean.
METRICS = {
    "win_rate": ("win rate", "share of prompts on which the unused judge prefers it, ties half"),
    "checker_win_rate": ("checker win rate", "correct against not correct, ties half"),
    "correct": ("correct", "share of answers that the checker accepts"),
    "right_language": ("right language", "share of answers in the language that was asked for"),
    "unused_reward": ("unused reward", "mean reward of the judge that training never saw"),
    "reward": ("training reward", "mean reward of the reward model that training used"),
}
REWARDS = ("unused_reward", "reward")
WIN_RATES = ("win_rate", "checker_win_rate")
ROUTERS = {
    "reward": "by reward (arbitrage)",
    "learned": "learned router",
    "fixed": "fixed router",
    "random": "random",
    "single": "single teacher",
}
_CAPITALS = {"sft": "SFT", "dpo": "DPO", "slerp": "SLERP", "ties": "TIES", "dare": "DARE"}
MINUS = "\u2212"


def label(name: str) -> str:
    """Return a model's, stage's or cluster's name as people write it: `online_dpo_1`, online DPO 1."""
    words = name.replace(".", " · ").split("_")
    text = " ".join(" ".join(_CAPITALS.get(w, w) for w in word.split(" ")) for word in words)
    return text.replace("DARE TIES", "DARE-TIES")


def language_name(code: str, languages: Mapping[str, Mapping[str, str]]) -> str:
    """Return the English name of a language; a variant is named with its code."""
    if code in languages:
        return languages[code]["name"]
    base = code.split("-")[0]
    if base in languages:
        return f"{languages[base]['name']} ({code})"
    return "no language given" if code == "und" else code


def direction(code: str, languages: Mapping[str, Mapping[str, str]]) -> str:
    """Return `rtl` or `ltr`, or `auto` where the language is not known."""
    return languages.get(code.split("-")[0], {}).get("direction", "auto")


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """Return a number with a true minus sign, and with a plus if asked."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0.0:
        return text
    return (MINUS if value < 0 else "+" if sign else "") + text


def percent(value: float) -> str:
    """Return a share as `63.4%`."""
    return f"{100 * value:.1f}%"


def value_of(metric: str, figure: Figure) -> str:
    """Return a figure's value alone."""
    return number(figure["value"]) if metric in REWARDS else percent(figure["value"])


def interval_of(metric: str, figure: Figure) -> str:
    """Return a figure's 95% interval in brackets, in the unit of its value."""
    low, high = figure["low"], figure["high"]
    if metric in REWARDS:
        return f"[{number(low)}, {number(high)}]"
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def figure_text(metric: str, figure: Figure) -> str:
    """Return value and interval."""
    return f"{value_of(metric, figure)} {interval_of(metric, figure)}"


def difference_text(metric: str, figure: Figure) -> str:
    """Return a difference with its interval: in percentage points, but for rewards."""
    scale, digits = (1.0, 2) if metric in REWARDS else (100.0, 1)
    value, low, high = (
        number(scale * figure[key], digits, sign=True) for key in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def excludes(figure: Figure, value: float) -> bool:
    """Whether a figure's interval lies wholly on one side of a value."""
    return figure["low"] > value or figure["high"] < value


def duration(seconds: float) -> str:
    """Return a time as people say it: `8.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def readable(text: object) -> str:
    """Return any text so that a page can show it: control characters become their pictures.

    A small model may write any byte; a lone surrogate could not be encoded at all.
    """
    whole = str(text).encode("utf-8", "replace").decode("utf-8")
    return "".join(
        chr(0x2400 + ord(ch))
        if ord(ch) < 32 and ch not in "\n\t"
        else "\ufffd"
        if 0x7F <= ord(ch) < 0xA0 or ord(ch) & 0xFFFE == 0xFFFE
        else ch
        for ch in whole
    )
