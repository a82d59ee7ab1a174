"""What the comparison with TRL refuses, counts and writes; the trainings themselves are `make bench`."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture
def bench(monkeypatch):
    """The modules of this folder, which are scripts and no package."""
    monkeypatch.syspath_prepend(str(HERE))
    names = ("case", "compare", "our_side", "page")
    # `commands` takes the standard output for the driver.
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    modules = {name: __import__(name) for name in names}
    yield modules
    for name in (*names, "commands"):
        sys.modules.pop(name, None)


class Side:
    def __init__(self, batches=("a", "b"), reference=(-8.0, -9.0), losses=(3.0, 2.0)):
        self.start = {"batches": list(batches), "reference": list(reference)}
        self.losses = list(losses)

    def steps(self, count):
        return {"losses": self.losses}


def test_equal_sides_are_compared(bench):
    ours, theirs = Side(), Side(losses=(3.0, 2.0001))
    assert bench["compare"].require_equal("dpo", ours, theirs) == pytest.approx(5e-5, rel=0.01)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"batches": ("a", "c")}, "dpo: the batches differ"),
        ({"reference": (-8.0, -9.01)}, "dpo: log-probabilities of the reference differ by 1.1e-03"),
        ({"losses": (3.0, 2.001)}, "dpo: losses differ by 5.0e-04"),
    ],
)
def test_sides_that_differ_are_not_timed(bench, other, message):
    with pytest.raises(SystemExit, match=message):
        bench["compare"].require_equal("dpo", Side(), Side(**other))


def test_sides_take_turns_forwards_and_backwards(bench):
    turns = []

    class Told:
        def __init__(self, name):
            self.name = name

        def steps(self, count):
            turns.append(self.name)
            return {"seconds": 4.0, "cpu_seconds": 6.0, "peak_bytes": len(turns)}

    samples = bench["compare"].timed([Told("ours"), Told("theirs")], rounds=3)
    assert turns == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert samples[1] == ([2.0] * 3, [3.0] * 3, 6)


def test_the_ratio_is_of_real_tokens_a_second(bench):
    compare = bench["compare"]
    ours = compare.Sample([2.0, 1.0, 4.0], [3.0, 3.0, 3.0], 5 << 20)
    theirs = compare.Sample([3.0, 3.0, 8.0], [4.0, 5.0, 6.0], 7 << 20)
    cells = [cell.strip() for cell in compare.row("packed", [400, 100], ours, theirs).split("|")]
    assert cells[1:5] == ["packed", "2.00", "3.00", "6.00 (6.00 to 12.00)"]
    assert cells[5:-1] == ["200", "33", "3.00", "5.00", "5", "7"]
    assert len(cells) == len(compare.HEAD.splitlines()[0].split("|"))


def test_all_documents_are_in_the_batches_of_both_ways_of_laying_them_out(bench, tmp_path):
    case, ours = bench["case"], bench["our_side"]
    case.make_documents(tmp_path / "documents.json")
    pairs = case.pairs_of(tmp_path, "sft")
    for task in ("sft", "packed"):
        arrays, take = ours.batches(task, pairs, None, None)
        learnt = sorted(
            token
            for tokens, mask in ours.seen(arrays)
            for token, m in zip(tokens, mask, strict=True)
            if m
        )
        assert learnt == sorted(token for pair in pairs for token in pair["chosen"])
        assert take == case.SEQUENCES
        assert len(arrays["tokens"]) == 64 if task == "sft" else len(arrays["tokens"]) < 48


def test_a_page_keeps_what_is_around_the_table(bench, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- trl -->\nold\n<!-- end of trl -->\n\nafter\n")
    for text in ("new", "newer"):
        bench["page"].put(page, "trl", text)
        assert page.read_text() == (
            f"before\n\n<!-- trl -->\n\n{text}\n\n<!-- end of trl -->\n\nafter\n"
        )
    with pytest.raises(ValueError, match="needs <!-- mfu -->"):
        bench["page"].put(page, "mfu", "x")


def test_the_page_has_the_places_of_both_tables(bench, tmp_path):
    copy = tmp_path / "benchmarks.md"
    text = (HERE.parents[1] / "docs" / "benchmarks.md").read_text("utf-8")
    copy.write_text(text)
    for name in ("trl", "mfu"):
        bench["page"].put(copy, name, "x")
    assert copy.read_text("utf-8") != text
