"""The checkpoints of a training that has not ended can be merged by themselves."""

import json

from aya_jax.recipe import fit


def test_steps_merged_by_hand_are_what_the_training_makes_of_them(
    aya, shelf, tmp_path, monkeypatch
):
    settings = ("train.checkpoint_every = 1", "merge_checkpoints.last = 2")
    words = ("sft", "--model", shelf.model, "--data", shelf.sft, "--out", tmp_path / "out")
    bindings = [word for setting in settings for word in ("--gin_bindings", setting)]

    def ended(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit, "average_into", ended)
        assert aya(*words, *bindings)[0] == 130
    steps = sorted((tmp_path / "out.partial" / "checkpoints").glob("step_*"))[-2:]
    status, _, told = aya("merge", "--models", *steps, "--out", tmp_path / "merged")
    assert status == 0, told
    status, _, told = aya(*words, *bindings)
    assert status == 0, told
    by_hand, made = (
        json.loads((tmp_path / name / "lineage.json").read_text())["params_fingerprint"]
        for name in ("merged", "out")
    )
    assert by_hand == made
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
