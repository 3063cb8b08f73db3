"""Honest fine-tunes of M, each a function of the seed and its number: made once to be scored, and again when they are needed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from common.devices import Compute
from common.examples import Examples
from common.training import TrainingReport, train
from common.training_options import TrainingOptions
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.references import ReferencePlan, plan_owner_finetune, plan_reference

OWNER = -1
"""Number of the owner's own fine-tune, M_f of Eq. 4."""

_CHECKPOINT_SECONDS = 5.0
"""On a GPU an epoch of a reference is shorter than the writing of its state."""


def checkpoint_name(number: int) -> str:
    """Of the file that an unfinished fine-tune is kept in, up to the attempt."""
    return f"training-{number}-"


@dataclass(frozen=True)
class FineTunes:
    """model: M, left as it is. pool: images it has not seen. options: of the guard; their seed and population say how the
    fine-tunes differ. finetuning: what contributors are asked to do.

    The same number and attempt give the same weights, bit for bit on one machine with as many threads, and on another one
    a fine-tune of the same kind.
    """

    model: nn.Module
    pool: Examples
    options: GuardOptions
    finetuning: TrainingOptions
    compute: Compute

    def plan(self, number: int, attempt: int = 0) -> ReferencePlan:
        pool, seed = self.pool, self.options.seed
        if number == OWNER:
            return plan_owner_finetune(pool, self.finetuning, seed=seed)
        return plan_reference(
            number,
            pool=pool,
            recommended=self.finetuning,
            population=self.options.population,
            seed=seed,
            attempt=attempt,
        )

    def make(
        self, number: int, attempt: int = 0, *, head: str, directory: Path | None = None
    ) -> tuple[nn.Module, ReferencePlan, TrainingReport]:
        """The fine-tuned model, how it was made, and what training it took; from a checkpoint in `directory` where there is one.

        Raises ModelError where it diverges.
        """
        plan, model = self.plan(number, attempt), copy.deepcopy(self.model)
        report = train(
            model,
            plan.examples(self.pool),
            plan.options,
            compute=self.compute,
            head=head,
            checkpoint=directory and directory / f"{checkpoint_name(number)}{attempt}",
            checkpoint_seconds=_CHECKPOINT_SECONDS,
            progress=False,
        )
        return model, plan, report
