"""What vetting finds: every check with its score, threshold, p-value and duration, and the decision they add up to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self, TypeVar

from common.errors import ManifestError

Kind = TypeVar("Kind")


class Decision(StrEnum):
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    QUARANTINED = "quarantined"


FORMAT_CODES = frozenset(
    {"NON_FINITE", "MAGNITUDE", "NEGATIVE_VARIANCE", "NEGATIVE_COUNTER", "NON_BOOLEAN", "UNSUPPORTED_TENSOR"}
    | {"TENSOR_MISSING", "TENSOR_EXTRA", "SHAPE_MISMATCH", "DTYPE_MISMATCH", "TOO_MANY_TENSORS", "DIGEST_MISMATCH"}
    | {"HEADER_TOO_LONG", "HEADER_MALFORMED", "OFFSETS_INVALID", "FILE_TOO_LONG", "FILE_TOO_SHORT"}
    | {"NONFINITE_ACTIVATION", "BASE_NOT_CURRENT", "BASE_NOT_ALLOWED", "BASE_ROLLED_BACK", "SPEC_MISMATCH"}
)
"""Codes that say the file is no model that could run; a contributor is told so, for it can mend that."""


@dataclass(frozen=True)
class Check:
    """One check of a vetting.

    code: why it did not pass; None where it did, or where it found something that is only recorded.
    threshold: largest score that passes. seconds: of this check alone.
    """

    name: str
    decision: Decision
    seconds: float = 0.0
    score: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    code: str | None = None
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return _as_json(dataclasses.asdict(self))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return _from_json(cls, data)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one vetting. An accepted submission is consistent with honest fine-tuning: no test can call it clean.

    checks: in the order they ran. codes: of the checks that did not pass, in that order; an accepted verdict has some where
        the escalation tier, or a person, overruled them.
    p_value, resolution, fpr_bound_95: of the score that decides; None under a rule without them, and for a submission that fails
        utility where the guard's references pass it: its check holds p, and nothing decides by it. The escalation tier's own
        stand in its check and its measurements; what it rejects comes on top of what fpr_bound_95 bounds.
    measurements: JSON-ready numbers for people and reports (accuracies, recalls, errors, histograms).
    """

    decision: Decision
    checks: tuple[Check, ...] = ()
    codes: tuple[str, ...] = ()
    p_value: float | None = None
    resolution: float | None = None
    fpr_bound_95: float | None = None
    seconds: float = 0.0
    measurements: dict[str, Any] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        return self.decision is Decision.ACCEPTED

    @property
    def public_code(self) -> str:
        """All that a contributor learns of the reasons: "", format, review or utility.

        Where several kinds of check fail, the detectors' are named no more precisely than a person's review would be.

        >>> Verdict(Decision.REJECTED, codes=("ACTIVATION_AUTOENCODER", "UTILITY_RECALL")).public_code
        'review'
        """
        if self.accepted:
            return ""
        if any(code in FORMAT_CODES for code in self.codes):
            return "format"
        return "utility" if self.codes and all(code.startswith("UTILITY_") for code in self.codes) else "review"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; a number that is not finite becomes null, for NaN is no JSON."""
        return {**_as_json(dataclasses.asdict(self)), "public_code": self.public_code}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises ManifestError("VERDICT_MALFORMED") for what is no verdict."""
        if not isinstance(data, Mapping) or not isinstance(data.get("checks", []), list):
            raise ManifestError("VERDICT_MALFORMED", "a verdict must be a JSON object with a list of checks")
        checks = tuple(Check.from_json(check) for check in data.get("checks", []))
        fields = {name: value for name, value in data.items() if name != "public_code"}  # follows from the rest
        return _from_json(cls, {**fields, "checks": checks, "codes": tuple(data.get("codes", ()))})


def _from_json(cls: type[Kind], data: Mapping[str, Any]) -> Kind:
    try:
        return cls(**{**data, "decision": Decision(data["decision"])})
    except (TypeError, KeyError, ValueError) as error:
        raise ManifestError("VERDICT_MALFORMED", f"not a {cls.__name__.lower()}: {error}") from None


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
