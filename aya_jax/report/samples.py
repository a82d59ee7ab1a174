"""Sample prompts with every model's answer beside the reference, each in its own direction."""

from collections.abc import Mapping, Sequence
from typing import Any

from aya_jax.report.words import direction, label, language_name, number, readable

Languages = Mapping[str, Mapping[str, str]]


def prompt_text(record: Mapping[str, Any]) -> str:
    """Return a record's prompt: the string, or the messages one below the other."""
    prompt = record.get("prompt", record.get("messages", ""))
    if isinstance(prompt, str):
        return readable(prompt)
    return readable("\n\n".join(f"{m['role']}: {m['content']}" for m in prompt))


def sample(record: Mapping[str, Any], steps: Sequence[str], languages: Languages) -> dict[str, Any]:
    """Return one sample for the template; models off the recipe's path come under `others`."""
    code = str(record.get("language", "und"))
    target = str(record.get("answer_language", code))
    completions = record.get("completions", {})

    def answer(model: str) -> dict[str, Any]:
        made = completions[model]
        marks = []
        if "correct" in made:
            marks.append(("good", "✓ correct") if made["correct"] else ("bad", "✗ wrong"))
        if made.get("right_language") is False:
            marks.append(("bad", "✗ wrong language"))
        elif made.get("right_language") and "correct" not in made:
            marks.append(("good", "✓ right language"))
        rewards = [made[name] for name in ("unused_reward",) if name in made]
        return {
            "label": label(model),
            "text": readable(made["text"]),
            "marks": marks,
            "reward": number(rewards[0]) if rewards else "",
        }

    path = [model for model in steps if model in completions]
    return {
        "kind": str(record.get("kind", "")).replace("_", " "),
        "prompt": prompt_text(record),
        "lang": None if code == "und" else code,
        "dir": direction(code, languages),
        "answer_lang": None if target == "und" else target,
        "answer_dir": direction(target, languages),
        "answer_language": language_name(target, languages) if target != code else "",
        "references": [readable(text) for text in record.get("answers", ())],
        "path": [answer(model) for model in path],
        "others": [answer(model) for model in completions if model not in path],
    }


def by_language(
    records: Sequence[Mapping[str, Any]], steps: Sequence[str], languages: Languages
) -> list[dict[str, Any]]:
    """Return the samples of each language, in the order in which the report has them."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        code = str(record.get("language", "und"))
        groups.setdefault(code, []).append(sample(record, steps, languages))
    return [
        {"code": code, "name": language_name(code, languages), "samples": found}
        for code, found in groups.items()
    ]
