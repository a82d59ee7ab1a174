"""What the kernels cost: `python -m benchmarks` on the chip at hand, `benchmarks.compiled` with none."""
