"""The verbs of the recipe's jobs: their arguments."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from aya_jax.errors import AyaError

# What a verb reads its arguments with, and what it was given.
Parser = argparse.ArgumentParser
Args = argparse.Namespace


def run(parser: Parser) -> Callable[[Args], None]:
    """Add the arguments of `aya run`; return what calls it with them."""
    parser.add_argument("config", nargs="?", help="the recipe's gin file")
    parser.add_argument(
        "--run_dir", help="where the run lives; runs/NAME of the gin file if absent"
    )

    def call(args: Args) -> None:
        from aya_jax.progress import Terminal
        from aya_jax.recipe.run import run_recipe

        files = [*([args.config] if args.config else []), *args.gin_file]
        if not files:
            raise AyaError("run: name a recipe, for example configs/recipes/tiny.gin")
        run_dir = args.run_dir or Path("runs", Path(files[0]).stem)
        run_recipe(files, args.gin_bindings, run_dir=run_dir, terminal=Terminal())

    return call


def plan(parser: Parser) -> Callable[[Args], None]:
    """Add the arguments of `aya plan`; return what calls it with them."""
    parser.add_argument(
        "config", help="the recipe's gin file; its models and data need not be here"
    )
    parser.add_argument(
        "--topology", required=True, help="chips to compile for, such as v5e:8x8 or gpu:8xh100"
    )
    parser.add_argument("--json", help="JSON file of the plan to write")
    parser.add_argument("--html", help="page of the plan to write")
    parser.add_argument(
        "--search", action="store_true", help="look for the best mesh even if all fits as it is"
    )
    parser.add_argument(
        "--exact", action="store_true", help="compile as for a run, in three times the time"
    )
    parser.add_argument("--price", type=float, help="US dollars an hour for one chip")

    def call(args: Args) -> None:
        from aya_jax.progress import Terminal
        from aya_jax.recipe.plan import plan_recipe

        plan_recipe(
            [args.config, *args.gin_file],
            args.gin_bindings,
            topology=args.topology,
            terminal=Terminal(),
            json_file=args.json,
            html_file=args.html,
            search=args.search,
            exact=args.exact,
            price=args.price,
        )

    return call


def training(verb: str, data: str) -> Callable[[Parser], Callable[[Args], None]]:
    """Return what adds the arguments of a verb that trains."""

    def add(parser: Parser) -> Callable[[Args], None]:
        parser.add_argument("--model", required=True, help="model directory to start from")
        parser.add_argument("--data", required=True, help=data)
        parser.add_argument("--out", required=True, help="model directory to make")
        if verb == "dpo":
            parser.add_argument("--reference", help="reference model; --model itself if absent")

        def call(args: Args) -> None:
            from aya_jax.recipe import verbs

            verbs.train_verb(
                verb, args.model, args.data, args.out, getattr(args, "reference", None)
            )

        return call

    return add


def generate(parser: Parser) -> Callable[[Args], None]:
    """Add the arguments of `aya generate`; return what calls it with them."""
    parser.add_argument("--model", required=True, help="model directory")
    parser.add_argument("--data", help="JSONL file of prompts")
    parser.add_argument("--prompt", help="one prompt, answered on the terminal")
    parser.add_argument("--out", help="JSONL file to write")

    def call(args: Args) -> None:
        from aya_jax.recipe import verbs

        verbs.generate_verb(args.model, data=args.data, prompt=args.prompt, out=args.out)

    return call


def arbitrate(parser: Parser) -> Callable[[Args], None]:
    """Add the arguments of `aya arbitrate`; return what calls it with them."""
    parser.add_argument("--data", required=True, help="JSONL file of prompts")
    parser.add_argument(
        "--teachers", required=True, nargs="+", help="model directories or JSONL files of answers"
    )
    parser.add_argument("--reward", required=True, help="reward model directory")
    parser.add_argument("--out", required=True, help="folder for candidates, sft and pairs (JSONL)")

    def call(args: Args) -> None:
        from aya_jax.recipe import verbs

        verbs.arbitrate_verb(args.data, args.teachers, args.reward, args.out)

    return call


def evaluate(parser: Parser) -> Callable[[Args], None]:
    """Add the arguments of `aya evaluate`; return what calls it with them."""
    parser.add_argument("--model", required=True, help="model directory")
    parser.add_argument("--data", required=True, help="JSONL file of held-out prompts")
    parser.add_argument("--judge", required=True, help="reward model that decides wins")
    parser.add_argument("--opponent", help="model directory to compare with")
    parser.add_argument("--out", required=True, help="JSON file of figures to write")

    def call(args: Args) -> None:
        from aya_jax.recipe import verbs

        verbs.evaluate_verb(args.model, args.data, args.judge, args.opponent, args.out)

    return call


def convert(parser: Parser) -> Callable[[Args], None]:
    """Add the arguments of `aya convert`; return what calls it with them."""
    parser.add_argument("direction", choices=("hf-to-aya", "aya-to-hf"), help="from what to what")
    parser.add_argument("source", help="Hugging Face directory, or model directory")
    parser.add_argument("out", help="directory to make")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the weights; as they are if absent"
    )

    def call(args: Args) -> None:
        from aya_jax.recipe import verbs

        verbs.convert_verb(args.direction, args.source, args.out, args.dtype)

    return call


def report(parser: Parser) -> Callable[[Args], None]:
    """Add the arguments of `aya report`; return what calls it with them."""
    parser.add_argument("run_dir", help="the directory of a finished run")

    def call(args: Args) -> None:
        from aya_jax.recipe import verbs

        verbs.report_verb(args.run_dir)

    return call


def chat(parser: Parser) -> Callable[[Args], None]:
    """Add the arguments of `aya chat`; return what calls it with them."""
    parser.add_argument("--model", required=True, help="model directory")

    def call(args: Args) -> None:
        from aya_jax.recipe import verbs

        verbs.chat_verb(args.model, sys.stdin, sys.stdout)

    return call
