"""Runs what is missing, a step after the other; a step that was interrupted goes on from its checkpoint."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from common.devices import Compute
from common.errors import ModelError
from common.files import ensure_directory
from common.model_spec import ModelSpec
from owner.reproduce.detection import run_detection
from owner.reproduce.engine import CHECKPOINT_SECONDS, Compile, Engine, StoppedError
from owner.reproduce.gate import run_gate
from owner.reproduce.images import Images
from owner.reproduce.records import Record, Work
from owner.reproduce.settings import Settings
from owner.reproduce.speed import Estimates, environment
from owner.reproduce.steps import Step
from owner.reproduce.training import run_training

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Pending:
    """A step that is still to be run. seconds: estimated, from the beginning. started: whether it left a checkpoint."""

    step: Step
    seconds: float
    started: bool


class Runner:
    """compile, checkpoint_seconds: see `Engine`. deadline: on `clock`, after which no further epoch begins. tell: is given a
    line on each step as it ends."""

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
    ) -> None:
        self.settings, self.images, self.work, self.compute = settings, images, work, compute
        self._compile, self._checkpoint_seconds = compile, checkpoint_seconds
        self._deadline, self._clock, self._tell, self._progress = deadline, clock, tell, progress
        self._engine: Engine | None = None

    def pending(self, steps: Sequence[Step]) -> list[Step]:
        """Those without a record, in order, each after the trainings whose weights it needs and that are not here (where
        records came from another machine)."""
        found: dict[Step, None] = {}

        def add(step: Step) -> None:
            for name in step.needs:
                needed = Step(step.architecture, step.seed, name)
                if not self.work.record_path(needed).exists() or not self._has_weights(needed):
                    add(needed)
            found[step] = None

        for step in steps:
            if not self.work.record_path(step).exists():
                add(step)
        return list(found)

    def plan(self, steps: Sequence[Step]) -> list[Pending]:
        records = self.work.records()
        found = []
        for step in self.pending(steps):
            size = self.images.training_size(step.architecture)
            estimates = Estimates(self.settings, self.compute, size, records.items())
            seconds = estimates.seconds(step, self.spec(step.architecture))
            found.append(Pending(step, seconds, self._begun(step)))
        return found

    def run(self, steps: Sequence[Step]) -> bool:
        """Whether all is done; not so where the deadline came first. What is done is kept.

        Raises what a step raises; where a training diverges (ModelError), after all steps that do not depend on it.
        """
        missing = self.pending(steps)
        failed: dict[Step, ModelError] = {}
        for number, step in enumerate(missing, 1):
            needs = [Step(step.architecture, step.seed, name) for name in step.needs]
            if broken := next((needed for needed in needs if needed in failed), None):
                failed[step] = failed[broken]
                continue
            try:
                self._check_deadline()
                record = self._run(step)
            except StoppedError:
                return False
            except ModelError as error:
                failed[step] = error
                self._tell(f"{number}/{len(missing)} {step}: failed: {error.message}")
                continue
            self._tell(f"{number}/{len(missing)} {step}: {headline(record)}")
        if failed:
            raise next(iter(failed.values()))
        return True

    def spec(self, architecture: str) -> ModelSpec:
        return ModelSpec(architecture, self.images.input_shape, len(self.images.class_names))

    def _run(self, step: Step) -> Record:
        started, resumed = time.perf_counter(), self._begun(step)
        engine = self._engine_of(step.architecture)
        ensure_directory(self.work.folder(step))
        arguments = (step, engine, self.images, self.settings, self.work)
        if step.name == "gate":
            result = run_gate(*arguments, progress=self._progress)
        elif step.name in {"detect", "part-detect"}:
            result = run_detection(*arguments)
        else:
            result = run_training(*arguments, progress=self._progress)
        record: Record = {
            **result,
            "seconds": round(time.perf_counter() - started, 2),
            "resumed": resumed,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "data": self.images.provenance,
            "environment": environment(self.compute, compiled=engine.compiled) | _note(engine),
        }
        self.work.write(step, record)
        if step.name == "gate":
            shutil.rmtree(self.work.folder(step) / "gate", ignore_errors=True)
        return record

    def _engine_of(self, architecture: str) -> Engine:
        if self._engine is None or self._engine.spec.architecture != architecture:
            self._engine = Engine(
                self.spec(architecture),
                self.compute,
                compile=self._compile,
                check_deadline=self._check_deadline,
                checkpoint_seconds=self._checkpoint_seconds,
            )
        return self._engine

    def _begun(self, step: Step) -> bool:
        if step.name == "gate":
            return any(self.work.folder(step).glob("gate/*"))
        return self.work.checkpoint_path(step).exists()

    def _check_deadline(self) -> None:
        if self._deadline is not None and self._clock() > self._deadline:
            raise StoppedError

    def _has_weights(self, step: Step) -> bool:
        names = [step.name]
        if step.kind is not None:
            durations = ("short",) if step.name.startswith("part") else ("short", "long")
            names = [f"{step.name}-{duration}" for duration in durations]
        return all(self.work.weights_path(step, name).exists() for name in names)


def headline(record: Record) -> str:
    """One line on one record, for whoever watches.

    >>> headline({"accuracy": 0.8715, "seconds": 61.0})
    'accuracy 87.15 % in 61 s'
    """
    parts: list[str] = []
    if "accuracy" in record:
        parts.append(f"accuracy {100 * record['accuracy']:.2f} %")
    for duration, model in record.get("models", {}).items():
        if "accuracy" in model:
            success = f", success {100 * model['success']:.1f} %" if "success" in model else ""
            parts.append(f"{duration} accuracy {100 * model['accuracy']:.2f} %{success}")
    for name, verdict in record.get("verdicts", {}).items():
        said: Any = verdict.get("decision") or ("detected" if verdict["detected"] else "missed")
        parts.append(f"{name} {said}")
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
