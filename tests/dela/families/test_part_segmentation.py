"""Part segmentation: an object's category conditions the head, from the scan to the logits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dela.cloud.point_cloud import PointCloud
from dela.errors import ConfigError, InputError
from dela.families import create_model, resolve_config
from dela.families.dela import freeze
from dela.families.dela.config import DelaConfig
from dela.model.contract import AttributeInfo, CategoryInfo
from dela.pyramid.cpu import build_pyramid
from dela.scan.attributes import compute_attributes
from dela.scan.votes import VoteOptions, predict_voxels
from dela.scan.voxels import Voxels

CONFIG = resolve_config(
    "s3dis",
    dims=(16, 32),
    depths=(1, 2),
    neighbors=(8, 8),
    spread=(1.6, 3.8),
    grid=(0.1, 0.2),
    head_dim=24,
    num_classes=5,
    attributes=(AttributeInfo("intensity"),),
    categories=(CategoryInfo("chair", (0, 1)), CategoryInfo("lamp", (2, 3, 4))),
)


def scan(kind: int, seed: int = 0) -> PointCloud:
    rng = np.random.default_rng(seed)
    return PointCloud(
        rng.uniform(0, 1, (300, 3)),
        {"intensity": rng.uniform(0, 1, 300).astype(np.float32), "category": np.full(300, kind)},
    )


def pyramid_of(cloud: PointCloud, config: DelaConfig = CONFIG):
    columns = compute_attributes(cloud, config.input_columns)
    return build_pyramid(cloud.points.astype(np.float32), columns, config)


@pytest.fixture(scope="module")
def network():
    """A network of which every layer matters, in evaluation mode."""
    model = create_model(CONFIG, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, module.in_features**-0.5, generator=generator)
            if isinstance(module, torch.nn.BatchNorm1d):
                for values in (module.weight, module.running_var):
                    values.uniform_(0.5, 1.5, generator=generator)
                for values in (module.bias, module.running_mean):
                    values.uniform_(-0.2, 0.2, generator=generator)
    return model.eval()


def test_the_category_becomes_columns_behind_the_others():
    names = [info.name for info in CONFIG.input_columns]
    assert names == ["intensity", "category_0", "category_1"]
    columns = compute_attributes(scan(1), CONFIG.input_columns)
    assert np.array_equal(columns[:, 1:], np.tile(np.float32([0, 1]), (300, 1)))
    assert len(create_model(CONFIG).ellipsoids[0].attributes) == CONFIG.dims[0]


def test_the_category_adds_one_vector_to_the_head_of_every_point(network):
    with torch.inference_mode():
        first, second = (network(pyramid_of(scan(kind))) for kind in (0, 1))
        assert (first - second).abs().min(dim=0).values.max() > 1e-3

        # By hand: without the projection the network is one without categories.
        plain = create_model(dataclasses.replace(CONFIG, categories=()), seed=0).eval()
        state = network.state_dict()
        plain.load_state_dict({k: v for k, v in state.items() if "head.category" not in k})
        head = plain.head
        kept = {}
        hook = head.norm.register_forward_pre_hook(lambda _, given: kept.update(sum=given[0]))
        config = plain.config
        pyramid = pyramid_of(scan(1), config)
        plain(pyramid)
        hook.remove()
        vector = network.head.category(torch.tensor([[0.0, 1.0]]))
        total = kept["sum"] + vector
        expected = head.classify(torch.nn.functional.gelu(head.norm(total)))
    torch.testing.assert_close(second, expected, atol=1e-5, rtol=1e-5)


def test_the_frozen_network_gives_the_same_logits(network):
    frozen = freeze(network)
    with torch.inference_mode():
        for kind in (0, 1):
            pyramid = pyramid_of(scan(kind, seed=kind))
            expected = network(pyramid)
            torch.testing.assert_close(
                frozen(pyramid), expected, atol=1e-5 * float(expected.abs().max()), rtol=0
            )


def test_training_moves_the_projection():
    model = create_model(CONFIG, seed=0)
    logits, loss = model(pyramid_of(scan(0)))
    (logits.square().mean() + loss).backward()
    assert model.head.category.project.weight.grad is not None
    assert torch.isfinite(model.head.category.expand.weight.grad).all()


def test_a_column_of_a_similar_name_is_an_ordinary_one():
    cloud = PointCloud(np.zeros((3, 3)), {"category_id": np.arange(3)})
    found = compute_attributes(cloud, [AttributeInfo("category_id", 2.0)])
    assert found[:, 0].tolist() == [0, 0.5, 1]


def test_the_configuration_travels_with_its_categories():
    assert DelaConfig.from_dict(CONFIG.to_dict()) == CONFIG


def test_votes_resample_objects_that_all_face_one_way_but_do_not_turn_them():
    def looks(config: DelaConfig) -> list[np.ndarray]:
        seen = []

        def forward(pyramid):
            seen.append(pyramid.points)
            return np.zeros((len(pyramid.points), 5), np.float32)

        columns = compute_attributes(cloud, config.input_columns)
        points = cloud.points - cloud.points.min(axis=0)
        predict_voxels(
            forward,
            points,
            lambda pick: Voxels.of(cloud, columns, config, pick),
            config,
            VoteOptions(max_points=1000, votes=4),
        )
        return seen

    cloud = scan(0)
    # A point of every voxel: within a voxel's edge of the first vote's.
    seen = looks(dataclasses.replace(CONFIG, vote_axis=""))
    apart = [np.abs(points - seen[0]).max() for points in seen]
    assert apart[0] == 0
    assert all(0 < distance <= 0.1 + 1e-5 for distance in apart[1:])
    turned = looks(CONFIG)
    assert all(np.abs(points - turned[0]).max() > 0.2 for points in turned[1:])


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="no column 'category'"):
        compute_attributes(PointCloud(np.zeros((2, 3)), {}), CONFIG.category_columns)
    with pytest.raises(InputError, match=r"holds 2; the model's categories are 0\.\.1"):
        compute_attributes(scan(2), CONFIG.input_columns)
    with pytest.raises(ConfigError, match="category lamp has the class 5"):
        dataclasses.replace(CONFIG, categories=(CategoryInfo("lamp", (5,)),))
    with pytest.raises(ConfigError, match="categories are for part segmentation"):
        resolve_config("scanobjectnn", categories=CONFIG.categories)
