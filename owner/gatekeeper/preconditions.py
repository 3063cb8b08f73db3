"""What a fitting is given, checked before anything is learnt or trained: what no guard can be made of is refused here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from common.activations import activations_depend_on_parameters, find_head
from common.errors import ConfigurationError, GuardError, VacuousGateError
from common.examples import Examples
from common.model_spec import ModelSpec
from owner.detectors import Detector, ImageDetector, check_name
from owner.detectors.gradients import are_images
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.own_detectors import check_protocol
from owner.gatekeeper.triggers import Triggers, check_examples


def check_detectors(detectors: Sequence[Detector], options: GuardOptions, triggers: Triggers) -> None:
    """Raises ConfigurationError for detectors without or of one name, GuardError for those that the rule or the images do not suit."""
    for detector in detectors:
        check_protocol(detector)
    names = [check_name(detector.name) for detector in detectors]
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(
            f"a guard needs at least one detector, each of another name, not {', '.join(names) or 'none'}"
        )
    for detector in detectors:
        if options.rule == "seed" and not isinstance(detector, ImageDetector):
            raise GuardError(
                f"the rule `seed` (Eq. 4) needs one error per image, which {detector.name} does not give",
                hint="use the rule `conformal`, or the detectors `paper`",
            )
    if options.escalation_names and not are_images(triggers.calibration.inputs):
        raise GuardError(
            "the escalation tier searches for marks on images, and this model takes other inputs, or several",
            hint="set escalation to off",
        )


def check_data(triggers: Triggers, references_pool: Examples, spec: ModelSpec) -> None:
    """Raises GuardError for a pool that is too small, or where pool, triggers and model have not the same classes."""
    check_examples(references_pool, "the reference pool", every_class=False)
    if references_pool.class_names != triggers.fit.class_names:
        raise GuardError("the reference pool has other classes than the trigger set")
    if spec.classes != triggers.fit.classes:
        raise GuardError(f"the model tells {spec.classes} classes apart, the triggers {triggers.fit.classes}")


def telling_head(model: nn.Module, spec: ModelSpec, triggers: Triggers) -> str:
    """Name of the model's head, whose input detectors look at.

    Raises VacuousGateError where that input would be the same in every model, ModelError where there is no head.
    """
    few = _first(triggers.fit)
    head = find_head(model, few, spec.head)
    if not activations_depend_on_parameters(model, head, few):
        raise VacuousGateError(
            f"the input of the head {head!r} of {spec.architecture} does not depend on the model's weights: every "
            "submission would show the same activations, and a gate on them would accept all of them",
            hint="protect a model with at least one layer before its head, or name another head",
        )
    return head


def _first(examples: Examples) -> tuple[Tensor, ...]:
    return tuple(tensor[:2] for tensor in examples.inputs)
