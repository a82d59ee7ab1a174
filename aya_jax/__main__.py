"""`python -m aya_jax` is the command `aya`."""

import sys

from aya_jax.cli import main

sys.exit(main())
