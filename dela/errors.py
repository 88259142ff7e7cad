"""The exceptions a user meets. Each message is one or two lines: what is wrong, how to mend it."""

from __future__ import annotations


class DelaError(Exception):
    """Base of every error this package raises on purpose; the command line prints it as is."""


class InputError(DelaError, ValueError):
    """A scan, a table or an argument that cannot be used as it is."""


class ConfigError(DelaError, ValueError):
    """A configuration with an unknown key or a value out of range."""


class CheckpointError(DelaError, ValueError):
    """A checkpoint or an ONNX file that is not ours, or of another version."""


class EngineError(DelaError, ValueError):
    """An engine that cannot be built, or that does not fit the machine or the input at hand."""


class MissingDependencyError(DelaError, ImportError):
    """An optional package is needed; the message names the pip command."""


class ParityError(DelaError):
    """A backend does not give PyTorch's answer within the tolerance."""
