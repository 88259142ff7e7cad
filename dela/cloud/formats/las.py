"""LAS and LAZ through laspy and lazrs: every dimension in, every dimension out."""

from __future__ import annotations

import copy
import io
import logging
import struct
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dela.cloud.formats.columns import (
    COLORS,
    check_column_count,
    check_declared_bytes,
    colors_from_255,
    colors_to_255,
    column_names,
    lossless,
    native,
    unique_name,
)
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError, ScanWarning

# What laspy logs comes as an InputError too; without a handler Python would print it beside.
logging.getLogger("laspy").addHandler(logging.NullHandler())

_NAME_BYTES = 32
_EXTRA_TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
# LAZ items of point formats 6-10 (LASzip): point, RGB, RGB + NIR, wave packet; bytes one each.
_LAYERS_OF_ITEM = {10: 9, 11: 1, 12: 2, 13: 1}
_WIDENED = {"b1": "u1", "f2": "f4"}


@dataclass
class LasSource:
    """The header (scales, offsets, VLRs and EVLRs with the CRS, point format) of a file read.

    Attributes:
        header: ``laspy.LasHeader``.
        dimensions: column -> (dimension, element), element None for dimensions with one.
        color_factor: the file stores colors as ``column * color_factor``.
    """

    header: Any
    dimensions: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    color_factor: float = 256.0


def read_las_extent(path: Path) -> np.ndarray | None:
    """Lowest and highest x, y, z [2, 3] as the header has them; None where it cannot be read."""
    try:
        _check_structure(path)
        with path.open("rb") as stream:
            bounds = struct.unpack_from("<6d", stream.read(227), 179)
    except (OSError, InputError):
        return None
    extent = np.array([bounds[1::2], bounds[0::2]], dtype=np.float64)
    return extent if np.isfinite(extent).all() else None


def read_las(path: Path) -> PointCloud:
    """Reads a LAS or LAZ file of any version and point format.

    Every dimension but X, Y, Z becomes a column under its own name; ``red``, ``green``, ``blue``
    are brought to 0-255 (see ``colors_to_255``), scaled extra dimensions to their scaled values,
    extra dimensions with k elements become ``name_0`` ... ``name_{k-1}``.

    Raises:
        InputError: the file is cut short or damaged.
    """
    import laspy

    count = _check_structure(path)
    with laspy.open(path) as reader:
        header = reader.header
        header.point_count = count
        if header.are_points_compressed and header.point_count:
            _check_chunks(path, header)
        _tell_unread_points(path, header)
        names = list(header.point_format.dimension_names)
        check_column_count(len(names), path)
        record = reader.read_points(-1)
        if len(record) != header.point_count:
            raise InputError(
                f"{path} is cut short: its header promises {header.point_count} points, "
                f"{len(record)} are there"
            )
    points = np.empty((len(record), 3))
    for axis, name in enumerate("XYZ"):
        points[:, axis] = record.array[name] * header.scales[axis] + header.offsets[axis]
    columns: dict[str, np.ndarray] = {}
    dimensions: dict[str, tuple[str, int | None]] = {}
    mapped = column_names(names)
    for info in header.point_format.dimensions:
        if info.name in ("X", "Y", "Z"):
            continue
        name = mapped[info.name]
        if info.dtype is None:  # a bit field
            columns[name] = np.array(record[info.name])
            dimensions[name] = (info.name, None)
            continue
        values = record.array[info.name]
        if info.is_scaled:
            values = values * info.scales + info.offsets
        values = native(values).reshape(len(record), info.num_elements)
        for element in range(info.num_elements):
            single = info.num_elements == 1
            part = name if single else unique_name(f"{name}_{element}", columns)
            columns[part] = np.ascontiguousarray(values[:, element])
            dimensions[part] = (info.name, None if single else element)
    factor = colors_to_255(columns)
    if not any(columns[name].any() for name in COLORS if name in columns):
        factor = LasSource.color_factor  # no colors yet: those to come are written as specified
    return PointCloud(points, columns, LasSource(header, dimensions, factor))


def write_las(path: Path, cloud: PointCloud) -> None:
    """Writes a LAS file.

    A cloud read from LAS keeps header, CRS, point format, scales and offsets, and its coordinates
    come out as the same integers. Other clouds get LAS 1.4 in point format 6, or 7 with colors
    (widened to 16 bits as the specification says), scaled to 0.1 mm, or coarser where the extent
    asks for it. Columns that the point format does not know become extra dimensions.

    Raises:
        InputError: non-finite coordinates, or a value that its field cannot hold.
    """
    las = _las_data(cloud)
    with path.open("wb") as stream:
        _write_data(stream, las, compress=False)


def write_laz(path: Path, cloud: PointCloud) -> None:
    """Writes a LAZ file, as :func:`write_las` does a LAS file."""
    las = _las_data(cloud)
    # lazrs hides why a write failed, so it writes to memory (a tenth of the points' size).
    memory = io.BytesIO()
    _write_data(memory, las, compress=True)
    path.write_bytes(memory.getbuffer())


def _write_data(stream: BinaryIO, las: Any, compress: bool) -> None:
    """Writes the data; header bytes outside ASCII stay as they were read."""
    import laspy

    with laspy.LasWriter(
        stream,
        las.header,
        do_compress=compress,
        closefd=False,
        encoding_errors="surrogateescape",
    ) as writer:
        writer.write_points(las.points)
        if las.header.version.minor >= 4 and las.evlrs is not None:
            writer.write_evlrs(las.evlrs)


def _las_data(cloud: PointCloud) -> Any:
    """The cloud as ``laspy.LasData``."""
    import laspy

    bad = int((~np.isfinite(cloud.points).all(axis=1)).sum())
    if bad:
        raise InputError(f"{bad} points have NaN or infinite coordinates, which LAS cannot hold")
    kept = isinstance(cloud.source, LasSource)
    source = copy.deepcopy(cloud.source) if kept else _new_source(cloud)
    header = source.header
    if str(header.version) not in laspy.supported_versions():
        header.version = laspy.header.Version(1, 2)
    _drop_copc(header)
    assigned = _assign(cloud, source)
    integers = _integer_coordinates(cloud.points, header)
    record = laspy.ScaleAwarePointRecord.zeros(len(cloud), header=header)
    for axis, name in enumerate("XYZ"):
        record.array[name] = integers[axis]
    for (name, element), values in assigned.items():
        if element is not None:
            record.array[name][:, element] = values
        elif name in record.array.dtype.names:
            record.array[name] = values
        else:
            record[name][:] = values
    return laspy.LasData(header, record)


def _check_structure(path: Path) -> int:
    """Counts and offsets of the header against the file's size, before anything relies on them.

    Returns:
        The number of points; some writers of LAS 1.4 fill in the field of older versions alone.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(375)
        if head[:4] != b"LASF":
            raise InputError(f"{path} is not a LAS or LAZ file: it does not start with LASF")
        if len(head) < 227:
            raise InputError(f"{path} is cut short: {size} bytes do not hold a LAS header")
        major, minor = head[24], head[25]
        if major != 1 or minor > 4:
            raise InputError(f"{path} says LAS version {major}.{minor}; known: 1.0 to 1.4")
        scales = struct.unpack_from("<6d", head, 131)
        if not np.isfinite(scales).all() or min(map(abs, scales[:3])) == 0:
            raise InputError(f"{path} is damaged: scales and offsets of its header are {scales}")
        (offset, records) = struct.unpack_from("<II", head, 96)
        if offset > size:
            raise InputError(f"{path} is cut short: its points start after the end of the file")
        if records * 54 > offset:
            raise InputError(f"{path} is damaged: {records} records do not fit before its points")
        point_format, point_size, count = struct.unpack_from("<BHI", head, 104)
        if minor >= 4:
            if len(head) < 375:
                raise InputError(f"{path} is cut short: {size} bytes do not hold a LAS 1.4 header")
            start, extended, modern = struct.unpack_from("<QIQ", head, 235)
            count = modern or count
            for _ in range(extended):
                stream.seek(min(start, size))
                record = stream.read(60)
                length = struct.unpack_from("<Q", record, 20)[0] if len(record) == 60 else size
                start += 60 + length
                if start > size:
                    raise InputError(f"{path} is cut short: an extended record passes its end")
    if point_format < 64 and offset + count * point_size > size:
        whole = (size - offset) // max(point_size, 1)
        raise InputError(
            f"{path} is cut short: its header promises {count} points, {whole} are there"
        )
    return count


def _tell_unread_points(path: Path, header: Any) -> None:
    """Warns where a LAS holds more points than its header says; what follows them is no point."""
    if header.are_points_compressed:
        return
    start, end = header.offset_to_point_data, path.stat().st_size
    for other in (
        getattr(header, "start_of_first_evlr", 0),
        getattr(header, "start_of_waveform_data_packet_record", 0),
    ):
        if other >= start:
            end = min(end, other)
    held = (end - start) // header.point_format.size
    if held > header.point_count:
        warnings.warn(
            f"{path}: its header says {header.point_count} points, {held} are there; the others "
            "are left out (a program that repairs headers, lasinfo -repair, counts them again)",
            ScanWarning,
            stacklevel=3,
        )


def _check_chunks(path: Path, header: Any) -> None:
    """LAZ: the table of chunks against the file's size; lazrs would allocate what it claims."""
    import lazrs

    vlr = lazrs.LazVlr(header.vlrs[header.vlrs.index("LasZipVlr")].record_data)
    if vlr.item_size() != header.point_format.size:
        raise InputError(
            f"{path} is damaged: compressed points of {vlr.item_size()} bytes, "
            f"its point format has {header.point_format.size}"
        )
    chunk_size = vlr.chunk_size()
    if not vlr.uses_variable_size_chunks():
        check_declared_bytes(chunk_size * vlr.item_size(), path, f"a chunk of {chunk_size} points")
    size = path.stat().st_size
    start = header.offset_to_point_data
    with path.open("rb") as stream:
        stream.seek(start)
        place = int.from_bytes(stream.read(8), "little", signed=True)
        if place == -1:  # written to a pipe: the table's place stands at the end
            stream.seek(max(size - 8, 0))
            place = int.from_bytes(stream.read(8), "little", signed=True)
        if not start + 8 <= place <= size - 8:
            raise InputError(f"{path} is cut short: its table of chunks lies outside the file")
        stream.seek(place + 4)
        chunks = int.from_bytes(stream.read(4), "little")
        if chunks > min(header.point_count, size):
            raise InputError(f"{path} is damaged: it claims {chunks} chunks of points")
        stream.seek(start)
        table = lazrs.read_chunk_table(stream, vlr)
        held = sum(points for points, _ in table)
        if sum(length for _, length in table) > place - start or held < header.point_count:
            raise InputError(
                f"{path} is damaged: its chunks do not hold the {header.point_count} points "
                "promised"
            )
        largest = max((points for points, _ in table), default=0)
        check_declared_bytes(largest * vlr.item_size(), path, f"a chunk of {largest} points")
        layers = _layers(vlr.record_data())
        at = start + 8
        for number, (_, length) in enumerate(table if layers else ()):
            stream.seek(at + vlr.item_size() + 4)
            sizes = np.frombuffer(stream.read(4 * layers), "<u4")
            if sizes.sum(dtype=np.int64) > length:
                raise InputError(f"{path} is damaged: chunk {number} is longer than its place")
            at += length


def _layers(record: bytes) -> int:
    """Separately compressed layers in a chunk; 0 for point formats 0-5, which have none."""
    if record[:2] != b"\x03\x00":
        return 0
    (items,) = struct.unpack_from("<H", record, 32)
    layers = 0
    for kind, size, _ in struct.iter_unpack("<HHH", record[34 : 34 + 6 * items]):
        layers += _LAYERS_OF_ITEM.get(kind, size)
    return layers


def _new_source(cloud: PointCloud) -> LasSource:
    import laspy

    colors = all(name in cloud.columns for name in COLORS)
    header = laspy.LasHeader(version="1.4", point_format=7 if colors else 6)
    header.global_encoding.wkt = True
    header.generating_software = "dela"
    if len(cloud):
        header.offsets = np.floor(cloud.points.min(axis=0))
        extent = cloud.points.max(axis=0) - header.offsets
        header.scales = np.maximum(1e-4, 10.0 ** np.ceil(np.log10(np.maximum(extent, 1e-4) / 2e9)))
    source = LasSource(header)
    for name in header.point_format.standard_dimension_names:
        if name not in ("X", "Y", "Z"):
            source.dimensions[name] = (name, None)
    if colors and any(cloud.columns[name].dtype.kind == "f" for name in COLORS):
        channels = [cloud.columns[name] for name in COLORS]
        whole = all((np.rint(channel) == channel).all() for channel in channels)
        bright = max(float(np.nan_to_num(channel).max(initial=0)) for channel in channels) >= 1
        if bright and not whole:
            source.color_factor = 257.0
    return source


def _drop_copc(header: Any) -> None:
    """COPC's own records describe an octree that a rewritten file does not have."""
    for records in (header.vlrs, header.evlrs or []):
        records[:] = [record for record in records if record.user_id != "copc"]


def _assign(cloud: PointCloud, source: LasSource) -> dict[tuple[str, int | None], np.ndarray]:
    """The raw values of every dimension; the header gains and loses extra dimensions to fit."""
    import laspy

    header = source.header
    infos = {info.name: info for info in header.point_format.dimensions}
    assigned: dict[tuple[str, int | None], np.ndarray] = {}
    new: dict[str, np.ndarray] = {}
    outgrown: set[str] = set()
    for name, column in cloud.columns.items():
        dimension = source.dimensions.get(name)
        if dimension is None:
            new[name] = column
            continue
        info = infos[dimension[0]]
        values = _raw_values(column, info, dimension[1] or 0, source.color_factor)
        if values is not None:
            assigned[dimension] = values
        elif not info.is_standard:
            new[name] = column
            outgrown.add(info.name)
        elif not isinstance(cloud.source, LasSource):
            new[f"{name}_value"] = column
        else:
            raise InputError(
                f"column {name!r} holds {_extreme(column, info)}; point format "
                f"{header.point_format.id} stores whole numbers from {info.min} to {info.max} "
                "there. Write PLY or NPZ, or convert the scan to LAS 1.4 (point format 6-10)"
            )
    present = {name for name, _ in assigned} - outgrown
    gone = [name for name in header.point_format.extra_dimension_names if name not in present]
    header.remove_extra_dims(gone)
    taken = set(header.point_format.dimension_names) | {"x", "y", "z"}
    added = []
    for name, column in new.items():
        short = name.encode()[:_NAME_BYTES].decode(errors="ignore")
        attempt = 1
        while short in taken or not short:
            attempt += 1
            end = f"_{attempt}"
            short = name.encode()[: _NAME_BYTES - len(end)].decode(errors="ignore") + end
        taken.add(short)
        kind = f"{column.dtype.kind}{column.dtype.itemsize}"
        kind = _WIDENED.get(kind, kind)
        if kind not in _EXTRA_TYPES:
            raise InputError(f"column {name!r} is {column.dtype}, which LAS cannot hold")
        added.append(laspy.ExtraBytesParams(short, kind))
        assigned[short, None] = column
    header.add_extra_dims(added)
    return {key: values for key, values in assigned.items() if key[0] in taken}


def _raw_values(
    column: np.ndarray, info: Any, element: int, color_factor: float
) -> np.ndarray | None:
    """The column as the dimension stores it, or None where it does not fit."""
    if info.name in COLORS and info.is_standard:
        return colors_from_255(column, color_factor, np.dtype(np.uint16))
    if info.dtype is None:  # a bit field
        values = lossless(column, np.dtype(np.uint8))
        return values if values is None or values.max(initial=0) <= info.max else None
    dtype = info.dtype.base
    if info.is_scaled:
        raw = (column.astype(np.float64) - info.offsets[element]) / info.scales[element]
        return lossless(np.rint(raw), dtype) if dtype.kind in "ui" else raw.astype(dtype)
    return lossless(column, dtype)


def _extreme(column: np.ndarray, info: Any) -> Any:
    outside = ~((column >= info.min) & (column <= info.max))
    wrong = outside if outside.any() else np.rint(column) != column
    return column[wrong][0]


def _integer_coordinates(points: np.ndarray, header: Any) -> list[np.ndarray]:
    """X, Y, Z on the header's scales; its offsets move where an integer would overflow."""
    integers = []
    header.offsets = np.array(header.offsets, dtype=np.float64)
    limits = np.iinfo(np.int32)
    for axis in range(3):
        values = points[:, axis]
        scale = header.scales[axis]
        raw = np.rint((values - header.offsets[axis]) / scale)
        if len(raw) and not (limits.min <= raw.min() and raw.max() <= limits.max):
            header.offsets[axis] = np.floor(values.min())
            raw = np.rint((values - header.offsets[axis]) / scale)
            if not raw.max() <= limits.max:
                raise InputError(
                    f"{'xyz'[axis]} spans {np.ptp(values):g}, more than LAS holds at the input's "
                    f"scale {scale:g}; write PLY or NPZ"
                )
        integers.append(raw.astype(np.int32))
    return integers
