"""What a merge would do, in words."""

from dataclasses import fields
from typing import Any

from aya_jax.merging.methods import METHODS, Settings
from aya_jax.merging.plan import Plan
from aya_jax.merging.settings import MergeConfig
from aya_jax.merging.stored import Work
from aya_jax.merging.vocabulary import Vocabulary

GIB = 1 << 30


def told(config: MergeConfig, work: Work, vocabulary: Vocabulary, plan: Plan) -> str:
    """Return what a merge would do, a line each; settings that not all tensors share are listed by them.

    Args:
      config: what is asked for.
      work: what is merged.
      vocabulary: of the merged model.
      plan: what it needs.
    """
    lines = [f"{config.method} of {len(work.sources)} models, {plan.tensors} tensors"]
    groups: dict[Settings, list[str]] = {}
    for name, settings in work.settings.items():
        groups.setdefault(settings, []).append(name)
    shared = next(iter(groups)) if len(groups) == 1 else None
    for i, source in enumerate(work.sources):
        lines.append(
            f"  {source.path}{'' if shared is None else '  ' + _of_model(config, shared, i)}"
        )
    if work.base is not None:
        lines.append(f"  from {work.base.path}")
    if shared is not None:
        lines += [f"  {line}" for line in _shared(config, shared)]
    for settings, names in groups.items() if shared is None else ():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        each = "; ".join(_of_model(config, settings, i) for i in range(len(work.sources)))
        lines.append(f"  {names[0]}{more}: {', '.join([each, *_shared(config, settings)])}")
    if vocabulary.rows is not None:
        assert work.config is not None
        lines.append(f"vocabulary: {config.vocabulary}, {work.config.vocab_size} rows")
    lines.append(
        f"reads {plan.read / GIB:.2f} GiB, writes {plan.written / GIB:.2f} GiB, holds at most "
        f"{plan.memory / GIB:.2f} GiB at a time, needs {plan.disk / GIB:.2f} GiB of disk"
    )
    return "\n".join(lines)


def _of_model(config: MergeConfig, settings: Settings, model: int) -> str:
    """Return the settings of one model."""
    told = {"weight": settings.weights[model]}
    for name in ("density", "gamma", "epsilon"):
        if name in METHODS[config.method].options:
            told[name] = getattr(settings, name)[model]
    return ", ".join(f"{name} {value:.4g}" for name, value in told.items())


def _shared(config: MergeConfig, settings: Settings) -> list[str]:
    """Return the settings of the merge that are not their defaults."""
    names = METHODS[config.method].options - {"density", "gamma", "epsilon"}
    defaults: dict[str, Any] = {each.name: each.default for each in fields(Settings)}
    defaults["normalize"] = METHODS[config.method].normalize
    values = {name: getattr(settings, name) for name in sorted(names)}
    return [f"{name} {value}" for name, value in values.items() if value != defaults[name]]
