"""Published checkpoints import whole, are refused when they do not fit, and compute the same."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from dela.artifacts.checkpoint import save_checkpoint
from dela.errors import CheckpointError, ConfigError
from dela.families.dela.config import PRESETS
from dela.families.dela.published import import_reference, read_reference, reference_state_dict
from dela.model.contract import AttributeInfo
from dela.pyramid.cpu import Pyramid
from published_network import Published, fabricate, index_list, published_shapes

FULL = {
    "s3dis": {"dims": (64, 128, 256, 512), "depths": (4, 4, 8, 8), "classes": 13, "head_dim": 256},
    "scannet": {
        "dims": (80, 128, 192, 352, 640),
        "depths": (4, 4, 4, 8, 8),
        "classes": 20,
        "head_dim": 352,
        "attributes": "chn",
    },
    "scanobjectnn": {"dims": (96, 192, 384), "depths": (4, 4, 4), "classes": 15},
}
KEYS = {"s3dis": 477, "scannet": 574, "scanobjectnn": 264}
ELEMENTS = {"s3dis": 10364108, "scannet": 17490896, "scanobjectnn": 3538130}
FILES = {"s3dis": "s3dis", "scannet": "scannet", "scanobjectnn": "scanobj"}

SMALL = {"dims": (16, 32, 48), "depths": (3, 2, 1), "classes": 5, "head_dim": 24}
LISTS = {"neighbors": (8, 10, 6), "spread": (1.6, 3.8, 7.6), "grid": (0.04, 0.08, 0.16)}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors here are too small to share between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("preset", FULL)
def test_fabricated_shapes_are_the_published_ones(preset, reference_shapes_dir):
    published = json.loads((reference_shapes_dir / f"shapes_{FILES[preset]}.json").read_text())
    expected = {name: tuple(shape) for name, shape, *_ in published["state_dict"]}
    assert published_shapes(**FULL[preset]) == expected


@pytest.mark.parametrize("preset", FULL)
def test_full_checkpoints_map_both_ways(preset):
    shapes = published_shapes(**FULL[preset])
    assert len(shapes) == KEYS[preset]
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == ELEMENTS[preset]
    state = {name: torch.rand(shape) for name, shape in shapes.items()}
    state = {k: v.long() if k.endswith("tracked") else v for k, v in state.items()}
    model = import_reference({"epoch": 3, "model": state}, preset)
    assert model.config == PRESETS[preset]
    assert not model.training
    back = reference_state_dict(model)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def _pyramid(indices, points, attributes, cast=lambda array: array):
    stages = (len(indices) + 2) // 3
    knn = [indices[2 * d] for d in range(stages)]
    return Pyramid(
        points=cast(points),
        attributes=cast(attributes),
        neighbors=tuple(cast(table) for table in knn),
        kept=tuple(cast(indices[2 * d - 1]) for d in range(1, stages)),
        nearest=tuple(cast(indices[2 * stages - 1 + stages - 1 - d]) for d in range(1, stages)),
        lengths=tuple((len(table),) for table in knn),
    )


def _scene(attribute_columns, counts=(120, 40, 16), ks=(8, 10, 6), seed=0):
    rng = np.random.default_rng(seed)
    points = (rng.random((counts[0], 3)) * [0.5, 0.4, 0.1]).astype(np.float32)
    attributes = rng.random((counts[0], min(4, attribute_columns))).astype(np.float32)
    if attribute_columns == 7:
        normals = rng.normal(size=(counts[0], 3))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        attributes = np.concatenate([attributes, normals.astype(np.float32)], axis=1)
    return points, attributes, index_list(points, counts, ks, rng)


def _gradients_by_published_name(model):
    holder = copy.deepcopy(model)
    for (_, target), (_, source) in zip(
        holder.named_parameters(), model.named_parameters(), strict=True
    ):
        target.data = torch.zeros_like(source) if source.grad is None else source.grad
    return reference_state_dict(holder)


def _assert_gradients_agree(model, reference, tolerance=1e-3):
    ours = _gradients_by_published_name(model)
    theirs = {name: t.grad for name, t in reference.state.items() if t.grad is not None}
    largest = max(float(g.abs().max()) for g in theirs.values())
    assert len(theirs) > 30
    for name, gradient in theirs.items():
        error = float((ours[name] - gradient).abs().max())
        assert error <= tolerance * largest, (name, error / largest)


SEGMENTATION = {
    "4 attributes, odd and even depths": ("s3dis", SMALL, LISTS, 4),
    "4 attributes and directions": ("scannet", SMALL | {"attributes": "chn"}, LISTS, 7),
    "height alone": ("s3dis", SMALL | {"attributes": "h"}, LISTS, 1),
    "colour alone": ("s3dis", SMALL | {"attributes": "c"}, LISTS, 3),
    "coordinates alone": ("s3dis", SMALL | {"attributes": ""}, LISTS, 0),
    "depth 0, 5 and 4": ("s3dis", SMALL | {"depths": (0, 5, 4)}, LISTS, 4),
    "one stage": (
        "s3dis",
        SMALL | {"dims": (16,), "depths": (2,)},
        {"neighbors": (8,), "spread": (1.6,), "grid": (0.04,)},
        4,
    ),
    "two stages": (
        "s3dis",
        SMALL | {"dims": (16, 32), "depths": (1, 3)},
        {"neighbors": (8, 10), "spread": (1.6, 3.8), "grid": (0.04, 0.08)},
        4,
    ),
}


@pytest.mark.parametrize("case", SEGMENTATION)
def test_segmentation_agrees_with_the_published_network(case):
    preset, size, lists, columns = SEGMENTATION[case]
    stages = len(size["dims"])
    counts, ks = (120, 40, 16)[:stages], (8, 10, 6)[:stages]
    points, attributes, indices = _scene(columns, counts, ks)
    state = fabricate(published_shapes(**size))
    model = import_reference(state, preset, coordinate_scale=40.0, **lists)
    logits = model(_pyramid(indices, points, attributes))

    reference = Published(state, lists["spread"], kept_rows_norm=False)
    feature, normal = attributes[:, :4], attributes[:, 4:]
    expected = reference.segmentation(
        torch.from_numpy(points) * 40,
        indices,
        torch.from_numpy(feature) if columns else None,
        torch.from_numpy(normal) if columns == 7 else None,
    )
    assert logits.shape == (counts[0], 5)
    assert (logits - expected).abs().max() <= 5e-5 * expected.abs().max()

    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    _assert_gradients_agree(model, reference)


def test_training_agrees_with_the_published_network_over_the_same_rows():
    points, attributes, indices = _scene(4)
    state = fabricate(published_shapes(**SMALL))
    model = import_reference(state, "s3dis", **LISTS, drop_path=0.0, head_drop=0.0).train()
    torch.manual_seed(5)
    logits, loss = model(_pyramid(indices, points, attributes))

    reference = Published(state, LISTS["spread"], training=True)
    torch.manual_seed(5)
    expected = reference.segmentation(
        torch.from_numpy(points) * 40, indices, torch.from_numpy(attributes)
    )
    expected_loss = reference.closs()
    assert (logits - expected).abs().max() <= 2e-4 * expected.abs().max()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-4)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    ((logits * weights).mean() + loss).backward()
    ((expected * weights).mean() + expected_loss).backward()
    _assert_gradients_agree(model, reference, tolerance=2e-3)


def test_classification_agrees_with_the_published_network():
    size = {"dims": (16, 32, 48), "depths": (1, 2, 3), "classes": 6}
    counts, ks, spread = (96, 24, 12), (8, 8, 6), (2.2, 4.4, 8.8)
    state = fabricate(published_shapes(**size))
    model = import_reference(
        state, "scanobjectnn", points=counts, neighbors=ks, spread=spread, coordinate_scale=40.0
    )
    xyz = torch.rand(3, 96, 3, generator=torch.Generator().manual_seed(2)) * 0.4
    reference = Published(state, spread, kept_rows_norm=False)
    expected = reference.classification(xyz * 40, counts, ks)
    knns, subs = reference.tables
    pyramid = Pyramid(
        points=xyz.view(-1, 3),
        attributes=torch.empty(3 * 96, 0),
        neighbors=tuple(knns),
        kept=tuple(subs),
        nearest=(),
        lengths=tuple((n,) * 3 for n in counts),
    )
    logits = model(pyramid)
    assert logits.shape == (3, 6)
    assert (logits - expected).abs().max() <= 5e-5 * expected.abs().max()
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    _assert_gradients_agree(model, reference)


def test_index_dtypes_and_containers_do_not_matter():
    points, attributes, indices = _scene(4)
    model = import_reference(fabricate(published_shapes(**SMALL)), "s3dis", **LISTS)
    with torch.no_grad():
        plain = model(_pyramid(indices, points, attributes))
        tensors = model(_pyramid(indices, points, attributes, torch.from_numpy))
        wide = model(
            _pyramid([i.astype(np.int64) for i in indices], points, attributes.astype(np.float64))
        )
    assert torch.equal(plain, tensors)
    assert torch.equal(plain, wide)


def test_sizes_come_from_shapes_and_the_rest_from_preset_or_overrides():
    model = import_reference(fabricate(published_shapes(**SMALL)), "s3dis")
    config = model.config
    assert (config.dims, config.depths) == ((16, 32, 48), (3, 2, 1))
    assert (config.head_dim, config.num_classes) == (24, 5)
    assert config.classes[4].name == "class_4"
    assert config.neighbors == (24, 32, 32)
    assert config.grid == (0.04, 0.08, 0.16)
    assert config.attributes == PRESETS["s3dis"].attributes
    model = import_reference(
        fabricate(published_shapes(**SMALL)), "s3dis", epsilon=1e-6, coordinate_scale=20.0
    )
    assert (model.config.epsilon, model.config.coordinate_scale) == (1e-6, 20.0)


def test_attributes_follow_the_tensors_present():
    config = import_reference(fabricate(published_shapes(**SMALL, attributes="hn")), "s3dis").config
    assert [info.name for info in config.attributes] == ["height"]
    assert [info.name for info in config.directions] == ["normal_x", "normal_y", "normal_z"]
    named = (AttributeInfo("intensity", 100.0),)
    config = import_reference(
        fabricate(published_shapes(**SMALL, attributes="h")), "s3dis", attributes=named
    ).config
    assert config.attributes == named
    with pytest.raises(ConfigError, match="names 1 columns"):
        import_reference(fabricate(published_shapes(**SMALL)), "s3dis", attributes=named)


def test_more_stages_than_the_preset_need_overrides():
    size = {"dims": (16,) * 5, "depths": (1,) * 5, "classes": 5, "head_dim": 24}
    state = fabricate(published_shapes(**size))
    with pytest.raises(ConfigError, match="neighbors has 4 entries, dims has 5"):
        import_reference(state, "s3dis")
    five = {"neighbors": (8,) * 5, "spread": (1.0,) * 5, "grid": (0.1, 0.2, 0.3, 0.4, 0.5)}
    assert import_reference(state, "s3dis", **five).config.stages == 5


def test_a_stripped_checkpoint_has_no_coordinate_heads():
    model = import_reference(fabricate(published_shapes(**SMALL, cor_head=False)), "s3dis")
    assert not model.config.coordinate_loss
    assert len(model.coordinate_heads) == 0


def test_data_parallel_names_are_accepted():
    state = fabricate(published_shapes(**SMALL))
    model = import_reference({f"module.{k}": v for k, v in state.items()}, "s3dis")
    assert torch.equal(model.ellipsoids[0].shapes, state["stage.spse_m"])


def test_the_network_does_not_share_memory_with_the_checkpoint():
    state = fabricate(published_shapes(**SMALL))
    model = import_reference(state, "s3dis")
    before = state["stage.spse_m"].clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(state["stage.spse_m"], before)


@pytest.mark.parametrize(
    "name",
    ["stage.spse_m", "stage.nbr_proj.3.weight", "stage.sub_stage.lfp.coor", "head.2.bias",
     "stage.spse_c", "stage.sub_stage.blk.mlp.mlp.0.weight", "stage.sub_stage.postproj.1.weight"],
)  # fmt: skip
def test_a_missing_or_misshaped_tensor_is_named(name):
    state = fabricate(published_shapes(**SMALL))
    cut = {**state, name: torch.zeros(7)}
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.") + r" is \[7\], not \["):
        import_reference(cut, "s3dis", **LISTS)
    if name != "stage.spse_c":  # without it the checkpoint is one of height alone
        del state[name]
        with pytest.raises(CheckpointError, match=f"missing: {name}"):
            import_reference(state, "s3dis", **LISTS)


def test_unexpected_names_are_listed_up_to_a_bound():
    state = fabricate(published_shapes(**SMALL))
    state |= {f"extra.{i:02}": torch.zeros(1) for i in range(20)}
    with pytest.raises(CheckpointError) as caught:
        import_reference(state, "s3dis", **LISTS)
    message = str(caught.value)
    assert "unexpected: extra.00, extra.01" in message
    assert "and 12 more" in message
    assert len(message) < 400


def test_what_is_no_dela_network_is_refused():
    with pytest.raises(CheckpointError, match="no DeLA v2 network"):
        import_reference({"conv.weight": torch.zeros(3)}, "s3dis")
    with pytest.raises(CheckpointError, match="no state_dict"):
        import_reference({"model": {"a": 1}}, "s3dis")
    with pytest.raises(CheckpointError, match="is for segmentation, the preset for classification"):
        import_reference(fabricate(published_shapes(**SMALL)), "scanobjectnn")


def test_files_are_read_without_running_code(tmp_path):
    state = fabricate(published_shapes(**SMALL))
    torch.save({"model": state, "epoch": 1}, tmp_path / "best.pt")
    assert read_reference(tmp_path / "best.pt").keys() == state.keys()
    torch.save({"model": {"a": 1}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no state_dict"):
        read_reference(tmp_path / "other.pt")
    save_checkpoint(tmp_path / "ours.pt", import_reference(state, "s3dis"))
    with pytest.raises(CheckpointError, match="is a dela checkpoint already"):
        read_reference(tmp_path / "ours.pt")
    torch.save({"model": state, "hook": print}, tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match="could run code"):
        read_reference(tmp_path / "code.pt")
