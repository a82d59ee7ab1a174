"""Every verb on files, outside a recipe, and the front doors for Python."""

import io
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aya_jax
from aya_jax.checkpoints.model_directory import load_lineage, load_params
from aya_jax.cli import VERBS
from aya_jax.data.records import read_records
from aya_jax.merging.methods import METHODS


def leaves(path):
    """Return the parameters of a model directory by their paths."""
    flat = jax.tree_util.tree_leaves_with_path(load_params(path))
    return {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in flat}


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def assert_trained(out, start, *, stage, data):
    """A whole model directory, moved away from where it started, that tells where it came from."""
    before, after = leaves(start), leaves(out)
    assert any((after[name] != before[name]).any() for name in before)
    assert all(np.isfinite(leaf).all() for leaf in after.values())
    lineage = load_lineage(out)
    assert lineage["stage"] == stage
    assert lineage["examples"] == len(read_records(data))
    assert lineage["parents"][0]["fingerprint"] == load_lineage(start)["params_fingerprint"]
    assert not out.with_name(f"{out.name}.partial").exists()
    assert not (out / "checkpoints").exists()


def test_sft(aya, shelf, tmp_path):
    out = tmp_path / "made"
    status, told, _ = aya("sft", "--model", shelf.model, "--data", shelf.sft, "--out", out)
    assert status == 0
    assert "loss" in told and str(out) in told
    assert_trained(out, shelf.model, stage="sft", data=shelf.sft)
    assert leaves(out).keys() == leaves(shelf.model).keys()
    assert [row["step"] for row in lines(out / "metrics.jsonl")][-1] == 2


def test_dpo_with_and_without_a_reference(aya, shelf, tmp_path):
    made = {}
    other = ("--reference", shelf.other)
    held = ("--gin_bindings", "dpo_objective.reference = 'held'")
    references = {
        "own": (),
        "same": ("--reference", shelf.model),
        "other": other,
        "own, held": held,
        "other, held": (*other, *held),
    }
    for name, given in references.items():
        out = tmp_path / name
        status, told, _ = aya(
            "dpo", "--model", shelf.model, "--data", shelf.pairs, "--out", out, *given
        )
        assert status == 0
        assert "rewards/margins" in told
        assert_trained(out, shelf.model, stage="dpo", data=shelf.pairs)
        made[name] = leaves(out)
    for name, leaf in made["own"].items():
        np.testing.assert_array_equal(made["same"][name], leaf)
        np.testing.assert_allclose(made["own, held"][name], leaf, atol=1e-5)
        np.testing.assert_allclose(made["other, held"][name], made["other"][name], atol=1e-5)
    assert any((made["other"][name] != leaf).any() for name, leaf in made["own"].items())


def test_reward(aya, shelf, tmp_path):
    out = tmp_path / "made"
    status, _, _ = aya("reward", "--model", shelf.model, "--data", shelf.pairs, "--out", out)
    assert status == 0
    assert_trained(out, shelf.model, stage="reward", data=shelf.pairs)
    assert leaves(out).keys() - leaves(shelf.model).keys() == {"['score']"}
    # What it made is a reward model to the other verbs.
    status, _, error = aya("sft", "--model", out, "--data", shelf.sft, "--out", tmp_path / "no")
    assert status == 1
    assert "is a reward model, but a language model is needed" in error


def test_generate_a_file(aya, shelf, tmp_path):
    out = tmp_path / "answers.jsonl"
    status, _, _ = aya("generate", "--model", shelf.model, "--data", shelf.prompts, "--out", out)
    assert status == 0
    answers = lines(out)
    asked = lines(shelf.prompts)
    assert [{k: v for k, v in row.items() if k != "completion"} for row in answers] == asked
    assert all(isinstance(row["completion"], str) for row in answers)
    # The same prompt alone has the same answer.
    status, told, _ = aya("generate", "--model", shelf.model, "--prompt", asked[3]["prompt"])
    assert status == 0
    assert told == answers[3]["completion"] + "\n"


def test_generate_several_samples(aya, shelf, tmp_path):
    out = tmp_path / "answers.jsonl"
    settings = (
        "--gin_bindings",
        "sample.samples = 3",
        "--gin_bindings",
        "sample.temperature = 1.0",
    )
    arguments = ("--model", shelf.model, "--data", shelf.prompts, "--out", out, *settings)
    assert aya("generate", *arguments)[0] == 0
    samples = [row["completions"] for row in lines(out)]
    assert {len(each) for each in samples} == {3}
    assert any(len(set(each)) > 1 for each in samples)


def test_arbitrate(aya, shelf, tmp_path):
    recorded = tmp_path / "recorded.jsonl"
    rows = [{**row, "completion": "ответ"} for row in shelf.records[:2]]
    recorded.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "arbitrated"
    status, told, _ = aya(
        *("arbitrate", "--data", shelf.prompts, "--reward", shelf.reward, "--out", out),
        *("--teachers", shelf.model, shelf.other, recorded),
    )
    assert status == 0
    candidates = lines(out / "candidates.jsonl")
    assert [row["prompt"] for row in candidates] == [row["prompt"] for row in shelf.records]
    for number, row in enumerate(candidates):
        names = {each["model"] for each in row["candidates"]}
        assert ("recorded.jsonl" in names) == (number < 2)
        assert names <= {"model", "other", "recorded.jsonl"}
    for row, routed in zip(candidates, lines(out / "sft.jsonl"), strict=True):
        best = max(row["candidates"], key=lambda each: each["reward"])
        assert (routed["completion"], routed["source"]) == (best["completion"], best["model"])
    by_prompt = {row["prompt"]: row["candidates"] for row in candidates}
    pairs = lines(out / "pairs.jsonl")
    assert pairs
    for pair in pairs:
        rewards = [each["reward"] for each in by_prompt[pair["prompt"]]]
        assert (pair["chosen_reward"], pair["rejected_reward"]) == (max(rewards), min(rewards))
    assert {line.split(":")[0] for line in told.splitlines()} == {"de", "en", "ru"}


# Model Stock finds nothing in two models of which one is the base.
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"model_stock"}))
def test_merge_by_each_method(aya, shelf, tmp_path, method):
    out = tmp_path / "merged"
    status, _, error = aya(
        *("merge", "--models", shelf.model, shelf.other, "--base", shelf.model),
        *("--method", method, "--density", 0.5, "--out", out),
    )
    assert (status, error) == (0, "")
    lineage = load_lineage(out)
    assert lineage["method"] == method
    assert [parent["path"] for parent in lineage["parents"]] == ["model", "other"]
    assert [parent["weight"] for parent in lineage["parents"]] == [0.5, 0.5]
    one, two, merged = leaves(shelf.model), leaves(shelf.other), leaves(out)
    assert merged.keys() == one.keys()
    for name, leaf in merged.items():
        assert leaf.dtype == one[name].dtype
        assert (leaf != one[name]).any() and (leaf != two[name]).any()
    assert aya("generate", "--model", out, "--prompt", "Hallo")[0] == 0


def test_merge_by_mergekits_file_into_a_hugging_face_directory(aya, shelf, tmp_path):
    asked = {
        "merge_method": "slerp",
        "base_model": str(shelf.model),
        "models": [{"model": str(shelf.other)}, {"model": str(shelf.model)}],
        "parameters": {"t": [{"filter": "self_attn", "value": 1}, {"value": 0}]},
    }
    (tmp_path / "merge.yml").write_text(json.dumps(asked))
    out = tmp_path / "merged"
    words = ("--config", tmp_path / "merge.yml", "--format", "hugging_face", "--dtype", "bfloat16")
    assert aya("merge", *words, "--out", out)[0] == 0
    merged, one, two = (aya_jax.load(path).params for path in (out, shelf.model, shelf.other))
    for name, source in (("q", two), ("up", one)):
        found, expected = (params["layers"]["block"][name] for params in (merged, source))
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))


def test_merge_by_a_gin_file(aya, shelf, tmp_path):
    (tmp_path / "merge.gin").write_text(
        f"merge.models = ['{shelf.model}', '{shelf.other}']\n"
        "merge.weights = [[0.0, 1.0], [1.0, 0.0]]\n"
        "merge.dtype = 'bfloat16'\n"
    )
    out = tmp_path / "merged"
    told = aya("merge", "--config", tmp_path / "merge.gin", "--dtype", "float32", "--out", out)
    assert told[0] == 0
    merged, one, two = (load_params(path) for path in (out, shelf.model, shelf.other))
    assert merged["embedding"].dtype == np.float32
    np.testing.assert_array_equal(merged["embedding"], two["embedding"])
    # The only layer is the last of a gradient, and what is outside of the layers the first.
    found, expected = (params["layers"]["block"]["q"] for params in (merged, one))
    np.testing.assert_array_equal(found, expected)


def test_a_dry_run_tells_and_makes_nothing(aya, shelf, tmp_path):
    two = ("--models", shelf.model, shelf.other, "--base", shelf.other, "--dry-run")
    status, told, _ = aya("merge", *two, "--method", "ties", "--weights", 0.5, 0.25, "--lambda", 2)
    assert status == 0
    assert "ties of 2 models" in told and f"{shelf.other}  weight 0.25, density 0.5" in told
    assert "scale 2.0" in told and "GiB of disk" in told
    assert list(tmp_path.iterdir()) == []


def test_merge_weighs(aya, shelf, tmp_path):
    out = tmp_path / "merged"
    arguments = ("--models", shelf.model, shelf.other, "--weights", 0.75, 0.25, "--out", out)
    assert aya("merge", *arguments)[0] == 0
    one, two = leaves(shelf.model), leaves(shelf.other)
    for name, leaf in leaves(out).items():
        expected = 0.75 * one[name].astype(np.float64) + 0.25 * two[name].astype(np.float64)
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("models", [["model"], ["model", "model"]])
def test_a_model_merged_with_itself_is_that_model(aya, shelf, tmp_path, models):
    out = tmp_path / "merged"
    paths = [shelf.path / name for name in models]
    assert aya("merge", "--models", *paths, "--out", out)[0] == 0
    for name, leaf in leaves(shelf.model).items():
        np.testing.assert_array_equal(leaves(out)[name], leaf)


def test_evaluate(aya, shelf, tmp_path):
    out = tmp_path / "figures.json"
    arguments = ("--model", shelf.model, "--data", shelf.prompts, "--judge", shelf.reward)
    status, told, _ = aya("evaluate", *arguments, "--out", out)
    assert status == 0
    alone = json.loads(out.read_text())
    assert set(alone) == {"right_language", "unused_reward"}
    assert set(alone["unused_reward"]["by_language"]) == {"de", "en", "ru"}
    assert alone["unused_reward"]["overall"]["n"] == len(shelf.records)
    assert "unused_reward" in told
    # Against itself everything is a tie.
    assert aya("evaluate", *arguments, "--opponent", shelf.model, "--out", out)[0] == 0
    overall = json.loads(out.read_text())["win_rate"]["overall"]
    assert (overall["value"], overall["low"], overall["high"]) == (0.5, 0.5, 0.5)
    # And one of two must win where the rewards differ.
    rates = []
    for ours, theirs in ((shelf.model, shelf.other), (shelf.other, shelf.model)):
        arguments = ("--model", ours, "--data", shelf.prompts, "--judge", shelf.reward)
        assert aya("evaluate", *arguments, "--opponent", theirs, "--out", out)[0] == 0
        rates.append(json.loads(out.read_text())["win_rate"]["overall"]["value"])
    assert sum(rates) == pytest.approx(1.0)


def test_chat_remembers_the_conversation(aya, shelf, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Montag\n\nDienstag\n"))
    status, told, _ = aya("chat", "--model", shelf.model)
    assert status == 0
    model = aya_jax.load(shelf.model)
    turns = [{"role": "user", "content": "Montag"}]
    settings = {"max_new_tokens": 4, "batch_size": 4, "prompt_multiple": 64}
    first = aya_jax.generate(model, [turns], **settings)[0]
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "Dienstag"}]
    second = aya_jax.generate(model, [turns], **settings)[0]
    assert told == f"> {first}\n> > {second}\n> \n"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_shows_an_example(aya, verb):
    status, told, _ = aya(verb, "--help")
    assert status == 0
    assert f"example: aya {verb}" in told
    assert "--gin_bindings" in told and "--gin_file" in told


def test_examples_of_the_help_are_arguments_that_the_verb_takes():
    import shlex

    from aya_jax.cli import parser

    for verb, (_, _, example) in VERBS.items():
        words = shlex.split(example)
        assert words[0] == "aya"
        assert parser().parse_args(words[1:]).verb == verb


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "aya_jax", "--help"], capture_output=True, text=True, check=True
    )
    for verb in VERBS:
        assert f"\n    {verb}" in done.stdout


# Python's front doors.


WIDTH = 32


def logits_of(model, rows):
    """Return the logits of token rows padded to one width, so that one program serves all."""
    tokens = jnp.array([row + [0] * (WIDTH - len(row)) for row in rows], jnp.int32)
    mask = jnp.array([[i < len(row) for i in range(WIDTH)] for row in rows])
    return jax.jit(model.apply)(model.params, tokens, mask)


def test_apply_gives_float32_logits(shelf):
    model = aya_jax.load(shelf.model, dtype="float32")
    rows = [model.tokenizer.encode_chat([{"role": "user", "content": t}]) for t in ("Hi", "Montag")]
    logits = logits_of(model, rows)
    assert logits.shape == (2, WIDTH, model.config.vocab_size)
    assert logits.dtype == jnp.float32
    # What comes later changes nothing for the tokens before it, and neither does another row.
    longer = logits_of(model, [[*rows[0], 7, 8, 9], rows[0]])
    for row in range(2):
        np.testing.assert_allclose(
            longer[row, : len(rows[0])], logits[0, : len(rows[0])], rtol=1e-4, atol=1e-4
        )
    assert np.abs(longer[0, len(rows[0]) + 1] - longer[1, len(rows[0]) + 1]).max() > 0.01


def test_load_casts(shelf):
    model = aya_jax.load(str(shelf.model), dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params)} == {"bfloat16"}


def test_generate_is_a_function_of_prompt_and_seed(shelf):
    model = aya_jax.load(shelf.model)
    settings = {"max_new_tokens": 4, "temperature": 1.0, "batch_size": 4, "prompt_multiple": 64}
    prompts = [row["prompt"] for row in shelf.records]
    texts = aya_jax.generate(model, prompts, seed=0, **settings)
    assert len(texts) == len(prompts)
    assert aya_jax.generate(model, prompts[::-1], seed=0, **settings) == texts[::-1]
    assert aya_jax.generate(model, prompts, seed=1, **settings) != texts


def test_greedy_generation_follows_apply(shelf):
    model = aya_jax.load(shelf.model)
    prompt = model.tokenizer.encode_chat([{"role": "user", "content": "Montag"}])
    made = []
    while len(made) < 4 and model.tokenizer.eos_id not in made:
        logits = logits_of(model, [[*prompt, *made], prompt])
        made.append(int(logits[0, len(prompt) + len(made) - 1].argmax()))
    expected = model.tokenizer.decode([i for i in made if i != model.tokenizer.eos_id]).strip()
    settings = {"max_new_tokens": 4, "batch_size": 4, "prompt_multiple": 64}
    assert aya_jax.generate(model, ["Montag"], **settings) == [expected]


def test_merge_from_python(shelf, tmp_path):
    out = aya_jax.merge(
        [shelf.model, shelf.other], out=tmp_path / "merged", method="linear", weights=[0.5, 0.5]
    )
    merged, one, two = (aya_jax.load(path).params for path in (out, shelf.model, shelf.other))
    name = "embedding"
    np.testing.assert_allclose(merged[name], (one[name] + two[name]) / 2, atol=1e-6)
