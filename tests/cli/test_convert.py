"""`aya convert`: what it makes is used by every other verb, and a mistake is one line."""

import json

import pytest

import aya_jax
from aya_jax.checkpoints.model_directory import load_config, load_lineage


def convert(aya, *arguments):
    """Convert; return what was said, having seen that it went well."""
    status, told, error = aya("convert", *arguments)
    assert status == 0, error
    assert str(arguments[2]) in told
    return told


def test_there_and_back_is_the_same_model(aya, shelf, tmp_path):
    convert(aya, "aya-to-hf", shelf.model, tmp_path / "hf")
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.model"}
    assert not names & {"params", "lineage.json"}
    convert(aya, "hf-to-aya", tmp_path / "hf", tmp_path / "back")
    first, last = load_lineage(shelf.model), load_lineage(tmp_path / "back")
    assert last["params_fingerprint"] == first["params_fingerprint"]
    assert (last["method"], last["source"]) == ("hf-to-aya", "hf")
    # Ours, and the Hugging Face directory as it is, answer alike.
    asked = json.loads(shelf.prompts.read_text("utf-8").splitlines()[0])["prompt"]
    answers = [
        aya("generate", "--model", place, "--prompt", asked)
        for place in (shelf.model, tmp_path / "back", tmp_path / "hf")
    ]
    assert answers[0][0] == 0 and answers[0] == answers[1] == answers[2]


def test_a_reward_model_stays_one(aya, shelf, tmp_path):
    convert(aya, "aya-to-hf", shelf.reward, tmp_path / "hf", "--dtype", "bfloat16")
    assert load_config(tmp_path / "hf")["architectures"] == ["CohereForSequenceClassification"]
    convert(aya, "hf-to-aya", tmp_path / "hf", tmp_path / "back", "--dtype", "float32")
    for place in (tmp_path / "hf", tmp_path / "back"):
        assert aya_jax.load(place).is_reward_model
    assert aya_jax.load(tmp_path / "back").params["embedding"].dtype == "float32"
    assert aya_jax.load(tmp_path / "hf").params["embedding"].dtype == "bfloat16"


@pytest.mark.parametrize("direction", ["hf-to-aya", "aya-to-hf"])
def test_mistakes_are_one_line(aya, shelf, tmp_path, direction):
    source = shelf.model
    if direction == "hf-to-aya":
        source = tmp_path / "hf"
        convert(aya, "aya-to-hf", shelf.model, source)
    taken = tmp_path / "taken"
    taken.mkdir()
    before = sorted(tmp_path.iterdir())
    wrong = shelf.model if direction == "hf-to-aya" else tmp_path / "hf"
    for arguments, words in (
        ((tmp_path / "nowhere", tmp_path / "out"), ("nowhere", "no such file")),
        ((source, taken), (taken, "exists already")),
        *([((wrong, tmp_path / "out"), (wrong,))]),
    ):
        status, _, error = aya("convert", direction, *arguments)
        assert status == 1
        assert len(error.splitlines()) == 1 and error.startswith("aya convert: ")
        assert all(str(word) in error for word in words), error
    assert sorted(tmp_path.iterdir()) == before and not list(taken.iterdir())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("hf-to-ava", "a", "b"), "hf-to-ava"),
        (("hf-to-aya", "a"), "out"),
        (("hf-to-aya", "a", "b", "--dtype", "int8"), "int8"),
        (("hf-to-aya", "a", "b", "--dtyp", "float32", "--x"), "--x"),
    ],
)
def test_mistakes_in_the_arguments_are_one_line(aya, arguments, word):
    status, _, error = aya("convert", *arguments)
    assert status == 2
    assert len(error.splitlines()) == 1 and word in error
