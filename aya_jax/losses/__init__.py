"""Losses: pure functions of per-token log-probabilities (or rewards) and masks.

Every loss returns a `Total`: sums with their counts, so that means stay exact under gradient
accumulation, packing and data parallelism.
"""
