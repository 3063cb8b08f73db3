"""A guard: everything fitted to protect one release, and what its rule says of a score."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.activations import Activations, observe
from common.code import code_digest
from common.devices import Compute
from common.errors import GuardError, GuardMismatchError
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.training_options import TrainingOptions
from common.weights import Weights
from owner.detectors import Detector, Evidence
from owner.figures import conditions
from owner.gatekeeper import guard_files
from owner.gatekeeper.combined import CombinedScore
from owner.gatekeeper.drawing import drawn
from owner.gatekeeper.histograms import counts, log_edges
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.own_detectors import measured
from owner.gatekeeper.references import Reference
from owner.gatekeeper.rules import (
    Judgement,
    conformal_threshold,
    judge_by_references,
    judge_by_seed,
    p_value,
    seed_threshold,
)
from owner.gatekeeper.usefulness import Usefulness

GATE = "gate"
"""Name of the combined score among checks and thresholds."""


@dataclass(frozen=True)
class Guard:
    """release_sha256: digest of the guarded weights, as `common.weights.save` writes them.
    head: name of the classification head. finetuning: what contributors were asked to do.
    owner_finetune: M_f of Eq. 4. references: the K others, none under the rule `seed`; they calibrate.
    calibration, evaluation: triggers. release_calibration, release_evaluation_logits: what M shows on them.
    fitting: fine-tunes that fit the scales of the combined score, and calibrate nothing; none where there is one detector.
    release_probes: what M shows on the inputs that detectors of probes make, so that vetting never runs M on them.
    release_weights: M itself. Not stored with the guard: `with_release` hands it in.
    provenance: nothing for references trained on this release; else of which release they were transplanted, on which they were
        trained, the generation and the news, and how many were trained on this one after all (`owner.gatekeeper.transplants`).
    usefulness: what its references, but for M_f, are conditioned on: they pass this utility check. None: on nothing.
    key: digest of all that decides a reference's scores; references of equal keys may be exchanged between guards.
    """

    release_sha256: str
    spec: ModelSpec
    head: str
    compute: Compute
    options: GuardOptions
    finetuning: TrainingOptions
    detectors: Mapping[str, Detector]
    owner_finetune: Reference
    references: tuple[Reference, ...]
    calibration: Examples = field(repr=False)
    evaluation: Examples = field(repr=False)
    release_calibration: Activations = field(repr=False)
    release_evaluation_logits: Tensor = field(repr=False)
    fitting: tuple[Reference, ...]
    release_probes: Mapping[str, Activations] = field(repr=False)
    key: str
    provenance: Mapping[str, Any]
    usefulness: Usefulness | None
    release_weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    versions: Mapping[str, str] = field(default_factory=lambda: _versions())

    @property
    def combined(self) -> bool:
        """Whether one score of all detectors decides: with several of them under the rule `conformal`."""
        return self.options.rule == "conformal" and len(self.detectors) > 1

    def measure(self, evidence: Evidence) -> dict[str, float]:
        """Every number of every detector, by `detector` and `detector/measure`."""
        detectors = tuple(self.detectors.values())

        def compute() -> dict[str, float]:
            return {name: score for one in detectors for name, score in measured(one, evidence).items()}

        return evidence.once(("measures", tuple(map(id, detectors))), compute)

    def judgements(self, evidence: Evidence) -> Iterator[tuple[str, float, Judgement]]:
        """Name, score and judgement of each that decides: the combined score alone, or else every detector."""
        if self.combined:
            score = self.combination.score(self.measure(evidence))
            yield GATE, score, self.judge_gate(score)
            return
        for name, detector in self.detectors.items():
            score = detector.score(evidence)
            yield name, score, self.judge(name, score)

    def judge(self, detector: str, score: float) -> Judgement:
        """What the guard's rule says of one detector's score; with a combined score it decides nothing."""
        if self.options.rule == "seed":
            return judge_by_seed(score, self.threshold(detector))
        return self._judge_among(score, [reference.scores[detector] for reference in self.references])

    def judge_gate(self, score: float) -> Judgement:
        """What the rule says of a combined score, over the K references that had no part in fitting its scales."""
        return self._judge_among(score, self._calibrated[0])

    def _judge_among(self, score: float, scores: list[float]) -> Judgement:
        options = self.options
        found = judge_by_references(score, scores, reject=options.reject_level, quarantine=options.quarantine_level)
        return replace(found, detail=f"{found.detail}; {conditions(told)}") if (told := self.conditioning) else found

    @property
    def conditioning(self) -> dict[str, Any] | None:
        """What the references are conditioned on, of how many honest fine-tunes they were drawn, and how many of these fail utility;
        None where they are conditioned on nothing. `references`, `drawn` and `turned_away` count those that calibrate."""
        if self.usefulness is None:
            return None
        calibrating, fitting = (drawn(one.plan for one in part) for part in (self.references, self.fitting))
        return {
            **self.usefulness.to_json(),
            "references": len(self.references),
            "drawn": calibrating,
            "turned_away": calibrating - len(self.references),
            "fitting_turned_away": fitting - len(self.fitting),
        }

    def threshold(self, detector: str) -> float:
        """The largest score that is not rejected. Raises GuardError where Eq. 4 is asked of a detector without image errors."""
        if self.options.rule == "conformal":
            return conformal_threshold([r.scores[detector] for r in self.references], self.options.reject_level)
        errors = self.owner_finetune.image_errors.get(detector)
        if errors is None:
            raise GuardError(f"the rule `seed` (Eq. 4) needs one error per image, which {detector} does not give")
        return seed_threshold(errors)

    @property
    def thresholds(self) -> dict[str, float]:
        """Of each score that decides."""
        if self.combined:
            return {GATE: conformal_threshold(self._calibrated[0], self.options.reject_level)}
        return {name: self.threshold(name) for name in self.detectors}

    @cached_property
    def combination(self) -> CombinedScore:
        """Raises GuardError where the guard holds no references to fit its scales on."""
        if len(self.fitting) < 2:
            raise GuardError(
                f"the combined score of {len(self.detectors)} detectors needs references to fit its scales, and this guard "
                f"holds {len(self.fitting)}",
                hint="fit the guard again",
            )
        scores = [reference.scores for reference in self.fitting]
        return CombinedScore.fit(self.options.combination, scores, given_size=self.options.given_size)

    def family_p_values(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Of each family's own combined score, over the K references."""
        calibrated = self._calibrated[1]
        found = self.combination.families(scores)
        return {family: p_value(score, [c[family] for c in calibrated]) for family, score in found.items()}

    def detector_p_value(self, detector: str, score: float) -> float:
        return p_value(score, [reference.scores[detector] for reference in self.references])

    @cached_property
    def _calibrated(self) -> tuple[list[float], list[dict[str, float]]]:
        """Combined scores and family scores of the K references."""
        combination = self.combination
        return (
            [combination.score(reference.scores) for reference in self.references],
            [combination.families(reference.scores) for reference in self.references],
        )

    @cached_property
    def release_evidence(self) -> Evidence:
        """What M itself shows on the calibration triggers; one object for all candidates, so that M's side is computed once."""
        seen = self.release_calibration
        return Evidence(
            seen.features,
            seen.logits,
            self.calibration.labels,
            self.release_weights,
            forward=self._run_release if self.release_weights else None,
            inputs=self.calibration.inputs,
            probed=dict(self.release_probes),
        )

    def _run_release(self, inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor] | None = None) -> Activations:
        """M on inputs that were not stored, which only a detector from elsewhere would ask for."""
        model = build(self.spec)
        model.load_state_dict(dict(self.release_weights if weights is None else weights))
        return observe(model, inputs, head=self.head, compute=self.compute)

    def histograms(self, detector: str, errors: Tensor) -> dict[str, Any]:
        """Per-image errors of a submission beside those of M, of M_f and of all references together (Fig. 5)."""
        edges, background = self._background(detector)
        return {
            "edges": edges,
            **background,
            "submission": counts(errors, edges),
            "threshold": self.threshold(detector),
        }

    def _background(self, detector: str) -> tuple[list[float], dict[str, list[int]]]:
        if detector not in self._backgrounds:
            scorer: Any = self.detectors[detector]
            groups = {"release": scorer.image_scores(self.release_evidence)}
            groups["owner_finetune"] = self.owner_finetune.image_errors[detector]
            if self.references:
                groups["references"] = torch.cat([r.image_errors[detector] for r in self.references])
            edges = log_edges(*groups.values())
            self._backgrounds[detector] = edges, {name: counts(group, edges) for name, group in groups.items()}
        return self._backgrounds[detector]

    @cached_property
    def _backgrounds(self) -> dict[str, tuple[list[float], dict[str, list[int]]]]:
        return {}

    def check_release(self, sha256: str) -> None:
        """Raises GuardMismatchError where the guard protects another release."""
        if sha256 != self.release_sha256:
            raise GuardMismatchError(
                f"the guard protects the release with weights {self.release_sha256[:12]}, not {sha256[:12]}",
                hint="use the guard of that release, or fit one for it: Gatekeeper.protect, or `portier-owner protect`",
            )

    def check_compute(self, compute: Compute) -> None:
        """Raises GuardMismatchError for another device or dtype: activations compare only between equal ones."""
        mine, other = self.compute, compute
        if (mine.device.type, mine.dtype) != (other.device.type, other.dtype):
            raise GuardMismatchError(
                f"the guard was fitted on {_name(mine)}, and was asked to vet on {_name(other)}",
                hint=f"vet on {_name(mine)}, or fit the guard again on {_name(other)}",
            )

    def with_release(self, weights: Weights) -> Guard:
        """The guard with M's weights at hand, for detectors that compare weights; itself where it has them.

        They come in the order of M's state dict: detectors of weights tell layers by it.
        """
        return self if self.release_weights else replace(self, release_weights=weights)

    def save(self, directory: Path, *, kept: Iterable[Path] = ()) -> None:
        """Writes the guard; `directory` is whole, or as it was before. Raises StorageError.

        kept: folders whose files, weights of the fine-tunes, stand in it with the guard; of files of one name that of the first.
        """
        guard_files.write(self, directory, kept)

    @classmethod
    def load(cls, directory: Path) -> Guard:
        """Reads a guard, checking every file against its digest.

        Raises GuardError where it is damaged, incomplete, of a later version or holds a detector that is not registered
        (`owner.detectors.register`); GuardMismatchError where it was fitted by other code of detectors, or this machine lacks its
        device; StorageError.
        """
        return cls(**guard_files.read(directory))


def _name(compute: Compute) -> str:
    return f"{compute.device.type} in {str(compute.dtype).removeprefix('torch.')}"


def _versions() -> dict[str, str]:
    try:
        portier = version("portier")
    except PackageNotFoundError:
        portier = "not installed"
    return {
        "portier": portier,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "detectors": code_digest("owner.detectors"),
    }
