"""Triangle meshes in PLY: the vertices as a cloud, the faces, and normals from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dela.cloud.formats import read_cloud
from dela.cloud.formats.ply import PlySource
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError


@dataclass(frozen=True)
class Mesh:
    """Vertices and triangles.

    Attributes:
        cloud: the vertices with their columns.
        faces: [F, 3] int64 rows of the vertices.
    """

    cloud: PointCloud
    faces: np.ndarray


def read_mesh(path: Path) -> Mesh:
    """Reads a PLY with triangles (ascii or binary).

    Raises:
        InputError: no faces, faces of other than three vertices, indices outside the vertices, or
            anything :func:`~dela.cloud.formats.read_cloud` refuses.
    """
    cloud = read_cloud(path)
    source = cloud.source
    if not isinstance(source, PlySource):
        raise InputError(f"{path} is not a PLY file")
    elements, body = source.after
    face = elements[0] if elements else None
    if face is None or face.name != "face" or not face.count:
        raise InputError(f"{path} has no faces behind its vertices")
    lists = [each for each in face.properties if each.count_dtype is not None]
    if len(lists) != 1:
        raise InputError(f"{path}: its faces have {len(lists)} list properties; expected one")
    if source.order == "ascii":
        faces = _ascii_faces(body, face.count, path)
    else:
        order = "<" if source.order == "binary_little_endian" else ">"
        fields: list[tuple] = []
        for each in face.properties:
            if each.count_dtype is None:
                fields.append((each.name, order + each.dtype))
            else:
                fields += [("count", order + each.count_dtype), ("rows", order + each.dtype, (3,))]
        kind = np.dtype(fields)
        if len(body) < face.count * kind.itemsize:
            held = len(body) // kind.itemsize
            raise InputError(
                f"{path} is cut short or its faces are no triangles: its header promises "
                f"{face.count} faces, {held} triangles are there"
            )
        table = np.frombuffer(body, kind, face.count)
        if (table["count"] != 3).any():
            row = int(np.argmax(table["count"] != 3))
            raise InputError(f"{path}, face {row}: {table['count'][row]} vertices, expected 3")
        faces = table["rows"].astype(np.int64)
    wrong = ((faces < 0) | (faces >= len(cloud))).any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"{path}, face {row}: {faces[row].tolist()} are not all vertices 0 .. {len(cloud) - 1}"
        )
    return Mesh(cloud, faces)


def vertex_normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals [N, 3] float64: the sum of the adjacent faces' normals, each as long as its
    face is large. Vertices without a face that has an area get (0, 0, 0).

    Args:
        points: [N, 3].
        faces: [F, 3] rows of ``points``, counter-clockwise seen from outside.
    """
    points = np.asarray(points, np.float64)
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    # Twice the area times the unit normal.
    weighted = np.cross(b - a, c - a)
    normals = np.stack(
        [
            np.bincount(faces.reshape(-1), np.repeat(weighted[:, axis], 3), minlength=len(points))
            for axis in range(3)
        ],
        axis=1,
    )
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)


def _ascii_faces(body: bytes, count: int, path: Path) -> np.ndarray:
    lines = body.splitlines()[:count]
    faces = np.empty((count, 3), np.int64)
    for row, line in enumerate(lines):
        words = line.split()
        try:
            numbers = [int(word) for word in words[:4]]
        except ValueError:
            numbers = []
        if len(numbers) != 4 or numbers[0] != 3:
            raise InputError(f"{path}, face {row}: {line[:40].decode('latin1')!r} is no triangle")
        faces[row] = numbers[1:]
    return faces
