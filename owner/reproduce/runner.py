"""Runs what is missing, a step after the other or several at a time; what was interrupted goes on from its checkpoint."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from common.devices import Compute
from common.errors import ConfigurationError, ModelError
from common.files import ensure_directory
from common.model_spec import ModelSpec
from owner.reproduce.detection import run_detection
from owner.reproduce.engine import CHECKPOINT_SECONDS, Compile, Engine, StoppedError
from owner.reproduce.gate import run_gate
from owner.reproduce.images import Images
from owner.reproduce.processes import Job, run_in_processes
from owner.reproduce.records import Record, Work, torn_apart
from owner.reproduce.schedule import Schedule, duration
from owner.reproduce.settings import Settings
from owner.reproduce.speed import Estimates, code, environment
from owner.reproduce.steps import Step, step_names
from owner.reproduce.stopwatch import Stopwatch
from owner.reproduce.training import run_training
from owner.reproduce.variants import run_variants

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Pending:
    """A step that is still to be run. seconds: that it is estimated to take yet. started: whether it left a checkpoint."""

    step: Step
    seconds: float
    started: bool


class Runner:
    """compile, checkpoint_seconds: see `Engine`. deadline: on `clock`, after which no further epoch begins. tell: is given a
    line on each step as it ends, and where several run at a time as it begins. parallel: how many do, on a CPU; each is a
    process, and torch's threads are shared out among them.

    Raises ConfigurationError for several steps at a time on another device.
    """

    def __init__(
        self,
        settings: Settings,
        images: Images,
        work: Work,
        compute: Compute,
        *,
        compile: Compile = "auto",
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        tell: Tell = lambda _line: None,
        progress: bool | None = None,
        parallel: int = 1,
    ) -> None:
        if parallel > 1 and compute.device.type != "cpu":
            raise ConfigurationError(
                f"{parallel} steps at a time would share one {compute.device}",
                hint="leave --parallel out, or --device cpu",
            )
        self.settings, self.images, self.work, self.compute = settings, images, work, compute
        self._compile, self._checkpoint_seconds = compile, checkpoint_seconds
        self._deadline, self._clock, self._tell, self._progress = deadline, clock, tell, progress
        self._parallel = parallel
        code()  # of what is imported now, not of what the files hold when the first step ends
        self._engine: Engine | None = None
        self._stopwatch: Stopwatch | None = None

    def pending(self, steps: Sequence[Step]) -> list[Step]:
        """Those without a record, or with one of other models than those beside it, in order, each after the trainings whose weights it
        needs and that are not here (where records came from another machine)."""
        found: dict[Step, None] = {}
        records = self.work.records()
        missing = set(torn_apart(records))

        def add(step: Step) -> None:
            for name in step.needs:
                needed = step.sibling(name)
                if needed not in records or needed in missing or not self.work.has_weights(needed):
                    add(needed)
            found[step] = None

        for step in steps:
            if step not in records or step in missing:
                add(step)
        return list(found)

    def perhaps_again(self, steps: Sequence[Step]) -> list[Step]:
        """Steps that are done, and are not any more where a training that these make pending gives other weights than it gave elsewhere."""
        records = self.work.records()
        pending = set(self.pending(steps))
        changed, found = {step for step in pending if step in records}, dict.fromkeys(pending)
        while more := [
            step for step in records if step not in found and any(step.sibling(name) in changed for name in step.needs)
        ]:
            found |= dict.fromkeys(more)
            changed |= set(more)
        return [step for step in found if step not in pending]

    def plan(self, steps: Sequence[Step]) -> list[Pending]:
        records = self.work.records()
        found = []
        for step in self.pending(steps):
            size = self.images.training_size(step.architecture)
            estimates = Estimates(self.settings, self.compute, size, records.items(), threads=self._threads)
            seconds = estimates.seconds(step, self.spec(step.architecture))
            begun = self._begun(step)
            found.append(Pending(step, max(0.0, seconds - (self.work.spent(step) if begun else 0.0)), begun))
        return found

    def duration(self, pending: Sequence[Pending]) -> float:
        """Seconds until all of them are done, as many at a time as this runner has."""
        seconds = {one.step: one.seconds for one in pending}
        return duration(list(seconds), seconds.__getitem__, self._parallel)

    def run(self, steps: Sequence[Step]) -> bool:
        """Whether all is done; not so where the deadline came first. What is done is kept.

        Raises what a step raises; where a training diverges (ModelError), after all steps that do not depend on it.
        WorkspaceError where another command is at work in the folder.
        """
        with self.work.writing():
            done, failed = self._run_pending(steps)
            # A training that was made again, because its weights were elsewhere, may have come out otherwise: then what was made from it
            # is pending once more. Fine-tunes of fine-tunes there are none, so twice is enough.
            for _ in range(2):
                if done and not failed and self.pending(steps):
                    done, failed = self._run_pending(steps)
        if done and failed:
            raise failed[0]
        return done

    def _run_pending(self, steps: Sequence[Step]) -> tuple[bool, list[ModelError]]:
        """Whether all was done that could be, and what diverged."""
        missing = self.pending(steps)
        schedule = Schedule(missing)

        def tell(step: Step, what: str) -> None:
            self._tell(f"{missing.index(step) + 1}/{len(missing)} {step}: {what}")

        def ended(step: Step, error: ModelError | None) -> None:
            tell(step, headline(self.work.record(step) or {}) if error is None else f"failed: {error.message}")

        if self._parallel > 1:
            done = run_in_processes(schedule, self._job(), begun=lambda step: tell(step, "begun"), ended=ended)
        else:
            done = self._in_turn(schedule, ended)
        return done, list(schedule.failed.values())

    def run_step(self, step: Step) -> None:
        """One step, whose needs are there, and its record. Raises StoppedError where the deadline came first."""
        self._check_deadline()
        ensure_directory(self.work.folder(step))
        self._stopwatch = Stopwatch(self.work, step, every=self._checkpoint_seconds)
        try:
            self._run(step, self._stopwatch)
        except BaseException:
            self._stopwatch.keep(at_once=True)
            raise
        finally:
            self._stopwatch = None

    @property
    def _threads(self) -> int:
        """Of torch, of each process."""
        return max(1, torch.get_num_threads() // self._parallel)

    def _in_turn(self, schedule: Schedule, ended: Callable[[Step, ModelError | None], None]) -> bool:
        while (step := schedule.begin()) is not None:
            failure = None
            try:
                self.run_step(step)
            except StoppedError:
                return False
            except ModelError as error:
                failure = error
            schedule.end(step, failure)
            ended(step, failure)
        return True

    def _job(self) -> Job:
        left = None if self._deadline is None else self._deadline - self._clock()
        return Job(
            self.settings,
            self.images.data_dir,
            self.images.download,
            self.work,
            self.compute,
            self._compile,
            self._checkpoint_seconds,
            ends_at=None if left is None else time.time() + left,
            threads=self._threads,
            processes=self._parallel,
        )

    def spec(self, architecture: str) -> ModelSpec:
        return ModelSpec(architecture, self.images.input_shape, len(self.images.class_names))

    def _run(self, step: Step, stopwatch: Stopwatch) -> None:
        resumed = self._begun(step)
        engine = self._engine_of(step.architecture)
        arguments = (step, engine, self.images, self.settings, self.work)
        if step.name == "gate":
            result = run_gate(*arguments, progress=self._progress)
        elif step.name == "variants":
            result = run_variants(*arguments)
        elif step.is_judgement:
            result = run_detection(*arguments)
        else:
            result = run_training(*arguments, progress=self._progress)
        record: Record = {
            **result,
            "seconds": round(stopwatch.seconds, 2),
            "resumed": resumed,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "data": self.images.provenance,
            "environment": environment(self.compute, compiled=engine.compiled, processes=self._parallel)
            | _note(engine),
        }
        if step.is_scratch:  # a checkpoint of another M's fine-tune would be refused, again and again
            for name in step_names():
                dependent = step.sibling(name)
                if step.name in dependent.needs:
                    self.work.checkpoint_path(dependent).unlink(missing_ok=True)
        self.work.write(step, record)
        self.work.checkpoint_path(step).unlink(missing_ok=True)
        if step.name == "gate":
            shutil.rmtree(self.work.folder(step) / "gate", ignore_errors=True)

    def _engine_of(self, architecture: str) -> Engine:
        if self._engine is None or self._engine.spec.architecture != architecture:
            self._engine = Engine(
                self.spec(architecture),
                self.compute,
                compile=self._compile,
                check_deadline=self._between_epochs,
                checkpoint_seconds=self._checkpoint_seconds,
            )
        return self._engine

    def _begun(self, step: Step) -> bool:
        if step.name == "gate":
            return any(self.work.folder(step).glob("gate/*"))
        return self.work.checkpoint_path(step).exists()

    def _between_epochs(self) -> None:
        if self._stopwatch is not None:
            self._stopwatch.keep()
        self._check_deadline()

    def _check_deadline(self) -> None:
        if self._deadline is not None and self._clock() > self._deadline:
            raise StoppedError


def headline(record: Record) -> str:
    """One line on one record, for whoever watches.

    >>> headline({"accuracy": 0.8715, "seconds": 61.0})
    'accuracy 87.15 % in 61 s'
    """
    parts: list[str] = []
    if "accuracy" in record:
        parts.append(f"accuracy {100 * record['accuracy']:.2f} %")
    for name, model in record.get("models", {}).items():
        if "accuracy" in model:
            success = f", success {100 * model['success']:.1f} %" if "success" in model else ""
            parts.append(f"{name} accuracy {100 * model['accuracy']:.2f} %{success}")
    for name, verdict in record.get("verdicts", {}).items():
        said: Any = verdict.get("decision") or ("detected" if verdict["detected"] else "missed")
        parts.append(f"{name} {said}")
    if "variants" in record:
        parts.append(f"{len(record['variants'])} auto-encoders")
    rate = record.get("speed", {}).get("images_per_second")
    return "; ".join(parts) + f" in {record['seconds']:.0f} s" + (f", {rate:.0f} images/s" if rate else "")


def in_words(seconds: float) -> str:
    """
    >>> in_words(42), in_words(600), in_words(7300)
    ('42 s', '10 min', '2.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _note(engine: Engine) -> dict[str, str]:
    return {"note": engine.note} if engine.note else {}
