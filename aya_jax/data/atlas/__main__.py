"""`python -m aya_jax.data.atlas` builds the atlas as a TensorFlow Datasets data set."""

import argparse
import sys
from collections.abc import Sequence

from aya_jax.data.atlas.tfds_builder import DEFAULT_CONFIG, AtlasConfig, prepare
from aya_jax.errors import AyaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the data set, print its folder and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m aya_jax.data.atlas", description=__doc__)
    parser.add_argument("--data_dir", required=True, help="where TFDS data sets lie")
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="name for a part of the atlas")
    parser.add_argument("--languages", nargs="+", help="of the questions; all if absent")
    parser.add_argument("--kinds", nargs="+", help="of the tasks; all if absent")
    parser.add_argument("--entities", type=int, help="so many of the best-known entities")
    parser.add_argument("--per_language", type=int, help="at most so many records a language")
    parser.add_argument("--cross_languages", nargs="+", help="of the answers; languages if absent")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing and the phrasings")
    given = vars(parser.parse_args(arguments))
    data_dir, name = given.pop("data_dir"), given.pop("config")
    whole = name == DEFAULT_CONFIG and not any(given.values())
    try:
        print(prepare(data_dir, None if whole else AtlasConfig(name=name, **given)))
    except AyaError as error:
        # gin appends to a message which configurable was being called; the first line is ours.
        print(f"aya_atlas: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
