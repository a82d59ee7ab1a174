"""Records what mergekit makes of tiny models in `goldens/`.

    python tests/merging/make_goldens.py

needs mergekit, torch and transformers; the committed files were made with mergekit 0.1.5, torch 2.13.0 and
transformers 5.24.0. `goldens/FAMILY.npz` has `CASE/TENSOR`, float32, for the tensors of the Hugging Face layout. The
models themselves are not kept: `golden_models.py` makes them again.

Where mergekit draws entries, `torch.bernoulli` is replaced by a comparison with the numbers of
`golden_models.uniform`, so that what it does with them can be compared.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from golden_models import CASES, CONFIGS, entries, uniform
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

GOLDENS = Path(__file__).with_name("goldens")


def bernoulli(chances):
    return (torch.tensor(uniform(tuple(chances.shape))) < chances).to(chances.dtype)


def shapes_of(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    return {n: tuple(t.shape) for n, t in model.state_dict().items() if n not in tied}


def main():
    torch.bernoulli = bernoulli
    for family, config in CONFIGS.items():
        shapes = shapes_of(config)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            for model in ("base", "a", "b", "c", "near"):
                (place / model).mkdir()
                (place / model / "config.json").write_text(json.dumps(config))
                tensors = {name: entries(model, name, shape) for name, shape in shapes.items()}
                save_file(tensors, place / model / "model.safetensors", {"format": "pt"})
            found = {}
            for case, (method, models, base, shared, own) in CASES.items():
                asked = {
                    "merge_method": method,
                    "dtype": "float32",
                    "parameters": shared,
                    "models": [
                        {
                            "model": str(place / model),
                            "parameters": {key: values[i] for key, values in own.items()},
                        }
                        for i, model in enumerate(models)
                    ],
                }
                if base:
                    asked["base_model"] = str(place / base)
                read = MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(asked)))
                run_merge(read, str(place / "out"), MergeOptions(copy_tokenizer=False, quiet=True))
                made = {}
                for file in sorted((place / "out").glob("*.safetensors")):
                    made |= load_file(file)
                    file.unlink()
                for name in shapes:
                    found[f"{case}/{name}"] = made[name].astype(np.float32)
            np.savez_compressed(GOLDENS / f"{family}.npz", **found)


main()
