"""Vetting in a process of its own, watched from outside: whatever a submission does to it, the owner's service lives."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any, Self, cast

from common.errors import GuardError, ManifestError
from owner.gatekeeper.decision import interrupted
from owner.gatekeeper.jobs import LINE_LIMIT, VettingJob, restore_error
from owner.gatekeeper.limits import reads_out_of_memory
from owner.gatekeeper.own_processes import command, environment
from owner.gatekeeper.verdict import Verdict

_STDERR_KEPT = 16 << 10
_STARTUP_SECONDS = 120.0


class VettingInterruptedError(GuardError):
    """`close` was called while a submission was being vetted. It has no verdict, and is vetted again another time."""


class VettingUnavailableError(GuardError):
    """The vetting process does not come up, whatever it is to vet."""


class VettingWorker:
    """A vetting process that is started when needed, and started anew after one that had to be ended.

    timeout_seconds: wall-clock time a vetting may take, once the process is up.
    memory_mib: private memory the process may take beyond what it needs to start, with `device` in use.
    device: of the guards it will vet by, as settings name it.
    modules: with detectors of the owner's own, which the process imports.

    A time-out, running out of memory or a crash ends in a quarantined verdict with the code VETTING_TIMEOUT,
    VETTING_MEMORY or VETTING_CRASHED. Thread-safe; one vetting at a time.
    """

    def __init__(
        self,
        timeout_seconds: float = 600.0,
        memory_mib: int = 8192,
        device: str = "cpu",
        modules: Sequence[str] = (),
    ) -> None:
        self._timeout = timeout_seconds
        self._arguments = (str(memory_mib), device, *modules)
        self._turn = threading.Lock()
        self._child: _Child | None = None
        self._closed = False
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the process ahead of the first job. Raises VettingUnavailableError where it does not come up."""
        with self._turn:
            self._ensure_child()

    def vet(self, job: VettingJob) -> Verdict:
        """Raises VettingInterruptedError when closed meanwhile, GuardError, ModelError, DataError or StorageError for the owner's
        own trouble (a guard that does not belong to the release, a full disk): nothing was found out about the submission."""
        with self._turn:
            child = self._ensure_child()
            self._number += 1
            started = time.monotonic()
            request = {
                **job.to_json(),
                "job": "vet",
                "number": self._number,
                "processor_seconds": self._timeout * (os.cpu_count() or 1) + 10,
            }
            try:
                child.send(request)
                answer = child.receive(started + self._timeout)
                verdict = self._read(answer)
            except _ChildFailedError as failure:
                self._end_child()
                if self._closed:
                    raise VettingInterruptedError("vetting was interrupted: the worker is closed") from None
                return interrupted(failure.code, failure.detail, seconds=time.monotonic() - started)
            if any(code.startswith("VETTING_") for code in verdict.codes):
                self._end_child()  # who knows what the submission left behind in it, for the next one to be vetted by
            return verdict

    def close(self) -> None:
        """End the process, also in the middle of a vetting. The worker cannot be used again."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        with self._turn:
            self._end_child()

    def _read(self, answer: dict[str, Any]) -> Verdict:
        if answer.get("number") != self._number:
            raise _ChildFailedError("VETTING_CRASHED", "the vetting process answered out of turn")
        if isinstance(answer.get("error"), dict):
            raise restore_error(answer["error"])
        try:
            return Verdict.from_json(answer["verdict"])
        except (KeyError, ManifestError) as error:
            raise _ChildFailedError("VETTING_CRASHED", f"the vetting process gave no verdict: {error}") from None

    def _ensure_child(self) -> _Child:
        if self._closed:
            raise VettingInterruptedError("the vetting worker is closed")
        if self._child is not None and self._child.alive:
            return self._child
        self._end_child()
        try:
            child = self._child = _Child(*self._arguments)
        except OSError as error:
            raise VettingUnavailableError(
                f"the vetting process cannot be started: {error.strerror or error}",
                hint="this machine is short of memory, processes or open files (ulimit -n): see what uses them up",
            ) from error
        if self._closed:  # by another thread, which may not have seen this child
            child.kill()
        try:
            ready = child.receive(time.monotonic() + _STARTUP_SECONDS)
        except _ChildFailedError as failure:
            self._end_child()
            if self._closed:
                raise VettingInterruptedError("the vetting worker is closed") from None
            raise VettingUnavailableError(
                f"the vetting process does not start: {failure.detail}",
                hint=f"run `python -m owner.gatekeeper.worker {' '.join(self._arguments)}`",
            ) from None
        if ready != {"ready": True}:
            self._end_child()
            raise VettingUnavailableError(
                "the vetting process does not speak this version's language", hint="restart the owner's service"
            )
        return child

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


class _ChildFailedError(Exception):
    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


class _Child:
    """One worker process, in a process group of its own, so that what it starts ends with it."""

    def __init__(self, *arguments: str) -> None:
        self._selector = selectors.DefaultSelector()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, nothing from outside
                command("owner.gatekeeper.worker", *arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(),
                start_new_session=True,
            )
        except OSError:
            self._selector.close()
            raise
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._input, self._output, self._errors = (cast(IO[bytes], pipe) for pipe in pipes)
        for pipe in (self._output, self._errors):
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ)
        self._received = bytearray()
        self._complaints = bytearray()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: dict[str, Any]) -> None:
        """A job is far smaller than a pipe, so that this never waits for a child that does not read."""
        try:
            self._input.write(json.dumps(message, allow_nan=False).encode() + b"\n")
            self._input.flush()
        except OSError:
            raise self._failure() from None

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next line the child writes. Raises _ChildFailedError at the deadline, or where the child ends or babbles."""
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > LINE_LIMIT:
                raise _ChildFailedError(
                    "VETTING_CRASHED", f"the vetting process wrote a line of over {LINE_LIMIT} bytes"
                )
            left = deadline - time.monotonic()
            if left <= 0:
                raise _ChildFailedError("VETTING_TIMEOUT", "vetting took longer than allowed and was stopped")
            for key, _ in self._selector.select(left):
                self._drain(key.fileobj)
        line, rest = self._received[:end], self._received[end + 1 :]
        self._received = bytearray(rest)
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise _ChildFailedError(
                "VETTING_CRASHED", "the vetting process answered with something that is no JSON object"
            )
        return message

    def _drain(self, pipe: Any) -> None:
        data = os.read(pipe.fileno(), 1 << 16)
        if pipe is self._errors:
            self._complaints = (self._complaints + data)[-_STDERR_KEPT:]
            if not data:
                self._selector.unregister(pipe)
        elif data:
            self._received += data
        else:
            raise self._failure()

    def _failure(self) -> _ChildFailedError:
        """Why the child ended, from how it ended and what it wrote last."""
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return _ChildFailedError("VETTING_CRASHED", "the vetting process closed its output and went on")
        with contextlib.suppress(OSError):
            while data := os.read(self._errors.fileno(), 1 << 16):
                self._complaints = (self._complaints + data)[-_STDERR_KEPT:]
        text = self._complaints.decode(errors="replace").strip()
        how = f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
        if status == -getattr(signal, "SIGXCPU", 0):
            return _ChildFailedError("VETTING_TIMEOUT", "vetting used more processor time than allowed and was stopped")
        # SIGKILL that did not come from here is the kernel's out-of-memory killer.
        if status == -signal.SIGKILL or reads_out_of_memory(text):
            return _ChildFailedError("VETTING_MEMORY", f"the vetting process ran out of memory ({how})")
        last = text.splitlines()[-1][:500] if text else ""
        return _ChildFailedError(
            "VETTING_CRASHED", f"the vetting process ended with {how}" + (f": {last}" if last else "")
        )

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        self.kill()
        self._process.wait()
        self._selector.close()
        for pipe in (self._input, self._output, self._errors):
            with contextlib.suppress(OSError):
                pipe.close()
