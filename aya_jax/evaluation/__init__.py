"""What a model is worth: checked answers, rewards and pairwise win rates, with intervals."""
