"""Simulated honest submissions rank among their references as exchangeable scores do, in whichever order K is asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from owner.honest_ranks import HonestSet, honest_ranks


def test_honest_ranks_have_the_dependence_that_a_shared_set_makes() -> None:
    # Var E[rank | references] over Var rank, for K references: 1 / (K + 2).
    ranks = honest_ranks(np.random.default_rng(2), 200_000, [4] * 4, per_guard=2)
    found = np.corrcoef(ranks.T)
    assert found[0, 1] == pytest.approx(1 / 6, abs=0.01)
    assert found[0, 2] == pytest.approx(0.0, abs=0.01)
    np.testing.assert_allclose(np.bincount(ranks.ravel()) / ranks.size, 0.2, atol=0.005)


def test_fewer_references_are_among_the_more() -> None:
    # Each of the 4 in common adds 1/3 - 1/4 to the covariance; a rank over K has variance K (K + 2) / 12.
    ranks = honest_ranks(np.random.default_rng(4), 50_000, [9, 4], per_guard=2)
    assert np.corrcoef(ranks.T)[0, 1] == pytest.approx(4 / math.sqrt(9 * 11 * 4 * 6), abs=0.02)
    np.testing.assert_allclose([(ranks[:, 0] == 9).mean(), (ranks[:, 1] == 4).mean()], [0.1, 0.2], atol=0.01)


@pytest.mark.parametrize("order", [(4, 9, 29), (9, 4, 29), (29, 4, 9), (4, 29, 9)], ids=str)
def test_the_order_in_which_k_is_asked_for_changes_no_law(order: tuple[int, ...]) -> None:
    generator = np.random.default_rng(7)
    drawn = HonestSet.of(generator, 100_000, 3)
    for count in order:
        drawn = drawn.among(generator, count)
    for count, ranks in drawn.ranks.items():
        np.testing.assert_allclose(np.bincount(ranks.ravel()) / ranks.size, 1 / (count + 1), atol=0.004)
    for one, other in ((4, 9), (9, 29), (4, 29)):
        # Of two submissions, as above. Of one, a reference adds 1/4 with itself and 1/3 - 1/4 with every other.
        spread = math.sqrt(one * (one + 2) * other * (other + 2)) / 12
        few, many = drawn.ranks[one], drawn.ranks[other]
        assert np.corrcoef(few[0], many[1])[0, 1] == pytest.approx(one / 12 / spread, abs=0.015)
        assert np.corrcoef(few[0], many[0])[0, 1] == pytest.approx(one * (other + 2) / 12 / spread, abs=0.015)
        assert (few <= many).all()
        assert (many - few <= other - one).all()
