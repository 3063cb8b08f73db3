"""The escalation tier: a second look, by gradients, at a submission that the cheap tier's p alone put into quarantine.

It is dear, so it looks at few, and it is calibrated only when the first of them comes. It may move such a submission to accepted
or rejected, and touches no other.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import nn

from common import canonical
from common.activations import Activations
from common.errors import ConfigurationError, GuardError, StorageError, WireError
from common.files import read_bounded, write_atomically
from owner.detectors import ESCALATION, Combination, Detector, DetectorState, Evidence, TriggerInversion, restore
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.pictures import as_png
from owner.gatekeeper.references import Reference
from owner.gatekeeper.rules import Judgement, fpr_bound_95, judge_by_references, p_value
from owner.gatekeeper.verdict import Check, Decision
from owner.levels import resolution
from owner.suspicions import AWAITING, ESCALATED

FORMAT = 1
_LIMIT = 16 << 20


@dataclass(frozen=True)
class Escalation:
    """A calibrated tier. key: of the guard it belongs to, see `escalation_key`. references: of K honest fine-tunes, the scores."""

    key: str
    detectors: Mapping[str, Detector]
    references: tuple[Reference, ...]

    def fits(self, guard: Guard) -> bool:
        """Whether it is the tier that `guard` asks for."""
        wanted = guard.options.escalation_references
        return self.key == escalation_key(guard) and len(self.references) == wanted

    @property
    def seconds(self) -> float:
        """What looking at one model takes, the median over the references."""
        return statistics.median(float(one.plan["escalation_seconds"]) for one in self.references)

    def judge(self, scores: Mapping[str, float], guard: Guard) -> tuple[float, Judgement]:
        """The tier's score of a submission, and what its p-value says. scores: by detector.

        Of two detectors the score is the larger robust z. Its scales are taken over the K references *and* the submission,
        all alike, so that under honest fine-tuning the K + 1 combined scores are exchangeable and p is exact; that way no
        reference is spent on scales. One that is not finite rejects.
        """
        options = guard.options
        mine = {name: scores[name] for name in self.detectors}
        theirs = [{name: one.scores[name] for name in self.detectors} for one in self.references]
        if not all(math.isfinite(score) for score in mine.values()):
            score, others = math.inf, [0.0] * len(theirs)
        elif len(mine) == 1:
            (name,) = mine
            score, others = mine[name], [one[name] for one in theirs]
        else:
            combination = Combination("max").fit([*theirs, mine])
            score, others = combination.score(mine), [combination.score(one) for one in theirs]
        return score, judge_by_references(
            score, others, reject=options.escalation_reject_level, quarantine=options.escalation_quarantine_level
        )

    def look(self, evidence: Evidence, guard: Guard) -> tuple[Check, dict[str, Any]]:
        """The tier's check, which decides, and its measurements. evidence: as `gradient_evidence` makes it."""
        scores = {name: detector.score(evidence) for name, detector in self.detectors.items()}
        score, judgement = self.judge(scores, guard)
        passed = judgement.decision is Decision.ACCEPTED
        code = None if passed else (ESCALATED.upper() if math.isfinite(score) else "NONFINITE_SCORE")
        check = Check(
            ESCALATED,
            judgement.decision,
            score=score,
            threshold=judgement.threshold if math.isfinite(score) else None,
            p_value=judgement.p_value,
            code=code,
            detail=self._detail(judgement),
        )
        found = {
            name: {
                "score": scores[name],
                "p_value": p_value(scores[name], [one.scores[name] for one in self.references]),
                "explanation": detector.explain(evidence),
            }
            for name, detector in self.detectors.items()
        }
        told = {
            "state": "undecided" if judgement.decision is Decision.QUARANTINED else "decided",
            "score": score,
            "threshold": check.threshold,
            "p_value": judgement.p_value,
            "resolution": judgement.resolution,
            "fpr_bound_95": judgement.fpr_bound_95,
            "references": len(self.references),
            "detectors": found,
            "suspected": None if passed else _suspected(found, guard),
            "picture": None if passed else self._picture(evidence),
        }
        return check, told

    def _detail(self, judgement: Judgement) -> str:
        finding = {
            Decision.ACCEPTED: "consistent with honest fine-tuning",
            Decision.QUARANTINED: "leaves it to a person",
            Decision.REJECTED: "not consistent with honest fine-tuning",
        }[judgement.decision]
        return (
            f"looked at again by {' and '.join(self.detectors)}: {finding}, p = {judgement.p_value or 0:.3g} over "
            f"{len(self.references)} references (resolution {judgement.resolution or 0:.3g}; of all honest submissions it rejects at "
            f"most {100 * (judgement.fpr_bound_95 or 0):.1f} % with 95 % confidence)"
        )

    def _picture(self, evidence: Evidence) -> dict[str, Any] | None:
        for detector in self.detectors.values():
            if isinstance(detector, TriggerInversion):
                drawn = detector.suspected_trigger(evidence)
                return None if drawn is None else as_png(drawn)
        return None

    def save(self, path: Path) -> None:
        """Writes the tier as one JSON file, whole or not at all. Raises StorageError."""
        about = {
            "format": FORMAT,
            "key": self.key,
            "detectors": {name: detector.state().options for name, detector in self.detectors.items()},
            "references": [one.to_json() for one in self.references],
        }
        write_atomically(
            path, canonical.encode(about | {"sha256": hashlib.sha256(canonical.encode(about)).hexdigest()})
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises GuardError where it is damaged or of another version, StorageError where it is not there."""
        try:
            about = canonical.parse(read_bounded(path, _LIMIT), limit=_LIMIT, depth=16)
            if not isinstance(about, dict) or about.pop("sha256", None) != _digest(about):
                raise GuardError(f"{path} was altered after it was written", hint="it is calibrated again when needed")
            if about["format"] != FORMAT:
                raise GuardError(f"{path} has format {about['format']}, this version reads format {FORMAT}")
            detectors = {name: restore(name, DetectorState({}, made)) for name, made in about["detectors"].items()}
            references = tuple(Reference(r["plan"], r["scores"], r["accuracy"], {}) for r in about["references"])
            return cls(about["key"], detectors, references)
        except (WireError, ConfigurationError, KeyError, TypeError, AttributeError) as error:
            raise GuardError(f"{path} is damaged: {error}", hint="it is calibrated again when needed") from error


def escalation_path(guard: Path) -> Path:
    """Where the tier of the guard in the folder `guard` lies: beside it, for a guard is written once and the tier may follow."""
    return guard.with_name(f"{guard.name}.escalation.json")


def standing(path: Path, guard: Guard) -> Escalation | None:
    """The calibrated tier in `path` where there is one that reads and that `guard` asks for."""
    try:
        found = Escalation.load(path)
    except (GuardError, StorageError):
        return None
    return found if found.fits(guard) else None


def escalation_key(guard: Guard) -> str:
    """Digest of all that decides a reference's scores in the tier: the guard's own, and the detectors."""
    detectors = {name: ESCALATION[name]().state().options for name in guard.options.escalation_names}
    return _digest({"guard": guard.key, "release": guard.release_sha256, "detectors": detectors})


def gradient_evidence(guard: Guard, model: nn.Module, seen: Activations, release: Evidence | None = None) -> Evidence:
    """What the tier looks at: the model itself, beside what it showed on the guard's calibration triggers."""
    calibration = guard.calibration
    return Evidence(
        seen.features,
        seen.logits,
        calibration.labels,
        release=release,
        inputs=calibration.inputs,
        network=model,
        compute=guard.compute,
    )


def awaiting_check(guard: Guard) -> tuple[Check, dict[str, Any]]:
    """What stands in the place of the tier's check until it is calibrated."""
    detail = "quarantined by p alone; the escalation tier is calibrated first, then looks at it"
    count, level = guard.options.escalation_references, guard.options.escalation_reject_level
    told = {"references": count, "resolution": resolution(count), "fpr_bound_95": fpr_bound_95(count, level)}
    return Check(ESCALATED, Decision.QUARANTINED, code=AWAITING, detail=detail), {"state": "awaiting", **told}


def _suspected(found: Mapping[str, Mapping[str, Any]], guard: Guard) -> dict[str, Any]:
    """As that detector names it which finds the submission rarest."""
    order = sorted(found, key=lambda name: (found[name]["p_value"], name != TriggerInversion.name))
    aiming = next((name for name in order if found[name]["explanation"].get("target") is not None), None)
    told = {} if aiming is None else found[aiming]["explanation"]
    return {
        "target": guard.calibration.class_names[told["target"]] if aiming else None,
        "kind": told.get("kind"),
        "by": aiming,
    }


def _digest(about: Any) -> str:
    return hashlib.sha256(canonical.encode(about)).hexdigest()
