"""Many scores become one, on the scale of honest fine-tunes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from common.errors import ConfigurationError, GuardError, UnknownNameError
from owner.detectors.combination import Combination, Method, Scale, Trend, shrunk_covariance

METHODS = get_args(Method)
MONOTONE = [method for method in METHODS if method != "mahalanobis"]
NAMES = ("feature-drift", "probe-bank", "probe-bank/cell", "update-norm", "accuracy-drop", "batchnorm-drift")


def references(count: int = 33, seed: int = 0) -> list[dict[str, float]]:
    """Skewed positive scores, signed ones, and one that is always 0."""
    source = random.Random(seed)
    return [
        {
            "feature-drift": math.exp(source.gauss(0, 0.5)),
            "probe-bank": math.exp(source.gauss(1, 0.3)),
            "probe-bank/cell": max(0.0, source.gauss(1, 1)),
            "update-norm": math.exp(source.gauss(-3, 0.4)),
            "accuracy-drop": source.gauss(0, 0.01),
            "batchnorm-drift": 0.0,
        }
        for _ in range(count)
    ]


TYPICAL = {
    "feature-drift": 1.0,
    "probe-bank": 2.7,
    "probe-bank/cell": 1.0,
    "update-norm": 0.05,
    "accuracy-drop": 0.0,
    "batchnorm-drift": 0.0,
}


@pytest.fixture(scope="module", params=METHODS)
def fitted(request: pytest.FixtureRequest) -> Combination:
    return Combination(request.param).fit(references())


def test_one_score_far_out_lifts_the_combination_above_nearly_every_reference(fitted: Combination) -> None:
    unseen = sorted(fitted.score(scores) for scores in references(200, seed=1))
    # Ranks end at the last reference: by them one score alone cannot do it.
    highest = fitted.score(TYPICAL) if fitted.method == "fisher" else unseen[190]
    for name, value in {"probe-bank": 60.0, "update-norm": 3.0, "accuracy-drop": 0.5}.items():
        assert fitted.score(TYPICAL | {name: value}) > highest


@pytest.mark.parametrize("method", MONOTONE)
@given(
    start=st.lists(st.floats(-5, 50), min_size=6, max_size=6),
    rises=st.lists(st.floats(0, 1e6), min_size=6, max_size=6),
)
@settings(max_examples=40, deadline=None)
def test_a_higher_score_never_lowers_the_combination(method: Method, start: list[float], rises: list[float]) -> None:
    combination = Combination(method).fit(references())
    low = dict(zip(NAMES, start, strict=True))
    high = {name: value + rise for (name, value), rise in zip(low.items(), rises, strict=True)}
    assert combination.score(high) >= combination.score(low) - 1e-9


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_score_that_is_not_finite_is_worse_than_any(fitted: Combination, bad: float) -> None:
    assert fitted.score(TYPICAL | {"update-norm": bad}) == math.inf
    assert fitted.families(TYPICAL | {"update-norm": bad})["weights"] == math.inf
    assert math.isfinite(fitted.families(TYPICAL | {"update-norm": bad})["probes"])


def test_a_missing_score_counts_as_the_median(fitted: Combination) -> None:
    without = {name: value for name, value in TYPICAL.items() if name != "feature-drift"}
    assert math.isfinite(fitted.score(without))
    assert fitted.z(without)["feature-drift"] == 0
    given_size = Combination("max", given_size=True).fit(references())
    assert given_size.z(without | {"update-norm": 1.0})["feature-drift"] == 0


def test_by_ranks_a_missing_score_adds_nothing() -> None:
    combination = Combination("fisher").fit(references())
    without = {name: value for name, value in TYPICAL.items() if name != "feature-drift"}
    least = TYPICAL | {"feature-drift": 1e-9}
    assert combination.score(without) == pytest.approx(combination.score(least))


@pytest.mark.parametrize("method", METHODS)
def test_a_reference_that_is_not_finite_spoils_nobodys_score(method: Method) -> None:
    rows = references()
    rows[4]["probe-bank"] = math.inf
    found = Combination(method).fit(rows).score(TYPICAL)
    assert found == pytest.approx(Combination(method).fit(references()).score(TYPICAL), rel=0.2, abs=0.3)


def test_a_score_that_no_reference_has_is_ignored(fitted: Combination) -> None:
    assert fitted.score(TYPICAL | {"new": 1e9}) == fitted.score(TYPICAL)


def test_a_constant_says_nothing_until_it_changes(fitted: Combination) -> None:
    assert fitted.z(TYPICAL)["batchnorm-drift"] == 0
    assert fitted.score(TYPICAL | {"batchnorm-drift": 0.5}) > fitted.score(TYPICAL)
    assert math.isfinite(fitted.score(TYPICAL | {"batchnorm-drift": 1e30}))


def test_every_family_has_a_score_of_its_own(fitted: Combination) -> None:
    found = fitted.families(TYPICAL | {"update-norm": 5.0})
    assert set(found) == {"activations", "probes", "weights", "utility"}
    assert found["weights"] > fitted.families(TYPICAL)["weights"]


def test_the_order_of_the_references_does_not_matter(fitted: Combination) -> None:
    again = Combination(fitted.method).fit(references()[::-1])
    assert again.score(TYPICAL) == pytest.approx(fitted.score(TYPICAL))


def test_only_the_scores_to_use_take_part() -> None:
    combination = Combination("sum", use=("probe-bank",)).fit(references())
    assert combination.score(TYPICAL | {"update-norm": 100.0}) == combination.score(TYPICAL)
    assert list(combination.z(TYPICAL)) == ["probe-bank"]


def robust_z(values: Sequence[float] | np.ndarray, value: float) -> float:
    """By numpy and scipy: the robust z of `Scale`."""

    def location_and_spread(x: np.ndarray) -> tuple[float, float]:
        mad = 1.4826 * scipy.stats.median_abs_deviation(x)
        return float(np.median(x)), float(mad or x.std())

    seen = np.asarray(values, dtype=float)
    if (seen > 0).all():
        seen, at = np.log(seen), math.log(value)
    else:
        centre, spread = location_and_spread(seen)
        seen, at = np.arcsinh((seen - centre) / (3 * spread)), math.asinh((value - centre) / (3 * spread))
    location, spread = location_and_spread(seen)
    return (at - location) / spread


@pytest.mark.parametrize(
    "values",
    [[0.5, 1.0, 2.0, 7.0, 9.0], [-3.0, 0.1, 0.4, 2.0, 8.0, 9.0], [0.0, 0.0, 0.0, 0.0, 1.0, 4.0], [1.0, 1.0, 1.0, 5.0]],
    ids=["positive", "signed", "mostly alike", "mostly alike and positive"],
)
def test_the_scale_is_median_and_mad_after_the_transformation(values: list[float]) -> None:
    for value in (0.2, 3.0, 100.0):
        assert Scale.of(values).z(value) == pytest.approx(robust_z(values, value), rel=1e-9)


def test_what_moves_some_honest_ones_far_weighs_no_more_than_what_moves_none() -> None:
    """Of 40 references, six stand far out by `cka`; by the upper tenth they are no further than others are by `head-drift`."""
    far = [0.1 * (-1) ** k for k in range(34)] + [6.0] * 6
    near = [0.1 * k for k in range(-20, 20)]
    assert Scale.of(far).z(6.0) > 5
    assert Scale.by_upper_tenth(far).z(6.0) == pytest.approx(1.0)
    assert Scale.by_upper_tenth(near).z(float(np.quantile(near, 0.9))) == pytest.approx(1.0, rel=0.01)
    rows = [{"cka": a, "head-drift": b} for a, b in zip(far, near, strict=True)]
    gate = Combination("detectors").fit(rows)
    assert gate.score({"cka": 6.0, "head-drift": 0.0}) < gate.score({"cka": 0.0, "head-drift": 4.0})


def test_where_the_upper_tenth_is_the_median_the_scale_is_the_usual_one() -> None:
    alike = [0.0] * 39 + [1.0]
    assert Scale.by_upper_tenth(alike) == Scale.of(alike)


def test_any_score_beyond_a_constant_stands_far_out() -> None:
    assert Scale.of([0.0] * 5).z(0.5) == pytest.approx(math.asinh(0.5) / 0.001)
    assert Scale.of([2.0] * 5).z(3.0) == pytest.approx(math.log(1.5) / 0.001)


@pytest.mark.parametrize("method", ["families", "detectors"])
def test_groups_add_up_beyond_their_own_scale(method: Method) -> None:
    """Of a family what exceeds its references' median, of a detector what exceeds half of the way from there to their upper tenth."""
    wild = TYPICAL | {"probe-bank": 5.0, "probe-bank/cell": 2.5, "update-norm": 0.2, "feature-drift": 1.3}
    groups = {
        "families": [NAMES[:1], NAMES[1:3], ("update-norm", "batchnorm-drift"), ("accuracy-drop",)],
        "detectors": [NAMES[:1], NAMES[1:3], *((name,) for name in NAMES[3:])],
    }[method]
    rows = references()

    def largest(scores: dict[str, float], group: tuple[str, ...]) -> float:
        moving = [name for name in group if name != "batchnorm-drift"]  # which is a constant: z = 0
        return max(
            [*(robust_z([r[n] for r in rows], scores[n]) for n in moving), *([0.0] * (len(moving) < len(group)))]
        )

    expected = 0.0
    for group in groups:
        honest = [largest(row, group) for row in rows]
        if any(honest):
            unit = float(np.quantile([robust_z(honest, one) for one in honest], 0.9))
            expected += max(
                robust_z(honest, largest(wild, group)) / unit - (0.5 if method == "detectors" else 0.0), 0.0
            )
    combination = Combination(method).fit(rows)
    assert combination.score(wild) == pytest.approx(expected, rel=1e-6)
    assert sum(combination.parts(wild).values()) == pytest.approx(expected, rel=1e-6)
    assert expected > 2


def test_the_distance_is_that_of_scipy_and_scikit_learn_about_the_references_mean() -> None:
    combination = Combination("mahalanobis").fit(references())
    z = np.array([list(combination.z(row).values()) for row in references()])
    fitted = LedoitWolf().fit(z)
    wild = TYPICAL | {"probe-bank": 9.0, "update-norm": 0.01}
    expected = mahalanobis(list(combination.z(wild).values()), fitted.location_, fitted.precision_)
    assert combination.score(wild) == pytest.approx(expected, rel=1e-6)


def test_methods_are_what_they_say() -> None:
    wild = TYPICAL | {"probe-bank": 50.0, "update-norm": 1.0, "feature-drift": 0.1}
    fit = {method: Combination(method).fit(references()) for method in METHODS}
    z = sorted(fit["max"].z(wild).values())
    assert fit["max"].score(wild) == z[-1]
    assert fit["sum"].score(wild) == pytest.approx(sum(v for v in z if v > 0))
    assert fit["top3"].score(wild) == pytest.approx(sum(z[-3:]) / 3)
    ranks = [(1 + sum(r[name] >= wild[name] for r in references())) / 34 for name in NAMES]
    assert fit["fisher"].score(wild) == pytest.approx(-2 * sum(math.log(p) for p in ranks))


def test_positive_scores_are_compared_by_ratio() -> None:
    scale = Scale.of([1.0, 2.0, 4.0])
    assert scale.z(8.0) - scale.z(4.0) == pytest.approx(scale.z(2.0) - scale.z(1.0))
    assert scale.z(2.0) == 0
    # Far below all of them order still counts, down to a millionth of the smallest.
    assert -math.inf < scale.z(-3.0) == scale.z(0.0) == scale.z(1e-6) < scale.z(1e-5)


def test_one_wild_reference_hardly_moves_the_scale() -> None:
    plain = references()
    wild = [*plain[:-1], plain[-1] | {"probe-bank": 1e6}]
    found = [Combination().fit(r).z(TYPICAL | {"probe-bank": 20.0})["probe-bank"] for r in (plain, wild)]
    assert found[1] == pytest.approx(found[0], rel=0.3)


@pytest.mark.parametrize("shape", [(33, 5), (20, 40)])
def test_the_shrinkage_is_that_of_scikit_learn(shape: tuple[int, int]) -> None:
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:, 1] += rows[:, 0]
    expected = torch.from_numpy(LedoitWolf().fit(rows.numpy()).covariance_)
    torch.testing.assert_close(shrunk_covariance(rows), expected, rtol=1e-6, atol=1e-9)


def test_scores_that_copy_each_other_leave_the_distance_finite() -> None:
    twins = [r | {"copy": r["probe-bank"], "copy2": r["probe-bank"]} for r in references()]
    assert math.isfinite(Combination("mahalanobis").fit(twins).score(twins[0]))


def test_unfit_use_is_a_clear_error() -> None:
    with pytest.raises(GuardError, match="not been fitted"):
        Combination().score(TYPICAL)
    with pytest.raises(ConfigurationError, match="at least 2"):
        Combination().fit(references(1))
    with pytest.raises(ConfigurationError, match="none of the scores"):
        Combination(use=("nothing",)).fit(references())
    with pytest.raises(UnknownNameError):
        Combination("best")  # type: ignore[arg-type]


def grown(count: int, seed: int, *, slope: float = 1.5) -> list[dict[str, float]]:
    """References whose drift grows with the size of the update."""
    source, found = random.Random(seed), []
    for _ in range(count):
        size = source.gauss(0, 1)
        drift = slope * size + source.gauss(0, 0.2)
        found.append({"update-norm": math.exp(-3 + 0.4 * size), "feature-drift": math.exp(drift)})
    return found


def test_what_the_size_of_an_update_explains_is_no_news() -> None:
    large = {"update-norm": math.exp(-3 + 0.4 * 2), "feature-drift": math.exp(1.5 * 2)}
    small = {"update-norm": math.exp(-3 - 0.4 * 2), "feature-drift": math.exp(1.5 * 2)}
    plain, given_size = (Combination("max", given_size=on).fit(grown(60, 0)) for on in (False, True))
    assert plain.z(large)["feature-drift"] == plain.z(small)["feature-drift"]
    assert abs(given_size.z(large)["feature-drift"]) < 2
    assert given_size.z(small)["feature-drift"] > 10
    assert given_size.z(large)["update-norm"] == plain.z(large)["update-norm"]


def test_no_measure_of_the_update_norm_is_explained_by_it() -> None:
    rows = [row | {"update-norm/layer": 2 * row["update-norm"] ** 2} for row in grown(60, 0)]
    plain, given_size = (Combination("max", given_size=on).fit(rows) for on in (False, True))
    assert given_size.z(rows[3])["update-norm/layer"] == plain.z(rows[3])["update-norm/layer"]


def test_the_size_explains_no_more_than_the_largest_honest_updates_show() -> None:
    combination = Combination("max", given_size=True).fit(grown(60, 0))
    huge = {"update-norm": 1e9, "feature-drift": 1e9}
    assert combination.z(huge)["feature-drift"] > 10
    assert combination.score(huge) > 30


def test_of_a_few_references_no_line_is_learnt() -> None:
    rows = grown(10, 2)
    for few, learnt in ((rows[:9], False), (rows, True)):
        plain, given_size = (Combination("sum", given_size=on).fit(few).score(rows[0]) for on in (False, True))
        assert (given_size != plain) is learnt


def test_without_the_size_among_the_scores_nothing_is_taken_out() -> None:
    rows = [{"feature-drift": row["feature-drift"], "cka": row["feature-drift"] ** 2} for row in grown(40, 1)]
    plain, given_size = (Combination("sum", given_size=on).fit(rows) for on in (False, True))
    assert plain.score(rows[3]) == given_size.score(rows[3])


def test_a_trend_is_not_led_astray_by_a_reference_far_out() -> None:
    sizes = [k / 10 for k in range(-30, 31)]
    values = [2.0 * size + 0.1 * (-1) ** i for i, size in enumerate(sizes)]
    wild = [8.0 if i == 3 else value for i, value in enumerate(values)]
    assert Trend.of(sizes, wild).slope == pytest.approx(Trend.of(sizes, values).slope, abs=0.1)
    assert Trend.of(sizes, values).slope == pytest.approx(2.0, rel=0.06)  # ten references' worth of none in it


def test_a_trend_without_outliers_is_a_ridge_line_with_its_predictive_deviation() -> None:
    """By numpy, with no reference far enough off for Huber's weights; residuals whose median is not their mean."""
    s = np.linspace(-2.0, 3.0, 40)
    y = 0.3 * s + 0.1 * np.tile([2.0, 1.0, -1.0, -1.5], 10)
    away = s - s.mean()
    information = (away**2).sum() + 10
    slope = (away * (y - y.mean())).sum() / information
    left = y - y.mean() - slope * away
    middle, spread = np.median(left), 1.4826 * scipy.stats.median_abs_deviation(left)
    trend = Trend.of(s.tolist(), y.tolist())
    for size in (0.0, 2.9):
        line = y.mean() + middle + slope * (size - s.mean())
        deviation = spread * math.sqrt(1 + 1 / 40 + (size - s.mean()) ** 2 / information)
        assert trend.z(4.0, size) == pytest.approx((4.0 - line) / deviation, rel=1e-9)


def test_a_reference_beyond_eight_deviations_pulls_the_line_no_more_than_one_at_eight() -> None:
    sizes, values = [k / 10 for k in range(-20, 21)], [0.1 * (-1) ** k for k in range(41)]
    assert Trend.of([*sizes, 1.0], [*values, 1e6]) == Trend.of([*sizes, 1.0], [*values, 8.0])
    assert Trend.of([*sizes, 1e6], [*values, 1.0]) == Trend.of([*sizes, 8.0], [*values, 1.0])


def test_where_the_line_is_unsure_the_same_distance_from_it_says_less() -> None:
    few, many = (
        Trend.of(s, [0.5 * (-1) ** k for k in range(len(s))])
        for s in ([k / 3 for k in range(-6, 6)], [k / 99 for k in range(-198, 198)])
    )

    def away(trend: Trend, size: float) -> float:
        return trend.z(5.0, size) * trend.spread

    assert away(few, 0.0) > away(few, 2.0) == away(few, 100.0)
    assert away(few, 2.0) < away(many, 2.0) == pytest.approx(5.0, rel=0.02)


def test_many_scores_of_one_detector_count_once_and_the_usual_of_many_detectors_not_at_all() -> None:
    source = random.Random(0)
    names = [*(f"probe-bank/{i}" for i in range(10)), "cka", "feature-drift", "update-norm"]
    rows = [{name: source.gauss(0, 1) for name in names} for _ in range(60)]
    combination = Combination("detectors").fit(rows)
    usual = dict.fromkeys(names, 0.3)
    assert combination.score(usual) == 0
    all_ten = usual | {f"probe-bank/{i}": 9.0 for i in range(10)}
    z = combination.z(all_ten)
    one = usual | {max(z, key=z.__getitem__): 9.0}
    assert combination.score(one) == combination.score(all_ten) > 0
    assert combination.score(one | {"cka": 9.0}) > combination.score(one)
