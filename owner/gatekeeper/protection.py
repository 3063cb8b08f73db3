"""Fitting a guard: detectors on the release, then one honest fine-tune after the other, scored.

Each fine-tune's scores are stored as soon as they exist, so that fitting which was interrupted goes on where it stopped.
M is run once on the triggers and once on the probes; each fine-tune once on the calibration triggers, for all detectors.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from common import canonical
from common.activations import Activations, activations_depend_on_parameters, find_head, observe
from common.devices import Compute
from common.errors import ConfigurationError, GuardError, ModelError, VacuousGateError
from common.examples import Examples
from common.model_spec import ModelSpec
from common.progress import progress_bar
from common.training_options import TrainingOptions
from owner.detectors import Detector, DetectorState, Evidence, ImageDetector, check_name, measures_of
from owner.detectors.base import forward_of
from owner.detectors.gradients import are_images
from owner.gatekeeper.assistants import Assistants, Share
from owner.gatekeeper.fine_tunes import OWNER, FineTunes
from owner.gatekeeper.finished import FinishedReferences, Part, number_of
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.merging import MergePolicy
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.references import Reference
from owner.gatekeeper.transplants import KEPT, KeptReferences, Transplants
from owner.gatekeeper.triggers import Triggers, check_examples
from owner.gatekeeper.usefulness import TURNED_AWAY, Draws, Usefulness, usefulness_of
from owner.gatekeeper.utility import UtilityLimits

OnReference = Callable[[int, int, Mapping[str, float]], None]
"""Called with how many fine-tunes are done, how many there are in all, and the scores of the latest."""

_POLL_SECONDS = 0.2


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
    """Unfitted; None is those that `options` names."""
    known: Guard | None = None
    """A guard whose references are taken over where they would come out the same: one fitted with fewer of them, say.
    Whoever re-calibrates from the guard of an earlier release begins at `transplants`."""
    keep: bool = False
    """Keep the weights of every fine-tune in `kept_in`; for that `fit` needs a directory."""
    transplants: Transplants | None = None
    """Fine-tunes of an earlier release that are moved to this one instead of training any. One that does not score finitely here, or
    fails utility, is trained all the same."""
    utility: UtilityLimits | None = None
    """Every fitting and calibrating reference, merged into M, passes the utility check with these limits: one that does not is drawn
    again. For a gate of submissions that have to pass it too. None: whatever is honest is a reference."""
    merging: MergePolicy = field(default_factory=MergePolicy)
    """How they are merged for that."""

    def fit(
        self,
        *,
        directory: Path | None = None,
        progress: bool | None = None,
        on_reference: OnReference | None = None,
        assistants: Assistants | None = None,
    ) -> Guard:
        """assistants: processes that make some of the fine-tunes into the same directory; what they leave is made here.

        Raises VacuousGateError, GuardError for too little data or where hardly a fine-tune passes utility, ConfigurationError for unfit detectors, ModelError,
        StorageError.
        """
        ready = self._prepare(directory)
        plans = list(self._plans())
        found: dict[int, Reference] = {}
        with progress_bar("honest fine-tunes", len(plans), shown=progress) as advance:
            while len(found) < len(plans):
                before = len(found)
                for position, (part, k) in enumerate(plans):
                    if position in found:
                        continue
                    # Asked before looking, so that what an assistant leaves undone is known not to be there.
                    theirs = assistants is not None and assistants.make(position)
                    result = ready.work.read(part, k)
                    if result is None:
                        if theirs:
                            continue
                        result = ready.work.write(part, k, self._reference(part, k, ready))
                    found[position] = result
                    note = (
                        f", score {next(iter(result.scores.values())):.4g}"
                        if len(ready.detectors) == 1
                        else f", {part}"
                    )
                    advance(1, f"{len(found)} of {len(plans)}{note}")
                    if on_reference:
                        on_reference(len(found), len(plans), result.scores)
                if len(found) == before:
                    time.sleep(_POLL_SECONDS)
        references: dict[Part, list[Reference]] = {"owner": [], "fitting": [], "calibrating": []}
        for position, (part, _) in enumerate(plans):
            references[part].append(found[position])
        return Guard(
            release_sha256=self.release_sha256,
            spec=self.spec,
            head=ready.head,
            compute=self.compute,
            options=self.options,
            finetuning=self.finetuning,
            detectors=ready.detectors,
            owner_finetune=references["owner"][0],
            references=tuple(references["calibrating"]),
            calibration=self.triggers.calibration,
            evaluation=self.triggers.evaluation,
            release_calibration=ready.calibration,
            release_evaluation_logits=ready.evaluation.logits,
            fitting=tuple(references["fitting"]),
            release_probes=dict(ready.release.probed),
            key=ready.key,
            provenance=self.transplants.provenance_of([r.plan for part in references.values() for r in part])
            if self.transplants
            else {},
            usefulness=self.usefulness,
        )

    def assist(self, directory: Path, share: Share) -> None:
        """Make the fine-tunes of one share into `directory`, for a `fit` that runs beside. Raises what `fit` does."""
        ready = self._prepare(directory)
        for position, (part, k) in enumerate(self._plans()):
            if share.holds(position) and ready.work.read(part, k) is None:
                ready.work.write(part, k, self._reference(part, k, ready))

    def image_steps(self) -> int:
        """Images times epochs of all fine-tunes that `fit` has to train."""
        if self.transplants is not None:
            return 0
        known = self._known_references(self.known.key) if self.known is not None else {}
        total = 0
        for part, k in self._plans():
            if k >= len(known.get(part, ())):
                plan = self.fine_tunes.plan(number_of(part, k))
                total += len(plan.indices) * plan.options.epochs
        return total

    def _prepare(self, directory: Path | None) -> _Ready:
        """What is learnt of M before any fine-tune is made."""
        self._check()
        head = find_head(self.model, _first(self.triggers.fit), self.spec.head)
        if not activations_depend_on_parameters(self.model, head, _first(self.triggers.fit)):
            raise VacuousGateError(
                f"the input of the head {head!r} of {self.spec.architecture} does not depend on the model's weights: every "
                "submission would show the same activations, and a gate on them would accept all of them",
                hint="protect a model with at least one layer before its head, or name another head",
            )
        fit, calibration, evaluation = (
            observe(self._release, part.inputs, head=head, compute=self.compute)
            for part in self.triggers.parts.values()
        )
        learnt = self._evidence(self._release, fit, self.triggers.fit, head)
        detectors = {d.name: copy.deepcopy(d).fit(learnt) for d in self._unfitted}
        shown = self._evidence(self._release, calibration, self.triggers.calibration, head)
        for detector in detectors.values():
            measures_of(detector, shown)  # runs M on every probe there is, once and for all
        key = self._key(head, detectors)
        work = FinishedReferences(directory and directory / key[:16], self._known_references(key))
        kept = KeptReferences(work.path / KEPT) if self.keep and work.path else None
        return _Ready(head, detectors, shown, calibration, evaluation, key, work, kept)

    @staticmethod
    def kept_in(directory: Path, guard: Guard) -> Path:
        """Where `fit(directory=directory)` has kept the fine-tunes of this guard, if it was to keep them."""
        return directory / guard.key[:16] / KEPT

    @property
    def fitting_references(self) -> int:
        """How many fine-tunes fit the scales of the combined score; none where one detector decides."""
        several = self.options.rule == "conformal" and len(self._unfitted) > 1
        return self.options.fitting_references if several else 0

    @property
    def usefulness(self) -> Usefulness | None:
        return usefulness_of(self.options, self.utility, self.merging)

    def _plans(self) -> Iterator[tuple[Part, int]]:
        yield "owner", 0
        yield from (("fitting", k) for k in range(self.fitting_references))
        yield from (("calibrating", k) for k in range(self.options.references_to_fit))

    @cached_property
    def _unfitted(self) -> tuple[Detector, ...]:
        return self.options.unfitted_detectors() if self.detectors is None else self.detectors

    @cached_property
    def _release(self) -> nn.Module:
        return copy.deepcopy(self.model)

    def _evidence(
        self, model: nn.Module, seen: Activations, examples: Examples, head: str, release: Evidence | None = None
    ) -> Evidence:
        """All that a detector may look at, of a model on these triggers."""
        forward = forward_of(model, head=head, compute=self.compute)
        weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        return Evidence(seen.features, seen.logits, examples.labels, weights, release, forward, examples.inputs)

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
        if self.options.escalation_names and not are_images(self.triggers.calibration.inputs):
            raise GuardError(
                "the escalation tier searches for marks on images, and this model takes other inputs, or several",
                hint="set escalation to off",
            )
        check_examples(self.references_pool, "the reference pool", every_class=False)
        if self.references_pool.class_names != self.triggers.fit.class_names:
            raise GuardError("the reference pool has other classes than the trigger set")
        if self.spec.classes != self.triggers.fit.classes:
            raise GuardError(
                f"the model tells {self.spec.classes} classes apart, the triggers {self.triggers.fit.classes}"
            )

    def _reference(self, part: Part, k: int, ready: _Ready) -> Reference:
        """The k-th fine-tune of a part, scored. Its weights are kept only where they are asked for.

        One that diverges is drawn again: its maker would have seen the loss, and returned nothing. So is one that fails utility, where
        submissions have to pass it: nobody asks what its p is.
        """
        number = number_of(part, k)
        useful = None if number == OWNER else self.usefulness
        if self.transplants is not None:
            weights, plan = self.transplants.onto(self.model.state_dict(), part, k)
            model = copy.deepcopy(self.model)
            model.load_state_dict(weights)
            outcome = self._scored(model, plan, ready, useful)
            if isinstance(outcome, Reference):
                return self._keep(outcome, model, part, k, ready.kept)
            # Of no use on this release; it is trained, as if it had not been kept.
        draws = Draws(diverging_limit=1) if number == OWNER else Draws()
        while True:
            attempt = draws.made
            try:
                model, planned, report = self.fine_tunes.make(
                    number, attempt, head=ready.head, directory=ready.work.path
                )
            except ModelError as error:  # the loss, or a weight, is not finite
                draws.diverge(error)
                continue
            described = planned.to_json() | {"seconds": round(report.seconds, 3), "attempt": attempt}
            described |= {TURNED_AWAY: draws.turned_away} if useful else {}
            outcome = self._scored(model, described, ready, useful)
            if isinstance(outcome, Reference):
                return self._keep(outcome, model, part, k, ready.kept)
            if outcome is None:
                draws.diverge()
            else:
                draws.turn_away(outcome)

    def _scored(
        self, model: nn.Module, plan: Mapping[str, object], ready: _Ready, useful: Usefulness | None
    ) -> Reference | tuple[str, ...] | None:
        """None where activations or scores are not finite; the utility checks that it fails, where it should pass them."""
        calibration = self.triggers.calibration
        seen = observe(model, calibration.inputs, head=ready.head, compute=self.compute)
        evidence = self._evidence(model, seen, calibration, ready.head, ready.release)
        if not (bool(torch.isfinite(seen.features).all()) and bool(torch.isfinite(seen.logits).all())):
            return None
        if useful is not None:
            failed = useful.failed(
                model, self._release, ready.evaluation, self.triggers.evaluation, head=ready.head, compute=self.compute
            )
            if failed:
                return failed
        scores = {n: s for detector in ready.detectors.values() for n, s in measures_of(detector, evidence).items()}
        if not all(math.isfinite(score) for score in scores.values()):
            return None
        errors = {name: d.image_scores(evidence) for name, d in ready.detectors.items() if isinstance(d, ImageDetector)}
        accuracy = float((seen.logits.argmax(1) == ready.release.labels).double().mean())
        return Reference(plan, scores, accuracy, errors)

    @staticmethod
    def _keep(scored: Reference, model: nn.Module, part: Part, k: int, kept: KeptReferences | None) -> Reference:
        if kept is not None:
            weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
            kept.write(part, k, weights, scored.plan)
        return scored

    def _known_references(self, key: str) -> dict[Part, tuple[Reference, ...]]:
        known = self.known
        if known is None or known.key != key:
            return {}
        return {"owner": (known.owner_finetune,), "fitting": known.fitting, "calibrating": known.references}

    @cached_property
    def fine_tunes(self) -> FineTunes:
        return FineTunes(self.model, self.references_pool, self.options, self.finetuning, self.compute)

    def _key(self, head: str, detectors: Mapping[str, Detector]) -> str:
        """Digest of everything that decides a reference's scores: work stored under another key is another fitting's.

        How many there are, how they are combined and the levels are left out: asking for more references goes on with those
        that are there.
        """
        options = self.options.to_json()
        for name in (
            "references",
            "fitting_references",
            "combination",
            "given_size",
            "detectors",
            "rule",
            "reject_level",
            "quarantine_level",
            "escalation",
            "escalation_references",
            "escalation_reject_level",
            "escalation_quarantine_level",
            "incremental",
            "incremental_news",
            "incremental_generations",
        ):
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
            "detectors": {name: self._about(detector) for name, detector in detectors.items()},
        }
        if self.usefulness is not None:
            about["usefulness"] = self.usefulness.to_json()
        if self.transplants is not None:  # they are not what training would make
            about["transplants"] = self.transplants.provenance
        return hashlib.sha256(canonical.encode(about)).hexdigest()

    def _about(self, detector: Detector) -> object:
        """Those that the options name learn what follows from the rest of the key; others from who knows where."""
        return detector.state().options if self.detectors is None else _detector_digest(detector.state())


@dataclass(frozen=True)
class _Ready:
    """release: what M shows on the calibration triggers and the probes."""

    head: str
    detectors: dict[str, Detector]
    release: Evidence
    calibration: Activations
    evaluation: Activations
    key: str
    work: FinishedReferences
    kept: KeptReferences | None


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
