"""The `aya` command: one verb a job, no logic of its own."""

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from aya_jax.errors import AyaError, nearest

Args = argparse.Namespace

DESCRIPTION = "Multilingual post-training in JAX: the Aya Expanse recipe, one verb a job."


class Parser(argparse.ArgumentParser):
    """Tells a mistake in the arguments in one line, with the nearest verb or flag."""

    def error(self, message: str) -> NoReturn:
        verb = re.match(r"argument VERB: invalid choice: '([^']*)'", message)
        if verb:
            message = f"unknown verb '{verb[1]}'{nearest(verb[1], VERBS)}"
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def unknown(self, argument: str) -> NoReturn:
        """End because of an argument that the verb does not have."""
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        hint = nearest(argument.split("=")[0], flags) if argument.startswith("-") else ""
        self.error(f"unknown argument '{argument}'{hint}")


def _run(parser: Parser) -> Callable[[Args], None]:
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


def _plan(parser: Parser) -> Callable[[Args], None]:
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


def _training(verb: str, data: str) -> Callable[[Parser], Callable[[Args], None]]:
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


def _generate(parser: Parser) -> Callable[[Args], None]:
    parser.add_argument("--model", required=True, help="model directory")
    parser.add_argument("--data", help="JSONL file of prompts")
    parser.add_argument("--prompt", help="one prompt, answered on the terminal")
    parser.add_argument("--out", help="JSONL file to write")

    def call(args: Args) -> None:
        from aya_jax.recipe import verbs

        verbs.generate_verb(args.model, data=args.data, prompt=args.prompt, out=args.out)

    return call


def _arbitrate(parser: Parser) -> Callable[[Args], None]:
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


def _merge(parser: Parser) -> Callable[[Args], None]:
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
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--format", dest="form", choices=("aya", "hugging_face"))
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


def _search_weights(parser: Parser) -> Callable[[Args], None]:
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


def _compare(parser: Parser) -> Callable[[Args], None]:
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


def _evaluate(parser: Parser) -> Callable[[Args], None]:
    parser.add_argument("--model", required=True, help="model directory")
    parser.add_argument("--data", required=True, help="JSONL file of held-out prompts")
    parser.add_argument("--judge", required=True, help="reward model that decides wins")
    parser.add_argument("--opponent", help="model directory to compare with")
    parser.add_argument("--out", required=True, help="JSON file of figures to write")

    def call(args: Args) -> None:
        from aya_jax.recipe import verbs

        verbs.evaluate_verb(args.model, args.data, args.judge, args.opponent, args.out)

    return call


def _convert(parser: Parser) -> Callable[[Args], None]:
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


def _report(parser: Parser) -> Callable[[Args], None]:
    parser.add_argument("run_dir", help="the directory of a finished run")

    def call(args: Args) -> None:
        from aya_jax.recipe import verbs

        verbs.report_verb(args.run_dir)

    return call


def _chat(parser: Parser) -> Callable[[Args], None]:
    parser.add_argument("--model", required=True, help="model directory")

    def call(args: Args) -> None:
        from aya_jax.recipe import verbs

        verbs.chat_verb(args.model, sys.stdin, sys.stdout)

    return call


VERBS: dict[str, tuple[Callable[[Parser], Callable[[Args], None]], str, str]] = {
    "run": (
        _run,
        "run a whole recipe, or go on with one that was interrupted",
        "aya run configs/recipes/tiny.gin --run_dir runs/tiny",
    ),
    "plan": (
        _plan,
        "tell what a recipe needs of chips that are not here, before they are rented",
        "aya plan configs/recipes/expanse_8b.gin --topology v5e:8x8",
    ),
    "sft": (
        _training("sft", "JSONL with prompt and completion"),
        "fine-tune a model on completions",
        "aya sft --model MODEL --data sft.jsonl --out OUT --gin_bindings 'train.epochs = 2'",
    ),
    "dpo": (
        _training("dpo", "JSONL with prompt, chosen and rejected"),
        "preference-train a model",
        "aya dpo --model MODEL --data pairs.jsonl --out OUT --gin_bindings 'dpo_objective.beta = 0.1'",
    ),
    "reward": (
        _training("reward", "JSONL with prompt, chosen and rejected"),
        "train a reward model",
        "aya reward --model MODEL --data pairs.jsonl --out OUT",
    ),
    "generate": (
        _generate,
        "answer prompts",
        "aya generate --model MODEL --data prompts.jsonl --out answers.jsonl",
    ),
    "arbitrate": (
        _arbitrate,
        "let a pool of teachers answer, score the answers, route the best",
        "aya arbitrate --data prompts.jsonl --teachers A B answers.jsonl --reward RM --out DIR",
    ),
    "merge": (
        _merge,
        "merge models",
        "aya merge --models A B --method linear --weights 0.6 0.4 --out OUT",
    ),
    "search-weights": (
        _search_weights,
        "try weights of a merge on held-out records, and make the best merge",
        "aya search-weights --models A B --search grid --evaluate loss --records dev.jsonl --out OUT",
    ),
    "compare": (
        _compare,
        "tell how far models are from each other, and whether they can be merged",
        "aya compare --models A B C --base BASE --records dev.jsonl --out DIR",
    ),
    "evaluate": (
        _evaluate,
        "answer held-out prompts and measure the answers",
        "aya evaluate --model MODEL --data eval.jsonl --judge RM --opponent OTHER --out figures.json",
    ),
    "convert": (
        _convert,
        "make a model directory of a Hugging Face directory, or the other way round",
        "aya convert hf-to-aya aya-expanse-8b MODEL",
    ),
    "report": (_report, "write report.json and report.html of a run", "aya report runs/tiny"),
    "chat": (_chat, "talk to a model", "aya chat --model runs/tiny/stages/online_dpo_3"),
}


def parser() -> Parser:
    """Return the parser of the whole command."""
    top = Parser(prog="aya", description=DESCRIPTION)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (add, text, example) in VERBS.items():
        verb = verbs.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.set_defaults(call=add(verb), parser=verb)
        verb.add_argument(
            "--gin_file", action="append", default=[], help="gin file; may be repeated"
        )
        verb.add_argument(
            "--gin_bindings", action="append", default=[], help="a gin binding; may be repeated"
        )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status, see docs/reliability.md.

    A user's mistake is one line on stderr. Of several processes the lead alone writes to stdout, and
    all end with one status.
    """
    args, unknown = parser().parse_known_args(arguments)
    if unknown:
        args.parser.unknown(unknown[0])
    from aya_jax.sharding.processes import is_lead, leave, several, start_processes
    from aya_jax.training.preemption import PREEMPTED, Preempted, heard

    status, told = 0, ""
    try:
        # First, for it takes the signals that come to it.
        start_processes()
        with heard():
            if several() and not is_lead():
                logging.getLogger("aya_jax").setLevel(logging.ERROR)
                sys.stdout = open(os.devnull, "w")
            if args.verb not in ("run", "plan"):
                from aya_jax.recipe.verbs import read_gin

                read_gin(args.gin_file, args.gin_bindings)
            args.call(args)
    except AyaError as error:
        # gin appends to a message which configurable was being called; the first line is ours.
        status, told = 1, f"aya {args.verb}: {str(error).splitlines()[0]}"
    except KeyboardInterrupt:
        status, told = 130, "aya: stopped; the same command goes on from here"
    except Preempted as end:
        status, told = PREEMPTED, f"aya: SIGTERM; {end}; the same command goes on from here"
    except Exception:
        if not several():
            raise
        status, told = 1, traceback.format_exc()
    return leave(status, told)


if __name__ == "__main__":
    sys.exit(main())
