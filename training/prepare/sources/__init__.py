"""The raw layouts of the public datasets, one module each."""
