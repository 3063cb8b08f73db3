"""A guard: everything fitted to protect one release, and its form on disk, one directory of safetensors and JSON.

    guard.json                      what it guards, how it was fitted, scores, thresholds, digest of every file here
    detector-<name>.safetensors     a fitted detector
    references.safetensors          per-image errors (N,) of the owner's fine-tune M_f and of every reference
    release.safetensors             M's activations on the calibration triggers, its logits on the evaluation triggers
    triggers.safetensors            the calibration and evaluation triggers

The digests find damage and mix-ups. They are no signature: who may write to the owner's disk may write a guard.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import canonical
from common.activations import Activations
from common.devices import Compute
from common.errors import ConfigurationError, GuardError, GuardMismatchError, WireError
from common.examples import Examples
from common.files import ensure_directory, read_bounded, storage_errors, sync_directory, write_atomically
from common.model_spec import ModelSpec
from common.training_options import TrainingOptions
from common.weights import Weights
from common.weights import load as load_weights
from common.weights import save as save_weights
from owner.detectors import DETECTORS, Detector, DetectorState, Evidence, restore
from owner.gatekeeper.histograms import counts, log_edges
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.rules import Judgement, conformal_threshold, judge_by_references, judge_by_seed, seed_threshold

FORMAT = 1
_JSON_LIMIT = 64 << 20


@dataclass(frozen=True)
class Reference:
    """One honest fine-tune, scored.

    plan: how it was made, as JSON. scores: by detector. accuracy: on the calibration triggers.
    image_errors: by detector, (N,) float64 on the calibration triggers, of detectors that give them.
    """

    plan: Mapping[str, Any]
    scores: Mapping[str, float]
    accuracy: float
    image_errors: Mapping[str, Tensor] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        return {"plan": dict(self.plan), "scores": dict(self.scores), "accuracy": self.accuracy}


@dataclass(frozen=True)
class Guard:
    """release_sha256: digest of the guarded weights, as `common.weights.save` writes them.
    head: name of the classification head. finetuning: what contributors were asked to do.
    owner_finetune: M_f of Eq. 4. references: the K others, none under the rule `seed`.
    calibration, evaluation: triggers. release_calibration, release_evaluation_logits: what M shows on them.
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
    versions: Mapping[str, str] = field(default_factory=lambda: _versions())

    def judge(self, detector: str, score: float) -> Judgement:
        """What the guard's rule says of a detector's score."""
        if self.options.rule == "seed":
            return judge_by_seed(score, self.threshold(detector))
        options = self.options
        scores = [reference.scores[detector] for reference in self.references]
        return judge_by_references(score, scores, reject=options.reject_level, quarantine=options.quarantine_level)

    def threshold(self, detector: str) -> float:
        """The largest score that is not rejected. Raises GuardError where Eq. 4 is asked of a detector without image errors."""
        if self.options.rule == "conformal":
            return conformal_threshold([r.scores[detector] for r in self.references], self.options.reject_level)
        errors = self.owner_finetune.image_errors.get(detector)
        if errors is None:
            raise GuardError(f"the rule `seed` (Eq. 4) needs one error per image, which {detector} does not give")
        return seed_threshold(errors)

    @cached_property
    def release_evidence(self) -> Evidence:
        """What M itself shows on the calibration triggers."""
        seen = self.release_calibration
        return Evidence(seen.features, seen.logits, self.calibration.labels)

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

    def save(self, directory: Path) -> None:
        """Writes the guard; `directory` is whole, or as it was before. Raises StorageError."""
        directory = Path(directory)
        ensure_directory(directory.parent)
        with storage_errors("write the guard", directory):
            unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            files = {name: save_weights(unfinished / name, tensors) for name, tensors in self._tensors().items()}
            write_atomically(unfinished / "guard.json", self._describe(files))
            with storage_errors("write the guard", directory):
                unfinished.chmod(0o755)
                if directory.exists():
                    retired = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
                    directory.replace(retired)
                    unfinished.replace(directory)
                    shutil.rmtree(retired)
                else:
                    unfinished.replace(directory)
                sync_directory(directory.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    @classmethod
    def load(cls, directory: Path) -> Guard:
        """Reads a guard, checking every file against its digest.

        Raises GuardError where it is damaged, incomplete, of a later version or holds a detector that is not registered
        (`owner.detectors.register`); GuardMismatchError where this machine lacks its
        device; StorageError.
        """
        directory = Path(directory)
        about = _read_description(directory)
        try:
            tensors = {name: load_weights(directory / name, digest=digest) for name, digest in about["files"].items()}
            _check_detectors(directory, about["detectors"])
            return _assemble(cls, about, tensors)
        except ConfigurationError as error:
            raise GuardMismatchError(
                f"the guard in {directory} was fitted on {about.get('compute')}, which this machine cannot do: {error.message}",
                hint="fit it again on this machine",
            ) from error
        except (WireError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise GuardError(f"the guard in {directory} is damaged: {error}", hint="fit it again") from error

    def _tensors(self) -> dict[str, Weights]:
        owner = {f"owner/{name}": errors for name, errors in self.owner_finetune.image_errors.items()}
        others = {f"{k}/{name}": e for k, r in enumerate(self.references) for name, e in r.image_errors.items()}
        return {
            "references.safetensors": owner | others,
            "release.safetensors": {
                "calibration.features": self.release_calibration.features,
                "calibration.logits": self.release_calibration.logits,
                "evaluation.logits": self.release_evaluation_logits,
            },
            "triggers.safetensors": _pack("calibration", self.calibration) | _pack("evaluation", self.evaluation),
            **{f"detector-{name}.safetensors": d.state().tensors for name, d in self.detectors.items()},
        }

    def _describe(self, files: Mapping[str, str]) -> bytes:
        about = {
            "format": FORMAT,
            "release_sha256": self.release_sha256,
            "spec": self.spec.to_json(),
            "class_names": list(self.calibration.class_names),
            "head": self.head,
            "compute": self.compute.to_json(),
            "options": self.options.to_json(),
            "finetuning": self.finetuning.to_json(),
            "detectors": {name: detector.state().options for name, detector in self.detectors.items()},
            "thresholds": {name: self.threshold(name) for name in self.detectors},
            "owner_finetune": self.owner_finetune.to_json(),
            "references": [reference.to_json() for reference in self.references],
            "inputs": len(self.calibration.inputs),
            "versions": dict(self.versions),
            "files": dict(files),
        }
        return canonical.encode(about | {"sha256": hashlib.sha256(canonical.encode(about)).hexdigest()})


def release_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of the file that `common.weights.save` would make of these weights. Raises WeightsError, StorageError."""
    with tempfile.TemporaryDirectory(prefix="portier-") as folder:
        return save_weights(Path(folder, "weights.safetensors"), weights)


def description_digest(directory: Path) -> str:
    """SHA-256 (hex) of a guard's guard.json, which names the digests of all its files: the guard's identity."""
    return hashlib.sha256(read_bounded(Path(directory, "guard.json"), _JSON_LIMIT)).hexdigest()


def _read_description(directory: Path) -> dict[str, Any]:
    try:
        about = canonical.parse(read_bounded(directory / "guard.json", _JSON_LIMIT), limit=_JSON_LIMIT, depth=16)
    except WireError as error:
        raise GuardError(f"the guard in {directory} is damaged: {error.message}", hint="fit it again") from error
    if not isinstance(about, dict) or not isinstance(about.get("format"), int):
        raise GuardError(f"{directory / 'guard.json'} does not describe a guard")
    if about["format"] != FORMAT:
        raise GuardError(
            f"the guard in {directory} has format {about['format']}, this version reads format {FORMAT}",
            hint="use the version of Portier that wrote it, or fit the guard again",
        )
    digest = about.pop("sha256", None)
    if digest != hashlib.sha256(canonical.encode(about)).hexdigest():
        raise GuardError(f"{directory / 'guard.json'} was altered after it was written", hint="fit the guard again")
    return about


def _check_detectors(directory: Path, names: Iterable[str]) -> None:
    for name in names:
        if name not in DETECTORS:
            raise GuardError(
                f"the guard in {directory} holds the detector {name!r}, which this process does not know "
                f"(known: {', '.join(sorted(DETECTORS))})",
                hint="call owner.detectors.register with its class before loading the guard",
            )


def _assemble(cls: type[Guard], about: Mapping[str, Any], tensors: Mapping[str, Weights]) -> Guard:
    errors, seen, triggers = (tensors[f"{name}.safetensors"] for name in ("references", "release", "triggers"))
    names, inputs = tuple(about["class_names"]), int(about["inputs"])

    def reference(key: str, data: Mapping[str, Any]) -> Reference:
        mine = {name.partition("/")[2]: e for name, e in errors.items() if name.partition("/")[0] == key}
        return Reference(data["plan"], data["scores"], data["accuracy"], mine)

    return cls(
        release_sha256=about["release_sha256"],
        spec=ModelSpec.from_json(about["spec"]),
        head=about["head"],
        compute=Compute.from_json(about["compute"]),
        options=GuardOptions.from_json(about["options"]),
        finetuning=TrainingOptions.from_json(about["finetuning"]),
        detectors={
            name: restore(name, DetectorState(tensors[f"detector-{name}.safetensors"], options))
            for name, options in about["detectors"].items()
        },
        owner_finetune=reference("owner", about["owner_finetune"]),
        references=tuple(reference(str(k), data) for k, data in enumerate(about["references"])),
        calibration=_unpack("calibration", triggers, inputs, names),
        evaluation=_unpack("evaluation", triggers, inputs, names),
        release_calibration=Activations(seen["calibration.features"], seen["calibration.logits"]),
        release_evaluation_logits=seen["evaluation.logits"],
        versions=about["versions"],
    )


def _pack(name: str, examples: Examples) -> Weights:
    inputs = {f"{name}.inputs.{i}": tensor for i, tensor in enumerate(examples.inputs)}
    return inputs | {f"{name}.labels": examples.labels}


def _unpack(name: str, tensors: Weights, inputs: int, class_names: tuple[str, ...]) -> Examples:
    found = tuple(tensors[f"{name}.inputs.{i}"] for i in range(inputs))
    return Examples(found, tensors[f"{name}.labels"], class_names)


def _name(compute: Compute) -> str:
    return f"{compute.device.type} in {str(compute.dtype).removeprefix('torch.')}"


def _versions() -> dict[str, str]:
    try:
        portier = version("portier")
    except PackageNotFoundError:
        portier = "not installed"
    return {"portier": portier, "torch": torch.__version__, "python": platform.python_version()}
