"""The command ``dela room``: a generated, labelled indoor scan as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dela.cli.options import Overwrite
from dela.cloud.formats import check_suffix, write_cloud
from dela.files import check_writable


def room(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The scan to write: .ply, .laz, .npz ...")
    ],
    seed: Annotated[int, typer.Option(min=0, help="Which room.")] = 0,
    points: Annotated[int, typer.Option(min=1, help="About how many points.")] = 200_000,
    overwrite: Overwrite = False,
) -> Path:
    """Generate a furnished room as a scanner would see it, with colors and 13 classes.

    The same seed gives the same room; label codes follow the order of the S3DIS classes.

    Examples:

    $ dela room --seed 7 -o room.ply
    $ dela room --seed 7 --points 1000000 -o room.laz
    """
    from dela.training.rooms.scan import generate_room

    check_suffix(output)
    check_writable(output, overwrite)
    cloud = generate_room(seed, points)
    write_cloud(output, cloud, overwrite)
    low, high = cloud.points.min(axis=0), cloud.points.max(axis=0)
    extent = " x ".join(f"{side:.1f}" for side in high - low)
    print(f"{output}: room {seed}, {len(cloud):,} points, {extent} m")
    return output
