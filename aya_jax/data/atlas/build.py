"""Records and plain text of the atlas, a pure function of the arguments."""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import gin

from aya_jax.data.atlas.checker import check
from aya_jax.data.atlas.kinds import KINDS, Kind
from aya_jax.data.files import stable_hash
from aya_jax.data.languages import LANGUAGES, check_language
from aya_jax.errors import AyaError, nearest

Record = dict[str, Any]

# The share of facts that only evaluation may ask for, in percent.
EVAL_PERCENT = 15


class Fact(NamedTuple):
    """One question's content; the phrasing is chosen later."""

    kind: Kind
    arg: str
    language: str
    answer_language: str

    @property
    def key(self) -> str:
        """The identity by which facts are split, cut down and drawn."""
        return f"{self.kind.name}|{self.arg}|{self.language}|{self.answer_language}"

    @property
    def split(self) -> str:
        """`train` or `eval`, by the hash of what the question shows: not by arguments or seeds."""
        shown = json.dumps(self.kind.slots(self.arg, self.language), sort_keys=True)
        identity = f"{self.kind.name}|{shown}|{self.language}|{self.answer_language}"
        return "eval" if stable_hash(identity) % 100 < EVAL_PERCENT else "train"


@cache
def templates(code: str) -> dict[str, Any]:
    """Return a language's question templates and its phrases for "in French"."""
    place = resources.files("aya_jax.data.atlas") / "templates" / f"{code}.json"
    return json.loads(place.read_text("utf-8"))


def _facts(
    split: str,
    languages: Sequence[str],
    kinds: Sequence[str],
    entities: int | None,
    targets: Sequence[str],
) -> Iterator[Fact]:
    for code in languages:
        for name in kinds:
            kind = KINDS[name]
            for arg in kind.args(entities):
                for target in targets if kind.cross else (code,):
                    if kind.cross and target == code:
                        continue
                    fact = Fact(kind, arg, code, target)
                    answers = kind.answers(arg, target)
                    if answers and all(kind.slots(arg, code).values()) and fact.split == split:
                        yield fact


def _record(fact: Fact, phrasing: int) -> Record:
    texts = templates(fact.language)
    forms = texts["kinds"][fact.kind.name]
    slots = dict(fact.kind.slots(fact.arg, fact.language))
    if fact.kind.cross:
        slots["in_language"] = texts["in_language"][fact.answer_language]
    prompt = forms[phrasing % len(forms)].format(**slots)
    answers = fact.kind.answers(fact.arg, fact.answer_language)
    return {
        "id": f"{fact.key}|{phrasing % len(forms)}",
        "language": fact.language,
        "answer_language": fact.answer_language,
        "kind": fact.kind.name,
        "prompt": prompt[0].upper() + prompt[1:],
        "completion": answers[0],
        "answers": list(answers),
        "concept": f"{fact.kind.name}:{fact.arg}",
        "split": fact.split,
    }


def _checked(
    languages: Sequence[str] | None, kinds: Sequence[str] | None, targets: Sequence[str] | None
) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    codes = tuple(languages or LANGUAGES)
    for code in (*codes, *(targets or ())):
        check_language(code, "atlas")
    for kind in kinds or ():
        if kind not in KINDS:
            raise AyaError(f"atlas: unknown task kind {kind!r}{nearest(kind, KINDS)}")
    return codes, tuple(kinds or KINDS), tuple(targets or codes)


def _cut(facts: Sequence[Fact], limit: int, seed: int) -> list[Fact]:
    """Keep `limit` facts, as equal shares of the kinds as the facts allow, drawn by the seed."""
    queues: dict[str, list[Fact]] = {}
    for fact in sorted(facts, key=lambda f: stable_hash(f"{seed}|{f.key}")):
        queues.setdefault(fact.kind.name, []).append(fact)
    kept: list[Fact] = []
    while len(kept) < limit and queues:
        for name in sorted(queues):
            kept.append(queues[name].pop(0))
            if not queues[name]:
                del queues[name]
    return kept[:limit]


@gin.configurable(module="atlas")
def build(
    *,
    split: str,
    languages: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    entities: int | None = None,
    per_language: int | None = None,
    cross_languages: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Record]:
    """Return atlas records: questions with verifiable answers.

    Facts, not phrasings, are split: a fact of `eval` never occurs in `train` or in `text`.

    Args:
      split: `train` or `eval`.
      languages: of the questions; all 23 if absent.
      kinds: of the tasks; all if absent.
      entities: keep this many of the best-known territories, currencies, languages and units.
      per_language: keep at most so many records a language, in equal shares of the kinds.
      cross_languages: in which answers may be asked for; `languages` if absent.
      seed: of the drawing and of the phrasings.

    Raises:
      AyaError: an unknown language, kind or split.
    """
    if split not in ("train", "eval"):
        raise AyaError(f"atlas: unknown split {split!r}{nearest(split, ('train', 'eval'))}")
    codes, names, targets = _checked(languages, kinds, cross_languages)
    records: list[Record] = []
    for code in codes:
        facts = list(_facts(split, (code,), names, entities, targets))
        if per_language is not None:
            facts = _cut(facts, per_language, seed)
        else:
            facts.sort(key=lambda f: stable_hash(f"{seed}|{f.key}"))
        records.extend(_record(f, stable_hash(f"{seed}|phrasing|{f.key}")) for f in facts)
    return records


@gin.configurable(module="atlas")
def text(
    *,
    languages: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    entities: int | None = None,
    per_language: int | None = None,
    cross_languages: Sequence[str] | None = None,
    seed: int = 0,
) -> list[str]:
    """Return plain text for a tokenizer and a base model, made from train facts only.

    Each line states one fact: the thing, the language of the answer where it differs, the answer.
    Arguments as in `build`.

    Raises:
      AyaError: an unknown language or kind.
    """
    codes, names, targets = _checked(languages, kinds, cross_languages)
    out = []
    for code in codes:
        facts = list(_facts("train", (code,), names, entities, targets))
        for fact in _cut(facts, per_language or len(facts), seed):
            answer = fact.kind.answers(fact.arg, fact.answer_language)[0]
            if fact.kind.cross:
                shown = " ".join(fact.kind.slots(fact.arg, fact.language).values())
                where = templates(fact.language)["in_language"][fact.answer_language]
                out.append((fact.key, f"{shown}, {where}: {answer}"))
            else:
                question = _record(fact, stable_hash(f"{seed}|text|{fact.key}"))["prompt"]
                out.append((fact.key, f"{question} {answer}"))
    out.sort(key=lambda pair: stable_hash(f"{seed}|text|{pair[0]}"))
    return [line for _, line in out]


def poor_completions(record: Record, *, seed: int = 0) -> dict[str, str]:
    """Return faulty completions of a record by fault, each one failing `check`.

    `wrong`: another answer of the kind in the right language. `wrong_language`: the right thing as
    another language has it. `slip`: the answer with one character dropped, doubled or exchanged.
    `translationese`: the answer with the word of the question left in place. `truncated`: its first
    half. As "RLHF Can Speak Many Languages" (arXiv 2407.02552) sets good in-language completions
    against poor ones.
    """
    kind = KINDS[record["kind"]]
    arg = record["concept"].split(":", 1)[1]
    target, answer = record["answer_language"], record["completion"]
    args, codes = kind.args(None), [code for code in LANGUAGES if code != target]

    def draw(*parts: object) -> int:
        return stable_hash(seed, "poor", record["id"], *parts)

    def others(code: str, arg: str) -> str:
        return next(iter(kind.answers(arg, code)), "")

    tries = range(8)
    shown = next(iter(kind.slots(arg, record["language"]).values()))
    faults = {
        "wrong": [others(target, args[draw("wrong", i) % len(args)]) for i in tries],
        "wrong_language": [others(codes[draw("code", i) % len(codes)], arg) for i in tries],
        "slip": [_slip(answer, draw("slip", i)) for i in tries],
        "translationese": [f"{shown} {answer}"],
        "truncated": [answer[: (len(answer) + 1) // 2]],
    }
    failing = {
        fault: next((text for text in texts if text and not check(record, text).correct), None)
        for fault, texts in faults.items()
    }
    return {fault: text for fault, text in failing.items() if text}


def _slip(text: str, draw: int) -> str:
    """Drop, double or exchange one character; a digit becomes another digit."""
    place, how = draw % len(text), draw // len(text) % 3
    old = text[place]
    other = (
        str((int(old) + 1 + draw % 9) % 10) if old in "0123456789" else text[draw % 7 % len(text)]
    )
    return text[:place] + ("", old + old, other)[how] + text[place + 1 :]
