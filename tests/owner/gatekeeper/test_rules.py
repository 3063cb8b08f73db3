"""Rules against cases counted by hand, numpy, scipy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigurationError, GuardError, ResolutionError, UnknownNameError
from owner.gatekeeper.rules import (
    conformal_threshold,
    fpr_bound_95,
    judge_by_references,
    judge_by_seed,
    p_value,
    seed_threshold,
)
from owner.gatekeeper.verdict import Decision
from owner.levels import check_levels, resolution

NINETEEN = [float(s) for s in range(1, 20)]


def test_equation_4_is_mean_plus_one_standard_deviation_of_the_errors_per_image() -> None:
    errors = np.random.default_rng(0).gamma(2.0, 0.1, size=2000)
    assert seed_threshold(torch.from_numpy(errors)) == pytest.approx(errors.mean() + errors.std(), rel=1e-12)


@pytest.mark.parametrize(("score", "decision"), [(2.9, "accepted"), (3.0, "accepted"), (3.1, "rejected")])
def test_the_seed_rule_rejects_above_its_threshold_alone(score: float, decision: str) -> None:
    assert judge_by_seed(score, 3.0).decision == decision


def test_the_seed_rule_claims_no_p_value() -> None:
    judged = judge_by_seed(1.0, 3.0)
    assert (judged.p_value, judged.resolution, judged.fpr_bound_95) == (None, None, None)


def test_errors_that_are_not_finite_give_no_threshold() -> None:
    with pytest.raises(GuardError, match="not finite"):
        seed_threshold(torch.tensor([1.0, math.nan]))


@pytest.mark.parametrize(
    ("score", "p"), [(0.5, 1.0), (1.0, 1.0), (1.5, 0.95), (18.0, 0.15), (18.5, 0.10), (19.0, 0.10), (19.5, 0.05)]
)
def test_p_value_counts_the_references_at_least_as_bad(score: float, p: float) -> None:
    assert p_value(score, NINETEEN) == pytest.approx(p)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_never_passes(score: float) -> None:
    assert judge_by_references(score, NINETEEN, reject=0.05, quarantine=0.1).decision is Decision.REJECTED
    assert judge_by_seed(score, 1e300).decision is Decision.REJECTED


@pytest.mark.parametrize("references", [[], [1.0, math.nan], [math.inf]])
def test_references_that_say_nothing_are_refused(references: list[float]) -> None:
    with pytest.raises(GuardError):
        p_value(1.0, references)


@pytest.mark.parametrize(
    ("score", "decision"), [(17.5, "accepted"), (18.5, "quarantined"), (19.0, "quarantined"), (19.5, "rejected")]
)
def test_decision_levels(score: float, decision: str) -> None:
    assert judge_by_references(score, NINETEEN, reject=0.05, quarantine=0.10).decision == decision


def test_the_threshold_is_the_largest_score_that_is_not_rejected() -> None:
    for reject, quarantine in ((0.05, 0.1), (0.1, 0.1), (0.15, 0.5)):
        cut = conformal_threshold(NINETEEN, reject)
        at, above = (judge_by_references(s, NINETEEN, reject=reject, quarantine=quarantine) for s in (cut, cut + 1e-9))
        assert at.decision is not Decision.REJECTED
        assert above.decision is Decision.REJECTED


def test_a_level_finer_than_the_references_resolve_is_refused_with_the_number_that_would_do() -> None:
    with pytest.raises(ResolutionError, match=r"0\.01 is finer than 1/\(K\+1\) = 0\.05") as caught:
        check_levels(0.01, 0.1, rule="conformal", references=19)
    assert "99 references" in caught.value.hint


@pytest.mark.parametrize(("references", "level"), [(19, 0.05), (99, 0.01), (9, 0.1), (999, 0.001)])
def test_the_resolution_itself_is_an_admissible_level(references: int, level: float) -> None:
    check_levels(level, 0.5, rule="conformal", references=references)
    assert resolution(references) == pytest.approx(level)
    worst = judge_by_references(2.0, [1.0] * references, reject=level, quarantine=0.5)
    assert worst.decision is Decision.REJECTED


def test_the_seed_rule_has_no_resolution_to_keep_to() -> None:
    check_levels(0.001, 0.1, rule="seed", references=1)


@pytest.mark.parametrize(("reject", "quarantine"), [(0.0, 0.1), (0.2, 0.1), (0.1, 1.0), (math.nan, 0.5)])
def test_levels_out_of_order_are_refused(reject: float, quarantine: float) -> None:
    with pytest.raises(ConfigurationError, match="levels must satisfy"):
        check_levels(reject, quarantine, rule="conformal", references=99)


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(UnknownNameError, match="conformist"):
        check_levels(0.1, 0.2, rule="conformist", references=99)  # type: ignore[arg-type]


@pytest.mark.parametrize(("references", "level"), [(19, 0.05), (99, 0.01), (99, 0.05), (39, 0.1), (999, 0.2)])
def test_the_bound_on_the_realised_rate_is_the_beta_quantile(references: int, level: float) -> None:
    rank = round(level * (references + 1))
    expected = scipy.stats.beta.ppf(0.95, rank, references + 1 - rank)
    assert fpr_bound_95(references, level) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("references", [3619, 9999])
def test_the_bound_is_found_for_thousands_of_references(references: int) -> None:
    rank = math.floor(0.05 * (references + 1))
    expected = scipy.stats.beta.ppf(0.95, rank, references + 1 - rank)
    assert fpr_bound_95(references, 0.05) == pytest.approx(expected, rel=1e-6)


def test_the_bounds_that_are_promised() -> None:
    assert fpr_bound_95(19, 0.05) == pytest.approx(0.146, abs=5e-4)
    assert fpr_bound_95(99, 0.01) == pytest.approx(0.030, abs=5e-4)


def test_conformal_p_values_of_honest_models_are_valid() -> None:
    """P(p <= a) <= a for exchangeable scores, at every level that 19 references resolve; here with ties, which only help."""
    random = np.random.default_rng(0)
    draws = np.round(random.lognormal(size=(20_000, 20)), 1)
    p = np.array([p_value(row[0], list(row[1:])) for row in draws[:4000]])
    for level in (0.05, 0.1, 0.25, 0.5):
        allowed = level + 3 * math.sqrt(level * (1 - level) / len(p))
        assert (p <= level + 1e-12).mean() <= allowed


def test_the_realised_false_positive_rate_exceeds_its_bound_for_one_set_of_references_in_twenty() -> None:
    random = np.random.default_rng(1)
    largest = random.random((20_000, 19)).max(axis=1)
    assert ((1 - largest) > fpr_bound_95(19, 0.05)).mean() == pytest.approx(0.05, abs=0.006)


@given(
    st.floats(-1e6, 1e6),
    st.lists(st.floats(-1e6, 1e6), min_size=19, max_size=60),
    st.floats(0.06, 0.4),
    st.floats(0, 0.5),
)
def test_a_worse_score_is_never_decided_more_kindly(
    score: float, references: list[float], reject: float, more: float
) -> None:
    order = [Decision.ACCEPTED, Decision.QUARANTINED, Decision.REJECTED]
    one, two = (
        judge_by_references(s, references, reject=reject, quarantine=min(reject + more, 0.99))
        for s in (score, score + 1.0)
    )
    assert order.index(one.decision) <= order.index(two.decision)


def test_wording_never_calls_a_model_clean() -> None:
    judged = judge_by_references(1.0, NINETEEN, reject=0.05, quarantine=0.1)
    assert "consistent with honest fine-tuning" in judged.detail
    assert "clean" not in judged.detail
    assert "14.6 %" in judged.detail
