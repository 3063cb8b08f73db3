"""How the checks of one vetting add up to a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from owner.gatekeeper.rules import Judgement
from owner.gatekeeper.verdict import Check, Decision, Verdict

_GRAVITY = {Decision.ACCEPTED: 0, Decision.QUARANTINED: 1, Decision.REJECTED: 2}


def worst(decisions: Sequence[Decision]) -> Decision:
    """The gravest of several; nothing at all is accepted.

    >>> worst([Decision.ACCEPTED, Decision.QUARANTINED])
    <Decision.QUARANTINED: 'quarantined'>
    """
    return max(decisions, key=_GRAVITY.__getitem__, default=Decision.ACCEPTED)


def conclude(
    checks: Sequence[Check],
    *,
    seconds: float,
    judgements: Sequence[Judgement] = (),
    measurements: Mapping[str, Any] | None = None,
    last_word: Check | None = None,
) -> Verdict:
    """The verdict of these checks: as grave as its gravest check; its p-value is the smallest of the detectors' ones.

    last_word: that of the checks which alone decides, where there is one.
    """
    weighed = [judgement for judgement in judgements if judgement.p_value is not None]
    deciding = min(weighed, key=lambda judgement: judgement.p_value or 0.0) if weighed else None
    return Verdict(
        decision=last_word.decision if last_word else worst([check.decision for check in checks]),
        checks=tuple(checks),
        codes=tuple(dict.fromkeys(c.code for c in checks if c.code and c.decision is not Decision.ACCEPTED)),
        p_value=deciding.p_value if deciding else None,
        resolution=deciding.resolution if deciding else None,
        fpr_bound_95=deciding.fpr_bound_95 if deciding else None,
        seconds=seconds,
        measurements=dict(measurements or {}),
    )


def interrupted(code: str, detail: str, *, seconds: float) -> Verdict:
    """Vetting that found no answer: a person has to look. `code` is VETTING_TIMEOUT, VETTING_MEMORY or VETTING_CRASHED."""
    return conclude([Check("vetting", Decision.QUARANTINED, seconds, code=code, detail=detail)], seconds=seconds)
