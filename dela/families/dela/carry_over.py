"""Which tensors of one DeLA network another one starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from dela.errors import ConfigError
from dela.families.dela.config import DelaConfig
from dela.model.contract import AttributeInfo


def carry_over(
    own: Mapping[str, Tensor],
    offered: Mapping[str, Tensor],
    ours: DelaConfig,
    theirs: DelaConfig,
) -> dict[str, Tensor]:
    """Tensors of the same name and shape; reference values of attributes and directions by the
    columns that both networks have; the last layer only where both tell the same classes apart.

    Raises:
        ConfigError: no weight of a stage fits.
    """
    same_classes = [info.name for info in ours.classes] == [info.name for info in theirs.classes]
    found = {}
    for name, tensor in own.items():
        if name not in offered or (name.startswith("head.classify.") and not same_classes):
            continue
        values: Tensor | None = offered[name]
        if name == "ellipsoids.0.attributes":
            values = _by_column(tensor, offered[name], ours.attributes, theirs.attributes)
        elif name == "ellipsoids.0.directions":
            values = _by_column(tensor, offered[name], ours.directions, theirs.directions)
        elif offered[name].shape != tensor.shape:
            values = None
        if values is not None:
            found[name] = values
    if not any(".block." in name and name.endswith(".weight") for name in found):
        raise ConfigError(
            f"its model.dims is {list(theirs.dims)}, depths {list(theirs.depths)}; here "
            f"{list(ours.dims)} and {list(ours.depths)}"
        )
    return found


def _by_column(
    own: Tensor,
    found: Tensor,
    ours: Sequence[AttributeInfo],
    theirs: Sequence[AttributeInfo],
) -> Tensor | None:
    """Reference values [E C] with the rows of columns that both networks have taken over."""
    rows, others = own.view(len(ours), -1).clone(), found.view(len(theirs), -1)
    position = {info.name: row for row, info in enumerate(theirs)}
    shared = [row for row, info in enumerate(ours) if info.name in position]
    if not shared or rows.shape[1] != others.shape[1]:
        return None
    for row in shared:
        rows[row] = others[position[ours[row].name]]
    return rows.flatten()
