"""What a recipe needs of chips that are not here: programs compiled for them, bounds, a search."""
