"""A language model, a reward model and files of records, all of a size of moments."""

import gin
import pytest
from shelf import SMALL, Shelf

from aya_jax import cli


@pytest.fixture(autouse=True)
def _plain_gin():
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.fixture
def aya(capsys):
    """Run the command line; return its status, what it printed, and what it said on stderr."""

    def run(*arguments):
        gin.clear_config()
        settings = [word for binding in SMALL for word in ("--gin_bindings", binding)]
        verb, *rest = map(str, arguments)
        try:
            status = cli.main([verb, *(settings if verb != "run" else ()), *rest])
        except SystemExit as end:  # argparse ends so
            status = end.code
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    return Shelf(tmp_path_factory.mktemp("shelf"))
