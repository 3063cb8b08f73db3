"""What the benchmark of a guard's fitting says it timed is what was made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.guard_fit import FINETUNING, POPULATION, SPEC, image_steps
from benchmarks.vetting import images
from common.devices import choose_compute
from common.models import build
from owner.gatekeeper import GuardOptions, Triggers
from owner.gatekeeper.fine_tunes import OWNER, FineTunes
from owner.gatekeeper.fitting import FittingJob
from owner.gatekeeper.protection import Protection
from owner.gatekeeper.references import ReferencePlan


def test_image_steps_are_counted_of_the_references_that_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = GuardOptions(detectors=("standard",), fitting_references=9, population=POPULATION)
    found = FittingJob(
        weights=tmp_path,
        trigger_fit=tmp_path,
        trigger_calibration=tmp_path,
        evaluation=tmp_path,
        references_pool=tmp_path,
        directory=tmp_path,
        spec=SPEC,
        options=options,
        finetuning=FINETUNING,
        compute=choose_compute("cpu", "float32"),
    )
    pool = images(500, 0)
    few = pool.take(torch.arange(100))
    planned: list[int] = []
    plan = FineTunes.plan

    def noted(self: FineTunes, number: int) -> ReferencePlan:
        planned.append(number)
        return plan(self, number)

    monkeypatch.setattr(FineTunes, "plan", noted)
    Protection(build(SPEC), "", Triggers(few, few, few), pool, SPEC, options, FINETUNING, found.compute).image_steps()
    made = [number for number in planned if number != OWNER]
    planned.clear()
    image_steps(found, pool)
    assert planned == made
