"""Where a round is cut."""

from __future__ import annotations

import math

import pytest

from owner.federated.thresholds import first_gap, round_mean


def test_whoever_is_above_the_mean_is_dropped() -> None:
    cut = round_mean([1.0, 2.0, 9.0])
    assert (cut.dropped, cut.threshold) == ((False, False, True), 4.0)


def test_at_the_mean_the_two_papers_part() -> None:
    scores = [1.0, 2.0, 3.0]
    assert round_mean(scores).dropped == (False, False, True)
    assert round_mean(scores, inclusive=True).dropped == (False, True, True)


@pytest.mark.parametrize("scores", [[5.0], [2.0, 2.0, 2.0]])
def test_equals_are_never_dropped(scores: list[float]) -> None:
    assert not any(round_mean(scores, inclusive=True).dropped)
    assert not any(first_gap(scores, share=0.2).dropped)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_dropped_and_moves_no_threshold(bad: float) -> None:
    assert round_mean([1.0, bad, 2.0]).dropped == (False, True, True)
    assert round_mean([1.0, bad, 2.0]).threshold == 1.5
    assert first_gap([1.0, bad, 1.1], share=0.95).dropped == (False, True, True)
    assert first_gap([1.0, bad, 1.0], share=0.2).dropped == (False, True, False)


def test_nobody_finite_is_nobody_kept() -> None:
    assert round_mean([math.nan, math.inf]).dropped == (True, True)
    assert first_gap([math.nan, math.inf], share=0.2).dropped == (True, True)


def test_trust_spreads_until_a_gap_and_no_further() -> None:
    scores = [0.0, 0.1, 0.15, 0.6, 0.65, 1.0]
    assert first_gap(scores, share=0.3).dropped == (False, False, False, True, True, True)
    assert first_gap(scores, share=0.5).dropped == (False,) * 6


def test_the_mean_can_be_multiplied_before_it_is_compared() -> None:
    scores = [1.0, 2.0, 3.0, 10.0]
    assert round_mean(scores, factor=0.5).dropped == (False, False, True, True)
    assert round_mean(scores, factor=3.0).dropped == (False,) * 4
