"""How long the stages took: every stage, and the phases of the recipe together."""

from collections.abc import Mapping, Sequence
from typing import Any

from aya_jax.report.words import duration, label, number


def phase_of(stage: str) -> str:
    """Return which phase of the recipe a stage belongs to, by its name."""
    head = stage.partition(".")[0]
    if stage.endswith(".samples"):
        return "Sampling for online DPO"
    if head in ("tokenizer", "base"):
        return "Tokenizer and base model"
    if head == "teacher":
        return "Teachers"
    if head in ("reward", "judge", "reward_prompts", "reward_answers"):
        return "Reward models"
    if head in ("candidates", "route", "prompts", "pairs", "evaluation_prompts"):
        return "Arbitrage"
    if head == "evaluate":
        return "Evaluation"
    if head.startswith(("offline_dpo", "online_dpo", "online_only")):
        return "Preference training"
    return "Fine-tuning and merging"


def _shown(value: Any) -> str | None:
    """Return a stage's figure in a few characters; figures by language are elsewhere on the page."""
    if isinstance(value, Mapping):
        overall = value.get("overall")
        return None if overall is None else f"{100 * overall['value']:.1f}%"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else number(value, 3)


def table(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the phases and the stages with their seconds and shares, for the template."""
    if not stages:
        return None
    total = sum(stage["seconds"] for stage in stages)
    phases: dict[str, float] = {}
    for stage in stages:
        phase = phase_of(stage["name"])
        phases[phase] = phases.get(phase, 0.0) + stage["seconds"]
    return {
        "total": duration(total),
        "count": len(stages),
        "phases": [
            {"label": name, "time": duration(s), "share": s / total if total else 0.0}
            for name, s in phases.items()
        ],
        "stages": [
            {
                "label": label(stage["name"]),
                "time": duration(stage["seconds"]),
                "share": stage["seconds"] / total if total else 0.0,
                "figures": ", ".join(
                    f"{name.replace('_', ' ')} {shown}"
                    for name, value in sorted(stage.get("figures", {}).items())
                    if (shown := _shown(value)) is not None
                ),
            }
            for stage in stages
        ],
    }
