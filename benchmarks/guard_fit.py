"""How long the guard of the paper's CNN takes to fit: 99 calibrating and 33 fitting references under the standard detectors.

    PORTIER_DATA=... python -m benchmarks.guard_fit --out guard.json     # CIFAR-10; random images without $PORTIER_DATA
    python -m benchmarks.guard_fit --references 19 --fitting 9           # fewer, to see that it runs: no budget

Claim: at most 20 minutes on 2 cores that compute bfloat16, where a reference is 20,000 image-steps on average. It is the job that
an owner's service starts: the fitting process, its assistants, one core each. What the images show does not change the time; so M is
trained for one epoch only.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.records import Record, emit
from benchmarks.vetting import images
from common.datasets import load, save_examples
from common.devices import choose_compute
from common.errors import DataError
from common.examples import Examples
from common.files import ensure_directory
from common.model_spec import ModelSpec
from common.models import build
from common.training import train
from common.training_options import TrainingOptions
from common.weights import save as save_weights
from owner.gatekeeper import GuardOptions, HonestPopulation, Triggers
from owner.gatekeeper.fitting import FittingJob
from owner.gatekeeper.own_processes import command
from owner.gatekeeper.protection import Protection

BUDGET = 20.0
SPEC = ModelSpec("cnn", (3, 32, 32), 10)
POOL = 10_000
FINETUNING = TrainingOptions(epochs=4, learning_rate=0.006, augmentation="crop-flip")
POPULATION = HonestPopulation(sizes=(2500, 7500))


def material() -> tuple[Examples, str]:
    """(N, 3, 32, 32) images of the reference pool and the trigger set, and what they are."""
    try:
        return load("cifar10").train.take(torch.arange(POOL + 6000)), "CIFAR-10"
    except DataError:
        return images(POOL + 6000, 0), "random images"


def job(folder: Path, references: int, fitting: int) -> tuple[FittingJob, int, str]:
    """Everything the fitting process reads, in `folder`; how many image-steps it will train; and what the images are."""
    compute = choose_compute("cpu")
    examples, what = material()
    pool, fit, calibration, evaluation = (
        examples.take(torch.arange(start, stop))
        for start, stop in ((0, POOL), (POOL, POOL + 2000), (POOL + 2000, POOL + 4000), (POOL + 4000, POOL + 6000))
    )
    model = build(SPEC, seed=0)
    train(model, pool, TrainingOptions(epochs=1, learning_rate=0.02), compute=compute, progress=False)
    paths = {
        name: ensure_directory(folder) / f"{name}.safetensors" for name in ("weights", "pool", "fit", "cal", "eval")
    }
    save_weights(paths["weights"], dict(model.state_dict()))
    for name, part in (("pool", pool), ("fit", fit), ("cal", calibration), ("eval", evaluation)):
        save_examples(paths[name], part)
    options = GuardOptions(
        detectors=("standard",),
        references=references,
        fitting_references=fitting,
        reject_level=max(0.05, 1 / (references + 1)),
        quarantine_level=max(0.10, 1 / (references + 1)),
        population=POPULATION,
    )
    found = FittingJob(
        weights=paths["weights"],
        trigger_fit=paths["fit"],
        trigger_calibration=paths["cal"],
        evaluation=paths["eval"],
        references_pool=paths["pool"],
        directory=folder / "guard",
        spec=SPEC,
        options=options,
        finetuning=FINETUNING,
        compute=compute,
    )
    triggers = Triggers(fit, calibration, evaluation)
    steps = Protection(model, "", triggers, pool, SPEC, options, FINETUNING, compute).image_steps()
    return found, steps, what


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, default=99)
    parser.add_argument("--fitting", type=int, default=33)
    parser.add_argument("--out", type=Path, help="JSON file to add the figure to")
    arguments = parser.parse_args()
    whole = (arguments.references, arguments.fitting) == (99, 33)
    if arguments.out and not whole:
        parser.error("--out takes the figure of 99 + 33 references alone")
    with tempfile.TemporaryDirectory() as scratch:
        found, steps, what = job(Path(scratch), arguments.references, arguments.fitting)
        found.write(Path(scratch) / "job.json")
        started = time.perf_counter()
        subprocess.run(command("owner.gatekeeper.fitting", str(Path(scratch) / "job.json")), check=True)
        minutes = (time.perf_counter() - started) / 60
    count = 1 + arguments.references + arguments.fitting
    notes = (
        f"{count} fine-tunes (the owner's own among them) of {steps / count:,.0f} image-steps on average, "
        f"{steps / minutes / 60:,.0f} a second; {what}, cnn, {found.compute.to_json()}, {torch.get_num_threads()} cores"
    )
    record = Record(
        "guard_minutes",
        round(minutes, 1),
        "min",
        BUDGET if whole else None,
        "python -m benchmarks.guard_fit",
        1,
        notes=notes,
    )
    emit([record], arguments.out if whole else None)


if __name__ == "__main__":
    main()
