"""Train state, the step, the objectives and the loop."""
