"""Vetting in a real process: submissions that sleep, allocate, crash or babble cost a process, never the owner."""

from __future__ import annotations

import dataclasses
import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.devices import Compute
from common.errors import ConfigurationError, GuardError, GuardMismatchError, StorageError
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.training_options import TrainingOptions
from common.weights import Weights, load, save
from owner.gatekeeper import Decision, Gatekeeper, GuardOptions, merge, supervisor
from owner.gatekeeper.jobs import VettingJob, describe_error, restore_error
from owner.gatekeeper.supervisor import VettingInterruptedError, VettingUnavailableError, VettingWorker
from tests.waiting import until

MODEL = """
import os, signal, sys, time
import torch
from torch import nn

class Moody(nn.Module):
    poisoned = False

    # What it does depends on one weight, which a submission sets.
    def __init__(self, shape, classes):
        super().__init__()
        self.body, self.head = nn.Linear(shape[0], 8), nn.Linear(8, classes)
        self.register_buffer("mood", torch.zeros(()))

    def forward(self, x):
        mood = round(float(self.mood))
        if mood == 5:
            Moody.poisoned = True
        if Moody.poisoned:
            raise ValueError("spoilt")
        if mood == 1:
            time.sleep(300)
        if mood == 2:
            torch.ones(4 << 30, dtype=torch.uint8)
        if mood == 3:
            os.abort()
        if mood == 4:
            raise ValueError("cannot go on\\nwith this")
        if mood == 20:
            print('{"number": 1, "verdict": {"decision": "accepted"}}' * 1000, flush=True)
        if mood == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        if mood == 7:
            while True:
                pass
        if mood == 8:
            os._exit(3)
        return self.head(torch.relu(self.body(x)))

def make(shape, classes):
    return Moody(shape, classes)
"""
COMPUTE = Compute(torch.device("cpu"), torch.float32)
SPEC = ModelSpec("moody_models:make", (4,), 3)


@dataclasses.dataclass
class Place:
    folder: Path
    weights: Weights

    def job(self, mood: float = 0.0, **changes: object) -> VettingJob:
        path = self.folder / f"submission-{mood}.safetensors"
        save(path, self.weights | {"mood": torch.tensor(float(mood))})
        job = VettingJob(
            submission_weights=path,
            base_weights=self.folder / "release.safetensors",
            current_weights=self.folder / "release.safetensors",
            guard=self.folder / "guard",
            spec=SPEC,
            would_be=self.folder / f"would-be-{mood}.safetensors",
        )
        return dataclasses.replace(job, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("supervisor")
    (folder / "moody_models.py").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        model = build(SPEC, seed=0)

        def cloud(n: int, seed: int) -> Examples:
            labels = torch.arange(n) % 3
            noise = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
            return Examples((noise + 3 * torch.nn.functional.one_hot(labels, 4),), labels, ("a", "b", "c"))

        gatekeeper = Gatekeeper.protect(
            model,
            cloud(300, 0),
            references_pool=cloud(100, 1),
            spec=SPEC,
            finetuning=TrainingOptions(epochs=1, learning_rate=0.01, batch_size=32, schedule="constant"),
            options=GuardOptions(
                detectors=("paper",), references=3, reject_level=0.25, quarantine_level=0.25, epochs=2
            ),
            compute=COMPUTE,
            progress=False,
        )
        gatekeeper.save(folder / "guard")
        save(folder / "release.safetensors", model.state_dict())
        yield Place(folder, {name: t.clone() for name, t in model.state_dict().items()})


@pytest.fixture(scope="module")
def worker(place: Place) -> Iterator[VettingWorker]:
    with VettingWorker(timeout_seconds=60, memory_mib=512) as running:
        yield running


def test_a_submission_is_vetted_and_the_would_be_release_written(place: Place, worker: VettingWorker) -> None:
    verdict = worker.vet(place.job())
    assert verdict.decision is Decision.ACCEPTED
    assert verdict.p_value is not None
    expected = merge("average", place.weights, place.weights, place.weights)
    written = load(place.job().would_be)
    assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_what_a_model_prints_never_becomes_an_answer(place: Place, worker: VettingWorker) -> None:
    assert worker.vet(place.job(20)).checks[0].name == "admission"


def test_a_submission_that_is_no_weights_file_is_rejected(place: Place, worker: VettingWorker) -> None:
    broken = place.folder / "broken.safetensors"
    broken.write_bytes(b"not weights")
    verdict = worker.vet(place.job(submission_weights=broken))
    assert (verdict.decision, verdict.public_code) == (Decision.REJECTED, "format")


@pytest.mark.parametrize(
    ("mood", "code"),
    [
        (2, "VETTING_MEMORY"),
        (3, "VETTING_CRASHED"),
        (4, "VETTING_CRASHED"),
        pytest.param(6, "VETTING_MEMORY", marks=pytest.mark.slow),
        pytest.param(8, "VETTING_CRASHED", marks=pytest.mark.slow),
    ],
)
def test_a_vetting_that_dies_waits_for_a_person_and_the_next_one_runs(
    place: Place, worker: VettingWorker, mood: int, code: str
) -> None:
    verdict = worker.vet(place.job(mood))
    assert (verdict.decision, verdict.codes, verdict.public_code) == (Decision.QUARANTINED, (code,), "review")
    assert not place.job(mood).would_be.exists()
    assert worker.vet(place.job()).decision is Decision.ACCEPTED


def test_a_process_in_which_a_vetting_failed_vets_nothing_else(place: Place, worker: VettingWorker) -> None:
    assert worker.vet(place.job(5)).codes == ("VETTING_CRASHED",)
    assert worker.vet(place.job()).decision is Decision.ACCEPTED


@pytest.mark.parametrize("mood", [1, pytest.param(7, marks=pytest.mark.slow)])
def test_a_model_that_never_returns_is_stopped_in_time(place: Place, mood: int) -> None:
    with VettingWorker(timeout_seconds=1.0, memory_mib=512) as impatient:
        impatient.start()
        started = time.monotonic()
        verdict = impatient.vet(place.job(mood))
        assert time.monotonic() - started < 60  # of the 300 that it would sleep
    assert (verdict.decision, verdict.codes) == (Decision.QUARANTINED, ("VETTING_TIMEOUT",))


def test_closing_interrupts_a_vetting_without_a_verdict(place: Place) -> None:
    running = VettingWorker(timeout_seconds=60, memory_mib=512)
    running.start()
    job = place.job(1)

    def close() -> None:
        until(lambda: running._number == 1)  # it is being vetted
        running.close()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(VettingInterruptedError, match="interrupted"):
        running.vet(job)
    closing.join()
    with pytest.raises(VettingInterruptedError, match="closed"):
        running.vet(place.job())


def test_a_guard_of_another_release_is_the_owners_trouble_and_no_verdict(place: Place, worker: VettingWorker) -> None:
    other = place.folder / "other.safetensors"
    save(other, place.weights | {"head.bias": place.weights["head.bias"] + 1})
    with pytest.raises(GuardMismatchError, match="protects"):
        worker.vet(place.job(base_weights=other))


def test_a_would_be_release_that_cannot_be_written_is_the_owners_trouble(place: Place, worker: VettingWorker) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        worker.vet(place.job(would_be=place.folder / "nowhere" / "weights.safetensors"))


def test_a_job_survives_json(place: Place) -> None:
    job = place.job(root_guard=place.folder / "guard", root_action="record")
    assert VettingJob.from_json(job.to_json()) == job


@pytest.mark.parametrize("path", ["escalation", "utility", "merge.weight", "utility.recall_drop", "spec.head"])
def test_a_job_that_lacks_a_field_is_refused_by_its_name(place: Place, path: str) -> None:
    about = inner = place.job().to_json()
    *outer, name = path.split(".")
    for one in outer:
        inner = inner[one]
    del inner[name]
    with pytest.raises(ConfigurationError, match=name):  # of which the worker makes no verdict
        VettingJob.from_json(about)


def test_the_root_guard_scores_the_would_be_release(place: Place, worker: VettingWorker) -> None:
    verdict = worker.vet(place.job(root_guard=place.folder / "guard", root_action="record"))
    assert verdict.checks[-1].name == "root-activation-autoencoder"


def test_an_error_comes_out_of_the_process_as_what_it_was_and_of_what_it_was() -> None:
    of_tier, of_disk = GuardMismatchError("the tier is another guard's", hint="none"), StorageError("full")
    of_tier.of = "escalation"
    found, other = restore_error(describe_error(of_tier)), restore_error(describe_error(of_disk))
    assert isinstance(found, GuardMismatchError)
    assert (found.message, found.hint, found.of) == ("the tier is another guard's", "none", "escalation")
    assert (type(other), other.message) == (StorageError, "full")
    assert restore_error({"kind": "GuardError", "message": "", "of": "nothing"}).of == GuardError.of  # type: ignore[attr-defined]


def test_a_process_that_cannot_be_started_is_the_machines_trouble(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with VettingWorker() as running:
        with monkeypatch.context() as patch:
            patch.setattr(supervisor.subprocess, "Popen", exhausted)
            with pytest.raises(VettingUnavailableError, match="Too many open files"):
                running.vet(place.job())
        running.start()
