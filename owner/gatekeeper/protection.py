"""Fitting a guard: detectors on the release, then one honest fine-tune after the other, scored.

Each fine-tune's scores are stored as soon as they exist, so that fitting which was interrupted goes on where it stopped.
"""

from __future__ import annotations

import copy
import hashlib
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common import canonical
from common.activations import activations_depend_on_parameters, find_head, observe
from common.devices import Compute
from common.errors import ConfigurationError, GuardError, ModelError, StorageError, VacuousGateError, WireError
from common.examples import Examples
from common.files import ensure_directory, read_bounded, write_atomically
from common.model_spec import ModelSpec
from common.progress import progress_bar
from common.training import train
from common.training_options import TrainingOptions
from common.weights import load as load_weights
from common.weights import save as save_weights
from owner.detectors import ActivationAutoEncoder, Detector, DetectorState, Evidence, ImageDetector, check_name
from owner.gatekeeper.guard import Guard, Reference
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.references import ReferencePlan, plan_owner_finetune, plan_reference
from owner.gatekeeper.triggers import Triggers, check_examples

OnReference = Callable[[int, int, Mapping[str, float]], None]
"""Called with how many fine-tunes are done, how many there are in all, and the scores of the latest."""

_ATTEMPTS = 5


@dataclass(frozen=True)
class Protection:
    """One fitting: all that decides its outcome. `fit` runs it; equal protections give equal guards on one machine."""

    model: nn.Module
    release_sha256: str
    triggers: Triggers
    references_pool: Examples
    spec: ModelSpec
    options: GuardOptions
    finetuning: TrainingOptions
    compute: Compute
    detectors: tuple[Detector, ...] | None = None
    """Unfitted; None is the activation auto-encoder of `options`."""

    def fit(
        self, *, directory: Path | None = None, progress: bool | None = None, on_reference: OnReference | None = None
    ) -> Guard:
        """Raises VacuousGateError, GuardError for too little data, ConfigurationError for unfit detectors, ModelError,
        StorageError.
        """
        self._check()
        head = find_head(self.model, _first(self.triggers.fit), self.spec.head)
        if not activations_depend_on_parameters(self.model, head, _first(self.triggers.fit)):
            raise VacuousGateError(
                f"the input of the head {head!r} of {self.spec.architecture} does not depend on the model's weights: every "
                "submission would show the same activations, and a gate on them would accept all of them",
                hint="protect a model with at least one layer before its head, or name another head",
            )
        release = copy.deepcopy(self.model)
        fit, calibration, evaluation = (
            observe(release, part.inputs, head=head, compute=self.compute) for part in self.triggers.parts.values()
        )
        detectors: dict[str, Detector] = {}
        for detector in self._unfitted:
            detectors[detector.name] = copy.deepcopy(detector).fit(
                Evidence(fit.features, fit.logits, self.triggers.fit.labels)
            )
        shown = Evidence(calibration.features, calibration.logits, self.triggers.calibration.labels)
        work = _Work(directory and directory / self._key(head, detectors)[:16])
        total = self.options.references_to_fit + 1
        results: list[Reference] = []
        with progress_bar("honest fine-tunes", total, shown=progress) as advance:
            for k in range(-1, total - 1):
                name = "owner" if k < 0 else f"{k:04d}"
                result = work.read(name) or work.write(name, self._reference(k, head, detectors, shown, work.path))
                results.append(result)
                note = ", ".join(f"{score:.4g}" for score in result.scores.values())
                advance(1, f"{len(results)} of {total}, score {note}")
                if on_reference:
                    on_reference(len(results), total, result.scores)
        return Guard(
            release_sha256=self.release_sha256,
            spec=self.spec,
            head=head,
            compute=self.compute,
            options=self.options,
            finetuning=self.finetuning,
            detectors=detectors,
            owner_finetune=results[0],
            references=tuple(results[1:]),
            calibration=self.triggers.calibration,
            evaluation=self.triggers.evaluation,
            release_calibration=calibration,
            release_evaluation_logits=evaluation.logits,
        )

    @property
    def _unfitted(self) -> tuple[Detector, ...]:
        return (ActivationAutoEncoder(self.options.autoencoder),) if self.detectors is None else self.detectors

    def _check(self) -> None:
        names = [check_name(detector.name) for detector in self._unfitted]
        if not names or len(set(names)) < len(names):
            raise ConfigurationError(
                f"a guard needs at least one detector, each of another name, not {', '.join(names) or 'none'}"
            )
        for detector in self._unfitted:
            if self.options.rule == "seed" and not isinstance(detector, ImageDetector):
                raise GuardError(
                    f"the rule `seed` (Eq. 4) needs one error per image, which {detector.name} does not give",
                    hint="use the rule `conformal`",
                )
        check_examples(self.references_pool, "the reference pool", every_class=False)
        if self.references_pool.class_names != self.triggers.fit.class_names:
            raise GuardError("the reference pool has other classes than the trigger set")
        if self.spec.classes != self.triggers.fit.classes:
            raise GuardError(
                f"the model tells {self.spec.classes} classes apart, the triggers {self.triggers.fit.classes}"
            )

    def _reference(
        self, k: int, head: str, detectors: Mapping[str, Detector], release: Evidence, directory: Path | None
    ) -> Reference:
        """The k-th fine-tune (-1: the owner's M_f), scored; its weights are not kept.

        One that diverges is drawn again: its maker would have seen the loss, and returned nothing.
        """
        attempts = _ATTEMPTS if k >= 0 else 1
        cause: ModelError | None = None
        for attempt in range(attempts):
            plan = self._plan(k, attempt)
            model = copy.deepcopy(self.model)
            checkpoint = directory and directory / f"training-{k}-{attempt}"
            try:
                report = train(
                    model,
                    plan.examples(self.references_pool),
                    plan.options,
                    compute=self.compute,
                    head=head,
                    checkpoint=checkpoint,
                    progress=False,
                )
            except ModelError as error:  # the loss, or a weight, is not finite
                cause = error
                continue
            inputs = self.triggers.calibration.inputs
            seen = observe(model, inputs, head=head, compute=self.compute)
            evidence = Evidence(seen.features, seen.logits, release.labels, model.state_dict(), release)
            if bool(torch.isfinite(seen.features).all()) and bool(torch.isfinite(seen.logits).all()):
                scores = {name: detector.score(evidence) for name, detector in detectors.items()}
                if all(math.isfinite(score) for score in scores.values()):
                    break
        else:
            why = cause.message if cause else "its activations are not finite"
            raise GuardError(
                f"honest fine-tuning as recommended fails ({attempts} of {attempts} tries): {why}",
                hint=cause.hint if cause else "recommend a lower learning rate",
            ) from cause
        errors = {name: d.image_scores(evidence) for name, d in detectors.items() if isinstance(d, ImageDetector)}
        accuracy = float((seen.logits.argmax(1) == release.labels).double().mean())
        described = plan.to_json() | {"seconds": round(report.seconds, 3), "attempt": attempt}
        return Reference(described, scores, accuracy, errors)

    def _plan(self, k: int, attempt: int) -> ReferencePlan:
        pool, seed = self.references_pool, self.options.seed
        if k < 0:
            return plan_owner_finetune(pool, self.finetuning, seed=seed)
        return plan_reference(
            k, pool=pool, recommended=self.finetuning, population=self.options.population, seed=seed, attempt=attempt
        )

    def _key(self, head: str, detectors: Mapping[str, Detector]) -> str:
        """Digest of everything that decides a reference's scores: work stored under another key is another fitting's.

        K and the levels are left out: asking for more references goes on with those that are there.
        """
        options = self.options.to_json()
        for name in ("references", "rule", "reject_level", "quarantine_level"):
            del options[name]
        about = {
            "release": self.release_sha256,
            "spec": self.spec.to_json(),
            "head": head,
            "options": options,
            "finetuning": self.finetuning.to_json(),
            "compute": self.compute.to_json(),
            "torch": torch.__version__,
            "data": [_digest(part) for part in (*self.triggers.parts.values(), self.references_pool)],
        }
        if self.detectors is not None:  # the default follows from the options
            about["detectors"] = {name: _detector_digest(detector.state()) for name, detector in detectors.items()}
        return hashlib.sha256(canonical.encode(about)).hexdigest()


class _Work:
    """Scores of fine-tunes that are done, one JSON and one safetensors file each; nothing where `path` is None."""

    def __init__(self, path: Path | None) -> None:
        self.path = path and ensure_directory(path)

    def read(self, name: str) -> Reference | None:
        """None where it is not there or does not read: it is then made again."""
        if self.path is None:
            return None
        try:
            about = canonical.parse(read_bounded(self.path / f"{name}.json", 1 << 20), limit=1 << 20, depth=16)
            errors = load_weights(self.path / f"{name}.safetensors", digest=about["errors_sha256"])
            return Reference(about["plan"], about["scores"], about["accuracy"], errors)
        except (StorageError, WireError, KeyError, TypeError):
            return None

    def write(self, name: str, result: Reference) -> Reference:
        if self.path is not None:
            digest = save_weights(self.path / f"{name}.safetensors", result.image_errors)
            write_atomically(self.path / f"{name}.json", canonical.encode(result.to_json() | {"errors_sha256": digest}))
            for leftover in self.path.glob("training-*"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return result


def _first(examples: Examples) -> tuple[Tensor, ...]:
    return tuple(tensor[:2] for tensor in examples.inputs)


def _detector_digest(state: DetectorState) -> str:
    hasher = hashlib.sha256(canonical.encode(state.options))
    for name in sorted(state.tensors):
        hasher.update(name.encode())
        _update(hasher, state.tensors[name])
    return hasher.hexdigest()


def _digest(examples: Examples) -> str:
    hasher = hashlib.sha256(canonical.encode(list(examples.class_names)))
    for tensor in (*examples.inputs, examples.labels):
        _update(hasher, tensor)
    return hasher.hexdigest()


def _update(hasher: hashlib._Hash, tensor: Tensor) -> None:
    hasher.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
    hasher.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
