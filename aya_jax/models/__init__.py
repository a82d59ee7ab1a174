"""The decoder, its configuration and its heads. Only this room knows Flax Linen."""
