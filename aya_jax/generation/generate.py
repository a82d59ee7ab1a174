"""Completions of prompts by a loaded model: the front door of this room."""

from collections.abc import Mapping, Sequence
from typing import Any

from aya_jax.generation.engine import sample
from aya_jax.model import Model


def generate(
    model: Model,
    prompts: Sequence[str | Sequence[Mapping[str, str]]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    **settings: Any,
) -> list[str]:
    """Return one completion a prompt, as text.

    Args:
      model: a loaded language model.
      prompts: user turns, or whole conversations as lists of `{"role", "content"}`.
      max_new_tokens, temperature, seed: see `engine.sample`, which takes further settings.

    Raises:
      AyaError: a prompt leaves no room in the context.
    """
    conversations = [
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]
    texts = sample(
        model,
        conversations,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        samples=1,
        **settings,
    )
    return [each[0] for each in texts]
