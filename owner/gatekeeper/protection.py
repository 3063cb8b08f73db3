"""Fitting a guard: detectors on the release, then one honest fine-tune after the other, scored.

Each fine-tune's scores are stored as soon as they exist, so that fitting which was interrupted goes on where it stopped.
M is run once on the triggers and once on the probes; each fine-tune once on the calibration triggers, for all detectors, and for
those that take its update further as often as they ask.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import nn

from common.activations import Activations, observe
from common.devices import Compute
from common.examples import Examples
from common.model_spec import ModelSpec
from common.progress import progress_bar
from common.training_options import TrainingOptions
from owner.detectors import Detector
from owner.detectors.gathering import evidence_of
from owner.gatekeeper.assistants import Assistants, Share
from owner.gatekeeper.fine_tunes import FineTunes
from owner.gatekeeper.finished import FinishedReferences, Part, number_of
from owner.gatekeeper.fitting_key import fitting_key
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.making import ReferenceMaker
from owner.gatekeeper.merging import MergePolicy
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.own_detectors import fitted, measured
from owner.gatekeeper.preconditions import check_data, check_detectors, telling_head
from owner.gatekeeper.references import Reference
from owner.gatekeeper.transplants import KEPT, KeptReferences, Transplants
from owner.gatekeeper.triggers import Triggers
from owner.gatekeeper.usefulness import Usefulness, usefulness_of
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
                        result = ready.reference(part, k)
                    found[position] = result
                    note = (
                        f", score {next(iter(result.scores.values())):.4g}"
                        if len(ready.maker.detectors) == 1
                        else f", {part}"
                    )
                    advance(1, f"{len(found)} of {len(plans)}{note}")
                    if on_reference:
                        on_reference(len(found), len(plans), result.scores)
                if len(found) == before:
                    time.sleep(_POLL_SECONDS)
        return self._guard(ready, [(part, found[position]) for position, (part, _) in enumerate(plans)])

    def assist(self, directory: Path, share: Share) -> None:
        """Make the fine-tunes of one share into `directory`, for a `fit` that runs beside. Raises what `fit` does."""
        ready = self._prepare(directory)
        for position, (part, k) in enumerate(self._plans()):
            if share.holds(position) and ready.work.read(part, k) is None:
                ready.reference(part, k)

    def image_steps(self) -> int:
        """Images times epochs of all fine-tunes that `fit` has to train; what is drawn again comes on top, unforeseeable."""
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
        check_detectors(self._unfitted, self.options, self.triggers)
        check_data(self.triggers, self.references_pool, self.spec)
        head = telling_head(self.model, self.spec, self.triggers)
        # A copy: running it moves it to the device, and the model that was given stays where it is.
        release, compute = copy.deepcopy(self.model), self.compute
        fit, calibration, evaluation = (
            observe(release, part.inputs, head=head, compute=compute) for part in self.triggers.parts.values()
        )
        learnt = evidence_of(release, fit, self.triggers.fit, head=head, compute=compute)
        detectors = {d.name: fitted(copy.deepcopy(d), learnt) for d in self._unfitted}
        shown = evidence_of(release, calibration, self.triggers.calibration, head=head, compute=compute)
        for detector in detectors.values():
            measured(detector, shown)  # runs M on every probe there is, once and for all
        key = fitting_key(self, head, detectors)
        work = FinishedReferences(directory and directory / key[:16], self._known_references(key))
        maker = ReferenceMaker(
            fine_tunes=self.fine_tunes,
            release=release,
            triggers=self.triggers,
            head=head,
            detectors=detectors,
            shown=shown,
            evaluation_logits=evaluation.logits,
            usefulness=self.usefulness,
            transplants=self.transplants,
            kept=KeptReferences(work.path / KEPT) if self.keep and work.path else None,
            directory=work.path,
        )
        return _Ready(maker, calibration, key, work)

    def _guard(self, ready: _Ready, made: Sequence[tuple[Part, Reference]]) -> Guard:
        owner, fitting, calibrating = (
            tuple(reference for part, reference in made if part == wanted)
            for wanted in ("owner", "fitting", "calibrating")
        )
        provenance = self.transplants.provenance_of(one.plan for _, one in made) if self.transplants else {}
        return Guard(
            release_sha256=self.release_sha256,
            spec=self.spec,
            head=ready.maker.head,
            compute=self.compute,
            options=self.options,
            finetuning=self.finetuning,
            detectors=ready.maker.detectors,
            owner_finetune=owner[0],
            references=calibrating,
            calibration=self.triggers.calibration,
            evaluation=self.triggers.evaluation,
            release_calibration=ready.calibration,
            release_evaluation_logits=ready.maker.evaluation_logits,
            fitting=fitting,
            release_probes=dict(ready.maker.shown.probed),
            key=ready.key,
            provenance=provenance,
            usefulness=self.usefulness,
        )

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

    def _known_references(self, key: str) -> dict[Part, tuple[Reference, ...]]:
        known = self.known
        if known is None or known.key != key:
            return {}
        return {"owner": (known.owner_finetune,), "fitting": known.fitting, "calibrating": known.references}

    @cached_property
    def fine_tunes(self) -> FineTunes:
        return FineTunes(self.model, self.references_pool, self.options, self.finetuning, self.compute)


@dataclass(frozen=True)
class _Ready:
    """What there is before the first reference is made. calibration: what M shows on these triggers. work: references that are done."""

    maker: ReferenceMaker
    calibration: Activations
    key: str
    work: FinishedReferences

    def reference(self, part: Part, k: int) -> Reference:
        return self.work.write(part, k, self.maker.make(part, k))
