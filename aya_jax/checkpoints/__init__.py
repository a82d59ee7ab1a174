"""Model directories and the checkpoints of a training run, both Orbax underneath."""
