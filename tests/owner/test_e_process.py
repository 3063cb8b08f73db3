"""A contributor's p-values over time: honest ones seldom raise an alarm, a slow poisoner's do, whatever the order."""

from __future__ import annotations

import math

import numpy as np
import pytest

from common.errors import ConfigurationError
from owner import e_process
from owner.e_process import (
    BETS,
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


def test_a_history_is_worth_what_its_bets_pay_on_its_own_p_values() -> None:
    """By the calibrator's formula: of n = 5 starts the first has half of the stake, and three of the others are to come."""

    def pays(p: float) -> np.ndarray:
        return np.array([k * p ** (k - 1) / np.mean([k * (i / 20) ** (k - 1) for i in range(1, 21)]) for k in BETS])

    rule = HistoryRule(submissions=5)
    for first, second in ((0.05, 1.0), (0.5, 0.05), (1.0, 0.1)):
        alone, both = (judge_history([Judged(p, 19) for p in ps], rule).value for ps in ((first,), (first, second)))
        assert alone == pytest.approx(0.5 * pays(first).mean() + 0.5)
        started = 0.5 * (pays(first) * pays(second)).mean() + 0.125 * pays(second).mean()
        assert both == pytest.approx(started + 3 * 0.125)


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


@pytest.mark.parametrize("references", [[99] * 10, [19] * 5 + [99] * 5], ids=str)
def test_of_the_simulation_behind_the_thresholds_no_more_raise_an_alarm_than_the_level_allows(
    references: list[int],
) -> None:
    """The Monte-Carlo test itself, which no chance blurs: fewer than r = floor(level (N + 1)) runs of the second half, and
    hardly fewer than r."""
    rule = HistoryRule(submissions=10, per_guard=10)
    first, second = e_process._halves(tuple(dict.fromkeys(references)), 10, 10)
    assert not np.array_equal(first[0].order, second[0].order)
    found = wealth_of_ranks(e_process._ranks_of(second, references, 10), references)
    bound = [rule.thresholds(references[: t + 1])[t] for t in range(10)]
    alarmed = (found > np.array(bound) * (1 + 1e-9)).any(1).sum()
    rank = math.floor(rule.level * (e_process.SIMULATIONS + 1))
    assert 0.95 * rank < alarmed < rank


def test_p_values_that_share_their_references_need_more_wealth_for_an_alarm() -> None:
    apart, shared, beyond = (HistoryRule(submissions=10, per_guard=n).thresholds([19])[-1] for n in (1, 10, 50))
    assert apart < shared == beyond


def test_what_stood_before_k_changed_stands() -> None:
    rule = HistoryRule(submissions=10)
    assert rule.thresholds([19, 19, 99])[:2] == rule.thresholds([19])[:2]
    finding = judge_history([Judged(0.5, 19), Judged(0.5, 99)], rule)
    assert (finding.references, finding.threshold) == (19, rule.thresholds([19, 99])[1])


def test_thresholds_come_out_the_same_every_time() -> None:
    def forget() -> None:
        e_process._thresholds.cache_clear()
        e_process._halves.cache_clear()

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
