"""Which programs the stages of a recipe run on the accelerators, and how often."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gin
import jax.numpy as jnp

from aya_jax.arbitrage.arbiter import reward_rows, score
from aya_jax.data import atlas, sources
from aya_jax.data.languages import LANGUAGES
from aya_jax.data.records import read_records
from aya_jax.generation.engine import sample
from aya_jax.model import inference, load_model_config
from aya_jax.models.architecture import ModelConfig, require_decoder
from aya_jax.models.config import decoder_config
from aya_jax.models.t5_config import T5Config
from aya_jax.planning.programs import Reading, Sampling, Training, Work
from aya_jax.recipe import job_settings, tasks
from aya_jax.recipe.reference import logprob_rows, sequence_logprobs
from aya_jax.recipe.settings import effective_settings
from aya_jax.recipe.stages import Stage
from aya_jax.sharding.place import Place
from aya_jax.training.loop import train
from aya_jax.training.objectives import SFT
from aya_jax.training.optimizer import optimizer

ROWS = ("tokens", "positions", "segment_ids")
REFERENCE_ROWS: int = (sequence_logprobs.__kwdefaults__ or {})["batch_size"]


@dataclass(frozen=True)
class Count:
    """A number of something, where it can be told before the run.

    Attributes:
      number: None where nothing tells it.
      basis: what tells it: `settings`, `records` (the files that are there), or `at most` where only a
        limit is known.
    """

    number: int | None
    basis: str

    def times(self, factor: float) -> "Count":
        """Return so many times that number, rounded up."""
        return Count(None if self.number is None else math.ceil(self.number * factor), self.basis)


UNKNOWN = Count(None, "unknown")


@dataclass(frozen=True)
class Part:
    """A program of a stage, and what the stage puts through it.

    Attributes:
      name: `training`, `reference`, `sampling`, `scoring`; where there are several, with what tells them
        apart after it.
      work: the program.
      items: examples, pairs, prompts or answers, each as often as it is taken; None where `steps` says
        how often the program runs.
      steps: see `items`.
    """

    name: str
    work: Work
    items: Count = UNKNOWN
    steps: int | None = None

    @property
    def infers(self) -> bool:
        """Whether it runs on the mesh of inference."""
        return self.name.startswith(("sampling", "scoring"))

    def runs(self, place: Place) -> Count:
        """Return how often the program runs on a place, whose rows may be filled up."""
        if self.steps is not None:
            return Count(self.steps, "settings")
        return self.items.times(1 / self.work.rows_of_a_run(place))


class Works:
    """The programs of a recipe's stages, from the gin configuration that is read."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = {stage.name: stage for stage in stages}
        self.outside = {name: path for stage in stages for name, path in stage.outside.items()}
        self.assumed: set[str] = set()

    def config(self, name: str) -> ModelConfig:
        """Return the sizes of a model: of the file where it is there, else those that gin has."""
        path = self.outside.get(name)
        if path is not None and path.is_dir():
            return load_model_config(path)
        if path is not None:
            self.assumed.add(name)
        with in_scope("base"):
            return decoder_config()

    def of(self, stage: Stage) -> list[Part]:
        """Return what a stage runs, none where it uses no accelerator."""
        with in_scope(stage.scope):
            run: Any = stage.run
            return list(self._parts(stage, run.func, run.keywords))

    def _parts(self, stage: Stage, task: Any, given: Mapping[str, Any]) -> Iterator[Part]:
        base = self.config("base")
        if task is tasks.base:
            yield self._training(stage, base, UNKNOWN)
        elif task in (tasks.sft, tasks.teacher):
            yield self._training(stage, base, self._examples(stage, given))
        elif task is tasks.dpo:
            if settings_of(job_settings.dpo_objective, stage.scope)["reference"] == "precomputed":
                yield self._reference(base, self._examples(stage, given))
            yield self._training(stage, base, self._examples(stage, given))
        elif task is tasks.reward:
            yield self._training(stage, base, UNKNOWN)
        elif task in (tasks.candidates, tasks.reward_answers):
            asked = "prompts" if task is tasks.candidates else "reward_prompts"
            yield from self._asked(given["teachers"], self._records(asked))
            if task is tasks.candidates:
                teachers = len(given["teachers"])
                yield self._scoring("reward", self._records(asked).times(teachers))
        elif task is tasks.online_samples:
            answers = self._records("prompts").times(_setting(sample, "samples"))
            yield self._sampling(base, answers)
            yield self._scoring("reward", answers)
        elif task is tasks.evaluate:
            prompts = self._records("evaluation_prompts")
            yield self._sampling(base, prompts)
            for judge in ("reward", "judge"):
                yield self._scoring(judge, prompts, f"scoring.{judge}")

    def _asked(self, teachers: Sequence[str], prompts: Count) -> Iterator[Part]:
        """Yield the sampling of each kind of teacher; recorded answers are only read."""
        kinds: Counter[ModelConfig] = Counter()
        for name in teachers:
            path = self.outside.get(f"teacher.{name}")
            if path is None or path.is_dir() or not path.suffix:
                kinds[self.config(f"teacher.{name}")] += 1
        for number, (config, count) in enumerate(kinds.items()):
            name = "sampling" if not number else f"sampling.{number + 1}"
            yield self._sampling(config, prompts.times(count), name)

    def _training(self, stage: Stage, config: ModelConfig, examples: Count) -> Part:
        settings = settings_of(train, stage.scope)
        rows, steps = settings["batch_size"], settings["steps"]
        limit, multiple = job_settings.lengths()
        length, inputs = min(limit, config.max_position_embeddings), 0
        run: Any = stage.run
        if run.func is tasks.dpo:
            objective: Any = job_settings.dpo_objective(require_decoder(config, "DPO"))
            length = min(-(-length // multiple) * multiple, length)
        elif run.func is tasks.reward:
            objective = job_settings.reward_objective(require_decoder(config, "a reward model"))
        else:
            objective = SFT(config, **job_settings.activations())
            inputs = length if isinstance(config, T5Config) else 0
        accumulate = settings["accumulate"]
        lora = None if run.func is tasks.base else job_settings.lora_settings()
        work = Training(objective, optimizer(), rows, length, accumulate, lora, inputs)
        return Part("training", work, examples.times(settings["epochs"]), steps)

    def _reference(self, config: ModelConfig, pairs: Count) -> Part:
        known = require_decoder(config, "DPO")
        length = min(job_settings.lengths()[0], known.max_position_embeddings)
        dtype = jnp.dtype(job_settings.activations()["dtype"]).name
        columns = (*ROWS, "mask")
        work = Reading(
            logprob_rows, known, REFERENCE_ROWS, length, columns, False, activations=dtype
        )
        return Part("reference", work, pairs.times(2))

    def _sampling(self, config: ModelConfig, answers: Count, name: str = "sampling") -> Part:
        rows, new = _setting(sample, "batch_size"), _setting(sample, "max_new_tokens")
        multiple = _setting(sample, "prompt_multiple")
        # The longest prompt that leaves room for its answer, in examples that are learnt.
        room = min(self._longest(), config.max_position_embeddings) - new
        prompt = max(room // multiple, 1) * multiple
        work = Sampling(
            config,
            rows,
            prompt,
            new,
            _setting(sample, "temperature") == 0,
            _setting(sample, "top_k"),
            _setting(sample, "top_p"),
            inference() or "float32",
        )
        return Part(name, work, answers)

    def _scoring(self, judge: str, answers: Count, name: str = "scoring") -> Part:
        config = require_decoder(self.config(judge), "an arbiter")
        rows = _setting(score, "batch_size")
        length = min(self._longest(), config.max_position_embeddings)
        dtype = inference() or "float32"
        work = Reading(reward_rows, config, rows, length, ROWS, True, dtype)
        return Part(name, work, answers)

    def _longest(self) -> int:
        """Return the longest example that any stage learns, in tokens."""
        return max(
            settings_of(job_settings.lengths, stage.scope)["max_length"]
            for stage in self.stages.values()
        )

    def _records(self, name: str, languages: Sequence[str] | None = None) -> Count:
        """Return how many records a stage of prompts has, in some languages or in all."""
        stage = self.stages.get(name)
        return UNKNOWN if stage is None else record_count(stage.scope, languages)

    def _examples(self, stage: Stage, given: Mapping[str, Any]) -> Count:
        run: Any = stage.run
        if run.func is tasks.teacher:
            return record_count(stage.scope, given["languages"])
        found = self._records("prompts", given["languages"])
        # Packing makes fewer rows of them, and prompts whose answers are equal make no pair.
        return Count(found.number, "unknown" if found.number is None else "at most")


@contextmanager
def in_scope(scope: str) -> Iterator[None]:
    """Enter a gin scope from the outermost one, wherever this is called: gin's own would be nested."""
    with gin.config_scope(None), gin.config_scope(scope or None):
        yield


def settings_of(configurable: Callable[..., Any], scope: str) -> dict[str, Any]:
    """Return what a configurable gets in a scope, by the parameter's name alone."""
    with in_scope(""):
        found = effective_settings([configurable], scope)
    return {name.rpartition(".")[2]: value for name, value in found.items()}


def _setting(configurable: Callable[..., Any], name: str) -> Any:
    """Return what a configurable gets in the scope that is entered."""
    return settings_of(configurable, gin.current_scope_str())[name]


def record_count(scope: str, languages: Sequence[str] | None) -> Count:
    """Return how many records the source of a scope has, or the most that there can be.

    Args:
      scope: of the source.
      languages: only those of these, None for all.
    """
    bound = settings_of(sources.records, scope)
    source, limit = bound["source"], bound["limit_per_language"]
    codes = bound["languages"] or list(LANGUAGES)
    codes = [code for code in codes if languages is None or code in languages]
    if source == "atlas":
        each = settings_of(atlas.build, scope)["per_language"]
        each = min((n for n in (each, limit) if n is not None), default=None)
        return UNKNOWN if each is None else Count(each * len(codes), "settings")
    if Path(source).is_file():
        found = _by_language(source)
        return Count(sum(min(found[code], limit or found[code]) for code in codes), "records")
    return UNKNOWN if limit is None else Count(limit * len(codes), "at most")


@cache
def _by_language(source: str) -> Counter[str]:
    return Counter(str(row.get("language", "und")) for row in read_records(source))
