"""The making of one honest reference: a fine-tune of M, trained or moved here from an earlier release, and its scores."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.activations import observe
from common.errors import ModelError
from common.weights import weights_of
from owner.detectors import Detector, Evidence, ImageDetector
from owner.detectors.comparison import is_finite
from owner.detectors.gathering import evidence_of
from owner.gatekeeper.drawing import TURNED_AWAY, Draws, Outcome, draw
from owner.gatekeeper.fine_tunes import OWNER, FineTunes
from owner.gatekeeper.finished import Part, number_of
from owner.gatekeeper.own_detectors import measured
from owner.gatekeeper.references import Reference
from owner.gatekeeper.transplants import KeptReferences, Transplants
from owner.gatekeeper.triggers import Triggers
from owner.gatekeeper.usefulness import Usefulness


@dataclass(frozen=True)
class ReferenceMaker:
    """What is known of M before any of its references is made, and what they are made with.

    fine_tunes: of M. release: a copy of M, which may lie on the device. head: its head.
    detectors: fitted on M, by name. shown: what M shows on the calibration triggers and the probes. evaluation_logits: M's on the evaluation triggers.
    usefulness: what every fitting and calibrating reference passes. transplants: where they are taken from instead of being trained.
    kept: where their weights go, which None does not keep. directory: of the states of training.
    """

    fine_tunes: FineTunes
    release: nn.Module
    triggers: Triggers
    head: str
    detectors: Mapping[str, Detector]
    shown: Evidence
    evaluation_logits: Tensor
    usefulness: Usefulness | None = None
    transplants: Transplants | None = None
    kept: KeptReferences | None = None
    directory: Path | None = None

    def make(self, part: Part, k: int) -> Reference:
        """The k-th fine-tune of a part, scored.

        Raises GuardError where too many are drawn, or a fine-tune that is to be moved here is not there; StorageError.
        """
        number = number_of(part, k)
        useful = None if number == OWNER else self.usefulness
        if self.transplants is not None:
            weights, plan = self.transplants.onto(weights_of(self.fine_tunes.model), part, k)
            model = copy.deepcopy(self.fine_tunes.model)
            model.load_state_dict(weights)
            outcome = self._score(model, plan, useful)
            if isinstance(outcome, Reference):
                return self._keep(outcome, model, part, k)
            # Of no use on this release; it is trained, as if it had not been kept.
        draws = Draws(diverging_limit=1) if number == OWNER else Draws()

        def judged(model: nn.Module, plan: dict[str, Any]) -> Outcome:
            counted = plan | ({TURNED_AWAY: draws.turned_away} if useful else {})
            outcome = self._score(model, counted, useful)
            return self._keep(outcome, model, part, k) if isinstance(outcome, Reference) else outcome

        return draw(self.fine_tunes, number, judged, draws, head=self.head, directory=self.directory)

    def _score(self, model: nn.Module, plan: Mapping[str, Any], useful: Usefulness | None) -> Outcome:
        compute, calibration = self.fine_tunes.compute, self.triggers.calibration
        seen = observe(model, calibration.inputs, head=self.head, compute=compute)
        if not (is_finite(seen.features) and is_finite(seen.logits)):
            return None
        if useful is not None:
            failed = useful.failed(
                model, self.release, self.evaluation_logits, self.triggers.evaluation, head=self.head, compute=compute
            )
            if failed:
                return failed
        evidence = evidence_of(model, seen, calibration, head=self.head, compute=compute, release=self.shown)
        scores = {n: s for detector in self.detectors.values() for n, s in measured(detector, evidence).items()}
        odd = next((name for name, score in scores.items() if not math.isfinite(score)), None)
        if odd is not None:
            return ModelError(
                f"its activations are finite, and {odd} scores it {scores[odd]}",
                hint="recommend a lower learning rate; a detector of your own must score such a model finitely",
            )
        errors = {name: d.image_scores(evidence) for name, d in self.detectors.items() if isinstance(d, ImageDetector)}
        accuracy = float((seen.logits.argmax(1) == calibration.labels).double().mean())
        return Reference(plan, scores, accuracy, errors)

    def _keep(self, scored: Reference, model: nn.Module, part: Part, k: int) -> Reference:
        if self.kept is not None:
            self.kept.write(part, k, weights_of(model), scored.plan)
        return scored
