"""The Expanse recipe as an ordered list of stages, its run directory, settings and resume."""
