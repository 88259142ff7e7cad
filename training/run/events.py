"""Event files for TensorBoard, written when asked for and its package is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from dela.training.run.folder import RunFolder


class EventLog:
    """Curves of a run in ``events/`` of its folder; does nothing when not ``wanted``.

    A resumed run hides what an earlier one wrote beyond ``step``.
    """

    def __init__(
        self, folder: RunFolder, wanted: bool, step: int, log: Callable[[str], None]
    ) -> None:
        self._writer: Any = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log("no event files: train.tensorboard needs `pip install tensorboard`")
            return
        self._writer = SummaryWriter(str(folder.events), purge_step=step + 1)

    def add(self, step: int, group: str, values: Mapping[str, Any]) -> None:
        """One point of the curve ``group/name`` for every value that is a number."""
        if self._writer is None:
            return
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
