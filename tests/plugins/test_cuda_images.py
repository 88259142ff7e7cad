"""The shipped CUDA images: made from the sources as they are, and as good as promised."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cuda_images import compile as images
from cuda_images import report
from dela.plugins.cuda import launch

SHAPES = {(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 3), (5, 0), (2, 2)}
REGISTERS_PER_PROCESSOR = 65536
# Pointers (p) and int32 sizes (i) of every kernel: inputs, sizes, outputs.
ARGUMENTS = {
    "dela_spse_S": "ppp iiiiiii p",
    "dela_spse_winner_S": "ppp iiiiiii pp",
    "dela_spse_backward": "pppppp iiiiii p",
    "dela_spse_weight_gradient": "pp iiii p",
    "dela_spamp_V": "ppppp iiii p",
    "dela_spamp_winner_V": "ppppp iiii pp",
    "dela_spamp_residual_V": "ppppppp iiii p",
    "dela_spamp_backward_T": "ppppppp iiiii pp",
    "dela_spamp_weight_gradient": "pp ii p",
    "dela_spamp_feature_gradient_T": "ppppp iiii p",
    "dela_reverse_count": "pp iii p",
    "dela_reverse_place": "p i pp",
    "dela_reverse_fill": "pp iii pp",
    "dela_reverse_sort": "pp i p",
}


def expected_kernels() -> dict[str, str]:
    """Every operator kernel with its arguments, by the names that the launch rules give."""
    shapes = {launch.spse_shape(*shape) for shape in SHAPES}
    dtypes = ("float32", "float16", "bfloat16")
    vectors = {launch.spamp_vector(dtype, c)[0] for dtype in dtypes for c in (12, 16)}
    letters = {"S": shapes, "V": vectors, "T": {launch.spamp_suffix(dtype) for dtype in dtypes}}
    kernels = {}
    for name, arguments in ARGUMENTS.items():
        stem, letter = name[:-1], name[-1]
        names = [stem + value for value in letters[letter]] if letter in letters else [name]
        kernels |= dict.fromkeys(names, arguments.replace(" ", ""))
    return kernels


@pytest.fixture(scope="module")
def entries() -> dict[str, str]:
    """The text of every kernel in the PTX of the operators."""
    return kernels_in("operators.compute_80.ptx")


@pytest.fixture(scope="module")
def binaries() -> dict[int, dict[str, report.Kernel]]:
    try:
        report.disassembler()
    except report.ReportError as error:
        pytest.skip(str(error))
    return report.read_images("operators")


def test_images_were_made_from_these_sources():
    assert images.stale_subjects() == []


def test_every_kernel_source_belongs_to_one_subject():
    subjects = {name: files for name, files in images.SUBJECTS.items() if name != "inference"}
    named = [name for files in subjects.values() for name in files]
    assert sorted(named) == sorted(path.name for path in images.FOLDER.glob("*.cu"))
    assert set(images.SUBJECTS["inference"]) <= set(images.SUBJECTS["operators"])


def kernels_in(name: str) -> dict[str, str]:
    """The text of every kernel in a PTX image."""
    text = (images.IMAGES / name).read_text()
    return {
        found[1]: found[0]
        for found in re.finditer(r"\.visible \.entry (\w+)\(.*?^\}", text, re.M | re.S)
    }


def test_inference_is_the_forward_kernels_as_they_are_in_the_operators():
    operators = kernels_in("operators.compute_80.ptx")
    forward = re.compile("dela_sp(se|amp)_(?!winner|backward|weight|feature)")
    expected = {name for name in operators if forward.match(name)}
    found = kernels_in("inference.compute_80.ptx")
    assert set(found) == expected

    def body(text: str) -> str:
        # Labels are numbered over the whole file, and so are constants in memory.
        return re.sub(r"\$L__BB\d+_", "$L__BB_", text)

    assert {name: body(text) for name, text in found.items()} == {
        name: body(operators[name]) for name in expected
    }


@pytest.mark.parametrize("subject", images.SUBJECTS)
def test_ptx_asks_for_no_newer_driver_than_the_binaries(subject, tmp_path):
    path = images.IMAGES / f"{subject}.compute_80.ptx"
    versions = re.findall(r"^\.version (.*)$", path.read_text(), re.MULTILINE)
    assert versions == ["7.8"]  # CUDA 11.8; the compiler's own is 8.7, which is CUDA 12.8
    assembler = shutil.which("ptxas") or "/usr/local/cuda/bin/ptxas"
    if not Path(assembler).exists():
        pytest.skip("no ptxas, the assembler of the CUDA toolkit")
    done = subprocess.run(
        [assembler, "-arch=sm_80", path, "-o", tmp_path / "kernels.cubin"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_lowering_drops_hints_and_nothing_else():
    ptx = b'// made\n.version 8.7\n.target sm_80\n\t.pragma "used_bytes_mask 4095";\n\tret;\n'
    assert images.lowered(ptx) == b"// made\n.version 7.8\n.target sm_80\n\tret;\n"
    with pytest.raises(images.CompileError, match="0 version lines"):
        images.lowered(b".target sm_80\n")


def test_only_listed_images_are_shipped():
    listed = {name for subject in images.SUBJECTS for name in images.image_names(subject)}
    assert {path.name for path in images.IMAGES.iterdir()} == {*listed, "manifest.json"}


@pytest.mark.parametrize("subject", images.SUBJECTS)
@pytest.mark.parametrize("architecture", ["compute_80", "sm_89", "sm_110"])
def test_compiling_again_gives_the_same_bytes(subject, architecture):
    try:
        compiler = images.Compiler(images.compiler_for(architecture))
    except images.CompileError as error:
        pytest.skip(str(error))
    (name,) = (n for n, a in images.image_names(subject).items() if a == architecture)
    assert compiler.compile(subject, architecture) == (images.IMAGES / name).read_bytes()


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The sources and images in a folder of their own."""
    for name in ("cuda", "math"):
        shutil.copytree(images.FOLDER.parent / name, tmp_path / name)
    monkeypatch.setattr(images, "FOLDER", tmp_path / "cuda")
    monkeypatch.setattr(images, "IMAGES", tmp_path / "cuda" / "images")
    assert images.stale_subjects() == []
    return tmp_path


@pytest.mark.parametrize(
    ("source", "stale"),
    [
        ("cuda/spse.cu", ["operators", "inference"]),
        ("cuda/reverse.cu", ["operators"]),
        ("math/portable.h", ["operators", "inference"]),
        ("cuda/device.cuh", ["operators", "geometry", "inputs", "inference"]),
        ("cuda/images/operators.sm_90.cubin", ["operators"]),
        ("cuda/images/geometry.compute_80.ptx", ["geometry"]),
    ],
)
def test_a_change_makes_its_images_stale(copied, source, stale):
    with (copied / source).open("ab") as file:
        file.write(b"\n")
    assert images.stale_subjects() == stale


def test_a_missing_image_is_stale(copied):
    (copied / "cuda/images/operators.sm_80.cubin").unlink()
    assert images.stale_subjects() == ["operators"]


def test_a_source_that_does_not_compile_leaves_the_images_alone(copied):
    try:
        for wheel in (images.NVRTC, images.NEWER_NVRTC):
            images.Compiler(wheel)
    except images.CompileError as error:
        pytest.skip(str(error))
    source = copied / "cuda/reverse.cu"
    source.write_text("int broken(" + source.read_text())
    before = {path.name: path.read_bytes() for path in images.IMAGES.iterdir()}
    with pytest.raises(images.CompileError, match=r"operators for compute_80 does not compile"):
        images.write_images()
    assert {path.name: path.read_bytes() for path in images.IMAGES.iterdir()} == before


def test_sources_missing_from_an_installed_package_are_told_in_words(copied):
    (copied / "cuda/spamp.cu").unlink()
    with pytest.raises(images.CompileError, match=r"spamp\.cu is missing"):
        images.source_hash("operators")


def test_every_kernel_is_in_every_image(entries, binaries):
    expected = expected_kernels()
    assert set(entries) == set(expected)
    for number, kernels in binaries.items():
        assert set(kernels) == set(expected), number


def test_arguments_are_inputs_sizes_outputs(entries):
    kinds = {"u64": "p", "u32": "i"}
    for name, arguments in expected_kernels().items():
        head = entries[name].split("{")[0]
        assert "".join(kinds[t] for t in re.findall(r"\.param \.(\w+)", head)) == arguments, name


def test_no_kernel_spills(binaries):
    spilled = {
        (number, name): kernel.local
        for number, kernels in binaries.items()
        for name, kernel in kernels.items()
        if kernel.local
    }
    assert spilled == {}


def test_registers_leave_room_for_the_blocks_each_kernel_asks_for(entries, binaries):
    for name, text in entries.items():
        assert int(re.search(r"\.maxntid (\d+)", text)[1]) == launch.BLOCK
        blocks = int(re.search(r"\.minnctapersm (\d+)", text)[1])
        ceiling = REGISTERS_PER_PROCESSOR // (blocks * launch.BLOCK)
        for number, kernels in binaries.items():
            assert kernels[name].registers <= ceiling, (number, name)


def test_spse_and_spamp_keep_enough_blocks_in_flight(entries):
    def blocks(name):
        return int(re.search(r"\.minnctapersm (\d+)", entries[name])[1])

    assert blocks("dela_spse_0") >= 6
    assert blocks("dela_spse_4") >= 5
    for vector in ("f32", "f16", "bf16", "f16_8", "bf16_8"):
        assert blocks(f"dela_spamp_{vector}") >= 8
        assert blocks(f"dela_spamp_residual_{vector}") >= 8


@pytest.mark.parametrize("vector", ["f32", "f16_8", "bf16_8"])
@pytest.mark.parametrize("form", ["", "winner_", "residual_"])
def test_spamp_gathers_a_neighbor_in_one_16_byte_load(binaries, vector, form):
    channels = 8 if vector.endswith("_8") else 4
    for kernels in binaries.values():
        loop = kernels[f"dela_spamp_{form}{vector}"].loop
        maxima = sum("FMNMX" in text for text in loop)
        wide = sum("LDG" in text and ".128" in text for text in loop)
        assert wide * channels == maxima > 0


@pytest.mark.parametrize("vector", ["f32", "f16", "bf16", "f16_8", "bf16_8"])
def test_four_channels_share_one_exponential(binaries, vector):
    for kernels in binaries.values():
        loop = kernels[f"dela_spamp_{vector}"].loop
        maxima = sum("FMNMX" in text for text in loop)
        assert sum("MUFU.EX2" in text for text in loop) * 4 == maxima > 0


@pytest.mark.parametrize("architecture", [80, 89, 90])
def test_instructions_of_the_spse_loop(binaries, architecture):
    kernels = binaries[architecture]
    assert kernels["dela_spse_0"].per_value <= 17
    assert kernels["dela_spse_winner_0"].per_value <= 17
    # An attribute is a difference and a multiply-add, a direction a multiply-add.
    for attributes, directions in ((1, 0), (2, 0), (3, 0), (4, 0), (4, 3)):
        kernel = kernels[f"dela_spse_{launch.spse_shape(attributes, directions)}"]
        assert kernel.per_value <= 15 + 2 * attributes + directions


def test_the_page_shows_the_report_of_these_images(binaries):
    if not report.PAGE.exists():
        pytest.skip("the documentation is not part of this installation")
    page = report.PAGE.read_text()
    assert report.page_with(report.tables(), page) == page


def test_a_page_without_markers_is_refused():
    with pytest.raises(report.ReportError, match="markers"):
        report.page_with("text", "a page")
