"""What a layer keeps for its backward pass, by name; what is not kept is computed again."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from aya_jax.sharding.place import GATHERED, current_place

# The points of a layer that a policy can name: what it begins with, and the results of its products.
INPUT = "layer_input"
PRODUCTS = ("qkv", "attention", "attention_out", "mlp_in", "mlp_out")

_policies = jax.checkpoint_policies

POLICIES: dict[str, Any] = {
    # Everything is kept but what FSDP gathered, or each device would end up with all weights.
    "none": _policies.save_anything_except_these_names(GATHERED),
    # Only what each layer begins with: the least memory, a third more products.
    "full": _policies.nothing_saveable,
    # That and the results of all products: much of the memory, hardly more work.
    "products": _policies.save_only_these_names(*PRODUCTS),
    # That and the result of attention, which is the dearest thing to make again at long lengths.
    "attention": _policies.save_only_these_names("attention"),
    # As `full`, with what layers begin with in the host's memory.
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def rematerialised(layer: Callable[..., nn.Module], remat: str) -> Callable[..., nn.Module]:
    """Return the scanned layer under the policy of that name in `POLICIES`."""
    if remat == "none" and current_place() is None:
        return layer
    return nn.remat(layer, prevent_cse=False, policy=POLICIES[remat])


def named(x: jax.Array, name: str) -> jax.Array:
    """Return `x`, which policies may keep by this name."""
    return checkpoint_name(x, name)
