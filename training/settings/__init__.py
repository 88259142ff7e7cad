"""The training configuration: one TOML file, read into frozen dataclasses."""
