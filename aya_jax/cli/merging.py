"""The verbs that merge models, or look before a merge: their arguments."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from aya_jax.errors import AyaError

# What a verb reads its arguments with, and what it was given.
Parser = argparse.ArgumentParser
Args = argparse.Namespace


def merge(parser: Parser) -> Callable[[Args], None]:
    """Add the arguments of `aya merge`; return what calls it with them."""
    parser.add_argument("--models", nargs="+", help="model directories, ours or of Hugging Face")
    parser.add_argument(
        "--config", help="mergekit's YAML file, in place of models and settings; or a gin file"
    )
    parser.add_argument("--base", help="what they were trained from, for ties, dare and the like")
    parser.add_argument(
        "--method", help="linear (default), slerp, ties and others: docs/merging.md"
    )
    parser.add_argument("--weights", nargs="+", type=float, help="one a model; equal if absent")
    parser.add_argument("--density", type=float, help="share of entries that ties and others keep")
    parser.add_argument("--gamma", type=float, help="share of outliers that breadcrumbs leave out")
    parser.add_argument("--epsilon", type=float, help="range of the chances of della")
    parser.add_argument(
        "--lambda", dest="scale", type=float, help="factor of the merged difference from the base"
    )
    parser.add_argument(
        "--normalize", action="store_true", default=None, help="divide by the sum of the weights"
    )
    parser.add_argument("--seed", type=int, help="of what dare and della draw")
    parser.add_argument("--vocabulary", help="where vocabularies differ: base, union or a model")
    parser.add_argument("--dtype", help="of what is written: float32, bfloat16 or float16")
    parser.add_argument("--format", dest="form", help="of what is written: aya or hugging_face")
    parser.add_argument("--adapter", help="a LoRA adapter of PEFT's, to merge into one model")
    parser.add_argument("--out", help="model directory to make")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be merged")
    settings = ("base", "method", "weights", "density", "gamma", "epsilon", "scale", "normalize")

    def call(args: Args) -> None:
        from dataclasses import replace

        from aya_jax.merging.merge import describe, merge, merge_adapter
        from aya_jax.merging.mergekit import read_mergekit
        from aya_jax.merging.settings import merge_config
        from aya_jax.recipe.verbs import read_gin

        def given(*names: str) -> dict[str, Any]:
            return {name: v for name in names if (v := getattr(args, name)) is not None}

        chosen, outer = given(*settings), given("seed", "vocabulary", "dtype", "form")
        if args.out is None and not args.dry_run:
            raise AyaError("--out is missing: the model directory to make")
        if args.adapter is not None:
            if len(args.models or ()) != 1 or chosen or outer or args.config or args.dry_run:
                raise AyaError(
                    "--adapter goes into one model of --models, and with nothing but --out"
                )
            merge_adapter(args.models[0], args.adapter, out=args.out)
            return
        if args.config is not None and not args.config.endswith(".gin"):
            if args.models or chosen:
                raise AyaError(
                    "--config names the models and their settings; give no others beside it"
                )
            config = replace(read_mergekit(args.config), **outer)
            config.check()
        else:
            if args.config is not None:
                read_gin([args.config, *args.gin_file], args.gin_bindings)
            config = merge_config(**given("models"), **chosen, **outer)
        if args.dry_run:
            print(describe(config))
        else:
            merge(config, out=args.out)

    return call


def search_weights(parser: Parser) -> Callable[[Args], None]:
    """Add the arguments of `aya search-weights`; return what calls it with them."""
    parser.add_argument("--models", required=True, nargs="+", help="model directories")
    parser.add_argument("--base", help="what they were trained from, for ties, dare and the like")
    parser.add_argument("--method", help="linear (default), slerp, ties and others")
    parser.add_argument(
        "--search", choices=("grid", "greedy", "cma_es"), default="grid", help="how to search"
    )
    parser.add_argument("--trials", type=int, help="the most merges to try; cma_es needs it")
    parser.add_argument(
        "--vary",
        nargs="+",
        action="append",
        default=[],
        metavar=("SETTING", "VALUE"),
        help="a setting to search as well, and its values: density 0.2 0.5 0.8; may be repeated",
    )
    parser.add_argument(
        "--evaluate",
        choices=("loss", "reward", "wins", "correct"),
        default="loss",
        help="what a merge is measured by",
    )
    parser.add_argument("--records", required=True, help="JSONL file of held-out records")
    parser.add_argument("--reward-model", help="for reward and wins")
    parser.add_argument("--opponent", help="model directory, for wins")
    parser.add_argument("--out", required=True, help="model directory to make of the best merge")

    def call(args: Args) -> None:
        from aya_jax.recipe.search_weights import search_weights_verb

        search_weights_verb(
            args.models,
            base=args.base,
            method=args.method,
            search=args.search,
            limit=args.trials,
            vary={name: _numbers(name, values) for name, *values in args.vary},
            evaluate=args.evaluate,
            records=args.records,
            reward_model=args.reward_model,
            opponent=args.opponent,
            out=args.out,
        )

    return call


def _numbers(name: str, values: Sequence[str]) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, values))
    except ValueError:
        numbers = ()
    if not numbers:
        raise AyaError(f"--vary {name}: give numbers after it, such as --vary density 0.2 0.5 0.8")
    return numbers


def compare(parser: Parser) -> Callable[[Args], None]:
    """Add the arguments of `aya compare`; return what calls it with them."""
    parser.add_argument("--models", required=True, nargs="+", help="model directories")
    parser.add_argument("--base", help="what they were trained from")
    parser.add_argument("--records", help="JSONL file to draw the loss between the models on")
    parser.add_argument("--points", type=int, default=11, help="merges on the way of two models")
    parser.add_argument("--out", required=True, help="folder for comparison.json and .html")

    def call(args: Args) -> None:
        from aya_jax.recipe.compare import compare_verb

        compare_verb(
            args.models, base=args.base, records=args.records, points=args.points, out=args.out
        )

    return call
