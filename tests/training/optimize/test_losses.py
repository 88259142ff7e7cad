"""Losses against their definitions in float64 numpy."""

import numpy as np
import pytest

from dela.errors import ConfigError

torch = pytest.importorskip("torch")

from dela.training.optimize.losses import (  # noqa: E402
    class_weights,
    cross_entropy,
    label_weight,
    lovasz_softmax,
)


def _example(points=50, classes=5, ignored=12):
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(points, classes)) * 3
    labels = generator.integers(0, classes, points)
    labels[:ignored] = -1
    return logits, labels


def _numpy_cross_entropy(logits, labels, smoothing, weight):
    log_probability = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    total = normalizer = 0.0
    for row, label in zip(log_probability, labels, strict=True):
        if label == -1:
            continue
        target = np.full(len(row), smoothing / len(row))
        target[label] += 1 - smoothing
        total += -(target * weight * row).sum()
        normalizer += weight[label]
    return total / normalizer


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_matches_its_definition(smoothing, weighted):
    logits, labels = _example()
    weight = np.array([0.5, 1.0, 2.0, 1.5, 0.25]) if weighted else np.ones(5)
    result = cross_entropy(
        torch.tensor(logits, dtype=torch.float32),
        torch.tensor(labels),
        smoothing,
        torch.tensor(weight, dtype=torch.float32) if weighted else None,
    )
    assert result.item() == pytest.approx(
        _numpy_cross_entropy(logits, labels, smoothing, weight), rel=1e-5
    )


def test_ignored_rows_get_no_gradient():
    logits, labels = _example()
    values = torch.tensor(logits, requires_grad=True)
    (cross_entropy(values, torch.tensor(labels), 0.1)).backward()
    assert values.grad[:12].abs().max() == 0
    assert values.grad[12:].abs().min() > 0


@pytest.mark.parametrize("loss", [cross_entropy, lovasz_softmax])
def test_a_batch_without_labels_gives_zero_and_a_finite_gradient(loss):
    values = torch.randn(6, 3, requires_grad=True)
    result = loss(values, torch.full((6,), -1))
    result.backward()
    assert result.item() == 0.0
    assert torch.equal(values.grad, torch.zeros_like(values))


def test_bfloat16_logits_are_summed_in_float32():
    logits, labels = _example(2000)
    half = torch.tensor(logits, dtype=torch.bfloat16)
    assert cross_entropy(half, torch.tensor(labels)).dtype == torch.float32


def _numpy_lovasz(logits, labels):
    kept = labels >= 0
    logits, labels = logits[kept], labels[kept]
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    losses = []
    for c in range(logits.shape[1]):
        truth = labels == c
        if not truth.any():
            continue
        error = np.abs(truth - probability[:, c])
        order = np.argsort(-error)
        # Sum over thresholds: each error times the growth of the Jaccard loss of the set of
        # mistakes made so far.
        mistakes, previous, total = np.zeros(len(truth), bool), 0.0, 0.0
        for i in order:
            mistakes[i] = True
            jaccard_loss = mistakes.sum() / (truth | mistakes).sum()
            total += error[i] * (jaccard_loss - previous)
            previous = jaccard_loss
        losses.append(total)
    return np.mean(losses)


def test_lovasz_matches_its_set_definition():
    logits, labels = _example()
    labels[labels == 3] = 0
    result = lovasz_softmax(torch.tensor(logits, dtype=torch.float32), torch.tensor(labels))
    assert result.item() == pytest.approx(_numpy_lovasz(logits, labels), rel=1e-4)


def test_lovasz_of_a_sure_right_answer_is_zero_and_of_a_sure_wrong_one_is_one():
    labels = torch.tensor([0, 0, 1, 1])
    right = torch.nn.functional.one_hot(labels, 2).float() * 100
    assert lovasz_softmax(right, labels).item() == pytest.approx(0.0, abs=1e-6)
    assert lovasz_softmax(right.flip(1), labels).item() == pytest.approx(1.0, abs=1e-6)


def test_class_weights_follow_the_power_and_average_to_one():
    weights = class_weights(np.array([100, 400, 0, 1600]), 0.5)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, np.array([4, 2, 0, 1]) / (7 / 3), rtol=1e-6)
    np.testing.assert_allclose(class_weights(np.array([5, 9]), 0.0), [1, 1])
    with pytest.raises(ConfigError, match="no training point has a class"):
        class_weights(np.zeros(3), 0.4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_shares_of_classes_are_smoothed_like_single_classes(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator)
    shares = torch.rand(6, 4, generator=generator).softmax(1)
    target = (1 - smoothing) * shares.double() + smoothing / 4
    expected = -(target * logits.double().log_softmax(1)).sum(1).mean()
    assert cross_entropy(logits, shares, smoothing).item() == pytest.approx(
        expected.item(), rel=1e-5
    )
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    sure = torch.nn.functional.one_hot(labels, 4).float()
    single = cross_entropy(logits, labels, smoothing)
    assert cross_entropy(logits, sure, smoothing).item() == pytest.approx(single.item(), rel=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_of_shares_and_of_classes_add_up_to_one_batch(weighted):
    """The mean over all rows, a row weighing what its classes do in their shares."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4, generator=generator)
    shares = torch.rand(12, 4, generator=generator).softmax(1)
    labels = torch.tensor([0, 3, 1, 1, 2])
    shares[7:] = torch.nn.functional.one_hot(labels, 4).float()
    weight = torch.tensor([0.25, 2.0, 1.0, 0.75]) if weighted else None
    weights = np.ones(4) if weight is None else weight.numpy().astype(np.float64)
    smooth = 0.8 * shares.numpy().astype(np.float64) + 0.2 / 4
    log_probability = logits.double().log_softmax(1).numpy()
    expected = -(smooth * weights * log_probability).sum() / (shares.numpy() * weights).sum()
    assert cross_entropy(logits, shares, 0.2, weight).item() == pytest.approx(expected, rel=1e-5)

    parts = [(logits[:4], shares[:4]), (logits[4:7], shares[4:7]), (logits[7:], labels)]
    amounts = torch.stack([label_weight(wanted, weight) for _, wanted in parts])
    losses = torch.stack([cross_entropy(x, wanted, 0.2, weight) for x, wanted in parts])
    total = (losses * amounts).sum() / amounts.sum()
    assert total.item() == pytest.approx(expected, rel=1e-5)
