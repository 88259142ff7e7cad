"""Wheel smoke test in two halves.

``prepare FOLDER`` runs where torch is: writes a small network as ONNX, a scan, and the answer.
``check FOLDER`` runs in an environment with the wheel and ONNX Runtime but without torch.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def prepare(folder: Path) -> None:
    import dataclasses

    import numpy as np

    import dela
    from dela.artifacts.checkpoint import save_checkpoint
    from dela.export import export_onnx
    from dela.families.dela.config import PRESETS
    from dela.model.contract import ClassInfo

    folder.mkdir(parents=True)
    config = dataclasses.replace(
        PRESETS["s3dis"],
        classes=(ClassInfo("low", 0), ClassInfo("high", 1), ClassInfo("other", 2)),
        dims=(16, 32),
        depths=(1, 2),
        neighbors=(8, 8),
        spread=(1.6, 3.8),
        grid=(0.1, 0.2),
        head_dim=16,
    )
    model = dela.create_model(config, seed=0)
    save_checkpoint(folder / "model.pt", model)
    export_onnx(folder / "model.pt", folder / "model.onnx")
    generator = np.random.default_rng(0)
    points = generator.uniform(0, 4, (5000, 3)) + np.array([651000.0, 6860000.0, 120.0])
    colours = generator.integers(0, 256, (5000, 3)).astype(np.uint8)
    cloud = dela.PointCloud(
        points, {name: colours[:, i] for i, name in enumerate(("red", "green", "blue"))}
    )
    dela.write_cloud(folder / "scan.ply", cloud)
    subprocess.run(
        [
            *(sys.executable, "-m", "dela", "predict", folder / "scan.ply"),
            *("-m", folder / "model.onnx", "-o", folder / "expected.npz"),
        ],
        check=True,
    )


def check(folder: Path) -> None:
    import numpy as np

    if importlib.util.find_spec("torch") is not None:
        raise SystemExit("this half of the test wants an environment without torch")
    for command in (["--help"], ["doctor"], ["info", str(folder / "model.onnx")]):
        subprocess.run(["dela", *command], check=True, stdout=subprocess.DEVNULL)
    output = folder / "predicted.npz"
    subprocess.run(
        ["dela", "predict", folder / "scan.ply", "-m", folder / "model.onnx", "-o", output],
        check=True,
    )
    expected, predicted = np.load(folder / "expected.npz"), np.load(output)
    agreement = float(np.mean(expected["label"] == predicted["label"]))
    print(json.dumps({"label_agreement": agreement}))
    if agreement < 0.9999:
        raise SystemExit(f"labels agree on {agreement:.4%} of the points only")
    refused = subprocess.run(
        ["dela", "predict", folder / "scan.ply", "-m", folder / "model.pt"],
        capture_output=True,
        text=True,
    )
    if refused.returncode != 1 or "torch" not in refused.stderr or "Traceback" in refused.stderr:
        raise SystemExit(f"a checkpoint without torch should be refused: {refused.stderr}")
    check_c_library(folder, predicted["label"])


def check_c_library(folder: Path, expected: Any) -> None:
    """The C++ example, built with the wheel's CMake package, labels the scan as the command did."""
    import numpy as np
    import onnxruntime

    import dela

    cloud = dela.read_cloud(folder / "scan.ply")
    np.save(folder / "points.npy", cloud.points)
    columns = []
    for name in ("red", "green", "blue"):
        np.save(folder / f"{name}.npy", cloud.columns[name])
        columns += ["--column", f"{name}={folder / name}.npy"]
    example = Path(__file__).resolve().parents[1] / "examples" / "cpp"
    found = f"-Ddela_DIR={dela.get_cmake_dir()}"
    for words in (("-S", example, "-B", folder / "build", found), ("--build", folder / "build")):
        subprocess.run(["cmake", *words], check=True, stdout=subprocess.DEVNULL)
    runtime = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    program = [folder / "build" / "dela_label", folder / "model.onnx", folder / "points.npy"]
    words = [folder / "labels.npy", *columns, "--onnxruntime", runtime]
    subprocess.run([*program, *words], check=True)
    if not np.array_equal(np.load(folder / "labels.npy"), expected):
        raise SystemExit("the C++ example gives other labels than dela predict")


if __name__ == "__main__":
    {"prepare": prepare, "check": check}[sys.argv[1]](Path(sys.argv[2]))
