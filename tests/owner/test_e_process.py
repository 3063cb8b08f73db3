"""A contributor's p-values over time: honest ones seldom raise an alarm, a slow poisoner's do, whatever the order."""

from __future__ import annotations

import math

import numpy as np
import pytest

from common.errors import ConfigurationError
from owner.e_process import (
    HistoryRule,
    Judged,
    calibrators,
    honest_ranks,
    judge_history,
    wealth,
    wealth_of_ranks,
)


def alarms(rule: HistoryRule, references: list[int], runs: int, seed: int) -> float:
    """Share of honest histories of full length with an alarm, each looked at after every submission."""
    ranks = honest_ranks(np.random.default_rng(seed), runs, references, rule.per_guard)
    bound = [rule.thresholds(references[: t + 1])[t] for t in range(rule.submissions)]
    return float((wealth_of_ranks(ranks, references) > np.array(bound)).any(1).mean())


@pytest.mark.parametrize("references", [1, 19, 99, 9999])
def test_a_bet_on_an_honest_p_value_wins_nothing_on_average(references: int) -> None:
    np.testing.assert_allclose(calibrators(references).mean(1), 1.0)
    assert (np.diff(calibrators(references), axis=1) < 0).all()


@pytest.mark.parametrize("guards", [1, 5])
@pytest.mark.parametrize("references", [19, 99])
def test_false_alarms_over_honest_histories_keep_to_the_level(references: int, guards: int) -> None:
    rule = HistoryRule(level=0.05, submissions=20, per_guard=20 // guards)
    # 10,000 runs behind the threshold and 10,000 here: 4 standard errors of both together are 0.0123.
    assert 0.03 < alarms(rule, [references] * 20, 10_000, seed=5) <= 0.05 + 0.0123


def test_the_bound_for_independent_p_values_does_not_hold_for_a_shared_set_of_references() -> None:
    ranks = honest_ranks(np.random.default_rng(1), 5000, [19] * 50, per_guard=50)
    assert (wealth_of_ranks(ranks, [19] * 50) > 20).any(1).mean() > 0.07


def test_honest_ranks_have_the_dependence_that_a_shared_set_makes() -> None:
    # Var E[rank | references] over Var rank, for K references: 1 / (K + 2).
    ranks = honest_ranks(np.random.default_rng(2), 200_000, [4] * 4, per_guard=2)
    found = np.corrcoef(ranks.T)
    assert found[0, 1] == pytest.approx(1 / 6, abs=0.01)
    assert found[0, 2] == pytest.approx(0.0, abs=0.01)
    np.testing.assert_allclose(np.bincount(ranks.ravel()) / ranks.size, 0.2, atol=0.005)


def test_wealth_of_independent_honest_p_values_has_mean_one_after_every_submission() -> None:
    generator = np.random.default_rng(3)
    ranks = generator.integers(0, 20, size=(100_000, 6))
    np.testing.assert_allclose(wealth_of_ranks(ranks, [19] * 6).mean(0), 1.0, atol=0.03)


def test_wealth_is_what_stakes_on_each_start_add_up_to() -> None:
    steps = np.array([2.0, 3.0, 0.5])[:, None, None]
    # Starts 1 to 3 with stakes 1/2, 1/4 and 1/4: half of 2 x 3 x 0.5, a quarter of 3 x 0.5 and of 0.5.
    assert wealth(steps, 3)[0].tolist() == [1.5, 0.5 * 6 + 0.25 * 3 + 0.25, 1.5 + 0.375 + 0.125]


def test_small_p_values_in_a_row_raise_an_alarm_that_none_of_them_would() -> None:
    rule = HistoryRule()
    each = Judged(0.15, 99)
    assert not judge_history([each], rule).alarm
    assert judge_history([each] * 25, rule).alarm


def test_who_was_honest_first_is_found_too() -> None:
    honest = [Judged(p / 100, 99) for p in (50, 90, 20, 70, 40, 60, 30, 80, 100, 10)]
    rule = HistoryRule()
    assert not judge_history(honest, rule).alarm
    assert judge_history([*honest, *[Judged(0.02, 99)] * 8], rule).alarm


def test_only_the_newest_submissions_count() -> None:
    rule = HistoryRule(submissions=5)
    bad, good = [Judged(0.01, 99)] * 5, [Judged(0.6, 99)] * 5
    assert judge_history([*bad, *good], rule) == judge_history(good, rule)


@pytest.mark.parametrize("references", [[1] + [99] * 9, [4] + [99] * 9, [99] * 5 + [4] * 5], ids=str)
def test_false_alarms_keep_to_the_level_where_k_changes(references: list[int]) -> None:
    # As above; by the thresholds of the smallest K alone they come to 26, 9 and 15 %.
    assert alarms(HistoryRule(submissions=10), references, 10_000, seed=6) <= 0.05 + 0.0123


def test_what_stood_before_k_changed_stands() -> None:
    rule = HistoryRule(submissions=10)
    assert rule.thresholds([19, 19, 99])[:2] == rule.thresholds([19])[:2]
    finding = judge_history([Judged(0.5, 19), Judged(0.5, 99)], rule)
    assert (finding.references, finding.threshold) == (19, rule.thresholds([19, 99])[1])


def test_fewer_references_are_among_the_more() -> None:
    # Each of the 4 in common adds 1/3 - 1/4 to the covariance; a rank over K has variance K (K + 2) / 12.
    ranks = honest_ranks(np.random.default_rng(4), 50_000, [9, 4], per_guard=2)
    assert np.corrcoef(ranks.T)[0, 1] == pytest.approx(4 / math.sqrt(9 * 11 * 4 * 6), abs=0.02)
    np.testing.assert_allclose([(ranks[:, 0] == 9).mean(), (ranks[:, 1] == 4).mean()], [0.1, 0.2], atol=0.01)


def test_thresholds_come_out_the_same_every_time() -> None:
    from owner import e_process as histories

    rule = HistoryRule(submissions=10)
    before = rule.thresholds([19])
    histories._thresholds.cache_clear()
    assert rule.thresholds([19]) == before


def test_a_p_value_that_is_not_rare_enough_alone_never_raises_an_alarm_alone() -> None:
    # With 4 references every fifth honest submission has the smallest p-value there is.
    finding = judge_history([Judged(0.2, 4)], HistoryRule())
    assert not finding.alarm


def test_a_finding_without_a_finite_threshold_is_json_all_the_same() -> None:
    from owner.e_process import HistoryFinding

    finding = HistoryFinding(2.0, math.inf, 1, 19)
    assert (finding.to_json()["threshold"], finding.alarm) == (None, False)


@pytest.mark.parametrize("wrong", [{"level": 0.0}, {"level": 0.9}, {"submissions": 1}, {"submissions": 101}])
def test_a_rule_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        HistoryRule(**wrong)  # type: ignore[arg-type]


def test_an_empty_history_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        judge_history([], HistoryRule())
