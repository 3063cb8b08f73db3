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
    judge_history,
    wealth,
    wealth_of_ranks,
)
from owner.honest_ranks import honest_ranks


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


@pytest.mark.parametrize("references", [[1] + [99] * 9, [4] + [99] * 9, [99] * 5 + [4] * 5, [19, 4] * 5], ids=str)
def test_false_alarms_keep_to_the_level_where_k_changes(references: list[int]) -> None:
    # As above; by the thresholds of the smallest K alone they come to 26, 9 and 15 %.
    assert alarms(HistoryRule(submissions=10), references, 10_000, seed=6) <= 0.05 + 0.0123


def test_what_stood_before_k_changed_stands() -> None:
    rule = HistoryRule(submissions=10)
    assert rule.thresholds([19, 19, 99])[:2] == rule.thresholds([19])[:2]
    finding = judge_history([Judged(0.5, 19), Judged(0.5, 99)], rule)
    assert (finding.references, finding.threshold) == (19, rule.thresholds([19, 99])[1])


def test_thresholds_come_out_the_same_every_time() -> None:
    from owner import e_process as histories

    def forget() -> None:
        histories._thresholds.cache_clear()
        histories._halves.cache_clear()

    rule = HistoryRule(submissions=10)
    forget()
    before = rule.thresholds([19]), rule.thresholds([19, 99, 4])
    forget()
    rule.thresholds([19, 4])
    assert (rule.thresholds([19]), rule.thresholds([19, 99, 4])) == before


def test_a_history_whose_k_goes_to_and_fro_is_drawn_once_for_each_k(monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[object] = []
    generator = np.random.default_rng

    def counted(seed: object) -> np.random.Generator:
        draws.append(seed)
        return generator(seed)  # type: ignore[arg-type]

    monkeypatch.setattr(np.random, "default_rng", counted)
    HistoryRule(submissions=12).thresholds([7, 8] * 6)
    assert len(draws) == 4


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
