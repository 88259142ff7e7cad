"""Networks: parameters, starting values, behavior in training, the frozen form."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from dela import ops
from dela.errors import ConfigError, InputError
from dela.families import create_model, resolve_config
from dela.families.dela import (
    Network,
    default_neighbor_distances,
    freeze,
    measure_neighbor_distances,
)
from dela.families.dela.heads import pool_clouds
from dela.families.dela.published import import_reference
from dela.families.dela.starting_values import fibonacci_sphere
from dela.families.layers import BatchNorm, drop_rows
from dela.model.contract import ClassInfo
from dela.pyramid.cpu import Pyramid, pack
from published_network import fabricate, published_shapes

SMALL = {
    "dims": (16, 32, 48),
    "depths": (3, 2, 1),
    "neighbors": (8, 10, 6),
    "spread": (1.6, 3.8, 7.6),
    "grid": (0.1, 0.2, 0.4),
    "head_dim": 24,
    "num_classes": 5,
}
ONE_STAGE = {
    "dims": (16,),
    "depths": (2,),
    "neighbors": (8,),
    "spread": (1.6,),
    "grid": (0.1,),
    "head_dim": 8,
}
OBJECTS = {
    "dims": (16, 32),
    "depths": (1, 2),
    "neighbors": (8, 6),
    "spread": (2.2, 4.4),
    "points": (64, 16),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors here are too small to share between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_pyramid(counts, ks, attributes=4, seed=0, nearest=True):
    """One cloud of random points, all tables by brute force."""
    rng = np.random.default_rng(seed)
    points = rng.random((counts[0], 3)).astype(np.float32)
    columns = rng.random((counts[0], attributes)).astype(np.float32)
    columns[:, 4:] /= np.linalg.norm(columns[:, 4:], axis=1, keepdims=True)

    def knn(queries, among, k):
        return ((queries[:, None] - among) ** 2).sum(-1).argsort(1)[:, :k].astype(np.int32)

    neighbors, kept, back, here = [knn(points, points, ks[0])], [], [], points
    for count, k in zip(counts[1:], ks[1:], strict=True):
        rows = np.arange(count) if not nearest else np.sort(rng.permutation(len(here))[:count])
        here = here[rows]
        kept.append(rows.astype(np.int32))
        neighbors.append(knn(here, here, k))
        back.append(knn(points, here, 1)[:, 0])
    lengths = tuple((count,) for count in counts)
    back = tuple(back) if nearest else ()
    return Pyramid(points, columns, tuple(neighbors), tuple(kept), back, lengths)


def trained(preset="s3dis", attributes="ch", **overrides):
    """A segmentation network with values as after training, in evaluation mode."""
    sizes = {"dims": (16, 32, 48), "depths": (3, 2, 1), "classes": 5, "head_dim": 24}
    state = fabricate(published_shapes(**sizes, attributes=attributes))
    lists = {key: SMALL[key] for key in ("neighbors", "spread", "grid")}
    return import_reference(state, preset, **lists, **overrides)


@pytest.mark.parametrize(
    ("preset", "count", "without"),
    [
        ("s3dis", 10_332_685, 10_301_325),
        ("scannet", 17_446_788, 17_401_444),
        ("scanobjectnn", 3_522_735, 3_500_751),
    ],
)
def test_presets_have_the_published_parameter_counts(preset, count, without):
    with torch.device("meta"):
        full = Network(resolve_config(preset))
        bare = Network(resolve_config(preset, coordinate_loss=False))
    assert sum(parameter.numel() for parameter in full.parameters()) == count
    assert sum(parameter.numel() for parameter in bare.parameters()) == without


def test_overrides_replace_any_field():
    model = create_model("s3dis", **SMALL)
    assert model.config.neighbors == (8, 10, 6)
    assert [info.name for info in model.config.classes] == [f"class_{i}" for i in range(5)]
    classes = [ClassInfo("ground", 2), ClassInfo("tree", 5)]
    assert create_model(model.config, classes=classes).config.num_classes == 2
    same = create_model("s3dis", **(SMALL | {"num_classes": 13})).config
    assert same.classes[0].name == "ceiling"
    with pytest.raises(ConfigError, match="unknown model key 'neighbours'"):
        create_model("s3dis", neighbours=(1,))
    with pytest.raises(ConfigError, match="unknown preset 's3d'"):
        create_model("s3d")
    with pytest.raises(ConfigError, match="not both"):
        create_model("s3dis", classes=classes, num_classes=2)
    with pytest.raises(ConfigError, match=r"drop_path is 1.0; it must be in \[0, 1\)"):
        create_model("s3dis", drop_path=1.0)


def test_a_seed_repeats_the_starting_values_and_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again = (create_model("s3dis", seed=3, **SMALL).state_dict() for _ in range(2))
    other = create_model("s3dis", seed=4, **SMALL).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["stages.0.encoding.expand.weight"], other["stages.0.encoding.expand.weight"]
    )
    unseeded = [create_model("s3dis", **ONE_STAGE).ellipsoids[0].shapes for _ in range(2)]
    assert not torch.equal(*unseeded)
    torch.manual_seed(0)
    assert torch.equal(create_model("s3dis", **ONE_STAGE).ellipsoids[0].shapes, unseeded[0])


def test_starting_values():
    tables = np.linspace(1, 2, 1000), np.linspace(5, 9, 1000)
    model = create_model("scannet", tables, seed=0, **SMALL).requires_grad_(False)

    def radii(flat, columns):
        return flat.view(-1, columns)[:, :3].norm(dim=1)

    def quantiles(table, count):
        levels = (np.arange(count) + 0.5) / count
        return torch.from_numpy(np.quantile(table, levels)).float()

    for index, ellipsoids in enumerate(model.ellipsoids):
        found = radii(ellipsoids.shapes, 10)
        assert torch.allclose(found.sort()[0], quantiles(tables[index], 16), atol=1e-5)
        assert not torch.equal(found, found.sort()[0])
        rest = ellipsoids.shapes.view(-1, 10)[:, 3:]
        assert rest[:, :3].min() >= 0 and rest[:, :3].max() <= 1
        assert rest[:, 6].min() >= 0 and rest[:, 6].max() <= math.pi
    for stage, aggregation, table in (
        (0, model.stages[0].block.aggregations[0], tables[0]),
        (1, model.stages[1].block.aggregations[1], tables[1]),
        (1, model.stages[1].downsample.aggregation, tables[0]),
        (2, model.stages[2].downsample.aggregation, tables[1]),
    ):
        count = SMALL["dims"][stage] // 4
        expected = quantiles(table, count)
        assert torch.allclose(radii(aggregation.centers, 3).sort()[0], expected, atol=1e-5)
        assert torch.allclose(aggregation.weight()[3], torch.full((count,), 0.01))
    rows = model.ellipsoids[0].attributes.view(4, 16)
    assert rows[:3].min() >= 0 and rows[:3].max() <= 1
    assert torch.equal(rows[3].sort()[0], torch.linspace(0, 1, 16))
    assert model.ellipsoids[0].directions.shape == (48,)

    assert [stage.encoding.norm.weight[0].item() for stage in model.stages] == pytest.approx(
        [0.8, 0.2, 0.2]
    )
    block = model.stages[0].block
    assert [mlp.norm.weight[0].item() for mlp in block.mlps] == pytest.approx([0.2, 0.0])
    assert all(not aggregation.norm.weight.any() for aggregation in block.aggregations)
    down = model.stages[1].downsample
    assert [down.norm.weight[0], down.aggregation.norm.weight[0]] == pytest.approx([0.3, 0.3])
    assert [p.norm.weight[0].item() for p in model.head.projections] == pytest.approx(
        [1, math.sqrt(16 / 32), math.sqrt(16 / 48)]
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert 0.01 < module.weight.std() < 0.03
            assert module.bias is None or not module.bias.any()
        if isinstance(module, BatchNorm):
            assert (module.eps, module.momentum) == (1e-5, 0.02)


def test_unusable_neighbor_distances_are_refused():
    for tables in ((np.ones(3), np.empty(0)), (np.array([np.nan]), np.ones(1)), (np.ones(3),)):
        with pytest.raises(InputError, match="neighbor_distances"):
            create_model("s3dis", tables, **SMALL)


def test_fibonacci_sphere_is_even():
    directions = fibonacci_sphere(400)
    assert torch.allclose(directions.norm(dim=1), torch.ones(400, dtype=torch.float64))
    assert directions.mean(0).abs().max() < 5e-3
    nearest = torch.cdist(directions, directions).fill_diagonal_(9).min(1)[0]
    assert nearest.min() > 0.8 * nearest.max()


def test_operator_weights_follow_their_formulas():
    model = trained("scannet", "chn")
    ellipsoids = model.ellipsoids[0]
    weight = ellipsoids.weight().detach().double().numpy()
    shapes = ellipsoids.shapes.detach().double().numpy().reshape(16, 10)
    for channel, (center, scale, axis) in enumerate(
        zip(shapes[:, :3], shapes[:, 3:6], shapes[:, 6:9], strict=True)
    ):
        angle, axis = shapes[channel, 9], axis / np.linalg.norm(axis)
        matrix = weight[:9, channel].reshape(3, 3)
        rotation = matrix / scale
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
        assert np.allclose(rotation @ axis, axis, atol=1e-5)
        assert np.trace(rotation) == pytest.approx(1 + 2 * np.cos(angle), abs=1e-5)
        across = np.cross(axis, [0.6, -0.7, 0.4])
        sine = np.dot(axis, np.cross(across, rotation @ across)) / np.dot(across, across)
        assert sine == pytest.approx(np.sin(angle), abs=1e-5)
        assert np.allclose(weight[9:12, channel], center)
    assert weight.shape == (19, 16)
    assert np.allclose(np.linalg.norm(weight[16:], axis=0), 1)


def test_measured_distances_are_quantiles_in_units_of_the_spread():
    rows = np.arange(48, dtype=np.int32)
    points = np.stack([0.1 * rows, 0 * rows, 0 * rows], axis=1).astype(np.float32)
    pyramid = Pyramid(
        points,
        np.zeros((48, 4), np.float32),
        (np.stack([rows, rows ^ 1, rows ^ 2], axis=1), np.stack([rows, rows ^ 1], axis=1)[:24]),
        (rows[::2],),
        (rows // 2,),
        ((48,), (24,)),
    ).validate()
    config = resolve_config(
        "s3dis", dims=(16, 16), depths=(1, 1), neighbors=(3, 2), spread=(2.0, 4.0), grid=(0.1, 0.2)
    )
    first, second = measure_neighbor_distances([pyramid, pyramid], config)
    assert first.shape == second.shape == (1024,)
    # Offsets of 0.1 and 0.2 m; the point itself is left out.
    assert first[:500] == pytest.approx(np.full(500, 0.1 * 40 / 2), rel=1e-5)
    assert first[-500:] == pytest.approx(np.full(500, 0.2 * 40 / 2), rel=1e-5)
    assert second == pytest.approx(np.full(1024, 0.2 * 40 / 4), rel=1e-5)
    assert (np.diff(first) >= 0).all()
    with pytest.raises(InputError, match="no neighbour distance"):
        measure_neighbor_distances([], config)
    one = np.zeros(1, np.int32)
    lone = Pyramid(points[:1], np.zeros((1, 4)), (one[:, None],) * 2, (one,), (one,), ((1,), (1,)))
    with pytest.raises(InputError, match=r"single point there.* voxels of 0\.1 m"):
        measure_neighbor_distances([lone], config)


def test_default_distances_are_near_measured_ones_on_a_surface():
    rng = np.random.default_rng(0)
    cells = np.stack(np.meshgrid(np.arange(30), np.arange(30)), -1).reshape(-1, 2)
    flat = (cells + rng.random((900, 2))) * 0.1
    points = np.concatenate([flat, np.zeros((900, 1))], axis=1).astype(np.float32)
    config = resolve_config("s3dis", **(ONE_STAGE | {"neighbors": (16,)}))
    squared = ((points[:, None] - points) ** 2).sum(-1)
    inner = (np.abs(flat - 1.5) < 1.0).all(1)
    table = squared.argsort(1)[:, :16].astype(np.int32)
    table[~inner] = np.nonzero(~inner)[0][:, None]  # at the rim a point sees itself alone
    pyramid = Pyramid(points, np.zeros((900, 4), np.float32), (table,), (), (), ((900,),))
    measured, _ = measure_neighbor_distances([pyramid], config)
    default, _ = default_neighbor_distances(config)
    assert np.median(default) == pytest.approx(np.median(measured), rel=0.1)
    assert default[-1] == pytest.approx(measured[-1], rel=0.3)


@pytest.mark.parametrize(
    ("sizes", "counts"), [(SMALL, (90, 30, 12)), (ONE_STAGE, (40,))], ids=["three", "one"]
)
def test_training_reaches_every_parameter(sizes, counts):
    model = create_model("scannet", seed=0, **sizes)
    for parameter in model.parameters():  # away from the zeros that block gradients at the start
        parameter.data += 0.1 * torch.rand_like(parameter)
    pyramid = make_pyramid(counts, sizes["neighbors"], 7)
    logits, loss = model(pack([pyramid, make_pyramid(counts, sizes["neighbors"], 7, seed=1)]))
    assert logits.shape == (2 * counts[0], model.config.num_classes)
    assert loss.shape == () and loss > 0
    (logits.square().mean() + loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A bias before normalization over points or a loss of differences has none.
        assert parameter.grad.any(), name


def test_without_coordinate_loss_training_returns_zero():
    model = create_model("s3dis", seed=0, coordinate_loss=False, **ONE_STAGE)
    _, loss = model(make_pyramid((40,), (8,)))
    assert loss == 0


def test_clouds_of_a_batch_do_not_see_each_other_in_evaluation():
    model = trained()
    a, b = make_pyramid((90, 30, 12), (8, 10, 6)), make_pyramid((70, 20, 8), (8, 10, 6), seed=1)
    with torch.no_grad():
        packed = model(pack([a, b]))
        alone = torch.cat([model(a), model(b)])
    assert torch.allclose(packed, alone, atol=1e-5 * alone.abs().max())


def test_classification_gives_one_row_per_cloud():
    model = create_model("scanobjectnn", seed=0, **OBJECTS).eval()
    clouds = [make_pyramid((64, 16), (8, 6), 0, seed, nearest=False) for seed in range(2)]
    with torch.no_grad():
        packed = model(pack(clouds))
        alone = torch.cat([model(cloud) for cloud in clouds])
    assert packed.shape == (2, 15)
    assert torch.allclose(packed, alone, atol=1e-5)
    logits, loss = model.train()(pack(clouds))
    (logits.sum() + loss).backward()
    assert logits.shape == (2, 15) and loss > 0


def test_a_cloud_of_one_point_pools_without_nan():
    x = torch.rand(3, 4, requires_grad=True)
    pooled = pool_clouds(x, 1)
    assert torch.equal(pooled[:, :4], x) and not pooled[:, 4:].any()
    pooled.sum().backward()
    assert x.grad.isfinite().all()


def test_a_stage_of_one_point_trains():
    model = create_model("s3dis", seed=0, **SMALL)
    before = model.stages[2].block.mlps[0].norm.running_mean.clone()
    logits, loss = model(make_pyramid((12, 4, 1), (8, 4, 1)))
    (logits.sum() + loss).backward()
    assert logits.isfinite().all() and loss.isfinite()
    assert torch.equal(model.stages[2].block.mlps[0].norm.running_mean, before)


def test_rows_drop_together_by_cloud_or_each_alone():
    torch.manual_seed(0)
    ones = torch.ones(600, 2)
    by_cloud = drop_rows(ones, 0.25, (100, 200, 300))
    parts = by_cloud.split([100, 200, 300])
    assert all(part.unique().numel() == 1 for part in parts)
    assert all(value in (0.0, pytest.approx(4 / 3)) for value in by_cloud.unique().tolist())
    means = torch.stack([drop_rows(ones, 0.25, (300, 300)).mean() for _ in range(400)])
    assert means.mean() == pytest.approx(1, abs=0.06)
    rows = drop_rows(ones, 0.25)
    assert (rows[:, 0] == 0).float().mean() == pytest.approx(0.25, abs=0.06)
    assert torch.equal(rows[:, 0], rows[:, 1])
    assert drop_rows(ones, 0.0) is ones


def test_drop_rates_grow_linearly_over_all_blocks():
    model = create_model("s3dis", **(SMALL | {"drop_path": 0.1, "head_drop": 0.2}))
    rates = [rate for stage in model.stages for rate in stage.drop_rates]
    assert rates == pytest.approx([0, 0.02, 0.04, 0.06, 0.08, 0.1])
    assert model.head.drop_rates == pytest.approx([0, 0.1, 0.2])


def test_pyramids_that_do_not_fit_are_refused():
    model = create_model("s3dis", **SMALL).eval()
    with pytest.raises(InputError, match="2 stages, the network 3"):
        model(make_pyramid((30, 10), (8, 8)))
    with pytest.raises(InputError, match=r"3 attribute columns, the network takes 4 \(red, green"):
        model(make_pyramid((30, 10, 5), (8, 8, 5), 3))
    pyramid = make_pyramid((30, 10, 5), (8, 8, 5))
    with pytest.raises(InputError, match="has 0 nearest lists; 3 stages need 2"):
        model(dataclasses.replace(pyramid, nearest=()))
    with pytest.raises(InputError, match="takes a Pyramid, not a Tensor"):
        model(torch.zeros(30, 3))
    for name, value in (("kept", 30), ("nearest", -1), ("neighbors", 30)):
        tables = [table.copy() for table in getattr(pyramid, name)]
        tables[0][2] = value
        with pytest.raises(InputError, match=rf"{name}.* row 2 holds {value}"):
            model(dataclasses.replace(pyramid, **{name: tuple(tables)}))
    objects = create_model("scanobjectnn", **OBJECTS).eval()
    with pytest.raises(InputError, match=r"clouds of \[60\] points; the network takes exactly 64"):
        objects(make_pyramid((60, 16), (8, 6), 0, nearest=False))


def test_native_and_reference_operators_agree_through_the_network():
    model, pyramid = trained("scannet", "chn"), make_pyramid((90, 30, 12), (8, 10, 6), 7)
    logits = model(pyramid)
    with ops.implementation("reference"):
        expected = model.double()(pyramid)
    assert (logits - expected).abs().max() <= 5e-5 * expected.abs().max()


FROZEN = {
    "attributes": lambda: (trained(), make_pyramid((90, 30, 12), (8, 10, 6))),
    "directions": lambda: (trained("scannet", "chn"), make_pyramid((90, 30, 12), (8, 10, 6), 7)),
    "one stage": lambda: (
        create_model("s3dis", seed=0, **ONE_STAGE).eval(),
        make_pyramid((40,), (8,)),
    ),
    "classification": lambda: (
        import_reference(
            fabricate(published_shapes(dims=(16, 32), depths=(3, 4), classes=6)),
            "scanobjectnn",
            **{key: OBJECTS[key] for key in ("neighbors", "spread", "points")},
        ),
        make_pyramid((64, 16), (8, 6), 0, nearest=False),
    ),
}


@pytest.mark.parametrize("case", FROZEN)
def test_the_frozen_form_gives_the_same_logits(case):
    model, pyramid = FROZEN[case]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = freeze(model)
    with torch.no_grad():
        expected, logits = model(pyramid), frozen(pyramid)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not any(isinstance(module, BatchNorm) for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert frozen.config is model.config and not frozen.training
    with torch.no_grad():  # weights of its own
        for tensor in (*frozen.parameters(), *frozen.buffers()):
            tensor.zero_()
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("case", ["attributes", "classification"])
def test_the_frozen_form_in_16_bit_is_close_and_speaks_float32(case, dtype, tolerance):
    model, pyramid = FROZEN[case]()
    frozen = freeze(model, dtype)
    with torch.no_grad():
        expected, logits = model(pyramid), frozen(pyramid)
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()
    assert not torch.equal(logits, freeze(model)(pyramid))
    assert frozen.stages[0].encoding.expand.weight.dtype == dtype
    assert frozen.spse_weight_0.dtype == torch.float32
