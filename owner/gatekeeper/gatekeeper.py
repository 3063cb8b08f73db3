"""The gatekeeper: fit a guard for a release, then vet what comes back. No network, no database, no command line."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from common.activations import Activations, observe
from common.devices import Compute, choose_compute
from common.errors import ConfigurationError
from common.evaluation import Evaluation
from common.examples import Examples
from common.model_spec import ModelSpec
from common.training_options import TrainingOptions
from common.weights import Weights, layout_of, weights_of
from owner.detectors import Detector, Evidence
from owner.gatekeeper.calibrating import calibrate
from owner.gatekeeper.escalation import Escalation, escalation_path, gradient_evidence, standing
from owner.gatekeeper.examination import Examination, RootAction, SecondLook, Vetting
from owner.gatekeeper.fine_tunes import FineTunes
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.guard_files import release_digest
from owner.gatekeeper.merging import MergePolicy
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.protection import OnReference, Protection
from owner.gatekeeper.transplants import Transplants
from owner.gatekeeper.triggers import Triggers, split_triggers
from owner.gatekeeper.usefulness import DEFAULTS
from owner.gatekeeper.utility import UtilityLimits
from owner.gatekeeper.verdict import Verdict


class Gatekeeper:
    """Vets candidates against the release that its guard protects.

    >>> from common.models import build
    >>> from common.training import train
    >>> generator = torch.Generator().manual_seed(0)
    >>> def images(n):
    ...     labels = torch.arange(n) % 2
    ...     noise = torch.randint(0, 60, (n, 1, 6, 6), generator=generator)
    ...     return Examples(((noise + 120 * labels.view(-1, 1, 1, 1)).to(torch.uint8),), labels, ("dark", "bright"))
    >>> spec = ModelSpec("mlp", (1, 6, 6), 2)
    >>> compute = choose_compute("cpu", "float32")
    >>> model = build(spec, seed=0)
    >>> options = TrainingOptions(epochs=2, learning_rate=0.01, batch_size=16)
    >>> report = train(model, images(200), options, compute=compute, progress=False)
    >>> gatekeeper = Gatekeeper.protect(
    ...     model, images(300), references_pool=images(100), spec=spec, finetuning=options, compute=compute,
    ...     options=GuardOptions(references=4, reject_level=0.2, quarantine_level=0.2, epochs=5), progress=False,
    ... )
    >>> broken = {name: -tensor for name, tensor in model.state_dict().items()}
    >>> gatekeeper.vet(broken).decision
    <Decision.REJECTED: 'rejected'>
    """

    def __init__(
        self,
        guard: Guard,
        model: nn.Module,
        *,
        references_pool: Examples | None = None,
        escalation: Escalation | None = None,
        directory: Path | None = None,
    ) -> None:
        """`model` is the guarded release; callers use `protect` or `load`, which see to that.

        references_pool, directory: for calibrating the escalation tier. escalation: the tier, where it is calibrated.
        """
        self._model = copy.deepcopy(model)
        self.release: Weights = weights_of(model)
        self.guard = guard.with_release(self.release)
        self.layout = layout_of(self.release)
        self.evaluation = guard.evaluation
        self._current: tuple[str, Evaluation] | None = None
        self._of_release: Evaluation | None = None
        self.escalation = escalation
        self._references_pool = None if references_pool is None else references_pool.to("cpu")
        self._directory = directory

    @classmethod
    def protect(
        cls,
        model: nn.Module,
        triggers: Triggers | Examples,
        *,
        references_pool: Examples,
        spec: ModelSpec,
        finetuning: TrainingOptions,
        options: GuardOptions | None = None,
        detectors: Sequence[Detector] | None = None,
        compute: Compute | None = None,
        directory: Path | None = None,
        transplants: Transplants | None = None,
        utility: UtilityLimits | None = DEFAULTS.limits,
        merging: MergePolicy = DEFAULTS.merging,
        progress: bool | None = None,
        on_reference: OnReference | None = None,
    ) -> Gatekeeper:
        """Fit a guard for `model`.

        triggers: clean images, in three parts or as one set that is split by `options.seed`.
        references_pool: clean images that the model was not trained on, as contributors' are; honest references are
            fine-tuned on them.
        finetuning: what contributors are asked to do.
        detectors: unfitted ones to use, which are copied and left as they are; None is those that `options` names. Several are
            combined into one score. To load a saved guard with detectors of your own, call `owner.detectors.register` first.
        directory: where finished references are kept, so that an interrupted fit goes on; None keeps them in memory. Those of
            the escalation tier (`options.escalation`), which is calibrated when `vet` first needs it, go there too.
        transplants: fine-tunes of an earlier release to use instead of training any: `owner.gatekeeper.incremental.small_news`
            says whether `model` is near enough. With `options.incremental`, and a directory, `Protection.kept_in(directory, guard)`
            holds this guard's own afterwards.
        utility, merging: the utility check that submissions will have to pass, and how they will be merged. The references are those
            that would pass it, and p is valid among honest submissions that do; one that fails it is rejected for that, and not
            judged by p. `vet` takes the same ones where it is told no others. None: every honest fine-tune is a reference, for
            where no submission is turned away for its utility.
        progress: show a bar; None shows it on a terminal.

        Raises VacuousGateError where the activations do not depend on weights, GuardError for too little data, for the rule
        `seed` with a detector that has no image scores, or where hardly a fine-tune passes utility, ConfigurationError for no detectors or two of one name, ModelError,
        StorageError.
        """
        options = options or GuardOptions()
        parts = triggers if isinstance(triggers, Triggers) else split_triggers(triggers, seed=options.seed)
        protection = Protection(
            model=model,
            release_sha256=release_digest(model.state_dict()),
            triggers=parts.to("cpu"),
            references_pool=references_pool.to("cpu"),
            spec=spec,
            options=options,
            finetuning=finetuning,
            compute=compute or choose_compute(),
            detectors=None if detectors is None else tuple(detectors),
            keep=options.incremental,
            transplants=transplants,
            utility=utility,
            merging=merging,
        )
        guard = protection.fit(directory=directory, progress=progress, on_reference=on_reference)
        return cls(guard, model, references_pool=references_pool, directory=directory)

    def save(self, directory: Path) -> None:
        """Writes the guard to `directory` (the release's own weights are not part of it), and where the escalation tier is
        calibrated that beside it, as `<directory>.escalation.json`. Raises StorageError."""
        self.guard.save(directory)
        if self.escalation is not None:
            self.escalation.save(escalation_path(Path(directory)))

    @classmethod
    def load(
        cls,
        directory: Path,
        model: nn.Module,
        *,
        compute: Compute | None = None,
        release_sha256: str | None = None,
        references_pool: Examples | None = None,
    ) -> Gatekeeper:
        """The guard in `directory`, for the release `model`, with its escalation tier where that is calibrated.

        compute: what to vet on; None is what the guard was fitted on.
        release_sha256: digest of the model's weights file, where the caller has checked it already.
        references_pool: those the guard was fitted with, to calibrate the escalation tier when it is first needed; without
            them, what needs it stays in quarantine.

        Raises GuardMismatchError where guard and model, device or dtype do not belong together; GuardError where the guard is
        damaged or of a later version; StorageError.
        """
        guard = Guard.load(directory)
        guard.check_compute(compute or guard.compute)
        guard.check_release(release_sha256 or release_digest(model.state_dict()))
        return cls(
            guard, model, references_pool=references_pool, escalation=standing(escalation_path(Path(directory)), guard)
        )

    def use_evaluation(self, evaluation: Examples) -> None:
        """Measure utility on these examples instead of the guard's own. Raises ConfigurationError for other classes."""
        if evaluation.class_names != self.guard.evaluation.class_names:
            raise ConfigurationError("the evaluation examples have other classes than the guarded release")
        evaluation = evaluation.to("cpu")
        if not _same_examples(evaluation, self.evaluation):
            self.evaluation, self._current, self._of_release = evaluation, None, None

    def vet(
        self,
        candidate: nn.Module | Mapping[str, Tensor] | Path,
        *,
        current: Mapping[str, Tensor] | None = None,
        merge: MergePolicy | None = None,
        utility: UtilityLimits | None = None,
        root: Guard | None = None,
        root_action: RootAction = "quarantine",
    ) -> Verdict:
        """Vet weights that were made by fine-tuning the guarded release. See `examine`."""
        return self.examine(
            candidate, current=current, policy=merge, utility=utility, root=root, root_action=root_action
        ).verdict

    def examine(
        self,
        candidate: nn.Module | Mapping[str, Tensor] | Path,
        *,
        current: Mapping[str, Tensor] | None = None,
        policy: MergePolicy | None = None,
        utility: UtilityLimits | None = None,
        root: Guard | None = None,
        root_action: RootAction = "quarantine",
        second_look: SecondLook | None = None,
    ) -> Examination:
        """Admission (layout, finite values, variances), activations, detectors, the would-be release and its utility, the
        root guard; in this order. What is malformed or shows activations that are not finite stops there, for no later
        number would mean anything; otherwise every check runs, and the verdict holds them all.

        candidate: a model, its weights, or a safetensors file of them.
        current: the release to merge onto; None is the guarded release itself.
        policy, utility: None are those that the guard's references were conditioned on, or else the defaults.
        root: the guard of the first release, which scores the would-be release: poison that each step let through adds up.
        root_action: whether drift from the root quarantines or is only recorded.
        second_look: gives the escalation tier, for a submission that p alone has put into quarantine; None is `calibrated`. No
            other submission is ever looked at by it.

        Raises StorageError where a file cannot be read. Nothing a candidate holds raises: it is rejected.
        """
        conditioned = self.guard.usefulness or DEFAULTS
        return Vetting(
            self,
            current,
            policy or conditioned.merging,
            utility or conditioned.limits,
            root,
            root_action,
            second_look or self.calibrated,
        ).run(candidate)

    def calibrated(self, *, progress: bool | None = None) -> Escalation | None:
        """The escalation tier, calibrated now where it is not yet: K fine-tunes and searches, minutes, once.

        None where the guard has no such tier, or the reference pool is not at hand.
        Raises GuardError where it cannot be calibrated, StorageError.
        """
        if self.escalation is None and self._references_pool is not None and self.guard.options.escalation_names:
            guard = self.guard
            fine_tunes = FineTunes(
                self._released(self.release), self._references_pool, guard.options, guard.finetuning, guard.compute
            )
            self.escalation = calibrate(guard, fine_tunes, directory=self._directory, progress=progress)
        return self.escalation

    def with_gradients(self, weights: Mapping[str, Tensor], seen: Activations) -> Evidence:
        """What the escalation tier looks at, of a model of these weights that showed `seen` on the calibration triggers."""
        return gradient_evidence(self.guard, self._released(weights), seen, self._release_with_gradients)

    @cached_property
    def _release_with_gradients(self) -> Evidence:
        return gradient_evidence(self.guard, self._released(self.release), self.guard.release_calibration)

    @property
    def layers(self) -> nn.Module:
        """The model that every look loads its weights into: to lend to who brings weights of his own."""
        return self._model

    def _released(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A model of its own, which no other look at `observe` changes."""
        model = copy.deepcopy(self._model)
        model.load_state_dict(weights)
        return model

    def observe(
        self, weights: Mapping[str, Tensor], inputs: tuple[Tensor, ...], guard: Guard | None = None
    ) -> Activations:
        """What a model of these weights shows on `inputs`, on the compute of the guard (or of another one, the root's)."""
        self._model.load_state_dict(weights)
        chosen = guard or self.guard
        return observe(self._model, inputs, head=chosen.head, compute=chosen.compute)

    def evaluate(self, logits: Tensor) -> Evaluation:
        return Evaluation.from_logits(logits, self.evaluation.labels, self.evaluation.classes)

    def evaluate_release(self) -> Evaluation:
        """M on the evaluation share: from the guard, without a forward pass, where the share is the guard's own."""
        if self._of_release is None:
            own = self.evaluation is self.guard.evaluation
            logits = (
                self.guard.release_evaluation_logits
                if own
                else self.observe(self.release, self.evaluation.inputs).logits
            )
            self._of_release = self.evaluate(logits)
        return self._of_release

    def evaluate_current(self, current: Mapping[str, Tensor]) -> Evaluation:
        """The current release on the evaluation share, kept until another one is asked about."""
        digest = release_digest(current)
        if digest == self.guard.release_sha256:
            return self.evaluate_release()
        if self._current is None or self._current[0] != digest:
            self._current = digest, self.evaluate(self.observe(current, self.evaluation.inputs).logits)
        return self._current[1]


def _same_examples(one: Examples, other: Examples) -> bool:
    return (
        len(one.inputs) == len(other.inputs)
        and torch.equal(one.labels, other.labels)
        and all(torch.equal(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))
    )
