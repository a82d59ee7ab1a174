"""Merges as merging.py asks for, in a process of its own: OUT FORM METHOD DENSITY BASE MODELS..., BASE `-` for none."""

import sys

from aya_jax.merging.merge import merge

if __name__ == "__main__":
    out, form, method, density, base, *models = sys.argv[1:]
    merge(
        models,
        out=out,
        form=form,
        method=method,
        density=float(density),
        base=None if base == "-" else base,
    )
