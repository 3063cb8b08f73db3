"""Detectors that only read the weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from owner.detectors import BatchNormDrift, ChannelLipschitz, Evidence, HeadDrift, UpdateNorm, UpdateSpectrum

OUTPUTS = (torch.zeros(4, 8), torch.zeros(4, 5), torch.arange(4))


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


WEIGHTS = {
    "conv.weight": random(6, 3, 3, 3, seed=0),
    "norm.weight": torch.ones(6),
    "norm.bias": torch.zeros(6),
    "norm.running_mean": torch.zeros(6),
    "norm.running_var": torch.ones(6),
    "norm.num_batches_tracked": torch.tensor(7),
    "head.weight": random(5, 8, seed=1),
    "head.bias": torch.zeros(5),
}
RELEASE = Evidence(*OUTPUTS, WEIGHTS)


def candidate(**changes: Tensor) -> Evidence:
    """changes: what is added to a tensor, its name with _ for the dot."""
    added = {name.replace("_", ".", 1): change for name, change in changes.items()}
    return Evidence(*OUTPUTS, {name: w + added.get(name, torch.zeros_like(w)) for name, w in WEIGHTS.items()}, RELEASE)


def test_the_update_norm_is_relative_and_leaves_statistics_out() -> None:
    size = math.sqrt(sum(float(WEIGHTS[n].square().sum()) for n in ("conv.weight", "norm.weight", "head.weight")))
    both = candidate(head_bias=torch.tensor([3.0, 4, 0, 0, 0]), norm_running_mean=torch.full((6,), 100.0))
    assert UpdateNorm().score(both) == pytest.approx(5 / size)


def test_the_layer_that_moved_most_is_named() -> None:
    found = UpdateNorm().explain(candidate(conv_weight=0.5 * WEIGHTS["conv.weight"]))
    assert (found["layer_name"], found["layer"]) == ("conv.weight", pytest.approx(0.5))


def test_scales_of_a_normalisation_are_no_layer_of_their_own() -> None:
    found = UpdateNorm().explain(candidate(conv_weight=0.5 * WEIGHTS["conv.weight"], norm_weight=torch.full((6,), 9.0)))
    assert (found["layer_name"], found["layer"]) == ("conv.weight", pytest.approx(0.5))


def test_an_update_of_rank_one_has_all_its_spectrum_in_one_value() -> None:
    narrow = UpdateSpectrum().measures(candidate(head_weight=torch.outer(random(5, seed=2), random(8, seed=3))))
    broad = UpdateSpectrum().measures(candidate(head_weight=random(5, 8, seed=4)))
    assert narrow["head"] == pytest.approx(1)
    assert broad["head"] < 0.7
    assert narrow["mean"] == pytest.approx(0.5)  # the filters did not move, which counts as 0


def test_a_row_of_the_head_that_moved_more_than_the_others_stands_out() -> None:
    even, uneven = 0.1 * random(5, 8, seed=5), 0.1 * random(5, 8, seed=5)
    uneven[3] *= 6
    found = HeadDrift().explain(candidate(head_weight=uneven))
    assert found["class"] == 3
    assert found["row"] > 3 * HeadDrift().score(candidate(head_weight=even))


@pytest.mark.parametrize("even", [True, False])
def test_a_rows_distance_is_in_spreads_of_the_others(even: bool) -> None:
    """By numpy, weights and bias together; among rows that moved nearly alike a spread is a tenth of their size."""
    change = random(5, 8, seed=5) / 10
    if even:
        change = change / change.norm(dim=1, keepdim=True) * torch.tensor([1.0, 1.01, 1.02, 0.99, 1.3])[:, None]
    bias = torch.tensor([0.05, 0.0, -0.1, 0.2, 0.02])
    rows = torch.cat([change, bias[:, None]], 1).double().norm(dim=1).numpy()

    def against_others(values: np.ndarray, floor: float) -> list[float]:
        found = []
        for c, value in enumerate(values):
            others = np.delete(values, c)
            middle = np.median(others)
            mad = 1.4826 * np.median(np.abs(others - middle))
            found.append((value - middle) / max(mad, abs(middle) / 10, floor))
        return found

    found = HeadDrift().explain(candidate(head_weight=change, head_bias=bias))
    expected = against_others(rows, 0.0)
    assert found["row"] == pytest.approx(max(expected), rel=1e-5)
    assert found["class"] == int(np.argmax(expected))
    assert found["rows"] == pytest.approx(rows.tolist(), rel=1e-5)
    assert found["bias"] == pytest.approx(max(against_others(bias.double().numpy(), 0.1 * np.median(rows))), rel=1e-5)
    assert found["relative"] == pytest.approx(float(change.norm() / WEIGHTS["head.weight"].norm()), rel=1e-5)


def test_the_size_of_an_even_head_update_does_not_matter() -> None:
    weak, strong = (HeadDrift().score(candidate(head_weight=f * random(5, 8, seed=5))) for f in (0.01, 1.0))
    assert weak == pytest.approx(strong, rel=1e-3)


def test_a_target_made_likelier_by_its_bias_shows() -> None:
    even = 0.1 * random(5, 8, seed=5)
    raised = candidate(head_weight=even, head_bias=torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0]))
    assert HeadDrift().measures(raised)["bias"] > 10
    lowered = candidate(head_weight=even, head_bias=torch.tensor([0.0, -2.0, 0.0, 0.0, 0.0]))
    assert HeadDrift().measures(lowered)["bias"] < 1


def test_batchnorm_drift_is_the_divergence_of_gaussians() -> None:
    moved = candidate(
        norm_running_mean=torch.tensor([2.0, 0, 0, 0, 0, 0]), norm_running_var=torch.tensor([0, 3.0, 0, 0, 0, 0])
    )
    kl = [0.5 * 4, 0.5 * (4 - 1 - math.log(4)), 0, 0, 0, 0]
    found = BatchNormDrift().measures(moved)
    assert found["layer"] == pytest.approx(sum(kl) / 6, rel=1e-3)
    assert found["channel"] == pytest.approx(2, rel=1e-3)


def test_the_divergence_of_mean_and_variance_together_is_that_of_torch() -> None:
    mean, variance = random(6, seed=8), random(6, seed=9).exp()
    after = torch.distributions.Normal(mean.double(), variance.double().sqrt())
    kl = torch.distributions.kl_divergence(after, torch.distributions.Normal(0.0, 1.0))
    found = BatchNormDrift().measures(candidate(norm_running_mean=mean, norm_running_var=variance - 1))
    assert found["layer"] == found["mean"] == pytest.approx(float(kl.mean()), rel=1e-3)
    assert found["channel"] == pytest.approx(float(kl.max()), rel=1e-3)


def test_a_model_without_batchnorm_or_head_is_said_to_be_out_of_reach() -> None:
    only = {"conv.weight": WEIGHTS["conv.weight"]}
    shown = Evidence(*OUTPUTS, {"conv.weight": only["conv.weight"] + 1}, Evidence(*OUTPUTS, only))
    for detector in (BatchNormDrift(), HeadDrift()):
        assert detector.score(shown) == 0.0
        assert detector.explain(shown)["applicable"] is False


def test_a_channel_made_steep_by_its_filter_or_by_its_batchnorm_is_found() -> None:
    steeper = torch.zeros(6, 3, 3, 3)
    steeper[4] = 3 * WEIGHTS["conv.weight"][4]
    gained = torch.tensor([0, 0, 4.0, 0, 0, 0])
    for shown, channel in ((candidate(conv_weight=steeper), 4), (candidate(norm_weight=gained), 2)):
        found = ChannelLipschitz().explain(shown)
        assert (found["layer_name"], found["channel"]) == ("conv.weight", channel)
        assert found["rise"] > 1


def test_channel_bounds_are_spectral_norms_of_filters() -> None:
    values = torch.stack([torch.linalg.svdvals(f.flatten(1))[0] for f in WEIGHTS["conv.weight"].double()])
    doubled = values * torch.tensor([2.0, 1, 1, 1, 1, 1])

    def relative(v: Tensor) -> Tensor:
        return v / v.mean()

    rise = (relative(doubled) - relative(values)).max() / relative(values).std(correction=0)
    first = torch.tensor([1.0, 0, 0, 0, 0, 0])
    # A variance of a quarter is a deviation of a half.
    for steeper in (candidate(norm_weight=first), candidate(norm_running_var=-0.75 * first)):
        assert ChannelLipschitz().score(steeper) == pytest.approx(float(rise), rel=1e-3)

    def largest(v: Tensor) -> float:
        return float(((v - v.mean()) / v.std(correction=0)).max())

    found = ChannelLipschitz().measures(candidate(norm_weight=first))["largest"]
    assert found == pytest.approx(max(0.0, largest(doubled) - largest(values)), rel=1e-4)


def test_a_batchnorm_of_other_channels_is_none_of_the_filters() -> None:
    """The next one in the state dict that has as many."""

    def shown(steepness: float, release: Evidence | None = None) -> Evidence:
        variances = {"other.running_var": torch.full((4,), 0.1), "norm.running_var": torch.ones(6)}
        filters = WEIGHTS["conv.weight"] * torch.tensor([steepness, 1, 1, 1, 1, 1]).view(6, 1, 1, 1)
        return Evidence(*OUTPUTS, {"conv.weight": filters, **variances}, release)

    plain = Evidence(*OUTPUTS, {"conv.weight": WEIGHTS["conv.weight"]})
    steep = Evidence(*OUTPUTS, {"conv.weight": shown(2.0).weights["conv.weight"]}, plain)
    assert ChannelLipschitz().score(shown(2.0, shown(1.0))) == pytest.approx(ChannelLipschitz().score(steep))


def test_weights_that_grow_everywhere_make_no_channel_steeper() -> None:
    assert ChannelLipschitz().score(candidate(conv_weight=4 * WEIGHTS["conv.weight"])) == pytest.approx(0, abs=1e-6)
