"""A file format of your own: a reader, a writer and an entry, then every command knows the suffix.

The toy here is a line of column names and the numbers of all columns as float64, row by row.

    python examples/your_own_format.py scan.toy
"""

import sys
from pathlib import Path

import numpy as np

import dela
from dela.cloud.formats import FORMATS, Format
from dela.errors import InputError

AXES = ["x", "y", "z"]


def read_toy(path: Path) -> dela.PointCloud:
    """Reads a toy file; columns beside x, y and z keep their names.

    Raises:
        InputError: no x, y and z, or a file cut short.
    """
    head, _, rest = path.read_bytes().partition(b"\n")
    names = head.decode("ascii").split()
    if names[:3] != AXES:
        raise InputError(f"{path} begins with {names[:3]}; a toy file's columns begin with x y z")
    if len(rest) % (8 * len(names)):
        raise InputError(f"{path} is cut short: {len(rest)} bytes are no rows of {len(names)}")
    table = np.frombuffer(rest, "<f8").reshape(-1, len(names))
    columns = {name: table[:, i].copy() for i, name in enumerate(names) if i >= 3}
    return dela.PointCloud(table[:, :3], columns)


def write_toy(path: Path, cloud: dela.PointCloud) -> None:
    """Writes a toy file; that it is there whole or not at all is seen to by the caller."""
    table = np.column_stack([cloud.points, *cloud.columns.values()])
    head = " ".join([*AXES, *cloud.columns])
    path.write_bytes(head.encode("ascii") + b"\n" + table.astype("<f8").tobytes())


FORMATS[".toy"] = Format("TOY", read_toy, write_toy)


def main(path: Path) -> dela.PointCloud:
    """Writes a small scan and reads it again, as any code that is given a path does."""
    rng = np.random.default_rng(0)
    points = rng.uniform((651_000, 6_860_000, 120), (651_010, 6_860_010, 130), (1000, 3))
    scan = dela.PointCloud(points, {"intensity": rng.integers(0, 4000, 1000)})
    dela.write_cloud(path, scan, overwrite=True)
    again = dela.read_cloud(path)
    assert np.array_equal(again.points, scan.points)
    assert np.array_equal(again.columns["intensity"], scan.columns["intensity"])
    return again


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "scan.toy")
    print(f"{target}: {len(main(target)):,} points, the same in and out")
