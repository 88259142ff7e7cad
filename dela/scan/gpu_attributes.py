"""The network's input columns, made on the device from a scan's own columns.

As :func:`dela.scan.attributes.compute_attributes`, bit for bit, but for columns on a logarithmic
scale and heights above ground: there the last bit of float32 may differ. What is told by an
object's category is computed on the host and goes up like a column; so are heights above ground of
scans of more than a million square meters. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from dela.cloud.point_cloud import PointCloud
from dela.model.contract import AttributeInfo
from dela.pyramid.gpu_columns import Column, ScanColumns
from dela.scan.attributes import height_above_ground, nan_refused, unchecked_column


def scan_columns(cloud: PointCloud, infos: Sequence[AttributeInfo]) -> ScanColumns:
    """The columns that :meth:`dela.pyramid.gpu.PyramidBuilder.voxels` makes attributes of.

    Args:
        cloud: N points, all finite.
        infos: the attributes in order, as ``Contract.input_columns``.

    Raises:
        InputError: a column is missing. One that holds NaN is found on the device.
    """
    needed = [info.name for info in infos]

    def column(info: AttributeInfo) -> Column:
        if info.name in ("height", "height_above_ground"):
            return Column(info, None, info.name == "height_above_ground")
        return Column(info, unchecked_column(cloud, info.name, needed))

    return ScanColumns(
        [column(info) for info in infos], lambda: height_above_ground(cloud.points), nan_refused
    )
