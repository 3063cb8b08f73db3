"""The victim is the machine scikit-learn trains, and its training can be differentiated through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor

from common.errors import ConfigurationError, DataError
from owner.data_poisoning import AttackOptions, fit_svm, poison
from owner.data_poisoning.attacks import validation_gradient
from owner.data_poisoning.victim import solve_hessian


def clouds(count: int = 60, width: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two overlapping clouds in [0, 1]."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    points = 0.4 + 0.12 * torch.randn(count, width, generator=draws, dtype=torch.float64)
    points[:, 0] += 0.2 * labels
    return points.clamp(0, 1), labels


@pytest.mark.parametrize("cost", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("width", [2, 100])
def test_the_machine_is_that_of_scikit_learn(cost: float, width: int) -> None:
    inputs, labels = clouds(width=width)
    found = fit_svm(inputs, labels, cost=cost)
    reference = LinearSVC(C=cost, dual=False, tol=1e-10, max_iter=100_000).fit(inputs.numpy(), labels.numpy())
    theirs = np.append(reference.coef_[0], reference.intercept_)
    assert found.weights.numpy() == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert found.accuracy(inputs, labels) == reference.score(inputs.numpy(), labels.numpy())


def test_where_it_begins_changes_nothing() -> None:
    inputs, labels = clouds()
    start = torch.randn(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first, second = fit_svm(inputs, labels), fit_svm(inputs, labels, start=start)
    torch.testing.assert_close(first.weights, second.weights, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("count", [0, 3, 20])
def test_the_inverted_hessian_is_that_of_the_whole_matrix(count: int) -> None:
    draws = torch.Generator().manual_seed(0)
    active = torch.randn(count, 8, generator=draws, dtype=torch.float64)
    vector = torch.randn(8, generator=draws, dtype=torch.float64)
    whole = torch.eye(8, dtype=torch.float64) + 2 * 0.7 * active.T @ active
    torch.testing.assert_close(solve_hessian(active, 0.7, vector), torch.linalg.solve(whole, vector))


def test_the_validation_gradient_is_what_moving_a_point_and_training_anew_gives() -> None:
    inputs, labels = clouds()
    validation = clouds(seed=1)
    labels[:4] = 1 - labels[:4]
    held = torch.arange(60) < 4
    gradient = validation_gradient(fit_svm(inputs, labels), inputs, labels, held, validation)
    assert float(gradient.abs().max()) > 1e-4
    for point in range(4):
        for place in range(4):
            losses = []
            for sign in (-1, 1):
                moved = inputs.clone()
                moved[point, place] += sign * 1e-5
                losses.append(fit_svm(moved, labels).loss(*validation))
            assert float(gradient[point, place]) == pytest.approx((losses[1] - losses[0]) / 2e-5, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("kind", ["flipping", "optimal"])
def test_the_labels_of_the_attackers_examples_and_of_no_others_are_flipped(kind: str) -> None:
    inputs, labels = clouds()
    found = poison(inputs, labels, clouds(seed=1), AttackOptions(kind, 0.2, steps=5), torch.Generator().manual_seed(0))
    assert int(found.poisoned.sum()) == 12
    assert torch.equal(found.labels != labels, found.poisoned)


@pytest.mark.parametrize("kind", ["flipping", "optimal", "semi-optimal"])
def test_the_inputs_of_other_examples_stay_and_none_leaves_its_range(kind: str) -> None:
    inputs, labels = clouds()
    found = poison(inputs, labels, clouds(seed=1), AttackOptions(kind, 0.2, steps=5), torch.Generator().manual_seed(0))
    assert torch.equal(found.inputs[~found.poisoned], inputs[~found.poisoned])
    assert torch.equal(found.inputs, inputs) == (kind == "flipping")
    assert float(found.inputs.min()) >= 0
    assert float(found.inputs.max()) <= 1


def test_a_semi_optimal_attack_keeps_the_true_labels_and_hurts() -> None:
    inputs, labels = clouds()
    validation = clouds(seed=1)
    found = poison(inputs, labels, validation, AttackOptions("semi-optimal", 0.2), torch.Generator().manual_seed(0))
    assert torch.equal(found.labels, labels)
    assert fit_svm(found.inputs, labels).loss(*validation) > 1.3 * fit_svm(inputs, labels).loss(*validation)


def test_an_example_that_a_semi_optimal_attack_never_moved_is_not_called_poisoned() -> None:
    inputs, labels = clouds()
    inputs[:, 0] = torch.where(labels == 1, 0.95, 0.05)  # so far apart that most are beyond the margin
    options = AttackOptions("semi-optimal", 0.5, cost=100.0)
    found = poison(inputs, labels, clouds(seed=1), options, torch.Generator().manual_seed(0))
    assert 0 < int(found.poisoned.sum()) < 30
    assert torch.equal(found.poisoned, (found.inputs != inputs).any(1))


def test_the_more_an_attacker_may_do_the_more_it_hurts() -> None:
    inputs, labels = clouds(200)
    validation = clouds(200, seed=1)

    def hurt(kind: str) -> float:
        draws = torch.Generator().manual_seed(0)
        found = poison(inputs, labels, validation, AttackOptions(kind, 0.1, cost=10.0), draws)
        return fit_svm(found.inputs, found.labels, cost=10.0).loss(*validation)

    clean = fit_svm(inputs, labels, cost=10.0).loss(*validation)
    assert clean < hurt("flipping") < hurt("optimal")
    assert clean < hurt("semi-optimal") < hurt("optimal")


def test_of_an_ascent_the_step_that_hurt_most_is_kept() -> None:
    inputs, labels = clouds()
    validation = clouds(seed=1)
    options = AttackOptions("optimal", 0.2, steps=8, step=0.3)
    found = poison(inputs, labels, validation, options, torch.Generator().manual_seed(0))
    assert fit_svm(found.inputs, found.labels).loss(*validation) == pytest.approx(max(found.losses), rel=1e-6)
    assert len(found.losses) == 9


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(DataError, match="from the classes 0 and 1, not"):
        fit_svm(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))


def test_a_cost_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cost must be a positive number"):
        fit_svm(*clouds(), cost=0.0)


def test_an_attacker_who_would_hold_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"0\.001 of 60 examples is none"):
        poison(*clouds(), clouds(), AttackOptions(fraction=0.001), torch.Generator())


def test_an_unknown_attack_is_told_the_nearest() -> None:
    with pytest.raises(ConfigurationError) as caught:
        AttackOptions("fliping")
    assert "did you mean flipping?" in str(caught.value.hint)
