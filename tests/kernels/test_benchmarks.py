"""The benchmark's table: who is in it, what it counts, and that one question's rows belong together."""

import numpy as np
import pytest
from benchmarks import attention, decode, logprob
from benchmarks.chips import known
from benchmarks.table import Question, Work, rows
from benchmarks.timing import Program, medians


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(questions, module):
    return [cells(line) for q in questions for line in rows(q, module.BASELINES, repeats=2)]


@pytest.mark.slow
def test_attention_is_compared_with_what_is_here_and_the_rest_is_missing():
    sizes = attention.TINY._replace(lengths=(64,))
    found = table(attention.questions(sizes), attention)
    questions = list(dict.fromkeys(row[0] for row in found))
    assert questions == [
        f"{mask}, 2 x 64, {passes}"
        for mask in ("causal", "packed", "window 8")
        for passes in ("forward", "forward and backward")
    ]
    for name in questions:
        programs = {row[1]: row for row in found if row[0] == name}
        assert list(programs)[:2] == ["xla", "plain XLA"]
        assert {"torch SDPA", "tokamax"} < set(programs)
        assert programs["plain XLA"][3] == "1.00 x plain XLA"
        assert float(programs["xla"][2]) > 0 and programs["xla"][3].endswith(" x plain XLA")


@pytest.mark.parametrize("module", [decode, logprob])
def test_other_operations_have_a_baseline(module):
    found = table(module.questions(module.TINY), module)
    assert {row[1] for row in found} == {"xla", *module.BASELINES}
    assert all(float(row[2]) > 0 and float(row[5]) > 0 for row in found)


@pytest.mark.parametrize(
    ("mask", "pairs"),
    [
        (attention.Mask("causal"), 55),
        (attention.Mask("window", None, 3), 27),
        (attention.Mask("packed", np.array([1] * 4 + [2] * 6)), 31),
    ],
)
def test_pairs_are_those_of_the_mask(mask, pairs):
    assert mask.pairs(10) == mask.whole(10).sum() == pairs


def test_a_program_that_cannot_be_had_is_told_and_not_left_out():
    def fails():
        raise ImportError("No module named 'other'")

    question = Question("q", Work(1e9), {"ours": lambda: Program(lambda: 0), "other": fails})
    ours, other = (cells(line) for line in rows(question, ["other", "ours"], repeats=1))
    assert ours[:2] == ["q", "ours"] and ours[3] == "1.00 x ours"
    assert other[:4] == ["q", "other", "missing", "No module named 'other'"]


def test_programs_take_turns_forwards_and_backwards():
    calls = []

    def slow(name):
        def run():
            calls.append(name)
            return sum(range(300_000))

        return Program(run)

    import benchmarks.timing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks.timing, "SAMPLE_SECONDS", 0.0)
        medians({"a": slow("a"), "b": slow("b")}, repeats=3)
    # Two calls each to warm up and to count.
    assert "".join(calls) == "aabb" + "ab" + "ba" + "ab"


def test_chips_are_known_by_the_names_that_jax_gives_them():
    assert known("NVIDIA H200").bandwidth > known("NVIDIA H100 80GB HBM3").bandwidth
    assert known("TPU v5 lite").operations < known("TPU v5").operations
    assert known("cpu") is None
