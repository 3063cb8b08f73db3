"""Drawing one reference: honest fine-tunes are made for it, one after the other, until one is fit to be it.

One that diverges is drawn again: its maker would have seen the loss, and returned nothing. So is one that fails utility, where
submissions have to pass it: nobody asks what its p is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from common.errors import GuardError, ModelError
from owner.gatekeeper.fine_tunes import FineTunes
from owner.gatekeeper.references import Reference

TURNED_AWAY = "turned_away"
"""In a reference's plan: how many that were drawn in its place before it would fail utility."""
DIVERGING = 5
"""Fine-tunes of one reference that may diverge before the recommendation is called unfit."""
DRAWS = 30
"""Fine-tunes drawn for one reference in all."""

Outcome = Reference | tuple[str, ...] | ModelError | None
"""What a fine-tune turns out to be: a reference; useless, with the utility checks that it fails; or not finite, of which an error says what,
where it is not the activations."""


@dataclass
class Draws:
    """What became of the fine-tunes drawn for one reference that are not it.

    turned_away: those that fail utility. failed: of these, by check; one may fail both. diverged: those that are not finite.
    """

    limit: int = DRAWS
    diverging_limit: int = DIVERGING
    turned_away: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    diverged: int = 0
    cause: ModelError | None = None

    @property
    def made(self) -> int:
        return self.turned_away + self.diverged

    def diverge(self, cause: ModelError | None = None) -> None:
        """Raises GuardError where too many have."""
        self.diverged += 1
        self.cause = cause or self.cause
        if self.diverged >= self.diverging_limit:
            why = self.cause.message if self.cause else "its activations are not finite"
            raise GuardError(
                f"honest fine-tuning as recommended fails ({self.diverged} of {self.made} tries): {why}",
                hint=self.cause.hint if self.cause else "recommend a lower learning rate",
            ) from self.cause
        self._check()

    def turn_away(self, failed: Iterable[str]) -> None:
        """Raises GuardError where so many were drawn that the next would hardly be useful either."""
        self.turned_away += 1
        self.failed.update(failed)
        self._check()

    def _check(self) -> None:
        if self.made < self.limit:
            return
        failures = ", ".join(f"{count} fail {name}" for name, count in sorted(self.failed.items()))
        diverged = f", {self.diverged} diverge" if self.diverged else ""
        raise GuardError(
            f"{self.turned_away} of {self.made} honest fine-tunes drawn for one reference fail the utility check ({failures}"
            f"{diverged}): hardly a contributor who does what is recommended could pass it",
            hint="recommend a lower learning rate or fewer epochs, assume a milder [population], or widen the limits of [utility]",
        )


def draw(
    fine_tunes: FineTunes,
    number: int,
    judge: Callable[[nn.Module, dict[str, Any]], Outcome],
    draws: Draws,
    *,
    head: str,
    directory: Path | None = None,
    first: int = 0,
) -> Reference:
    """The first of the fine-tunes of this number that `judge` finds to be a reference.

    judge: is given the model, and how it was made. first: the attempt to begin with. directory: of the states of training.

    Raises GuardError where too many are drawn.
    """
    while True:
        attempt = first + draws.made
        try:
            model, plan, report = fine_tunes.make(number, attempt, head=head, directory=directory)
        except ModelError as error:  # the loss, or a weight, is not finite
            draws.diverge(error)
            continue
        outcome = judge(model, plan.to_json() | {"seconds": round(report.seconds, 3), "attempt": attempt})
        if isinstance(outcome, Reference):
            return outcome
        if outcome is None or isinstance(outcome, ModelError):
            draws.diverge(outcome)
        else:
            draws.turn_away(outcome)


def drawn(plans: Iterable[Mapping[str, Any]]) -> int:
    """How many finite fine-tunes were drawn for the references that have these plans, those turned away among them."""
    return sum(1 + int(plan.get(TURNED_AWAY, 0)) for plan in plans)
