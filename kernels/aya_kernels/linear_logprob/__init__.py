"""The operation `linear_logprob`: its definition, its backends and its signature."""
