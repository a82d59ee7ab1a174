"""Models that tokens were added to: refused, or merged row by row of the same token."""

import json

import numpy as np
import pytest

import aya_jax
from aya_jax.checkpoints.model_directory import load_params, save_model
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.errors import AyaError
from aya_jax.merging.merge import merge

WORDS = ["<unk>", "<s>", "</s>", "a", "b", "c", "d"]


def tokenizer_in(folder, added, words=WORDS):
    """A vocabulary of words, and tokens added after it."""
    folder.mkdir()
    tokens = [*words, *added]
    special = {"<unk>", "<s>", "</s>", *added}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "added_tokens": [
            {
                "id": i,
                "content": text,
                **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
                "special": True,
            }
            for i, text in enumerate(tokens)
            if text in special
        ],
        "model": {
            "type": "WordLevel",
            "vocab": {text: i for i, text in enumerate(words)},
            "unk_token": "<unk>",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, tiny):
    """`base`; `x` and `y` with tokens of their own and one, <both>, in other rows; `other` of other words."""
    folder = tmp_path_factory.mktemp("shelf")
    kinds = {
        "base": ((), WORDS, 0),
        "x": (("<both>", "<x>"), WORDS, 0),
        "y": (("<y>", "<both>"), WORDS, 3),
        "other": ((), [*WORDS[:3], "e", "f", "g", "h"], 0),
    }
    for seed, (name, (added, words, padding)) in enumerate(kinds.items()):
        size = tokenizer_in(folder / f"{name}.tokenizer", added, words) + padding
        config = tiny.config_of("llama", vocab_size=size)
        save_model(
            folder / name,
            config=config.to_hf(),
            params=tiny.params_of(config, seed),
            lineage={"stage": name},
            tokenizer_dir=folder / f"{name}.tokenizer",
        )
    return folder


def rows(path):
    """The embedding's row of each token, and the output's."""
    params, ids = load_params(path), Tokenizer.load(path).ids
    return {
        name: {token: np.asarray(params[name][i], np.float64) for token, i in ids.items()}
        for name in ("embedding", "output")
    }


def test_models_of_other_tokens_are_refused(shelf, tmp_path):
    told = r"differ: token '<both>' is not in it against row 7; name a vocabulary"
    with pytest.raises(AyaError, match=told):
        merge([shelf / "base", shelf / "x"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_union_has_every_token_once_and_the_mean_of_those_that_have_it(shelf, tmp_path):
    weights = {"base": 0.5, "x": 0.3, "y": 0.2}
    models = [shelf / name for name in weights]
    out = merge(models, weights=list(weights.values()), vocabulary="union", out=tmp_path / "out")
    found, own = rows(out), {name: rows(shelf / name) for name in weights}
    tokens = [*WORDS, "<both>", "<x>", "<y>"]
    assert sorted(found["embedding"]) == sorted(tokens)
    for matrix, merged in found.items():
        for token in tokens:
            having = {name: w for name, w in weights.items() if token in own[name][matrix]}
            expected = sum(w * own[name][matrix][token] for name, w in having.items())
            expected = expected / sum(having.values())
            np.testing.assert_allclose(merged[token], expected, atol=1e-6)
    assert out.joinpath("config.json").read_text().count('"vocab_size": 10')
    tokenizer = aya_jax.load(out).tokenizer
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"
    # What a user types is no token; only a template writes one.
    assert tokenizer.ids["<y>"] not in tokenizer.encode("a <y>")
    assert tokenizer.vocab_size == 10


def test_of_differences_a_token_that_a_model_lacks_has_none(shelf, tmp_path):
    out = merge(
        *([shelf / "x", shelf / "y"],),
        base=shelf / "base",
        method="task_arithmetic",
        weights=[0.5, 0.25],
        vocabulary="union",
        out=tmp_path / "out",
    )
    found, x, y = rows(out)["output"], rows(shelf / "x")["output"], rows(shelf / "y")["output"]
    base = rows(shelf / "base")["output"]
    expected = base["c"] + 0.5 * (x["c"] - base["c"]) + 0.25 * (y["c"] - base["c"])
    np.testing.assert_allclose(found["c"], expected, atol=1e-6)
    # The base has no row for it: it starts from the mean of those that have one.
    np.testing.assert_allclose(found["<x>"], x["<x>"], atol=1e-6)


@pytest.mark.parametrize("policy", ["base", "x"])
def test_one_models_vocabulary_can_be_kept(shelf, tmp_path, policy):
    name = policy
    vocabulary = "base" if policy == "base" else str(shelf / policy)
    out = merge(
        [shelf / "x", shelf / "y"],
        base=shelf / "base",
        vocabulary=vocabulary,
        weights=[0.5, 0.5],
        out=tmp_path / "out",
    )
    assert Tokenizer.load(out).ids == Tokenizer.load(shelf / name).ids
    found, x, y = (
        rows(out)["embedding"],
        rows(shelf / "x")["embedding"],
        rows(shelf / "y")["embedding"],
    )
    np.testing.assert_allclose(found["d"], (x["d"] + y["d"]) / 2, atol=1e-6)
    if policy == "x":
        np.testing.assert_allclose(found["<both>"], (x["<both>"] + y["<both>"]) / 2, atol=1e-6)
        np.testing.assert_allclose(found["<x>"], x["<x>"], atol=1e-6)


def test_truly_other_vocabularies_make_no_union(shelf, tmp_path):
    with pytest.raises(AyaError, match="'e' in its own vocabulary"):
        merge([shelf / "base", shelf / "other"], vocabulary="union", out=tmp_path / "out")
    with pytest.raises(AyaError, match="'base' needs a base model"):
        merge([shelf / "base", shelf / "x"], vocabulary="base", out=tmp_path / "out")
