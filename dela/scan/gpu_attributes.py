"""The network's input columns, made on the device from a scan's own columns.

As :func:`dela.scan.attributes.compute_attributes`, bit for bit, but for columns on a logarithmic
scale: there the last bit of float32 may differ. Heights above ground and what is told by an
object's category are computed on the host and go up like columns. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.model.contract import AttributeInfo
from dela.pyramid.gpu_columns import Column, ScanColumns
from dela.scan.attributes import nan_refused, unchecked_column


def scan_columns(cloud: PointCloud, infos: Sequence[AttributeInfo]) -> ScanColumns:
    """The columns that :meth:`dela.pyramid.gpu.PyramidBuilder.voxels` makes attributes of.

    Args:
        cloud: N points, all finite.
        infos: the attributes in order, as ``Contract.input_columns``.

    Raises:
        InputError: a column is missing. One that holds NaN is found on the device.
    """
    needed = [info.name for info in infos]

    def values(name: str) -> np.ndarray | None:
        return None if name == "height" else unchecked_column(cloud, name, needed)

    return ScanColumns([Column(info, values(info.name)) for info in infos], nan_refused)
