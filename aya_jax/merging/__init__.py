"""Merging models: methods as pure functions of leaves, mapped over trees of parameters."""
