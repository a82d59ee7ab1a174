"""The `aya` command: one verb a job, no logic of its own."""

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from aya_jax.cli import jobs, merging
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


VERBS: dict[str, tuple[Callable[[Parser], Callable[[Args], None]], str, str]] = {
    "run": (
        jobs.run,
        "run a whole recipe, or go on with one that was interrupted",
        "aya run configs/recipes/tiny.gin --run_dir runs/tiny",
    ),
    "plan": (
        jobs.plan,
        "tell what a recipe needs of chips that are not here, before they are rented",
        "aya plan configs/recipes/expanse_8b.gin --topology v5e:8x8",
    ),
    "sft": (
        jobs.training("sft", "JSONL with prompt and completion"),
        "fine-tune a model on completions",
        "aya sft --model MODEL --data sft.jsonl --out OUT --gin_bindings 'train.epochs = 2'",
    ),
    "dpo": (
        jobs.training("dpo", "JSONL with prompt, chosen and rejected"),
        "preference-train a model",
        "aya dpo --model MODEL --data pairs.jsonl --out OUT --gin_bindings 'dpo_objective.beta = 0.1'",
    ),
    "reward": (
        jobs.training("reward", "JSONL with prompt, chosen and rejected"),
        "train a reward model",
        "aya reward --model MODEL --data pairs.jsonl --out OUT",
    ),
    "generate": (
        jobs.generate,
        "answer prompts",
        "aya generate --model MODEL --data prompts.jsonl --out answers.jsonl",
    ),
    "arbitrate": (
        jobs.arbitrate,
        "let a pool of teachers answer, score the answers, route the best",
        "aya arbitrate --data prompts.jsonl --teachers A B answers.jsonl --reward RM --out DIR",
    ),
    "merge": (
        merging.merge,
        "merge models",
        "aya merge --models A B --method linear --weights 0.6 0.4 --out OUT",
    ),
    "search-weights": (
        merging.search_weights,
        "try weights of a merge on held-out records, and make the best merge",
        "aya search-weights --models A B --search grid --evaluate loss --records dev.jsonl --out OUT",
    ),
    "compare": (
        merging.compare,
        "tell how far models are from each other, and whether they can be merged",
        "aya compare --models A B C --base BASE --records dev.jsonl --out DIR",
    ),
    "evaluate": (
        jobs.evaluate,
        "answer held-out prompts and measure the answers",
        "aya evaluate --model MODEL --data eval.jsonl --judge RM --opponent OTHER --out figures.json",
    ),
    "convert": (
        jobs.convert,
        "make a model directory of a Hugging Face directory, or the other way round",
        "aya convert hf-to-aya aya-expanse-8b MODEL",
    ),
    "report": (jobs.report, "write report.json and report.html of a run", "aya report runs/tiny"),
    "chat": (jobs.chat, "talk to a model", "aya chat --model runs/tiny/stages/online_dpo_3"),
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
