"""What the records say, cell by cell: a value for each seed that was run, none where nothing was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from owner.reproduce.records import Record
from owner.reproduce.steps import Step

NOT_RUN = "not run"


@dataclass(frozen=True)
class Results:
    """Every record of one work folder."""

    records: Mapping[Step, Record]

    def of(self, architecture: str, name: str) -> dict[int, Record]:
        """By seed."""
        found = [(s.seed, r) for s, r in self.records.items() if (s.architecture, s.name) == (architecture, name)]
        return dict(sorted(found))

    def accuracy(self, architecture: str, name: str) -> list[float]:
        """Of `genuine`, `part`, `jpeg`, or of a fine-tune by its case: `honest-short`, `flip-long`, `part-flip-short` ..."""
        if name in {"genuine", "part", "jpeg"}:
            return [record["accuracy"] for record in self.of(architecture, name).values()]
        return self.measured(architecture, name, "accuracy")

    def measured(self, architecture: str, case: str, what: str) -> list[float]:
        """`success`, `held_out_success` ... of one fine-tuned model, over seeds."""
        step, _, duration = case.rpartition("-")
        models = [record["models"].get(duration, {}) for record in self.of(architecture, step).values()]
        return [model[what] for model in models if what in model]

    def before(self, architecture: str, case: str, what: str) -> list[float]:
        """The same of the model it was fine-tuned from: what the attack has not caused."""
        step = case.rpartition("-")[0]
        return [record["base"][what] for record in self.of(architecture, step).values() if what in record["base"]]

    def verdicts(self, architecture: str, case: str, *, step: str = "detect") -> list[dict[str, Any]]:
        """By the paper's rule (`detect`, `part-detect` ...) or the calibrated gate (`gate`, its cases begin with their group)."""
        return list(self.verdicts_by_seed(architecture, case, step=step).values())

    def verdicts_by_seed(self, architecture: str, case: str, *, step: str) -> dict[int, dict[str, Any]]:
        found = self.of(architecture, step).items()
        return {seed: record["verdicts"][case] for seed, record in found if case in record["verdicts"]}

    @property
    def seeds(self) -> list[int]:
        return sorted({step.seed for step in self.records})


def mean(values: Sequence[float]) -> float | None:
    """
    >>> mean([0.5, 1.0]), mean([])
    (0.75, None)
    """
    return sum(values) / len(values) if values else None


def shares(values: Sequence[float]) -> str:
    """Percent: one value as it is, several as their mean and, in square brackets, their range (round ones hold the paper's figure).

    >>> shares([0.8715]), shares([0.87, 0.89]), shares([])
    ('87.15', '88.00 [87.00 to 89.00]', 'not run')
    """
    middle = mean(values)
    if middle is None:
        return NOT_RUN
    text = f"{100 * middle:.2f}"
    if len(values) > 1:
        text += f" [{100 * min(values):.2f} to {100 * max(values):.2f}]"
    return text


def told(detected: Sequence[bool], no: str = "NO") -> str:
    """A bare word is one seed's.

    >>> told([True]), told([False]), told([False, False]), told([True, False, True]), told([])
    ('yes', 'NO', 'NO in 2 of 2 seeds', 'yes in 2 of 3 seeds', 'not run')
    """
    if not detected:
        return NOT_RUN
    said, most = ("yes", sum(detected)) if any(detected) else (no, len(detected))
    return said if len(detected) == 1 else f"{said} in {most} of {len(detected)} seeds"


def signed(values: Sequence[float | None]) -> str:
    """Of what is known: one value as it is, several as their mean and range; "" of nothing.

    >>> signed([0.5]), signed([0.5, -0.25]), signed([None])
    ('+0.50', '+0.12 [-0.25 to +0.50]', '')
    """
    known = [value for value in values if value is not None]
    middle = mean(known)
    if middle is None:
        return ""
    return f"{middle:+.2f}" + (f" [{min(known):+.2f} to {max(known):+.2f}]" if len(known) > 1 else "")
