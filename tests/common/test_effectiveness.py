"""An attack counts as effective by its own goal, at the limits that are published."""

from __future__ import annotations

import pytest

from common.effectiveness import effective
from common.errors import UnknownNameError


@pytest.mark.parametrize(
    ("goal", "measured", "verdict"),
    [
        ("backdoor", {"attack_success": 0.5, "attack_success_before": 0.0, "recall_drop": 0.0}, True),
        ("backdoor", {"attack_success": 0.49, "attack_success_before": 0.0, "recall_drop": 0.9}, False),
        ("backdoor", {"attack_success": 0.71, "attack_success_before": 0.4}, True),
        ("backdoor", {"attack_success": 0.69, "attack_success_before": 0.4}, False),
        ("backdoor", {"attack_success": 1.0, "attack_success_before": 1.0}, False),
        ("backdoor", {"attack_success": 0.8, "attack_success_before": 0.0, "attack_success_unmarked": 0.29}, True),
        ("backdoor", {"attack_success": 0.8, "attack_success_before": 0.0, "attack_success_unmarked": 0.31}, False),
        ("backdoor", {"attack_success": 0.9, "attack_success_before": 0.4, "attack_success_unmarked": 0.1}, True),
        ("backdoor", {"attack_success": 0.65, "attack_success_before": 0.4, "attack_success_unmarked": 0.1}, False),
        ("flip", {"attack_success": 0.0, "recall_drop": 0.2, "accuracy_drop": 0.0}, True),
        ("flip", {"attack_success": 0.9, "recall_drop": 0.19, "accuracy_drop": 0.9}, False),
        ("ruin", {"accuracy_drop": 0.2}, True),
        ("ruin", {"accuracy_drop": 0.19}, False),
        ("backdoor", {"attack_success": None, "attack_success_before": 0.0}, None),
        ("backdoor", {"attack_success": 0.9}, None),
        ("flip", {"attack_success": 0.9}, None),
    ],
)
def test_each_goal_is_judged_by_its_own_measure(goal, measured: dict[str, float | None], verdict: bool | None) -> None:
    assert effective(goal, **measured) is verdict


def test_a_goal_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="backdor"):
        effective("backdor")  # type: ignore[arg-type]
