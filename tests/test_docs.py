"""What the docs show can be typed as it stands."""

import importlib
import json
import pkgutil
import re
import shlex
from pathlib import Path

import gin
import pytest

import aya_jax
from aya_jax.cli import VERBS, parser
from aya_jax.recipe.expanse import expanse
from aya_jax.recipe.run import OPTIONAL_SCOPES
from aya_jax.recipe.settings import check_scopes, parse_gin

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def blocks(page):
    """Return the fenced blocks of a page: (language, content)."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands():
    """Yield (page, arguments of aya) of every command in the pages."""
    for page in PAGES:
        shell = [content for language, content in blocks(page) if language == "sh"]
        for line in "\n".join(shell).replace("\\\n", " ").splitlines():
            called = re.match(r"(?:[A-Z_]+=\S+ )*aya (.*)|.* \S+/bin/aya (.*)", line)
            if called:
                yield page.name, shlex.split(called[1] or called[2])


@pytest.fixture(autouse=True)
def _empty_gin():
    """All configurables registered, nothing bound before or after."""
    for module in pkgutil.walk_packages(aya_jax.__path__, "aya_jax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.mark.parametrize(("page", "words"), list(commands()))
def test_commands_are_understood(page, words):
    del page
    args = parser().parse_args(words)
    parse_gin([], args.gin_bindings)


def test_every_verb_is_shown():
    table = (DOCS / "your_data.md").read_text("utf-8").split("## The verbs")[1].split("```sh")[0]
    listed = set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE))
    shown = {words[0] for page, words in commands() if page == "your_data.md"}
    assert shown == listed == set(VERBS)


def test_the_worked_example_is_a_recipe(tmp_path, monkeypatch):
    (recipe,) = [c for _, c in blocks(DOCS / "your_data.md") if c.startswith("include ")]
    monkeypatch.chdir(tmp_path)
    Path("mine.gin").write_text(recipe)
    Path("data").mkdir()
    row = {"language": "pl", "prompt": "?", "completion": "!"}
    for name in set(re.findall(r"'(data/[\w.]+)'", recipe)):
        Path(name).write_text(json.dumps(row) + "\n")
    parse_gin(["mine.gin"], [])
    stages = expanse().stages
    check_scopes([*OPTIONAL_SCOPES, *(stage.scope for stage in stages)])
    names = [stage.name for stage in stages]
    assert {"base", "teacher.ours", "reward", "judge", "offline_dpo.slavic"} <= set(names)
    assert "teacher.recorded" not in names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        place, _, anchor = link.partition("#")
        target = (page.parent / place).read_text("utf-8") if place else page.read_text("utf-8")
        titles = re.findall(r"^#+ (.+)$", target, re.MULTILINE)
        assert not anchor or anchor in {title.lower().replace(" ", "-") for title in titles}
