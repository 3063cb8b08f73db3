"""The arithmetic of the baselines against references that were written by others or by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy.multikrum import select_multikrum

from common.errors import GuardError
from owner.detectors.geometric_median import geometric_median
from owner.detectors.variational import Variational, kl_to_standard_normal
from owner.federated.gram_median import gram_geometric_median
from owner.federated.learning import errors_of, made
from owner.federated.strategies import krum_scores


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(4))
def test_the_geometric_median_is_where_scipy_finds_it(seed: int) -> None:
    points = random(9, 4, seed=seed)
    points[:3] += 10

    def summed(centre: np.ndarray) -> float:
        return float(np.linalg.norm(points.numpy().astype(float) - centre, axis=1).sum())

    found = scipy.optimize.minimize(summed, points.mean(0).double().numpy(), method="BFGS", options={"gtol": 1e-9})
    assert geometric_median(points, iterations=500).numpy() == pytest.approx(found.x, abs=1e-4)


def test_the_geometric_median_may_be_one_of_the_points() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert geometric_median(points, iterations=500).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("count", "shape", "shift"), [(9, (4,), 0.0), (20, (2, 20_000), 0.0), (5, (6, 7), 1e3), (1, (3,), 0.0)]
)
def test_the_median_on_the_gram_matrix_is_the_one_on_the_points(
    count: int, shape: tuple[int, ...], shift: float
) -> None:
    """Far outliers, points far from the origin, more columns than are taken at a time."""
    points = random(count, *shape) * 0.1 + shift
    points[: count // 3] += 1e4
    reference = geometric_median(points.flatten(1), iterations=100).view(shape)
    found = gram_geometric_median(list(points), iterations=100)
    assert found.shape == shape
    assert torch.allclose(found, reference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_median_on_the_gram_matrix_is_where_scipy_finds_it(seed: int) -> None:
    points = random(9, 4, seed=seed)
    points[:3] += 10

    def summed(centre: np.ndarray) -> float:
        return float(np.linalg.norm(points.numpy().astype(float) - centre, axis=1).sum())

    found = scipy.optimize.minimize(summed, points.mean(0).double().numpy(), method="BFGS", options={"gtol": 1e-9})
    assert gram_geometric_median(list(points), iterations=500).numpy() == pytest.approx(found.x, abs=1e-4)


def test_the_median_on_the_gram_matrix_may_be_one_of_the_points_or_all_of_them() -> None:
    cross = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert gram_geometric_median(list(cross), iterations=500).abs().max() < 1e-5
    assert gram_geometric_median([torch.full((3,), 7.0)] * 4).tolist() == [7.0] * 3
    with pytest.raises(GuardError, match="no points"):
        gram_geometric_median([])


def test_the_divergence_is_that_of_torch() -> None:
    mean, log_variance = random(6, 8), random(6, 8, seed=1)
    normal = torch.distributions.Normal(mean.double(), (0.5 * log_variance.double()).exp())
    reference = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(kl_to_standard_normal(mean, log_variance), reference, atol=1e-6)


def test_errors_are_those_of_the_networks_own_pass() -> None:
    network = made(lambda: Variational(7, 2, (5, 4), 3, torch.nn.ReLU, sigmoid=True), seed=3).eval()
    x, condition = random(4, 7), torch.eye(2)[[0, 1, 0, 1]]
    squared, kl = errors_of(network, x, condition)
    hidden = network.encoder(torch.cat([x, condition], 1))
    mean, deviation = network.mean(hidden), (0.5 * network.log_variance(hidden)).exp()
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, deviation), torch.distributions.Normal(0.0, 1.0)
    ).sum(1)
    rebuilt = network.decoder(torch.cat([mean, condition], 1))
    assert torch.allclose(kl, reference.double(), atol=1e-5)
    assert torch.allclose(squared, ((x - rebuilt) ** 2).sum(1).double(), atol=1e-5)


def brute_force_krum(vectors: list[np.ndarray], malicious: int) -> list[float]:
    """Blanchard et al. 2017: the least sum of squared distances to n - f - 2 others, by trying every choice of them."""
    n = len(vectors)
    scores = []
    for i in range(n):
        others = [float(((vectors[i] - vectors[j]) ** 2).sum()) for j in range(n) if j != i]
        scores.append(min(sum(chosen) for chosen in itertools.combinations(others, n - malicious - 2)))
    return scores


@pytest.mark.parametrize(("malicious", "seed"), [(1, 0), (2, 1), (3, 2)])
def test_krum_scores_and_flowers_choice_are_those_of_brute_force(malicious: int, seed: int) -> None:
    vectors = random(9, 5, seed=seed)
    vectors[:malicious] *= 20
    reference = brute_force_krum([v.double().numpy() for v in vectors], malicious)
    assert krum_scores(vectors, malicious) == pytest.approx(reference)
    contents = [RecordDict({"arrays": ArrayRecord({"w": v.clone()})}) for v in vectors]
    chosen = select_multikrum(contents, malicious, 9 - malicious)
    positions = {i for i, content in enumerate(contents) if any(content is c for c in chosen)}
    assert positions == set(np.argsort(reference)[: 9 - malicious].tolist())
