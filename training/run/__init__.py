"""One training run: the loop, its state, its folder, what it reports."""
