"""Eq. 4, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from owner.reproduce.detection import described, verdicts

HONEST = {"short": torch.tensor([1.0, 3.0]), "long": torch.tensor([4.0, 8.0])}  # thresholds 2 + 1 and 6 + 2


def test_an_attack_is_judged_by_the_honest_fine_tune_of_its_own_duration() -> None:
    errors = {"flip-short": torch.tensor([3.5, 3.5]), "flip-long": torch.tensor([3.5, 3.5])}
    found = verdicts(errors, HONEST, "as-attack")
    assert (found["flip-short"]["threshold"], found["flip-short"]["detected"]) == (3.0, True)
    assert (found["flip-long"]["threshold"], found["flip-long"]["detected"]) == (8.0, False)
    assert found["flip-short"]["deviations"] == 1.5


@pytest.mark.parametrize(("chosen", "threshold"), [("short", 3.0), ("long", 8.0)])
def test_one_honest_fine_tune_may_judge_all(chosen: str, threshold: float) -> None:
    errors = {"pattern-short": torch.tensor([5.0]), "pattern-long": torch.tensor([5.0])}
    found = verdicts(errors, HONEST, chosen)  # type: ignore[arg-type]
    assert {v["threshold"] for v in found.values()} == {threshold}


def test_a_score_at_the_threshold_passes() -> None:
    assert not verdicts({"flip-short": torch.tensor([3.0])}, HONEST, "as-attack")["flip-short"]["detected"]


def test_a_honest_fine_tune_is_judged_by_the_other_duration() -> None:
    found = verdicts({f"honest-{name}": e for name, e in HONEST.items()}, HONEST, "as-attack")
    assert found["honest-long"] == {"score": 6.0, "threshold": 3.0, "detected": True, "deviations": 4.0}
    assert not found["honest-short"]["detected"]


def test_skewness_and_kurtosis_of_a_known_sample() -> None:
    found = described(torch.tensor([0.0, 0.0, 0.0, 1.0]))  # Bernoulli(1/4)
    assert found["skewness"] == pytest.approx(0.5 / (3 / 16) ** 0.5)
    assert found["excess_kurtosis"] == pytest.approx((1 - 6 * 3 / 16) / (3 / 16))
