"""One candidate's way through the checks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from common.activations import Activations
from common.errors import GuardError, GuardPart, WeightsError
from common.evaluation import Evaluation
from common.weights import Weights, check_layout, check_values, layout_of
from common.weights import load as load_weights
from owner.detectors import Evidence, reason_code
from owner.detectors.comparison import is_finite
from owner.gatekeeper.decision import conclude
from owner.gatekeeper.escalation import Escalation, awaiting_check
from owner.gatekeeper.findings import describe
from owner.gatekeeper.guard import GATE, Guard
from owner.gatekeeper.merging import MergePolicy, merge
from owner.gatekeeper.rules import Judgement
from owner.gatekeeper.utility import UtilityLimits, check_accuracy, check_recall
from owner.gatekeeper.verdict import Check, Decision, Verdict
from owner.suspicions import ESCALATED

if TYPE_CHECKING:
    from owner.gatekeeper.gatekeeper import Gatekeeper

RootAction = Literal["quarantine", "record"]
SecondLook = Callable[[], Escalation | None]
"""Gives the calibrated escalation tier, None where there is none yet. Called only for a submission that needs it."""


_AGAINST_ROOT = "the would-be release against the root release: "


@dataclass(frozen=True)
class Examination:
    """A verdict, and the release that would follow; None where the submission did not get as far as being merged."""

    verdict: Verdict
    would_be: Weights | None


class Vetting:
    """One candidate's way through the checks."""

    def __init__(
        self,
        gatekeeper: Gatekeeper,
        current: Mapping[str, Tensor] | None,
        policy: MergePolicy,
        utility: UtilityLimits,
        root: Guard | None,
        root_action: RootAction,
        second_look: SecondLook,
    ) -> None:
        self.gatekeeper, self.guard = gatekeeper, gatekeeper.guard
        self.second_look = second_look
        self.current = None if current is None else _weights_of(current)
        self.policy, self.utility = policy, utility
        self.root, self.root_action = root, root_action
        self.started = time.perf_counter()
        self.checks: list[Check] = []
        self.judgements: list[Judgement] = []
        self.useful: bool | None = None
        self.unclear: set[str] = set()
        self.last_word: Check | None = None
        self.measurements: dict[str, Any] = {}

    def run(self, candidate: nn.Module | Mapping[str, Tensor] | Path) -> Examination:
        weights = self._admit(candidate)
        evidence = self._observe(weights) if weights is not None else None
        if weights is None or evidence is None:
            return self._conclude(None)
        self._detect(evidence)
        would_be = self._merge(weights)
        runs = would_be is not None and self._check_utility(would_be)
        self._set_aside()
        if runs and would_be is not None and self.root is not None:
            with errors_of("root"):
                self._compare_with_root(would_be, self.root)
        if self.guard.options.escalation_names and self._held_by_p_alone():
            with errors_of("escalation"):
                self._escalate(weights, evidence)
        return self._conclude(would_be)

    def _conclude(self, would_be: Weights | None) -> Examination:
        seconds = time.perf_counter() - self.started
        verdict = conclude(
            self.checks,
            seconds=seconds,
            judgements=self.judgements,
            measurements=self.measurements,
            last_word=self.last_word,
        )
        return Examination(verdict, would_be)

    def _reject(self, name: str, clock: _Clock, code: str, detail: str) -> None:
        self.checks.append(Check(name, Decision.REJECTED, clock.lap(), code=code, detail=detail))

    def _admit(self, candidate: nn.Module | Mapping[str, Tensor] | Path) -> Weights | None:
        clock = _Clock()
        try:
            weights = _weights_of(candidate)
            check_layout(layout_of(weights), self.gatekeeper.layout)
            check_values(weights)
        except WeightsError as error:
            self._reject("admission", clock, error.code, error.message)
            return None
        detail = "names, shapes and dtypes are the release's, all values finite"
        self.checks.append(Check("admission", Decision.ACCEPTED, clock.lap(), detail=detail))
        return weights

    def _observe(self, weights: Weights) -> Evidence | None:
        clock = _Clock()
        labels = self.guard.calibration.labels
        seen = self.gatekeeper.observe(weights, self.guard.calibration.inputs)
        broken = _not_finite(seen)
        if broken:
            self._reject(
                "activations", clock, "NONFINITE_ACTIVATION", f"{broken} on {len(labels)} calibration triggers"
            )
            return None
        found = Evaluation.from_logits(seen.logits, labels, self.guard.calibration.classes)
        before = Evaluation.from_logits(self.guard.release_calibration.logits, labels, self.guard.calibration.classes)
        self.measurements["calibration"] = {
            "images": len(labels),
            "release": _measured(before),
            "submission": _measured(found),
        }
        self.checks.append(
            Check("activations", Decision.ACCEPTED, clock.lap(), detail=f"finite on {len(labels)} triggers")
        )

        return self._evidence(weights, seen, self.guard)

    def _evidence(self, weights: Weights, seen: Activations, guard: Guard) -> Evidence:
        """All that a detector of `guard` may look at, of a model that has been run on its calibration triggers."""

        own = weights

        def forward(inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor] | None = None) -> Activations:
            return self.gatekeeper.observe(own if weights is None else weights, inputs, guard)

        # Detectors of weights tell layers by their order, and a file holds them in another one.
        ordered = {name: weights[name] for name in self.gatekeeper.release}
        calibration = guard.calibration
        return Evidence(
            seen.features,
            seen.logits,
            calibration.labels,
            ordered,
            guard.release_evidence,
            forward,
            calibration.inputs,
            network=self.gatekeeper.layers,
            compute=guard.compute,
        )

    def _detect(self, evidence: Evidence) -> None:
        clock, deciding = _Clock(), []
        for name, score, judgement in self.guard.judgements(evidence):
            deciding.append((score, judgement))
            if _is_unclear(judgement):
                self.unclear.add(name)
            code = reason_code(name) if math.isfinite(score) else "NONFINITE_SCORE"
            self.checks.append(_judged(name, judgement, score, clock.lap(), code))
        self.judgements += [judgement for _, judgement in deciding]
        self.measurements |= describe(self.guard, evidence, deciding)

    def _set_aside(self) -> None:
        """A submission that fails utility is none of the references' peers where these pass it: its p says nothing of intent. It
        stands in the check for people to read; a score that is not finite rejects all the same."""
        if not self._is_no_peer(self.guard):
            return
        names = {one.name for one in self.checks if one.name in self.guard.thresholds and _has_finite_p(one)}
        self.checks = [_not_judged(one, self.guard) if one.name in names else one for one in self.checks]
        self.judgements = [one for one in self.judgements if one.p_value is None]
        self.unclear = set()
        if GATE in names:
            self.measurements[GATE] |= {"judged": False, "suspected": None, "picture": None}

    def _is_no_peer(self, guard: Guard) -> bool:
        return self.useful is False and guard.usefulness is not None

    def _merge(self, weights: Weights) -> Weights | None:
        clock = _Clock()
        base = self.gatekeeper.release
        current = base if self.current is None else self.current
        if self.policy.policy == "replace" and any(not torch.equal(current[name], base[name]) for name in base):
            detail = "the policy `replace` takes submissions based on the current release only"
            self._reject("merge", clock, "BASE_NOT_CURRENT", detail)
            return None
        would_be = merge(self.policy.policy, current, base, weights, self.policy.weight)
        self.checks.append(Check("merge", Decision.ACCEPTED, clock.lap(), detail=f"policy {self.policy.policy}"))
        return would_be

    def _check_utility(self, would_be: Weights) -> bool:
        """Whether the would-be release runs at all; what it is worth stands in the checks."""
        clock = _Clock()
        keeper = self.gatekeeper
        before = keeper.evaluate_release() if self.current is None else keeper.evaluate_current(self.current)
        seen = keeper.observe(would_be, keeper.evaluation.inputs)
        broken = _not_finite(seen)
        if broken:
            self._reject("utility", clock, "NONFINITE_ACTIVATION", f"{broken} of the would-be release")
            self.useful = False
            return False
        after = keeper.evaluate(seen.logits)
        names = keeper.evaluation.class_names
        found = [check_accuracy(before, after, self.utility, seconds=clock.lap())]
        found.append(check_recall(before, after, self.utility, names, seconds=clock.lap()))
        self.checks += found
        self.useful = all(check.decision is Decision.ACCEPTED for check in found)
        self.measurements["evaluation"] = {
            "images": len(keeper.evaluation),
            "current": _measured(before),
            "would_be": _measured(after),
        }
        return True

    def _compare_with_root(self, would_be: Weights, root: Guard) -> None:
        clock = _Clock()
        seen = self.gatekeeper.observe(would_be, root.calibration.inputs, root)
        for name, score, judgement in root.judgements(self._evidence(would_be, seen, root)):
            drifted = judgement.decision is not Decision.ACCEPTED
            holds = drifted and self.root_action == "quarantine"
            # Against the guard of its own base it is the same question once more, of weights that moved less.
            if root.release_sha256 == self.guard.release_sha256 and _is_unclear(judgement):
                self.unclear.add(f"root-{name}")
            self.measurements.setdefault("root", {})[name] = {
                "score": score,
                "p_value": judgement.p_value,
                "drifted": drifted,
            }
            check = Check(
                f"root-{name}",
                Decision.QUARANTINED if holds else Decision.ACCEPTED,
                clock.lap(),
                score=score,
                threshold=judgement.threshold,
                p_value=judgement.p_value,
                code="ROOT_DRIFT" if drifted else None,
                detail=f"{_AGAINST_ROOT}{judgement.detail}",
            )
            if self._is_no_peer(root) and _has_finite_p(check):
                check = _not_judged(check, root, _AGAINST_ROOT)
            self.checks.append(check)

    def _held_by_p_alone(self) -> bool:
        """Whether nothing but a p-value between the levels keeps the submission from passing."""
        held = {check.name for check in self.checks if check.decision is not Decision.ACCEPTED}
        return bool(held) and held <= self.unclear

    def _escalate(self, weights: Weights, evidence: Evidence) -> None:
        tier = self.second_look()
        clock = _Clock()
        if tier is None:
            check, self.measurements[ESCALATED] = awaiting_check(self.guard)
        else:
            seen = self.gatekeeper.with_gradients(weights, Activations(evidence.features, evidence.logits))
            check, self.measurements[ESCALATED] = tier.look(seen, self.guard)
            check = replace(check, seconds=clock.lap())
        self.checks.append(check)
        self.last_word = check


def _is_unclear(judgement: Judgement) -> bool:
    return judgement.decision is Decision.QUARANTINED and judgement.p_value is not None


@contextmanager
def errors_of(part: GuardPart) -> Iterator[None]:
    """Marks the errors of the root's guard, or of the escalation tier, so that it and nothing else is made again."""
    try:
        yield
    except GuardError as error:
        error.of = part
        raise


class _Clock:
    """Seconds since it was made or last asked."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        before, self._since = self._since, time.perf_counter()
        return self._since - before


def _weights_of(candidate: nn.Module | Mapping[str, Tensor] | Path) -> Weights:
    if isinstance(candidate, nn.Module):
        candidate = candidate.state_dict()
    if isinstance(candidate, Mapping):
        for name, value in candidate.items():
            if not isinstance(value, Tensor):
                inside = ": is it a checkpoint, with the weights inside?" if isinstance(value, Mapping) else ""
                raise WeightsError(
                    "UNSUPPORTED_TENSOR", f"{str(name)[:80]!r} is a {type(value).__name__} and no tensor{inside}"
                )
        return {name: tensor.detach().cpu() for name, tensor in candidate.items()}
    return load_weights(candidate)


def _not_finite(seen: Activations) -> str:
    """What is not finite, in words; "" where all is."""
    parts = {"activations": seen.features, "logits": seen.logits}
    return " and ".join(name for name, tensor in parts.items() if not is_finite(tensor))


def _judged(name: str, judgement: Judgement, score: float, seconds: float, code: str) -> Check:
    passed = judgement.decision is Decision.ACCEPTED
    return Check(
        name,
        judgement.decision,
        seconds,
        score=score,
        threshold=judgement.threshold,
        p_value=judgement.p_value,
        code=None if passed else code,
        detail=judgement.detail,
    )


def _not_judged(check: Check, guard: Guard, about: str = "") -> Check:
    """A check on p that decides nothing, for the submission fails utility, which the references of `guard` pass."""
    detail = (
        f"{about}p = {check.p_value or 0:.3g} over {len(guard.references)} references; not judged: it fails utility, which the "
        "references pass"
    )
    return replace(check, decision=Decision.ACCEPTED, code=None, detail=detail)


def _has_finite_p(check: Check) -> bool:
    return check.p_value is not None and check.score is not None and math.isfinite(check.score)


def _measured(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracy and per-class recall, None for a class without images."""
    pairs = zip(evaluation.recall.tolist(), evaluation.support.tolist(), strict=True)
    return {"accuracy": float(evaluation.accuracy), "recall": [float(r) if n else None for r, n in pairs]}
