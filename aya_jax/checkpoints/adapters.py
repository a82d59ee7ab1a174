"""LoRA adapters in the format of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

Source: huggingface/peft `tuners/lora/config.py` and `utils/save_and_load.py`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from aya_jax.checkpoints.model_directory import read_object
from aya_jax.checkpoints.safetensors import Safetensors, write_safetensors
from aya_jax.checkpoints.slices import LeafPath, nested
from aya_jax.data.files import atomic_write
from aya_jax.errors import AyaError
from aya_jax.models.architecture import ModelConfig, hf_tensors
from aya_jax.models.lora import HEAD, INPUTS, LoRA, Params
from aya_jax.models.names import HFTensor
from aya_jax.models.t5_config import T5Config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Of `adapter_config.json`, what changes nothing in the adapters that are read.
_IGNORED = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
}
# First values with which the base is not the one that was published.
_MOVED_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")


def save_adapters(directory: Path, config: ModelConfig, lora: LoRA, adapters: Params) -> None:
    """Write adapters into a folder, which is made if need be; PEFT loads it onto the same model.

    Args:
      directory: the folder; what an earlier attempt left there is written over.
      config: of the model.
      lora, adapters: as `models.lora.init_adapters` takes and returns them.

    Raises:
      OSError: the disk is full, or the folder not writable.
    """
    reward = HEAD in adapters
    tensors = {}
    for tensor, leaf in _places(config, adapters):
        if tensor.leaf == (HEAD,):
            tensors[PREFIX + tensor.name] = np.asarray(leaf, np.float32).reshape(tensor.shape)
            continue
        rank = leaf["a"].shape[-1]
        a, b = (np.asarray(leaf[name][tensor.index], np.float32) for name in ("a", "b"))
        name_a, name_b = _names(tensor)
        tensors[name_a], tensors[name_b] = a.reshape(-1, rank).T, b.reshape(rank, -1).T
    task = "SEQ_2_SEQ_LM" if isinstance(config, T5Config) else "CAUSAL_LM"
    modules = {tensor.name.split(".")[-2] for tensor, _ in _places(config, adapters)} - {HEAD}
    told = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if reward else task,
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "use_rslora": lora.use_rslora,
        "target_modules": sorted(modules),
        "modules_to_save": [HEAD] if reward else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write(directory / CONFIG, json.dumps(told, indent=1, sort_keys=True) + "\n")
    shapes = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    size = sum(array.nbytes for array in tensors.values())
    with write_safetensors(directory, shapes, max_shard_size=size, single=WEIGHTS) as put:
        for name, array in tensors.items():
            put(name, array)


def load_adapters(directory: str | Path, config: ModelConfig) -> tuple[LoRA, Params]:
    """Read adapters that PEFT or `save_adapters` wrote.

    Args:
      directory: the folder.
      config: of the model that they are for.

    Returns:
      What they are, and float32 adapters as `models.lora.init_adapters` has them.

    Raises:
      AyaError: a file is missing or damaged, the adapters are of a kind that is not supported, or they
        do not fit the model; the message names the setting or the tensor.
    """
    path = Path(directory, CONFIG)
    told = _read_config(path)
    with Safetensors(directory, WEIGHTS) as files:
        left = dict.fromkeys(files.tensors)
        stacks: dict[LeafPath, list[np.ndarray]] = {}
        reward = f"{PREFIX}{HEAD}.weight" in left
        tensors = hf_tensors(config, reward=reward)
        adapted = {t.leaf for t in tensors if left.keys() & set(_names(t))}

        def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
            if name not in left:
                raise AyaError(f"{files.files[0]}: tensor '{name}' is missing")
            del left[name]
            found = files.tensors[name].shape
            if found != shape:
                raise AyaError(f"{files.files[0]}: tensor '{name}' is {found}; it must be {shape}")
            return files.read(name).astype(np.float32)

        for tensor in tensors:
            if tensor.leaf == (HEAD,):
                stacks[(HEAD,)] = list(read(PREFIX + tensor.name, tensor.shape))
            elif tensor.leaf in adapted and tensor.leaf[-1] in INPUTS and len(tensor.index) == 1:
                (name_a, name_b), (outputs, inputs) = _names(tensor), tensor.shape
                split = INPUTS[tensor.leaf[-1]]
                a = read(name_a, (told["r"], inputs)).T.reshape(*tensor.part[:split], -1)
                b = read(name_b, (outputs, told["r"])).T.reshape(-1, *tensor.part[split:])
                stacks.setdefault((*tensor.leaf, "a"), []).append(a)
                stacks.setdefault((*tensor.leaf, "b"), []).append(b)
        if left:
            raise AyaError(
                f"{files.files[0]}: tensor '{next(iter(left))}' has no place in this model; adapters "
                f"are read for {', '.join(INPUTS)} outside experts, and for a reward head"
            )
    targets = tuple(name for name in INPUTS if any(name in leaf for leaf in stacks))
    lora = LoRA(told["r"], told["lora_alpha"], targets, told.get("use_rslora", False))
    leaves = {leaf: jnp.asarray(np.stack(parts)) for leaf, parts in stacks.items()}
    if reward:
        leaves[(HEAD,)] = leaves[(HEAD,)][0]
    return lora, nested(leaves)


def _places(config: ModelConfig, adapters: Params) -> Iterator[tuple[HFTensor, Any]]:
    """Yield each tensor of the model that has an adapter, with the leaf that it is a part of."""
    for tensor in hf_tensors(config, reward=HEAD in adapters):
        node: Any = adapters
        for key in tensor.leaf:
            node = node.get(key) if isinstance(node, dict) else None
        if node is not None:
            yield tensor, node


def _names(tensor: HFTensor) -> tuple[str, str]:
    module = PREFIX + tensor.name.removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _read_config(path: Path) -> dict[str, Any]:
    told = read_object(path, "adapter of PEFT's")
    if told.get("peft_type") != "LORA":
        raise AyaError(f"{path}: must be the config of a LoRA (peft_type 'LORA')")
    rest = {name: value for name, value in told.items() if name not in _IGNORED}
    for name, kind in (("peft_type", str), ("r", int), ("lora_alpha", int | float)):
        if not isinstance(rest.pop(name, None), kind):
            raise AyaError(f"{path}: '{name}' must be there, as {kind}")
    rest.pop("use_rslora", None)
    if rest.get("bias") == "none":
        rest.pop("bias")
    start = rest.get("init_lora_weights")
    if not isinstance(start, str) or not start.lower().startswith(_MOVED_BASE):
        rest.pop("init_lora_weights", None)
    for name, value in rest.items():
        if value:
            raise AyaError(f"{path}: {name} = {value!r} is not supported")
    return told
