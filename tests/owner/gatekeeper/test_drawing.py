"""What becomes of the fine-tunes that are drawn for a reference and are not it."""

from __future__ import annotations

import pytest

from common.errors import GuardError, ModelError
from owner.gatekeeper.drawing import Draws


def test_those_that_diverge_are_told_from_those_that_are_useless() -> None:
    draws = Draws()
    for _ in range(4):
        draws.diverge(ModelError("the loss is not finite", hint="lower it"))
    for _ in range(25):
        draws.turn_away(["utility-accuracy"])
    assert draws.made == 29
    with pytest.raises(GuardError, match=r"26 of 30 .*25 fail utility-accuracy, 1 fail utility-recall, 4 diverge"):
        draws.turn_away(["utility-recall"])
    draws = Draws()
    draws.turn_away(["utility-recall"])
    for _ in range(4):
        draws.diverge(ModelError("the loss is not finite", hint="lower it"))
    with pytest.raises(GuardError, match=r"5 of 6 tries\): the loss is not finite") as caught:
        draws.diverge()
    assert caught.value.hint == "lower it"
