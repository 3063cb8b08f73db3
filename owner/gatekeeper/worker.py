"""The vetting process: `python -m owner.gatekeeper.worker MEMORY_MIB DEVICE [MODULE ...]`, one job a line on standard input, one
answer a line. The modules have detectors of the owner's own.

It lives across jobs, so that imports are paid for once and guards stay loaded. It ends when its input does. Whatever the
models print goes to standard error, never between the answers.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, TypeVar

import torch

from common.datasets import load_examples
from common.devices import choose_compute
from common.errors import ConfigurationError, GuardError, ModelError, PortierError, StorageError
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.weights import digest_file
from common.weights import load as load_weights
from common.weights import save as save_weights
from owner.gatekeeper.decision import interrupted
from owner.gatekeeper.detector_modules import import_modules
from owner.gatekeeper.escalation import Escalation
from owner.gatekeeper.examination import Examination, errors_of
from owner.gatekeeper.gatekeeper import Gatekeeper
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.guard_files import description_digest
from owner.gatekeeper.jobs import LINE_LIMIT, VettingJob, describe_error
from owner.gatekeeper.limits import forbid_core_dumps, is_out_of_memory, limit_memory, limit_processor_seconds
from owner.gatekeeper.verdict import Decision, Verdict

Key = TypeVar("Key")
Value = TypeVar("Value")

_KEPT = 3
"""Guards kept loaded: that of the current release, the one before it, the root's."""


class Vetter:
    """Runs jobs; keeps the guards it has loaded, by digest."""

    def __init__(self) -> None:
        self._gatekeepers: OrderedDict[str, Gatekeeper] = OrderedDict()
        self._guards: OrderedDict[str, Guard] = OrderedDict()
        self._evaluations: OrderedDict[tuple[str, int, int], Examples] = OrderedDict()

    def vet(self, job: VettingJob) -> Verdict:
        """Raises PortierError for the owner's own trouble; what a submission does ends in a verdict."""
        gatekeeper = self._gatekeeper(job)
        if job.evaluation is not None:
            gatekeeper.use_evaluation(self._examples(job.evaluation))
        with errors_of("root"):
            root = self._root(job, gatekeeper)
        digests = {path: digest_file(path) for path in {job.base_weights, job.current_weights}}
        gatekeeper.guard.check_release(digests[job.base_weights])
        is_current = digests[job.current_weights] == gatekeeper.guard.release_sha256
        current = None if is_current else load_weights(job.current_weights)
        try:
            found = gatekeeper.examine(
                job.submission_weights,
                current=current,
                policy=job.merge,
                utility=job.utility,
                root=root,
                root_action=job.root_action,
                second_look=lambda: self._escalation(job, gatekeeper.guard),
            )
        except (GuardError, StorageError):
            raise
        except Exception as error:  # noqa: BLE001 - a model run on weights from outside may raise anything
            if is_out_of_memory(error):
                return interrupted("VETTING_MEMORY", f"memory ran out: {_first_line(error)}", seconds=0.0)
            return interrupted("VETTING_CRASHED", f"{type(error).__name__}: {_first_line(error)}", seconds=0.0)
        return _keep(found, job.would_be)

    def _gatekeeper(self, job: VettingJob) -> Gatekeeper:
        key = description_digest(job.guard) + json.dumps(job.spec.to_json())
        if key not in self._gatekeepers:
            guard = self._guard(job.guard)
            if guard.spec != job.spec:
                raise GuardError(f"the guard in {job.guard} protects a {guard.spec.architecture}, not this model")
            self._gatekeepers[key] = Gatekeeper(guard, _release(job.spec, job.base_weights, guard))
        return _recent(self._gatekeepers, key)

    def _root(self, job: VettingJob, gatekeeper: Gatekeeper) -> Guard | None:
        """The root's guard with the root's weights; the gatekeeper's own where that is the root's, for what it has cached."""
        if job.root_guard is None:
            return None
        guard = self._guard(job.root_guard)
        if guard.release_sha256 == gatekeeper.guard.release_sha256:
            return gatekeeper.guard
        if guard.release_weights or job.root_weights is None:
            return guard
        found = load_weights(job.root_weights, digest=guard.release_sha256)
        complete = guard.with_release({name: found[name] for name in gatekeeper.release})
        self._guards[description_digest(job.root_guard)] = complete
        return complete

    def _escalation(self, job: VettingJob, guard: Guard) -> Escalation | None:
        """Never calibrated here, within the time one vetting may take."""
        if job.escalation is None:
            return None
        try:
            found = Escalation.load(job.escalation)
        except StorageError as error:  # calibrated again, like one that is damaged: other submissions are not held up
            raise GuardError(error.message, hint=error.hint) from error
        if not found.fits(guard):
            raise GuardError(f"the escalation tier in {job.escalation} belongs to another guard than {job.guard}")
        return found

    def _guard(self, directory: Path) -> Guard:
        key = description_digest(directory)
        if key not in self._guards:
            self._guards[key] = Guard.load(directory)
        return _recent(self._guards, key)

    def _examples(self, path: Path) -> Examples:
        try:
            about = path.stat()
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        key = (str(path), about.st_size, about.st_mtime_ns)
        if key not in self._evaluations:
            self._evaluations[key] = load_examples(path)
        return _recent(self._evaluations, key)


def answer(vetter: Vetter, line: bytes) -> dict[str, Any]:
    """The answer to one line of input."""
    number = None
    try:
        data = json.loads(line)
        number = data["number"]
        limit_processor_seconds(float(data["processor_seconds"]))
        return {"number": number, "verdict": vetter.vet(VettingJob.from_json(data)).to_json()}
    except PortierError as error:
        return {"number": number, "error": describe_error(error)}
    except Exception as error:  # noqa: BLE001 - the last resort of a process that must answer
        traceback.print_exc()
        code = "VETTING_MEMORY" if is_out_of_memory(error) else "VETTING_CRASHED"
        verdict = interrupted(code, f"{type(error).__name__}: {_first_line(error)}", seconds=0.0)
        return {"number": number, "verdict": verdict.to_json()}


def serve(source: BinaryIO, sink: BinaryIO, memory_mib: int, device: str, modules: Sequence[str] = ()) -> None:
    """Answer every line of `source` until it ends; memory_mib, device, modules: as of `supervisor.VettingWorker`.

    A thread reads ahead, so that the process also ends at once, mid-job, when whoever gave the job is gone.
    """
    forbid_core_dumps()
    import_modules(modules)
    _start_computing(device)
    limit_memory(memory_mib)
    vetter = Vetter()
    lines: SimpleQueue[bytes] = SimpleQueue()

    def read() -> None:
        while (line := source.readline(LINE_LIMIT + 1)).endswith(b"\n"):
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    _write(sink, {"ready": True})
    while True:
        _write(sink, answer(vetter, lines.get()))


def _start_computing(device: str) -> None:
    """Have what torch takes once for all: its threads' stacks, and on a GPU the driver's context and the libraries' handles, which are
    gibibytes. None of that is a submission's."""
    torch.ones(64, 64).matmul(torch.ones(64, 64))
    with suppress(
        ConfigurationError
    ):  # a device that is not there is the trouble of the job that needs it, which says so
        chosen = choose_compute(device).device
        if chosen.type != "cpu":
            image, filters = torch.ones(1, 1, 8, 8, device=chosen), torch.ones(1, 1, 3, 3, device=chosen)
            float(torch.nn.functional.conv2d(image, filters).flatten(1).matmul(torch.ones(36, 1, device=chosen)))


def _keep(found: Examination, path: Path) -> Verdict:
    if found.would_be is not None and found.verdict.decision is not Decision.REJECTED:
        save_weights(path, found.would_be)
    return found.verdict


def _release(spec: ModelSpec, path: Path, guard: Guard) -> torch.nn.Module:
    """The guarded release. Raises GuardMismatchError where `path` holds another one."""
    guard.check_release(digest_file(path))
    model = build(spec)
    try:
        model.load_state_dict(load_weights(path, digest=guard.release_sha256))
    except RuntimeError as error:
        raise ModelError(f"the release in {path} does not fit {spec.architecture}: {error}") from error
    return model


def _recent(cache: OrderedDict[Key, Value], key: Key) -> Value:
    cache.move_to_end(key)
    while len(cache) > _KEPT:
        cache.popitem(last=False)
    return cache[key]


def _write(sink: BinaryIO, message: Mapping[str, Any]) -> None:
    sink.write(json.dumps(message, allow_nan=False).encode() + b"\n")
    sink.flush()


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:500] if lines else ""


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        serve(sys.stdin.buffer, answers, int(sys.argv[1]), sys.argv[2], sys.argv[3:])
    except PortierError as error:  # its last line is what the supervisor tells
        sys.stderr.write(f"{error.message}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
