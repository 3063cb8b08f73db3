"""The trigger set, in three disjoint parts, so that what is fitted, what is scored and what is measured share no image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import GuardError
from common.examples import Examples

MINIMUM = 32
"""Images each part must hold. Fewer say nothing: with 32, the standard error of a mean error is still 18 % of its spread."""


@dataclass(frozen=True)
class Triggers:
    """fit: T_ae, on which detectors are fitted. calibration: T_cal, on which M, references and submissions are scored.
    evaluation: T_eval, on which accuracy and recall are measured.

    Raises GuardError for parts of other classes or inputs, of too few images, or for a class that is missing where
    it is needed (calibration, evaluation).
    """

    fit: Examples
    calibration: Examples
    evaluation: Examples

    def __post_init__(self) -> None:
        for name, part in self.parts.items():
            if part.class_names != self.fit.class_names:
                raise GuardError(f"the {name} triggers have other classes than the fit triggers")
            if [t.shape[1:] for t in part.inputs] != [t.shape[1:] for t in self.fit.inputs]:
                raise GuardError(f"the {name} triggers have inputs of another shape than the fit triggers")
            check_examples(part, f"the {name} part of the trigger set", every_class=name != "fit")

    @property
    def parts(self) -> dict[str, Examples]:
        return {"fit": self.fit, "calibration": self.calibration, "evaluation": self.evaluation}

    def to(self, device: torch.device | str) -> Triggers:
        return Triggers(*(part.to(device) for part in self.parts.values()))


def check_examples(examples: Examples, what: str, *, every_class: bool) -> None:
    """Raises GuardError for fewer than 32 examples, of fewer than two classes, or where a class must be there and is not."""
    if len(examples) < MINIMUM:
        raise GuardError(f"{what} holds {len(examples)} images, at least {MINIMUM} are needed", hint="use more data")
    counts = torch.bincount(examples.labels, minlength=examples.classes)
    if int((counts > 0).sum()) < 2:
        raise GuardError(f"{what} holds images of one class only: nothing can be learnt about telling classes apart")
    if every_class and bool((counts == 0).any()):
        absent = [examples.class_names[int(c)] for c in torch.nonzero(counts == 0).flatten()]
        raise GuardError(f"{what} holds no image of {', '.join(absent[:5])}", hint="every class must be represented")


def split_triggers(examples: Examples, *, seed: int, fit: float = 0.3, calibration: float = 0.3) -> Triggers:
    """One set of clean images into three disjoint parts, each class in proportion; the rest is the evaluation part.

    Raises GuardError as `Triggers` does.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for c in range(examples.classes):
        members = torch.nonzero(examples.labels == c).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        first, second = round(fit * len(members)), round((fit + calibration) * len(members))
        for part, indices in zip(parts, (members[:first], members[first:second], members[second:]), strict=True):
            part.append(indices)
    return Triggers(*(examples.take(torch.cat(part).sort().values) for part in parts))
