"""The Aya Expanse recipe (arXiv 2412.04261) as an ordered list of stages.

base -> teachers -> reward models -> arbitrage -> SFT a cluster -> merge -> offline DPO a cluster ->
merge -> three times (sample, rank, DPO a cluster, merge) -> evaluation.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import gin

from aya_jax.arbitrage.arbiter import score
from aya_jax.arbitrage.learned_router import learned_routes, train_router
from aya_jax.arbitrage.pairs import best_against_worst
from aya_jax.arbitrage.pool import ask_some
from aya_jax.arbitrage.preferences import preference_pairs
from aya_jax.arbitrage.routers import route
from aya_jax.data import atlas, sources
from aya_jax.data.files import fingerprint_file
from aya_jax.data.languages import LANGUAGES, language_clusters
from aya_jax.data.mixture import mixture
from aya_jax.data.records import read_records
from aya_jax.data.tokenizer import train_tokenizer
from aya_jax.errors import AyaError, nearest
from aya_jax.generation.engine import sample
from aya_jax.merging.settings import merge_config
from aya_jax.model import inference
from aya_jax.models.config import decoder_config
from aya_jax.recipe import job_settings, tasks
from aya_jax.recipe.check import check
from aya_jax.recipe.settings import effective_settings
from aya_jax.recipe.stages import Stage
from aya_jax.training.loop import train
from aya_jax.training.optimizer import optimizer

# The configurables whose settings decide a stage.
RECORDS = (sources.records, atlas.build)
TEXT = (sources.text, atlas.text)
PRETRAINING = (
    train,
    optimizer,
    job_settings.activations,
    job_settings.lengths,
    job_settings.merge_checkpoints,
)
TRAINING = (*PRETRAINING, mixture, job_settings.lora_settings)
PREFERENCE = (*TRAINING, job_settings.dpo_objective)
SAMPLING = (inference, sample, score)

# Which router makes the SFT data of which model.
ROUTED = {
    "arbitrage_sft": "reward",
    "single_teacher": "single",
    "random_routing": "random",
    "fixed_routing": "fixed",
    "learned_routing": "learned",
}
# What is merged by which method, to compare. SLERP is of two models; of more it is their Karcher mean, which of two is
# SLERP.
MERGES = {"slerp": "karcher", "ties": "ties", "dare_ties": "dare_ties"}


@dataclass(frozen=True)
class Recipe:
    """What is to be done, and what the results are called.

    Attributes:
      stages: in the order of their work.
      steps: the models of the recipe's own path, from the base model to the final one.
      opponent: the fixed model that all others are set against.
      left_out: scopes whose settings may be given although no stage of this recipe has them.
    """

    stages: tuple[Stage, ...]
    steps: tuple[str, ...]
    opponent: str
    left_out: tuple[str, ...] = ()

    @property
    def final(self) -> str:
        """The recipe's final model."""
        return self.steps[-1]


class _Plan:
    """A growing list of stages. Every `add_*` returns the name under which its result is read."""

    def __init__(self, own: Mapping[str, str | None], present: bool) -> None:
        self.present = present
        self.outside = {name: Path(path).absolute() for name, path in own.items() if path}
        self.clusters = language_clusters()
        self.stages: list[Stage] = []

    def add(
        self,
        name: str,
        run: Callable[..., dict[str, Any]],
        inputs: Sequence[str] = (),
        *,
        scope: str = "",
        uses: Sequence[Callable[..., Any]] = (),
        required: Sequence[str] = ("prompt",),
        **arguments: Any,
    ) -> str:
        """Add a stage, unless the user brings its result; an input may be the user's as well.

        Args:
          name: of the stage.
          run: see `Stage`; it is also given `arguments`.
          inputs: names of earlier stages or of what the user brings.
          scope, uses: see `Stage`.
          required: fields that the records of its source must have.
          **arguments: for `run`; they are part of the stage's settings.
        """
        if name in self.outside:
            return name
        outside = {i: self.outside[i] for i in inputs if i in self.outside}
        extra = dict(arguments)
        if self.present:
            extra |= {f"{i} (content)": _content(p) for i, p in outside.items()}
        for configurable in (sources.records, sources.text):
            if configurable in uses and self.present:
                bound = effective_settings([configurable], scope)
                source = bound[f"source.{configurable.__name__}.source"]
                fields = required if configurable is sources.records else ()
                extra["source (content)"] = sources.source_fingerprint(source, fields)
        stage = Stage(
            name,
            partial(run, **arguments),
            tuple(i for i in inputs if i not in outside),
            outside,
            scope,
            tuple(uses),
            extra,
        )
        self.stages.append(stage)
        return name

    def add_parts(
        self,
        model: str,
        run: Callable[..., dict[str, Any]],
        *,
        start: str,
        data: str,
        scope: str,
        uses: Sequence[Callable[..., Any]],
    ) -> str:
        """Add one training a cluster, and their merge under the model's name."""
        parts = [
            self.add(
                f"{model}.{cluster}",
                run,
                [start, data],
                scope=f"{scope}/{cluster}",
                uses=uses,
                start=start,
                data=data,
                languages=languages,
            )
            for cluster, languages in self.clusters.items()
        ]
        return self.add_merge(model, parts, start=start, scope=scope)

    def add_merge(
        self, model: str, parts: Sequence[str], *, start: str, scope: str, **settings: Any
    ) -> str:
        """Add a merge of models that were all trained from `start`."""
        inputs = [*parts, start]
        arguments = {"parts": tuple(parts), "start": start, **settings}
        return self.add(
            model, tasks.merge_parts, inputs, scope=scope, uses=(merge_config,), **arguments
        )

    def add_online(self, family: str, start: str, iterations: int) -> list[str]:
        """Add iterations of: sample from the newest model, rank, DPO a cluster, merge."""
        models = []
        for i in range(1, iterations + 1):
            model, scope = f"{family}_{i}", f"online_dpo/iteration_{i}"
            data = self.add(
                f"{model}.samples",
                tasks.online_samples,
                [start, "prompts", "reward"],
                scope=scope,
                uses=(*SAMPLING, best_against_worst),
                start=start,
                max_length=_max_length(f"{scope}/{cluster}" for cluster in self.clusters),
            )
            start = self.add_parts(
                model, tasks.dpo, start=start, data=data, scope=scope, uses=PREFERENCE
            )
            models.append(start)
        return models

    def add_diagnosis(self, model: str, *, start: str) -> None:
        """Add a look at the models of the clusters, trained from `start`, that a model is the merge of."""
        parts = tuple(f"{model}.{cluster}" for cluster in self.clusters)
        self.add(f"diagnosis.{model}", tasks.diagnosis, [*parts, start], parts=parts, start=start)

    def add_check(self, asked: Sequence[str], pool: Sequence[str], **lengths: Any) -> None:
        """Add the check of all that is asked; of models, it reads those that the user brings."""
        models = ("base", "reward", "judge", *(f"teacher.{name}" for name in pool))
        given = [name for name in models if name in self.outside]
        reader, positions = "base", None
        if "base" not in self.outside:
            reader, settings = "tokenizer", effective_settings([decoder_config], "base")
            positions = settings["decoder_config.max_position_embeddings"]
        self.add(
            "check",
            check,
            list(dict.fromkeys([*asked, reader, *given])),
            reader=reader,
            pool=tuple(pool),
            clusters=self.clusters,
            positions=positions,
            **lengths,
        )

    def add_evaluation(self, model: str) -> None:
        """Add the evaluation of one model."""
        self.add(
            f"evaluate.{model}",
            tasks.evaluate,
            [model, "evaluation_prompts", "reward", "judge"],
            scope="evaluation",
            uses=SAMPLING,
            model=model,
        )


@gin.configurable(denylist=["present"])
def expanse(
    *,
    base_model: str | None = None,
    reward_model: str | None = None,
    judge_model: str | None = None,
    teachers: Mapping[str, Sequence[str]] | None = None,
    teacher_files: Mapping[str, str] | None = None,
    iterations: int = 3,
    opponent: str = "single_teacher",
    baselines: Sequence[str] = ("single_teacher", "random_routing"),
    merges: Sequence[str] = (),
    mixed: bool = False,
    unmerged: bool = False,
    preference: bool = True,
    online_only: bool = False,
    diagnosis: bool = False,
    present: bool = True,
) -> Recipe:
    """Return the recipe.

    Args:
      base_model: a model directory to start from; if absent a tokenizer and a small base model are
        trained (scopes `tokenizer` and `base`).
      reward_model, judge_model: directories of reward models; trained if absent (scopes `reward`
        and `judge`, the judge on other prompts).
      teachers: name to languages of the specialists that are trained (scope `teachers/NAME`); no
        language means all of them.
      teacher_files: name to a model directory, or to a JSONL file of recorded completions.
      iterations: of online DPO.
      opponent: the model that all others are set against in pairwise win rates.
      baselines: models to compare with, from `single_teacher`, `random_routing`, `fixed_routing`
        and `learned_routing`.
      merges: other merge methods to compare on the SFT models of the clusters, from `slerp` (of more than
        two models their Karcher mean), `ties` and `dare_ties`.
      mixed: whether to compare with one model trained on all clusters' data together.
      unmerged: whether to compare with the SFT models of the clusters, each in all languages.
      preference: whether there is any DPO; without it the merge of the SFT models is the final one.
      online_only: whether to compare with online DPO straight from the SFT model.
      diagnosis: whether to look, for each step of the recipe, at how far the models of its clusters are from
        each other.
      present: whether the user's models and records are here; if not, none is read, and the stages can
        be looked at but not run.

    Raises:
      AyaError: an unknown baseline, merge method or opponent, no teacher at all, or a path of the
        user's that does not exist.
    """
    for given, known in ((baselines, ROUTED), (merges, MERGES)):
        for name in given:
            if name not in known:
                raise AyaError(f"expanse: unknown name {name!r}{nearest(name, known)}")
    trained, files = dict(teachers or {}), dict(teacher_files or {})
    if not trained and not files:
        raise AyaError("expanse: there is no teacher; set expanse.teachers or .teacher_files")
    for name in trained.keys() & files.keys():
        raise AyaError(f"expanse: {name!r} is in teachers and in teacher_files; rename one")
    for path in files.values():
        if present and Path(path).is_file():
            read_records(path, required=("prompt", "completion"))
    own = {"base": base_model, "reward": reward_model, "judge": judge_model}
    plan = _Plan({**own, **{f"teacher.{name}": path for name, path in files.items()}}, present)

    pool = tuple(dict.fromkeys([*trained, *files]))
    members = [f"teacher.{name}" for name in pool]

    # All that is asked comes first: what is wrong with it is told before a model is trained.
    if not base_model:
        plan.add("tokenizer", tasks.tokenizer, scope="tokenizer", uses=(*TEXT, train_tokenizer))
    asked = ["prompts", "evaluation_prompts"]
    if not (reward_model and judge_model):
        asked.append("reward_prompts")
    for name in asked:
        plan.add(name, tasks.own_records, scope=name, uses=RECORDS)
    left_out: tuple[str, ...] = ()
    if not preference:
        online = (f"online_dpo/iteration_{i}" for i in range(1, iterations + 1))
        left_out, iterations, online_only = ("offline_dpo", *online), 0, False
    tuned = ("sft", "offline_dpo") if preference else ("sft",)
    learnt = [f"{stage}/{cluster}" for stage in tuned for cluster in plan.clusters]
    max_length = _max_length([*learnt, *(["mixed"] if mixed else [])])
    max_pair_length = _max_length(["reward", "judge"])
    iterated = [f"online_dpo/iteration_{i}" for i in range(1, iterations + 1)]
    plan.add_check(
        asked,
        pool,
        answer=max(map(_max_new_tokens, ["arbitrage", *iterated])),
        evaluated=_max_new_tokens("evaluation"),
        max_length=_max_length([*learnt, *(f"{i}/{c}" for i in iterated for c in plan.clusters)]),
        max_pair_length=max_pair_length,
    )
    uses: tuple[Callable[..., Any], ...] = (
        *TEXT,
        *PRETRAINING,
        decoder_config,
        job_settings.new_model,
    )
    plan.add("base", tasks.base, ["tokenizer"], scope="base", uses=uses)
    for name, languages in trained.items():
        plan.add(
            f"teacher.{name}",
            tasks.teacher,
            ["base"],
            scope=f"teachers/{name}",
            uses=(*RECORDS, *TRAINING),
            required=("prompt", "completion"),
            languages=tuple(languages or LANGUAGES),
        )
    if "reward_prompts" in asked:
        plan.add(
            "reward_answers",
            tasks.reward_answers,
            ["reward_prompts", "base", *members],
            scope="arbitrage",
            uses=(*SAMPLING, ask_some),
            teachers=pool,
            max_length=max_pair_length,
        )
    uses = (preference_pairs, *TRAINING, job_settings.reward_objective, inference, score)
    for half, name in enumerate(("reward", "judge")):
        inputs = ["base", "reward_answers"]
        plan.add(name, tasks.reward, inputs, scope=name, uses=uses, half=half)
    plan.add(
        "candidates",
        tasks.candidates,
        ["prompts", "base", "reward", *members],
        scope="arbitrage",
        uses=SAMPLING,
        teachers=pool,
        max_length=max_length,
    )

    for model in dict.fromkeys([*baselines, "arbitrage_sft"]):
        router = ROUTED[model]
        data = plan.add(
            f"route.{router}",
            tasks.route_candidates,
            ["candidates"],
            scope="arbitrage",
            uses=(route, learned_routes, train_router),
            router=router,
        )
        plan.add_parts(model, tasks.sft, start="base", data=data, scope="sft", uses=TRAINING)
    compared = list(baselines)
    parts = [f"arbitrage_sft.{cluster}" for cluster in plan.clusters]
    if unmerged:
        compared.extend(parts)
    for method in merges:
        name, by = f"{method}_merge", MERGES[method]
        compared.append(plan.add_merge(name, parts, start="base", scope="sft", method=by))
    if mixed:
        compared.append(
            plan.add(
                "mixed_sft",
                tasks.sft,
                ["base", "route.reward"],
                scope="mixed",
                uses=TRAINING,
                start="base",
                data="route.reward",
                languages=tuple(LANGUAGES),
            )
        )
    steps = ["base", "arbitrage_sft"]
    if preference:
        plan.add(
            "pairs", tasks.pairs, ["candidates"], scope="offline_dpo", uses=(best_against_worst,)
        )
        offline = plan.add_parts(
            "offline_dpo",
            tasks.dpo,
            start="arbitrage_sft",
            data="pairs",
            scope="offline_dpo",
            uses=PREFERENCE,
        )
        steps += [offline, *plan.add_online("online_dpo", offline, iterations)]
    if online_only:
        compared.extend(plan.add_online("online_only", "arbitrage_sft", iterations))
    if diagnosis:
        for before, model in pairwise(steps):
            plan.add_diagnosis(model, start=before)
    evaluated = [steps[0], *compared, *steps[1:]]
    if opponent not in evaluated:
        raise AyaError(f"expanse: unknown opponent {opponent!r}{nearest(opponent, evaluated)}")
    for model in evaluated:
        plan.add_evaluation(model)
    return Recipe(tuple(plan.stages), tuple(steps), opponent, left_out)


def _max_length(scopes: Iterable[str]) -> int:
    """Return the longest example, in tokens, that the trainings under all of these scopes take."""
    return min(effective_settings([job_settings.lengths], s)["lengths.max_length"] for s in scopes)


def _max_new_tokens(scope: str) -> int:
    return effective_settings([sample], scope)["sample.max_new_tokens"]


def _content(path: Path) -> str:
    """Return what tells one state of a user's file or model directory from another."""
    if path.is_file():
        return fingerprint_file(path)
    if (path / "lineage.json").is_file():
        return fingerprint_file(path / "lineage.json")
    raise AyaError(f"{path}: is neither a file nor a model directory; check the path")
