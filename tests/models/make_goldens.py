"""Makes the checkpoints and reference outputs in `goldens/` from the `config.json` of each.

    python tests/models/make_goldens.py

needs torch, transformers and safetensors; the committed files were made with torch 2.13.0 and
transformers 5.24.0, and come out the same byte for byte on the same machine. Every
`goldens/CASE/config.json` was written by hand in the style of the published ones; the script adds
`model.safetensors`, in the dtype that the config names, and `golden.npz`, which holds what
transformers computes from these two files:

    tokens, mask            [B, T], rows of different lengths, padded on the right
    left_tokens, left_mask  the same, padded on the left
    labels, label_mask      [B, U], of encoder-decoders: what their decoder is to say, padded on the
                            right; its own input is the start token and then all but the last of them
    logits, left_logits     float32 [B, T, V], [B, U, V] of an encoder-decoder; of a reward model
                            [B], its rewards
    loss                    mean over all real tokens but each row's first, or over all real labels;
                            of rewards their mean
    grad/NAME               gradient of the loss by the tensor of that name
    many_tokens             [M, T], rows without padding, and many_labels [M, U] for them
    bfloat16_error          mean and largest distance of torch's bfloat16 output for `many_tokens`
                            from its float32 one

All parameters are random, norms and biases too, so that none is read wrong unnoticed, and have
values that bfloat16 holds, so that rounding a model adds nothing to `bfloat16_error`. That is taken
over many rows, because the errors of a few are chance.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).with_name("goldens")
LENGTHS, WIDTH = (20, 13, 17), 20
ANSWERS, ANSWER_WIDTH = (11, 7, 9), 11
# A reward model says one number of a row, the others one of every token in it.
MANY, MANY_REWARDS = 240, 1200


def padded(texts, width):
    """Return tokens and mask, padded on the right and on the left."""
    tokens, mask, left_tokens, left_mask = np.zeros((4, len(texts), width), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], mask[row, : len(text)] = text, 1
        left_tokens[row, -len(text) :], left_mask[row, -len(text) :] = text, 1
    return tokens, mask, left_tokens, left_mask


def inputs(vocab_size, seed, *, many, encoder_decoder):
    """Return the arrays of a golden that are made up, by name."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(8, vocab_size, length) for length in LENGTHS]
    names = ("tokens", "mask", "left_tokens", "left_mask")
    arrays = dict(zip(names, padded(texts, WIDTH), strict=True))
    arrays["many_tokens"] = rng.integers(8, vocab_size, (many, WIDTH)).astype(np.int32)
    if encoder_decoder:
        answers = [rng.integers(8, vocab_size, length) for length in ANSWERS]
        arrays["labels"], arrays["label_mask"] = padded(answers, ANSWER_WIDTH)[:2]
        answers = rng.integers(8, vocab_size, (many, ANSWER_WIDTH))
        arrays["many_labels"] = answers.astype(np.int32)
    return arrays


def fill(model, seed):
    """Give a model random parameters that bfloat16 holds."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    kind = model.config.model_type
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # mT5 does not divide the scores of attention.
            scale = 0.2 if kind == "mt5" else 0.3
            values = torch.randn(parameter.shape, generator=generator) * scale
            if "norm" in name and kind != "gemma2":
                values += 1
            parameter.copy_(values.bfloat16().float())


def make(config_file, out, seed):
    """Write a checkpoint with random parameters to `out`; return the arrays of its golden."""
    import torch
    import transformers
    from safetensors.numpy import load_file

    torch.set_num_threads(1)
    config = transformers.AutoConfig.from_pretrained(config_file.parent)
    named = json.loads(config_file.read_text())
    reward = "SequenceClassification" in named["architectures"][0]
    answering = config.is_encoder_decoder
    kind = getattr(transformers, named["architectures"][0])
    model = kind(config)
    if answering:
        # transformers ties the output embedding until a checkpoint holds another.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    fill(model, seed)
    dtype = getattr(torch, named.get("torch_dtype") or named["dtype"])
    with tempfile.TemporaryDirectory() as scratch:
        model.to(dtype).save_pretrained(scratch)
        shutil.copyfile(Path(scratch, "model.safetensors"), out)
        shutil.copyfile(config_file, Path(scratch, "config.json"))
        model, said = kind.from_pretrained(
            scratch,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    assert not any(said.values()), said

    def run(model, tokens, mask, labels=None):
        tokens, mask = torch.tensor(tokens).long(), torch.tensor(mask).long()
        if answering:
            start = np.full_like(labels[:, :1], config.decoder_start_token_id)
            said = torch.tensor(np.concatenate([start, labels[:, :-1]], axis=1)).long()
            return model(tokens, attention_mask=mask, decoder_input_ids=said).logits
        places = (mask.cumsum(1) - 1).clamp(min=0)
        out = model(tokens, attention_mask=mask, position_ids=places).logits
        return out[:, 0] if reward else out

    many = MANY_REWARDS if reward else MANY
    arrays = inputs(config.vocab_size, seed, many=many, encoder_decoder=answering)
    tokens, mask, labels = arrays["tokens"], arrays["mask"], arrays.get("labels")
    output = run(model, tokens, mask, labels)
    if reward:
        loss = output.mean()
    else:
        scores, targets, real = (
            (output, labels, arrays["label_mask"])
            if answering
            else (output[:, :-1], tokens[:, 1:], mask[:, 1:])
        )
        real = torch.tensor(real > 0)
        loss = torch.nn.functional.cross_entropy(scores[real], torch.tensor(targets).long()[real])
    loss.backward()
    arrays["logits"], arrays["loss"] = output.detach().numpy(), loss.detach().numpy()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    # Else they would be rounded with their parameters.
    model.zero_grad(set_to_none=True)
    with torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
        left = run(model, arrays["left_tokens"], arrays["left_mask"], labels)
        arrays["left_logits"] = left.numpy()
        many = arrays["many_tokens"]
        many = (many, np.ones_like(many), arrays.get("many_labels"))
        exact = run(model, *many).numpy()
        distance = np.abs(run(model.to(torch.bfloat16), *many).float().numpy() - exact)
        arrays["bfloat16_error"] = np.array([distance.mean(), distance.max()])
        # Saved as if they were the parameters, gradients get the names of the files.
        model.float()
        for name, parameter in model.named_parameters():
            parameter.copy_(gradients[name])
        model.save_pretrained(scratch)
        saved = load_file(Path(scratch, "model.safetensors"))
    return {**arrays, **{f"grad/{name}": saved[name] for name in sorted(saved)}}


def main():
    """Make every case anew."""
    for config_file in sorted(GOLDENS.glob("*/config.json")):
        folder = config_file.parent
        arrays = make(config_file, folder / "model.safetensors", seed=0)
        np.savez_compressed(folder / "golden.npz", **arrays)
        print(folder.name, float(arrays["loss"]), arrays["bfloat16_error"])


if __name__ == "__main__":
    main()
