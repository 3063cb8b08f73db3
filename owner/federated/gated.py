"""The gatekeeper inside any Flower strategy: federated fine-tuning of a release."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from logging import INFO
from typing import ClassVar, Literal

from flwr.serverapp.strategy import Strategy

from common.errors import ConfigurationError, GuardMismatchError, GuardRangeError, WeightsError
from common.weights import Weights, check_layout, layout_of
from owner.federated.logs import log
from owner.federated.memory import memory
from owner.federated.replies import MOST_SAMPLES
from owner.federated.vetted import Judgement, VettedStrategy
from owner.gatekeeper import Check, Decision, Gatekeeper, UtilityLimits, Verdict
from owner.gatekeeper.guard_files import release_digest

Refresh = Literal["never", "when-left"] | int
Fitter = Callable[[Weights], Gatekeeper]


class GatedStrategy(VettedStrategy):
    """Every reply is vetted by the guard of a release; only what it accepts is merged by `inner`.

    guard: a `Gatekeeper`, whose release the federation must start from (unless a new one may be fitted, see refresh); or a
        `GuardFitter` (any function from weights to a Gatekeeper), which fits one for the global model of the first round.
    refresh: what happens as the global model moves away from the guarded release.
        never: the guard stays; once it would reject the global model itself, GuardRangeError.
        when-left: a new guard is fitted then, and before the guard of an earlier model would drop more than half of a round, which is
            judged anew: replies carry how far the model has moved beside what clients did, and are the first to leave the range.
        n: a new guard is fitted every n rounds; GuardRangeError where the global model leaves the range in between.
    refit: how a new guard is fitted; needed where `guard` is a Gatekeeper and refresh is not never.
    utility: limits of the utility check; None is the gatekeeper's own. Every reply is judged as if it alone were merged:
        where clients hold few classes each, `UtilityLimits(accuracy_drop=1, recall_drop=1)` leaves it to the detectors.

    A reply that is quarantined is dropped: a round waits for no person. A new guard follows the global model wherever it has
    gone: poison that was merged once is normal to it.
    Raises ConfigurationError for a refresh that is none of these, or that cannot be done.

    guard_seconds: of fitting and range checks, by round.
    """

    name: ClassVar[str] = "gated"

    def __init__(
        self,
        inner: Strategy | None,
        guard: Gatekeeper | Fitter,
        *,
        refresh: Refresh = "never",
        refit: Fitter | None = None,
        utility: UtilityLimits | None = None,
        wait_seconds: float = 60.0,
        most_samples: float = MOST_SAMPLES,
    ) -> None:
        super().__init__(inner, wait_seconds=wait_seconds, most_samples=most_samples)
        is_guard = isinstance(guard, Gatekeeper)
        if not is_guard and not callable(guard):
            raise ConfigurationError(f"guard must be a Gatekeeper or a GuardFitter, not a {type(guard).__name__}")
        check_refresh(refresh)
        self.guard: Gatekeeper | None = guard if isinstance(guard, Gatekeeper) else None
        self.refresh, self.utility = refresh, utility
        self.refit: Fitter | None = refit if isinstance(guard, Gatekeeper) else (refit or guard)
        if refresh != "never" and self.refit is None:
            raise ConfigurationError(
                f"refresh={refresh!r} fits new guards, and nothing says how",
                hint="give refit=GuardFitter(...), or a GuardFitter in place of the guard",
            )
        self.guard_seconds: dict[int, float] = {}
        self._fitted_in = 0
        self._fits_by_itself = not is_guard

    def begin(self, number: int, base: Weights) -> None:
        """Raises GuardMismatchError for another architecture or release, GuardRangeError where the model left the guard's range."""
        if self.guard is None:
            self._fit(number, base, "the federation begins")
            return
        self._check_architecture(self.guard, base)
        if release_digest(base) == self.guard.guard.release_sha256:
            self._fitted_in = self._fitted_in or number
            return
        if not self._fitted_in:
            self._another_release(number, base, self.guard)
            return
        if isinstance(self.refresh, int) and number - self._fitted_in >= self.refresh:
            self._fit(number, base, f"{self.refresh} rounds have passed")
            return
        left = out_of_range(self.guard, base)
        if not left:
            return
        if self.refresh == "when-left":
            self._fit(number, base, f"the global model left the guard's range ({left})")
            return
        raise GuardRangeError(
            f"before round {number} the global model has left the range of its guard, which was fitted in round "
            f"{self._fitted_in}: {left}; scores would mean nothing",
            hint='GatedStrategy(..., refresh="when-left") fits a new guard then, refresh=n every n rounds',
        )

    def judge(self, number: int, updates: Sequence[Weights]) -> Judgement:
        guard = self._guard_of_the_round()
        verdicts = [guard.vet(weights, utility=self.utility) for weights in updates]
        dropped = sum(not verdict.accepted for verdict in verdicts)
        if (
            self.refresh == "when-left"
            and 2 * dropped > len(verdicts)
            and release_digest(self._base) != guard.guard.release_sha256
        ):
            started = memory().clock()
            why = f"the guard of an earlier model would drop {dropped} of {len(verdicts)} replies"
            self._fit(number, self._base, why)
            self._guard_seconds += memory().clock() - started
            guard = self._guard_of_the_round()
            verdicts = [guard.vet(weights, utility=self.utility) for weights in updates]
        self.guard_seconds[number] = self._guard_seconds
        deciding = set(guard.guard.thresholds)
        scores = [score_of(verdict, deciding) for verdict in verdicts]
        thresholds = list(guard.guard.thresholds.values())
        reasons = [reason_of(verdict) for verdict in verdicts]
        return Judgement(
            reasons, scores, thresholds[0] if len(thresholds) == 1 else None, "the guard does not accept it"
        )

    def _guard_of_the_round(self) -> Gatekeeper:
        assert self.guard is not None  # noqa: S101 - for the type checker: `begin` has seen to it
        return self.guard

    def describe(self) -> list[str]:
        if self.guard is None:
            about = "a guard fitted for the first global model"
        else:
            guard = self.guard.guard
            about = (
                f"{', '.join(guard.detectors)} under the rule {guard.options.rule}, {len(guard.references)} references"
            )
        refresh = f"every {self.refresh} rounds" if isinstance(self.refresh, int) else self.refresh
        return [f"Gatekeeper: {about}", f"A new guard: {refresh}", "Drops what the guard rejects or would quarantine"]

    def _fit(self, number: int, base: Weights, why: str) -> None:
        assert self.refit is not None  # noqa: S101 - for the type checker: __init__ has seen to it
        log(INFO, "%s: fitting a guard in round %d: %s", type(self).__name__, number, why)
        self.guard = self.refit(dict(base))
        self._check_architecture(self.guard, base)
        self._fitted_in = number

    def _another_release(self, number: int, base: Weights, guard: Gatekeeper) -> None:
        if self.refresh != "never":
            self._fit(number, base, "the federation begins with another release than the guard's")
            return
        raise GuardMismatchError(
            f"the guard protects the release with weights {guard.guard.release_sha256[:12]}, and the federation begins with "
            f"{release_digest(base)[:12]}",
            hint="begin with the guarded release, or give a GuardFitter in place of the guard",
        )

    def _check_architecture(self, guard: Gatekeeper, base: Weights) -> None:
        try:
            check_layout(layout_of(base), guard.layout)
        except WeightsError as error:
            raise GuardMismatchError(
                f"the guard protects a {guard.guard.spec.architecture}, and the federated model is another: {error.message}",
                hint="fit a guard for the model that is federated",
            ) from None


def check_refresh(refresh: object) -> None:
    """Raises ConfigurationError unless it is never, when-left or a whole number from 1."""
    whole = isinstance(refresh, int) and not isinstance(refresh, bool)
    if refresh not in ("never", "when-left") and not (whole and refresh >= 1):  # type: ignore[operator]
        raise ConfigurationError(f'refresh must be "never", "when-left" or a number of rounds from 1, not {refresh!r}')


def out_of_range(guard: Gatekeeper, base: Weights) -> str:
    """Why the guard would reject this global model if it were a submission; "" where it would not."""
    anything = UtilityLimits(accuracy_drop=1.0, recall_drop=1.0)  # being less useful is no matter of range
    failed = [check for check in guard.vet(base, utility=anything).checks if check.decision is Decision.REJECTED]
    return "; ".join(_told(check) for check in failed)


def score_of(verdict: Verdict, deciding: set[str]) -> float:
    """The score that decides; infinite where the model did not get as far. Of several, the largest over its threshold."""
    found = [check for check in verdict.checks if check.name in deciding and check.score is not None]
    if not found:
        return math.inf
    if len(found) == 1:
        return float(found[0].score or 0.0)
    return max(float(c.score or 0.0) / c.threshold if c.threshold else math.inf for c in found)


def reason_of(verdict: Verdict) -> str:
    """ "" for an accepted one."""
    if verdict.accepted:
        return ""
    return f"{verdict.decision.value}: " + "; ".join(
        _told(check) for check in verdict.checks if check.decision is not Decision.ACCEPTED
    )


def _told(check: Check) -> str:
    if check.p_value is not None:
        return f"{check.code or check.name} (p = {check.p_value:.3f})"
    if check.score is not None and check.threshold is not None:
        return f"{check.code or check.name} ({check.score:.4g} over {check.threshold:.4g})"
    return check.code or check.name
