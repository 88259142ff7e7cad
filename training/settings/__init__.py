"""The training configuration: one TOML file as frozen dataclasses, and what follows from it."""
