"""One training run: the loop, its state, its devices and processes, its folder, its reports."""
