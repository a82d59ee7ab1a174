"""The learned router: which teacher answers a prompt best, told from the prompt alone.

As "Multilingual Arbitrage" (arXiv 2408.14960) trains it: by KL to the distribution over teachers
that the rewards make, so that of new prompts only the chosen teacher needs to be asked. The paper's
router is a language model; ours is a linear softmax over the prompt's language and its hashed
character n-grams, and the settings are our own.
"""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax

from aya_jax.data.records import Record
from aya_jax.errors import AyaError


@dataclass(frozen=True)
class Reader:
    """What a router sees of a prompt: a column for each language, and hashed n-grams.

    Attributes:
      languages: those of the training prompts; any other has no column.
      buckets: columns that the n-grams are hashed into (the hashing trick, arXiv 0902.2206).
      max_ngram: n-grams have 1 to so many characters.
      max_characters: no more of a prompt is read.
    """

    languages: tuple[str, ...]
    buckets: int
    max_ngram: int
    max_characters: int

    def features(self, records: Sequence[Record]) -> np.ndarray:
        """Return float32 [R, L + buckets]; the n-grams of a prompt have length one together."""
        first = len(self.languages)
        rows = np.zeros((len(records), first + self.buckets), np.float32)
        for row, record in zip(rows, records, strict=True):
            row[:first] = [str(record.get("language")) == code for code in self.languages]
            text = f" {record['prompt'][: self.max_characters].casefold()} "
            columns = {
                first + zlib.crc32(text[i : i + n].encode()) % self.buckets
                for n in range(1, self.max_ngram + 1)
                for i in range(len(text) - n + 1)
            }
            row[list(columns)] = len(columns) ** -0.5
        return rows


@dataclass(frozen=True)
class Router:
    """A trained router: what it reads, the teachers it knows, and its weights [features, T]."""

    reader: Reader
    teachers: tuple[str, ...]
    weights: np.ndarray

    def choose(self, records: Sequence[Record]) -> list[str]:
        """Return the likeliest best teacher for each prompt; candidates are not looked at."""
        logits = self.reader.features(records) @ self.weights
        return [self.teachers[i] for i in logits.argmax(-1)]


def reward_distribution(
    rewards: jax.Array | np.ndarray, answered: jax.Array | np.ndarray, *, temperature: float
) -> jax.Array:
    """Return float32 [R, T]: the softmax of each prompt's rewards over the teachers that answered.

    Args:
      rewards: float32 [R, T].
      answered: bool [R, T]; each row has a True.
      temperature: rewards are divided by it.
    """
    return jax.nn.softmax(jnp.asarray(rewards) / temperature, axis=-1, where=jnp.asarray(answered))


def kl_to_rewards(logits: jax.Array, target: jax.Array, answered: jax.Array) -> jax.Array:
    """Return float32 [R]: KL(target || softmax(logits)) over the teachers that answered.

    Args:
      logits, target: float32 [R, T].
      answered: bool [R, T]; `target` is zero elsewhere.
    """
    logp = jax.nn.log_softmax(logits, axis=-1, where=answered)
    logp = jnp.where(answered, logp, 0.0)
    return (jax.scipy.special.xlogy(target, target) - target * logp).sum(-1)


@partial(jax.jit, static_argnames="steps")
def _fit(
    rows: jax.Array,
    target: jax.Array,
    answered: jax.Array,
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float,
) -> jax.Array:
    optimizer = optax.adam(learning_rate)

    def loss(weights: jax.Array) -> jax.Array:
        kl = kl_to_rewards(rows @ weights, target, answered)
        return (kl.sum() + weight_decay / 2 * (weights**2).sum()) / len(rows)

    def step(state: tuple, _: None) -> tuple[tuple, None]:
        weights, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(weights), moments)
        return (optax.apply_updates(weights, updates), moments), None

    # The loss is convex: from zero, nothing is left to chance.
    weights = jnp.zeros((rows.shape[1], target.shape[1]), jnp.float32)
    (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), length=steps)
    return weights


@gin.configurable(denylist=["records"])
def train_router(
    records: Sequence[Record],
    *,
    temperature: float = 1.0,
    steps: int = 100,
    learning_rate: float = 0.05,
    weight_decay: float = 1.0,
    buckets: int = 2048,
    max_ngram: int = 3,
    max_characters: int = 512,
) -> Router:
    """Return a router trained on prompts that several teachers have answered.

    Args:
      records: with `candidates`; of several by one teacher the first counts.
      temperature: of the softmax that makes rewards a distribution over teachers.
      steps, learning_rate: of Adam, on all prompts at once.
      weight_decay: half of it times the squared norm of the weights is added to the summed KL.
      buckets, max_ngram, max_characters: see `Reader`.
    """
    teachers = tuple(sorted({str(c["model"]) for r in records for c in r["candidates"]}))
    rewards = np.zeros((len(records), len(teachers)), np.float32)
    answered = np.zeros(rewards.shape, bool)
    for i, record in enumerate(records):
        for candidate in reversed(record["candidates"]):
            j = teachers.index(str(candidate["model"]))
            rewards[i, j], answered[i, j] = candidate["reward"], True
    languages = tuple(sorted({str(record.get("language")) for record in records}))
    reader = Reader(languages, buckets, max_ngram, max_characters)
    weights = _fit(
        jnp.asarray(reader.features(records)),
        reward_distribution(rewards, answered, temperature=temperature),
        jnp.asarray(answered),
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
    return Router(reader, teachers, np.asarray(weights))


def assign_folds(records: Sequence[Record], *, folds: int, seed: int) -> np.ndarray:
    """Return int [R]: parts of equal size, drawn by (seed, language, prompt).

    Records of one and the same prompt are in one fold.

    Raises:
      AyaError: fewer different prompts than folds, or fewer than two folds.
    """
    asked = [f"{seed}\0fold\0{r.get('language')}\0{r['prompt']}" for r in records]
    keys = [hashlib.sha256(text.encode()).digest() for text in asked]
    rank = {key: i for i, key in enumerate(sorted(set(keys)))}
    if not 2 <= folds <= len(rank):
        raise AyaError(
            f"learned_routes: {len(rank)} different prompts cannot be split into {folds} folds; "
            "give more prompts, or set learned_routes.folds from 2 to their number"
        )
    return np.array([rank[key] % folds for key in keys])


@gin.configurable(denylist=["records", "seed"])
def learned_routes(records: Sequence[Record], *, folds: int = 2, seed: int = 0) -> list[str]:
    """Return the teacher that a learned router chooses for each prompt, answered by it or not.

    Each fold is routed by a router trained on the others (cross-fitting), so a prompt's own rewards
    have no say in its route.

    Args:
      records: with `candidates`.
      folds: with 2, each half of the prompts is routed by what the other half taught.
      seed: of the folds.

    Raises:
      AyaError: fewer different prompts than folds, or fewer than two folds.
    """
    fold = assign_folds(records, folds=folds, seed=seed)
    chosen: dict[int, str] = {}
    for held_out in range(folds):
        router = train_router([r for r, k in zip(records, fold, strict=True) if k != held_out])
        members = np.flatnonzero(fold == held_out).tolist()
        chosen.update(zip(members, router.choose([records[i] for i in members]), strict=True))
    return [chosen[i] for i in range(len(records))]
