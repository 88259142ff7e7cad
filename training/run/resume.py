"""What a resumed run takes from the interrupted one."""

from __future__ import annotations

from typing import Any

from dela.artifacts.checkpoint import load_checkpoint
from dela.errors import CheckpointError, ConfigError, InputError
from dela.training.run.folder import RunFolder
from dela.training.settings.train import TrainConfig

# What may differ between a run and its continuation: it changes no number.
FREE_ON_RESUME = {
    ("data", "root"),
    ("train", "workers"),
    ("train", "worker_processes"),
    ("train", "gpu_pyramid"),
    ("train", "checkpoint"),
    ("train", "save_minutes"),
    ("train", "save_steps"),
    ("train", "tensorboard"),
}


def state_to_resume(
    folder: RunFolder, config: TrainConfig, processes: int = 1
) -> dict[str, Any] | None:
    """The ``extra`` of ``last.pt``, after checking that it is this configuration's.

    Args:
        processes: that train together; a step's samples depend on their number.

    Returns:
        None for a run that ended before its first checkpoint: it starts again.

    Raises:
        InputError: no run. CheckpointError: no training run's checkpoint. ConfigError: another
            configuration.
    """
    if not folder.last.exists():
        if folder.config.exists():
            return None
        raise InputError(f"nothing to resume: {folder.last} does not exist; leave out --resume")
    extra = load_checkpoint(folder.last).extra or {}
    if not {"resume", "processes"} <= extra.keys():
        raise CheckpointError(
            f"{folder.last} holds no training state of this version of dela; it cannot be resumed"
        )
    if extra["processes"] != processes:
        raise ConfigError(
            f"the run in {folder.path} was trained by {extra['processes']} processes, not "
            f"{processes}; resume with as many, or start another run with --init {folder.last}"
        )
    earlier = TrainConfig.from_dict(extra["training"])
    if earlier.model.family != config.model.family:
        raise ConfigError(
            f"model.family is {config.model.family!r}, but the run in {folder.path} has "
            f"{earlier.model.family!r}; resume with the same configuration ({folder.config}) or "
            "start another run"
        )
    before = earlier.to_dict()
    for section, values in config.to_dict().items():
        for key, value in values.items():
            if (section, key) not in FREE_ON_RESUME and value != before[section][key]:
                raise ConfigError(
                    f"{section}.{key} is {value!r}, but the run in {folder.path} has "
                    f"{before[section][key]!r}; resume with the same configuration "
                    f"({folder.config}) or start another run"
                )
    return extra
