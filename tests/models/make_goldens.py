"""Makes the checkpoints and reference outputs in `goldens/` from the `config.json` of each.

    python tests/models/make_goldens.py

needs torch, transformers and safetensors; the committed files were made with torch 2.13.0 and
transformers 5.24.0. Every `goldens/CASE/config.json` was written by hand in the style of the
published ones; the script adds `model.safetensors`, in the dtype that the config names, and
`golden.npz`:

    tokens, mask            [B, T], rows of different lengths, padded on the right
    left_tokens, left_mask  the same, padded on the left
    logits, left_logits     float32 [B, T, V]; of a reward model [B], its rewards
    loss                    mean over all real tokens but each row's first; of rewards their mean
    grad/NAME               gradient of the loss by the tensor of that name
    bfloat16_error          mean and largest distance of torch's bfloat16 output from its float32 one

All parameters are random, norms and biases too, so that none is read wrong unnoticed, and have
values that bfloat16 holds, so that rounding a model adds nothing to `bfloat16_error`.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).with_name("goldens")
LENGTHS, WIDTH = (20, 13, 17), 20


def rows(vocab_size, seed):
    """Return tokens and mask, padded on the right and on the left."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(8, vocab_size, length) for length in LENGTHS]
    tokens, mask, left_tokens, left_mask = np.zeros((4, len(texts), WIDTH), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], mask[row, : len(text)] = text, 1
        left_tokens[row, -len(text) :], left_mask[row, -len(text) :] = text, 1
    return tokens, mask, left_tokens, left_mask


def make(config_file, out, seed):
    """Write a checkpoint with random parameters to `out`; return the arrays of its golden."""
    import torch
    import transformers
    from safetensors.numpy import load_file

    config = transformers.AutoConfig.from_pretrained(config_file.parent)
    named = json.loads(config_file.read_text())
    reward = "SequenceClassification" in named["architectures"][0]
    kind = "AutoModelForSequenceClassification" if reward else "AutoModelForCausalLM"
    if reward:
        config.num_labels = 1
    build = getattr(transformers, kind).from_config
    model = build(config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) * 0.3
            if "norm" in name and named["model_type"] != "gemma2":
                values += 1
            parameter.copy_(values.bfloat16().float())

    def saved(model, folder):
        model.save_pretrained(folder)
        return folder / "model.safetensors"

    def run(model, tokens, mask):
        tokens, mask = torch.tensor(tokens).long(), torch.tensor(mask).long()
        places = (mask.cumsum(1) - 1).clamp(min=0)
        out = model(tokens, attention_mask=mask, position_ids=places).logits
        return out[:, 0] if reward else out

    tokens, mask, left_tokens, left_mask = rows(config.vocab_size, seed)
    output = run(model, tokens, mask)
    if reward:
        loss = output.mean()
    else:
        real = torch.tensor(mask[:, 1:] > 0)
        targets = torch.tensor(tokens[:, 1:]).long()[real]
        loss = torch.nn.functional.cross_entropy(output[:, :-1][real], targets)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    exact = output.detach().numpy()
    arrays = {"tokens": tokens, "mask": mask, "left_tokens": left_tokens, "left_mask": left_mask}
    arrays["logits"], arrays["loss"] = exact, loss.detach().numpy()
    with torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
        arrays["left_logits"] = run(model, left_tokens, left_mask).numpy()
        dtype = getattr(torch, named.get("torch_dtype") or named["dtype"])
        shutil.copyfile(saved(model.to(dtype), Path(scratch)), out)
        rounded = run(model.to(torch.bfloat16), tokens, mask).float().numpy()
        distance = np.abs(rounded - exact)
        distance = distance if reward else distance[mask > 0]
        arrays["bfloat16_error"] = np.array([distance.mean(), distance.max()])
        # Saved as if they were the parameters, gradients get the names of the files.
        model.float()
        for name, parameter in model.named_parameters():
            parameter.copy_(gradients[name])
        named_as_saved = load_file(saved(model, Path(scratch)))
    return {**arrays, **{f"grad/{name}": value for name, value in named_as_saved.items()}}


def main():
    """Make every case anew."""
    for config_file in sorted(GOLDENS.glob("*/config.json")):
        if json.loads(config_file.read_text())["model_type"] == "mt5":
            continue
        folder = config_file.parent
        arrays = make(config_file, folder / "model.safetensors", seed=0)
        np.savez_compressed(folder / "golden.npz", **arrays)
        print(folder.name, float(arrays["loss"]), arrays["bfloat16_error"])


if __name__ == "__main__":
    main()
