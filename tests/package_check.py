"""Whether wheels and source distribution hold every file once, and the checkout is what runs.

Run as ``python package_check.py WHEEL WHEEL_FROM_SDIST SDIST CHECKOUT`` outside the checkout, by
the environment that has the checkout installed.
"""

from __future__ import annotations

import hashlib
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

FOLDERS = ("dela", "training", "export", "runtime", "plugins")
LINKED = FOLDERS[1:]


def wheel_files(path: str) -> dict[str, str]:
    """Name and digest of every file of a wheel but what describes the wheel itself."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        repeated = [name for name, count in Counter(names).items() if count > 1]
        assert not repeated, f"{path} holds {repeated} more than once"
        return {
            name: hashlib.sha256(wheel.read(name)).hexdigest()
            for name in names
            if ".dist-info/" not in name
        }


def expected_modules(checkout: Path) -> set[str]:
    """Names of the package's modules, each once, from the five folders."""
    found = set()
    for folder in FOLDERS:
        for path in (checkout / folder).rglob("*.py"):
            if not any(parent.is_symlink() for parent in path.parents):
                inside = path.relative_to(checkout).as_posix()
                found.add(inside if folder == "dela" else f"dela/{inside}")
    return found


def check(wheel: str, from_sdist: str, sdist: str, checkout: Path) -> None:
    files, again = wheel_files(wheel), wheel_files(from_sdist)
    modules = {name for name in files if name.endswith(".py")}
    assert modules == expected_modules(checkout), modules ^ expected_modules(checkout)
    assert files.keys() == again.keys(), files.keys() ^ again.keys()
    differing = [n for n in files if files[n] != again[n] and not n.endswith((".so", ".dylib"))]
    assert not differing, f"the source distribution changes {differing}"
    sources = [name for name in files if name.endswith((".cpp", ".cu", ".h", ".cuh"))]
    assert sources == ["dela/plugins/capi/include/dela.h"], sources
    assert "dela/plugins/capi/cmake/dela-config.cmake" in files
    libraries = {name for name in files if name.endswith(".so")}
    assert {"dela/plugins/libdela.so", "dela/plugins/libdela_trt.so"} <= libraries, libraries
    # They are in the library.
    assert not [name for name in files if "/images/inference." in name]
    with tarfile.open(sdist) as archive:
        members = [m.name.partition("/")[2] for m in archive.getmembers()]
        assert not [m for m in archive.getmembers() if m.issym()], "links in the distribution"
    assert not [name for name in members if name.split("/")[0] in LINKED], "folders stand twice"
    import dela
    import dela.plugins.native as native

    for module in (dela, native):
        assert checkout in Path(str(module.__file__)).resolve().parents, module.__file__
    assert checkout in native.library_path().resolve().parents
    print(f"package check passed: {len(files)} files in the wheel, {len(members)} in the sdist")


if __name__ == "__main__":
    check(*sys.argv[1:4], Path(sys.argv[4]).resolve())
