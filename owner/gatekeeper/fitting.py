"""Fitting a guard, or calibrating its escalation tier, in a process of its own: `python -m owner.gatekeeper.fitting JOB.json`,
or making a share of its fine-tunes (`JOB.json 1/2`).

The process may be killed at any time and started again: finished references are kept, and a guard is either whole or not
there. It ends with the process that started it. It writes one JSON line a fine-tune to standard output, `{"done": 3, "total": 20, "scores": {...}}`, ends with 0 once
the guard stands, and otherwise with an error's exit code and its message on standard error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import nn

from common import canonical
from common.datasets import load_examples
from common.devices import Compute
from common.errors import ConfigurationError, GuardError, ModelError, PortierError, WireError
from common.files import ensure_directory, read_bounded, write_atomically
from common.model_spec import ModelSpec
from common.models import build
from common.training_options import TrainingOptions
from common.weights import digest_file
from common.weights import load as load_weights
from owner.gatekeeper.assistants import Assistants, Share
from owner.gatekeeper.calibrating import calibrate
from owner.gatekeeper.detector_modules import import_modules
from owner.gatekeeper.escalation import Escalation, escalation_path
from owner.gatekeeper.fine_tunes import FineTunes
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.guard_files import settle
from owner.gatekeeper.incremental import BigNewsError, small_news
from owner.gatekeeper.limits import forbid_core_dumps
from owner.gatekeeper.merging import MergePolicy
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.protection import OnReference, Protection
from owner.gatekeeper.stored import whole
from owner.gatekeeper.transplants import KEPT, Transplants
from owner.gatekeeper.triggers import Triggers
from owner.gatekeeper.usefulness import Usefulness, usefulness_of
from owner.gatekeeper.utility import UtilityLimits

_PARENT_SECONDS = 0.2
_WORTH_SHARING = 500_000
"""Images times epochs for each process that is asked to help. It takes seconds to start, holds the data, and learns what the
detectors know of M once more; so many steps are minutes for a CNN."""
_PATHS = ("weights", "trigger_fit", "trigger_calibration", "evaluation", "references_pool", "directory")


@dataclass(frozen=True)
class FittingJob:
    """weights: the release. trigger_fit, trigger_calibration, evaluation, references_pool: examples files.
    directory: where the guard goes. Unfinished work lies beside it, in a folder of the same name with `.work` appended.
    what: the guard, or the escalation tier of the guard that stands in `directory`.
    parent_guard, parent_weights: of the release before it, where there is one: with `options.incremental` its fine-tunes are taken
        over if this release is small news. fresh: train all the same.
    utility, merging: as in `Protection`.
    modules: with detectors of one's own, from the owner's settings; no guard holds them.
    """

    weights: Path
    trigger_fit: Path
    trigger_calibration: Path
    evaluation: Path
    references_pool: Path
    directory: Path
    spec: ModelSpec
    options: GuardOptions
    finetuning: TrainingOptions
    compute: Compute
    what: Literal["guard", "escalation"] = "guard"
    parent_guard: Path | None = None
    parent_weights: Path | None = None
    fresh: bool = False
    utility: UtilityLimits | None = None
    merging: MergePolicy = field(default_factory=MergePolicy)
    modules: tuple[str, ...] = ()

    @property
    def usefulness(self) -> Usefulness | None:
        return usefulness_of(self.options, self.utility, self.merging)

    @property
    def work(self) -> Path:
        return work_path(self.directory)

    @property
    def escalation(self) -> Path:
        return escalation_path(self.directory)

    @property
    def escalation_work(self) -> Path:
        return self.directory.with_name(self.directory.name + ".escalation.work")

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: str(Path(getattr(self, name)).absolute()) for name in _PATHS},
            "spec": self.spec.to_json(),
            "options": self.options.to_json(),
            "finetuning": self.finetuning.to_json(),
            "compute": self.compute.to_json(),
            "what": self.what,
            "parent_guard": None if self.parent_guard is None else str(self.parent_guard.absolute()),
            "parent_weights": None if self.parent_weights is None else str(self.parent_weights.absolute()),
            "fresh": self.fresh,
            "utility": None if self.utility is None else self.utility.to_json(),
            "merge": self.merging.to_json(),
            "modules": list(self.modules),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Imports the job's modules, whose detectors its options may name. Raises ConfigurationError where something is missing."""
        try:
            modules = tuple(data["modules"])
            import_modules(modules)
            return cls(
                **{name: Path(data[name]) for name in _PATHS},
                spec=ModelSpec.from_json(whole(data["spec"], ModelSpec, "the fields of the model")),
                options=GuardOptions.from_json(data["options"]),
                finetuning=TrainingOptions.from_json(
                    whole(data["finetuning"], TrainingOptions, "the training options")
                ),
                compute=Compute.from_json(data["compute"]),
                what=data["what"],
                parent_guard=_path(data, "parent_guard"),
                parent_weights=_path(data, "parent_weights"),
                fresh=bool(data["fresh"]),
                utility=None if data["utility"] is None else UtilityLimits.from_json(data["utility"]),
                merging=MergePolicy.from_json(data["merge"]),
                modules=modules,
            )
        except (KeyError, TypeError) as error:
            raise ConfigurationError(f"the fitting job is incomplete: {error}") from error

    def write(self, path: Path) -> None:
        write_atomically(path, canonical.encode(self.to_json()))


def work_path(guard: Path) -> Path:
    """Where the unfinished work on the guard in the folder `guard` lies."""
    return guard.with_name(f"{guard.name}.work")


def _path(data: Mapping[str, Any], name: str) -> Path | None:
    return None if data[name] is None else Path(data[name])


def fit(job: FittingJob, *, progress: bool | None = None, on_reference: OnReference | None = None) -> Guard:
    """Fit, save and return the guard; at once where it already stands for the same release, options and compute.

    Much work on a CPU is shared with other processes, as many as torch may use threads; then each fine-tune is made on one.
    `Guard.provenance` says whether its fine-tunes were taken over from the release before, and if that was wanted and could not
    be, why.
    """
    digest = digest_file(job.weights)
    settle(job.directory)
    guard = _earlier(job)
    if guard is None or not _is_wanted(guard, job, digest):
        guard = _fit(job, digest, guard, progress, on_reference)
    # Also that of a process which was killed when its guard stood.
    shutil.rmtree(job.work, ignore_errors=True)
    return guard


def _fit(
    job: FittingJob, digest: str, earlier: Guard | None, progress: bool | None, on_reference: OnReference | None
) -> Guard:
    protection, why = _protection(job, digest, earlier)
    with _assistants(job, protection) as assistants:
        guard = protection.fit(directory=job.work, progress=progress, on_reference=on_reference, assistants=assistants)
    if why:
        guard = dataclasses.replace(guard, provenance={"trained": why})
    kept = [Protection.kept_in(job.work, guard)]
    if earlier is not None and earlier.key == guard.key:  # it was grown, and its fine-tunes were not made again
        kept.append(job.directory / KEPT)
    guard.save(job.directory, kept=kept if job.options.incremental else ())
    return guard


def assist(job: FittingJob, share: Share) -> None:
    """Make a share of the fine-tunes that `fit` of the same job waits for."""
    protection, _ = _protection(job, digest_file(job.weights), _earlier(job))
    protection.assist(job.work, share)


def _protection(job: FittingJob, digest: str, earlier: Guard | None) -> tuple[Protection, str]:
    """With why the fine-tunes of the release before were not taken over though that was wanted, "" otherwise."""
    model = _release(job, digest)
    transplants, why = _transplants(job, model)
    parts = (load_examples(path) for path in (job.trigger_fit, job.trigger_calibration, job.evaluation))
    return Protection(
        model=model,
        release_sha256=digest,
        triggers=Triggers(*parts),
        references_pool=load_examples(job.references_pool),
        spec=job.spec,
        options=job.options,
        finetuning=job.finetuning,
        compute=job.compute,
        known=earlier,
        keep=job.options.incremental,
        transplants=transplants,
        utility=job.utility,
        merging=job.merging,
    ), why


@contextmanager
def _assistants(job: FittingJob, protection: Protection) -> Iterator[Assistants | None]:
    """None where the work is not worth another process."""
    threads = torch.get_num_threads()
    count = min(threads - 1, protection.image_steps() // _WORTH_SHARING)
    if job.compute.device.type != "cpu" or count < 1:
        yield None
        return
    path = ensure_directory(job.work) / "job.json"
    job.write(path)
    torch.set_num_threads(1)
    try:
        with Assistants(path, count) as assistants:
            yield assistants
    finally:
        torch.set_num_threads(threads)


def fit_escalation(
    job: FittingJob, *, progress: bool | None = None, on_reference: OnReference | None = None
) -> Escalation:
    """Calibrate, save and return the escalation tier that the guard in `job.directory` asks for; at once where it stands.

    Everything that decides it comes from that guard, whatever the settings have become since it was fitted.
    Raises GuardError where there is no guard or it has no such tier, GuardMismatchError, ModelError, StorageError.
    """
    guard = Guard.load(job.directory)
    digest = digest_file(job.weights)
    guard.check_release(digest)
    try:
        tier = Escalation.load(job.escalation)
    except PortierError:
        tier = None
    if tier is None or not tier.fits(guard):
        pool = load_examples(job.references_pool)
        tier = calibrate(
            guard,
            FineTunes(_release(job, digest), pool, guard.options, guard.finetuning, guard.compute),
            directory=job.escalation_work,
            known=tier,
            progress=progress,
            on_reference=on_reference,
        )
        tier.save(job.escalation)
    shutil.rmtree(job.escalation_work, ignore_errors=True)
    return tier


def _release(job: FittingJob, digest: str) -> nn.Module:
    model = build(job.spec)
    try:
        model.load_state_dict(load_weights(job.weights, digest=digest))
    except RuntimeError as error:
        raise ModelError(f"the weights in {job.weights} do not fit {job.spec.architecture}: {error}") from error
    return model


def _transplants(job: FittingJob, model: nn.Module) -> tuple[Transplants | None, str]:
    """None, and why not, where the fine-tunes have to be trained; "" where nothing else was wanted."""
    if not job.options.incremental or job.fresh or job.parent_guard is None or job.parent_weights is None:
        return None, ""
    try:
        found = small_news(
            job.parent_guard,
            job.parent_weights,
            model.state_dict(),
            options=job.options,
            spec=job.spec,
            finetuning=job.finetuning,
            compute=job.compute,
            usefulness=job.usefulness,
        )
    except BigNewsError as error:
        return None, error.message
    return found, ""


def _earlier(job: FittingJob) -> Guard | None:
    """The guard that an earlier run finished, None where there is none that reads. It is replaced by the one that is wanted, which
    takes its references over where only their number or what is made of them has changed."""
    try:
        return Guard.load(job.directory)
    except PortierError:
        return None


def _is_wanted(guard: Guard, job: FittingJob, digest: str) -> bool:
    if job.fresh and "transplanted_from" in guard.provenance:
        return False
    same = (
        guard.release_sha256,
        guard.spec,
        _judging(guard.options),
        guard.finetuning,
        guard.compute,
        guard.usefulness,
    )
    return same == (digest, job.spec, _judging(job.options), job.finetuning, job.compute, job.usefulness)


def _judging(options: GuardOptions) -> GuardOptions:
    """Without what concerns the next guard alone."""
    return dataclasses.replace(options, incremental=False, incremental_news=1.0, incremental_generations=1)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) not in {1, 2}:
        sys.stderr.write("usage: python -m owner.gatekeeper.fitting JOB.json [SHARE]\n")
        return ConfigurationError.exit_code
    forbid_core_dumps()
    try:
        job = FittingJob.from_json(canonical.parse(read_bounded(Path(given[0]), 1 << 20), limit=1 << 20, depth=16))
        if len(given) == 2:
            assist(job, Share.parse(given[1]))
        else:
            (fit_escalation if job.what == "escalation" else fit)(job, on_reference=_report)
    except WireError as error:
        sys.stderr.write(f"{GuardError(f'the fitting job cannot be read: {error.message}').diagnostics()}\n")
        return error.exit_code
    except PortierError as error:
        sys.stderr.write(f"{error.diagnostics()}\n")
        return error.exit_code
    return 0


def _report(done: int, total: int, scores: Mapping[str, float]) -> None:
    sys.stdout.write(json.dumps({"done": done, "total": total, "scores": dict(scores)}) + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    """An owner that was killed starts another such process: two of them would be in each other's way."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        os._exit(GuardError.exit_code)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    sys.exit(main())
