"""The processes of a simulation: started by module name, logged each to its own file, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import owner
from common.errors import PortierError, exit_codes
from common.files import ensure_directory, write_atomically

POLITE_SECONDS = 8.0


class ProcessFailedError(PortierError):
    """A process of the simulation ended with an error. `exit_code` is the process's own where it is one of `common.errors`."""

    def __init__(self, message: str, *, code: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit_code = code if code in exit_codes() else PortierError.exit_code


class Interruption:
    """Ctrl-C and SIGTERM, as an exception that is remembered too: what a signal raises in the middle of a destructor or of some callback
    Python prints and forgets, and the simulation would go on."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def check(self) -> None:
        """Raises KeyboardInterrupt where somebody has asked for it."""
        if self.asked:
            raise KeyboardInterrupt

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt


@dataclass
class Child:
    """One started process. `name` is also its log's."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def require_success(self) -> None:
        """Raises ProcessFailedError, with the log's last lines, where it ended with an error."""
        code = self.process.poll()
        if code:
            raise failed(self.name, code, self.log)


class Children:
    """Starts `python -m MODULE ...` and stops whatever still runs on leaving.

    directory: of the simulation; logs go to <directory>/logs, process ids to <directory>/processes.json, by which a
        later run finds and stops what a killed run left behind.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._logs = directory / "logs"
        ensure_directory(self._logs)
        self._register = directory / "processes.json"
        self._children: list[Child] = []

    def __enter__(self) -> Children:
        self._stop_left_behind()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop(*self._children)

    def start(self, name: str, module: str, *arguments: str, threads: int, output: Path | None = None) -> Child:
        """Start `python -m module arguments...`, its standard error (and output, unless `output`) in <name>.log."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as errors, (output or log).open("ab") as out:
            process = subprocess.Popen(  # noqa: S603  (our own interpreter and modules, no shell)
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env=_environment(threads),
                # A group of its own: Ctrl-C reaches the simulation alone, which then stops its children in order.
                start_new_session=True,
            )
        child = Child(name, log, process)
        self._children.append(child)
        self._record()
        return child

    def run(
        self, name: str, module: str, *arguments: str, threads: int, while_waiting: Callable[[], None] | None = None
    ) -> str:
        """Run to the end and return standard output. Raises ProcessFailedError."""
        output = self._logs / f"{name}.out"
        output.unlink(missing_ok=True)
        child = self.start(name, module, *arguments, threads=threads, output=output)
        while child.running:
            if while_waiting is not None:
                while_waiting()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(0.1)
        child.require_success()
        return output.read_text("utf-8", "replace")

    def stop(self, *children: Child) -> None:
        """Ask each to end (SIGTERM), and kill, with its own children, what has not ended after 8 seconds."""
        for child in children:
            if child.running:
                child.process.terminate()
        deadline = time.monotonic() + POLITE_SECONDS
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
            # The group outlives its leader where the leader was killed before it stopped its own workers.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()

    def _record(self) -> None:
        running = {str(c.process.pid): _started(c.process.pid) for c in self._children if c.running}
        write_atomically(self._register, json.dumps(running).encode())

    def _stop_left_behind(self) -> None:
        try:
            recorded = json.loads(self._register.read_text("utf-8"))
        except (OSError, ValueError):
            return
        for pid, started in recorded.items():
            # The start time tells our old child from another process that has been given its number since.
            if started is not None and _started(int(pid)) == started:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(int(pid), signal.SIGKILL)


def failed(name: str, code: int, log: Path, lines: int = 12) -> ProcessFailedError:
    """The error for a process that ended with `code`: names the log and shows its end."""
    try:
        end = "\n".join("    " + line for line in log.read_text("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        end = ""
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return ProcessFailedError(f"the process {name!r} {how}\n{end}".rstrip(), code=code, hint=f"its whole log: {log}")


def _environment(threads: int) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PORTIER_") or k == "PORTIER_DATA"}
    root = str(Path(owner.__file__).resolve().parents[1])
    path = [root, *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    count = str(max(1, threads))
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "FLWR_TELEMETRY_ENABLED": "0",
    }


def _started(pid: int) -> str | None:
    """When process `pid` started, in clock ticks since boot; None where there is none, or no /proc to ask."""
    try:
        # The second field is the command in parentheses and may itself hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
