"""Several real processes make the merge that one makes, byte for byte, also when one of them was killed."""

import signal

import jax
import numpy as np
import pytest

from aya_jax.checkpoints import slices
from aya_jax.checkpoints.model_directory import save_model
from aya_jax.data.tokenizer import train_tokenizer
from aya_jax.merging import outputs
from aya_jax.merging.merge import merge
from aya_jax.models.architecture import abstract_params, read_config

SCRIPT = "tests/hosts/merging.py"
FORMS = ("aya", "hugging_face")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and three models."""
    place = tmp_path_factory.mktemp("models")
    told = {"model_type": "llama", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24}
    heads = {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    config = read_config({**told, **heads, **ends})
    tokenizer = place / "tokenizer"
    tokenizer.mkdir()
    train_tokenizer(["some words", "and others"] * 9, vocab_size=290).save(tokenizer)
    shapes = abstract_params(config)

    def made(seed):
        rng = np.random.default_rng(seed)
        return save_model(
            place / str(seed),
            config=config.to_hf(),
            params=jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes),
            lineage={"stage": str(seed)},
            tokenizer_dir=tokenizer,
        )

    return [made(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def alone(models, tmp_path_factory):
    """What one process makes of them: the bytes of every file, by form and path."""
    with pytest.MonkeyPatch.context() as patch:
        for place in (slices, outputs):
            patch.setattr(place, "CHUNK", 3000)
        place = tmp_path_factory.mktemp("alone")
        for form in FORMS:
            merge(models[1:], base=models[0], out=place / form, method="ties", form=form)
    return bytes_in(place)


def bytes_in(place):
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_four_processes_make_the_bytes_of_one(hosts, models, alone, tmp_path):
    ended = hosts.run([SCRIPT, tmp_path, "none", *models], count=4, devices=4)
    assert [each.status for each in ended] == [0] * 4, ended
    assert bytes_in(tmp_path) == alone


@pytest.mark.slow
def test_four_go_on_where_one_was_killed(hosts, models, alone, tmp_path):
    started = hosts.start([SCRIPT, tmp_path, 2, *models], count=3, devices=3)
    try:
        assert started[2].wait(timeout=120) == -signal.SIGKILL
        for process in started[:2]:
            process.wait(timeout=120)
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert not (tmp_path / "aya").exists()
    noted = list((tmp_path / ".aya.unfinished").glob("merge.journal.*"))
    assert len(noted) == 3
    ended = hosts.run([SCRIPT, tmp_path, "none", *models], count=4, devices=4)
    assert [each.status for each in ended] == [0] * 4, ended
    assert bytes_in(tmp_path) == alone
