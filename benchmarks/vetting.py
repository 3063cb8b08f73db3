"""What vetting costs, in units of one plain evaluation pass over the trigger set.

    python -m benchmarks.vetting --out vetting.json

Claim: the paper's check alone (one forward pass that gives logits and features, and the auto-encoder) takes at most 1.2 times a
plain evaluation pass over N = 2,000 trigger images with the paper's CNN; a whole vetting under the standard detectors (admission,
a bank of 12 probes on 150 images each, 96 noise images, the extrapolated update, gradients in 20 images, merge, utility of the would-be
release) at most 3.0 times, where the trigger set, all that a submission is vetted with, has 2,000 images: 1,000 that the detectors see and 1,000
others for utility. `vet_forward_ratio_doubled` is the same with 2,000 of each, against a pass over 2,000: without a single
detector that is 2.95 passes. Runs of pass and vettings are interleaved, so that a busy machine slows both; medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.records import Record, emit
from common.devices import Compute, choose_compute
from common.evaluation import evaluate
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.training_options import TrainingOptions
from owner.detectors import Evidence
from owner.gatekeeper import Gatekeeper, GuardOptions, Triggers

N = 2000
REPEATS = 15
BATCH = 500  # of both: what is compared is the work, not the batch size
SPEC = ModelSpec("cnn", (3, 32, 32), 10)
UNIT = "x one plain evaluation pass"
COMMAND = "python -m benchmarks.vetting --out FILE"


def images(count: int, seed: int) -> Examples:
    """Random images: what is timed does not depend on what they show."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Examples((pixels,), torch.arange(count) % 10, tuple(str(c) for c in range(10)))


def medians(*actions: Callable[[], object]) -> list[float]:
    """Median seconds of each action, run in turn REPEATS times after one run to warm up."""
    seconds: list[list[float]] = [[] for _ in actions]
    for turn in range(REPEATS + 1):
        for action, found in zip(actions, seconds, strict=True):
            started = time.perf_counter()
            action()
            if turn:
                found.append(time.perf_counter() - started)
    return [statistics.median(found) for found in seconds]


def protected(model: nn.Module, compute: Compute, detectors: str, count: int = N) -> Gatekeeper:
    """A guard with `count` calibration images and as many for utility.

    Few references: how many there are costs a vetting nothing that could be measured.
    """
    return Gatekeeper.protect(
        model,
        Triggers(images(500, 0), images(count, 1), images(count, 2)),
        references_pool=images(200, 3),
        spec=SPEC,
        finetuning=TrainingOptions(epochs=1, learning_rate=0.001, schedule="constant"),
        options=GuardOptions(
            detectors=(detectors,), references=4, fitting_references=4, reject_level=0.2, quarantine_level=0.2, epochs=5
        ),
        compute=compute,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to add the figures to")
    out = parser.parse_args().out
    compute = choose_compute()
    model = build(SPEC, seed=0)
    gatekeeper, standard = (protected(model, compute, detectors) for detectors in ("paper", "standard"))
    halved = protected(model, compute, "standard", N // 2)
    guard = gatekeeper.guard
    candidate = {name: tensor * 1.001 for name, tensor in model.state_dict().items()}
    detector = guard.detectors["activation-autoencoder"]

    def paper() -> None:
        seen = gatekeeper.observe(candidate, guard.calibration.inputs)
        score = detector.score(Evidence(seen.features, seen.logits, guard.calibration.labels))
        guard.judge(detector.name, score)

    plain, check, half, double = medians(
        lambda: evaluate(model, guard.calibration, compute=compute, batch_size=BATCH),
        paper,
        lambda: halved.vet(candidate),
        lambda: standard.vet(candidate),
    )
    shared = f"{N} trigger images, cnn, {compute.to_json()}; plain pass {1000 * plain:.1f} ms"
    probed = sum(len(seen.logits) for seen in standard.guard.release_probes.values())

    def whole(name: str, seconds: float, images: int, budget: float | None) -> Record:
        forward = f"{images + probed} images are run forward, {(images + probed) / N:.2f} passes, besides those of the extrapolated update"
        about = f"{len(standard.guard.detectors)} detectors: {1000 * seconds:.1f} ms; {forward}; {shared}"
        return Record(name, round(seconds / plain, 3), UNIT, budget, COMMAND, REPEATS, notes=about)

    emit(
        [
            Record(
                "vet_paper_ratio",
                round(check / plain, 3),
                UNIT,
                1.2,
                COMMAND,
                REPEATS,
                notes=f"forward pass, auto-encoder, rule: {1000 * check:.1f} ms; {shared}",
            ),
            whole("vet_forward_ratio", half, N, 3.0),
            whole("vet_forward_ratio_doubled", double, 2 * N, None),
        ],
        out,
    )


if __name__ == "__main__":
    main()
