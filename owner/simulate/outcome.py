"""What a simulation found: who was caught, who was turned away for nothing, and how sure that is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# "held" is quarantined: neither let in nor turned away until a person looks.
Fate = Literal["accepted", "rejected", "held"]
Z_95 = 1.959964


@dataclass(frozen=True)
class Result:
    """One contributor at the end.

    attack: ground truth, None for an honest contributor.
    fate: None where the owner reached no verdict.
    attack_success: share of held-out attacked images classified as the attacker wants, None for honest contributors
        and for attacks that want no particular class.
    effective: whether the attack counts as effective on held-out images (`common.effectiveness`), None for honest contributors.
    accuracy: of the returned model, on the owner's evaluation share.
    ae_error: mean auto-encoder error of the returned model (the paper's E_MSE), None where it was not scored.
    p_value: of the score that decides, several detectors' combined one, None where no conformal check ran.
    codes: the owner's reason codes, empty where accepted.
    fpr_bound_95: of the check on p, what share of honest submissions it rejects at most.
    gate: of the combined score, what the verdict holds of it (p by family, what is suspected); None where one detector decides.
    escalation: of the escalation tier, what the verdict holds of it, and the `decision` of its check; None where it was not needed.
    """

    name: str
    attack: str | None
    fate: Fate | None
    attack_success: float | None = None
    effective: bool | None = None
    accuracy: float | None = None
    ae_error: float | None = None
    p_value: float | None = None
    codes: tuple[str, ...] = ()
    samples: int | None = None
    partition: str = ""
    submission: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    fpr_bound_95: float | None = None
    gate: Mapping[str, Any] | None = None
    escalation: Mapping[str, Any] | None = None

    @property
    def right(self) -> bool | None:
        """Whether an honest one was accepted or an attacker rejected; None for held and undecided ones.

        >>> Result("ada", None, "accepted").right, Result("eve", "flip", "accepted").right, Result("bo", None, "held").right
        (True, False, None)
        """
        if self.fate not in {"accepted", "rejected"}:
            return None
        return (self.fate == "accepted") == (self.attack is None)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "codes": list(self.codes), "right": self.right}


@dataclass(frozen=True)
class Rate:
    """`hits` of `n`, with the 95 % Wilson score interval; value and interval are None where n is 0.

    >>> Rate(0, 4).value, [round(x, 2) for x in Rate(0, 4).interval]
    (0.0, [0.0, 0.49])
    """

    hits: int
    n: int

    @property
    def value(self) -> float | None:
        return self.hits / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        if not self.n:
            return None
        share, spread = self.hits / self.n, Z_95**2 / self.n
        centre = (share + spread / 2) / (1 + spread)
        half = Z_95 * math.sqrt(share * (1 - share) / self.n + spread / (4 * self.n)) / (1 + spread)
        return max(0.0, centre - half), min(1.0, centre + half)

    def to_json(self) -> dict[str, Any]:
        return {"hits": self.hits, "n": self.n, "value": self.value, "interval_95": self.interval}

    def __str__(self) -> str:
        return f"{self.hits}/{self.n}" + (f" = {100 * self.hits / self.n:.0f} %" if self.n else "")


@dataclass(frozen=True)
class Rates:
    """Over contributors with a verdict. tpr: attackers caught; fpr: honest contributors turned away.

    `..._rejected` counts rejected ones only, `..._stopped` rejected or held ones: nothing held touches the model, but a
    person has to look. `effective` and `failed` part the attackers by whether the attack took on held-out images.
    """

    tpr_rejected: Rate
    tpr_stopped: Rate
    fpr_rejected: Rate
    fpr_stopped: Rate
    effective_rejected: Rate
    effective_stopped: Rate
    failed_rejected: Rate
    failed_stopped: Rate

    def to_json(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name).to_json() for one in dataclasses.fields(self)}


def rates(results: Iterable[Result]) -> Rates:
    """Count `results`.

    >>> found = rates([Result("ada", None, "held"), Result("eve", "flip", "rejected", effective=True)])
    >>> str(found.tpr_rejected), str(found.fpr_rejected), str(found.fpr_stopped)
    ('1/1 = 100 %', '0/1 = 0 %', '1/1 = 100 %')
    """
    decided = [one for one in results if one.fate is not None]
    attackers = [one for one in decided if one.attack is not None]
    honest = [one for one in decided if one.attack is None]
    effective = [one for one in attackers if one.effective is True]
    failed = [one for one in attackers if one.effective is False]
    return Rates(
        *(_rate(group, test) for group in (attackers, honest, effective, failed) for test in (_rejected, _stopped))
    )


def _rate(group: Sequence[Result], test: Callable[[Result], bool]) -> Rate:
    return Rate(sum(map(test, group)), len(group))


def _rejected(one: Result) -> bool:
    return one.fate == "rejected"


def _stopped(one: Result) -> bool:
    return one.fate in {"rejected", "held"}
