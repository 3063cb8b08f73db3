"""Processes of a simulation: their failures are named with the log, and none outlives the simulation."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from owner.simulate.processes import Children, Interruption, ProcessFailedError
from tests.waiting import until


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the children's path to put modules into."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_the_output_of_a_process_comes_back_and_its_errors_go_to_its_log(tmp_path: Path, modules: Path) -> None:
    (modules / "speaker.py").write_text("import sys; print('out', *sys.argv[1:]); print('err', file=sys.stderr)")
    with Children(tmp_path / "s") as children:
        assert children.run("talk", "speaker", "one", "two", threads=1) == "out one two\n"
    assert (tmp_path / "s" / "logs" / "talk.log").read_text() == "err\n"


def test_a_failed_process_is_named_with_its_code_its_last_words_and_its_log(tmp_path: Path, modules: Path) -> None:
    (modules / "failing.py").write_text("import sys; print('cannot', file=sys.stderr); sys.exit(13)")
    with Children(tmp_path / "s") as children, pytest.raises(ProcessFailedError) as caught:
        children.run("owner-train", "failing", threads=1)
    said = caught.value.diagnostics()
    assert all(part in said for part in ("owner-train", "13", "cannot", "logs/owner-train.log"))


@pytest.mark.parametrize(("code", "passed_on"), [(13, 13), (61, 61), (2, 1), (3, 1), (1, 1)])
def test_a_documented_exit_code_of_a_process_is_the_simulations_own(
    code: int, passed_on: int, tmp_path: Path, modules: Path
) -> None:
    (modules / "failing.py").write_text(f"import sys; sys.exit({code})")
    with Children(tmp_path / "s") as children, pytest.raises(ProcessFailedError) as caught:
        children.run("owner-train", "failing", threads=1)
    assert caught.value.exit_code == passed_on


def test_children_know_their_threads_and_nothing_of_the_owners_environment(
    tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTIER_WORKSPACE", "/somewhere")
    monkeypatch.setenv("PORTIER_DATA", "/data")
    (modules / "teller.py").write_text(
        "import os; print(*(os.environ.get(n) for n in ('OMP_NUM_THREADS', 'PORTIER_WORKSPACE', 'PORTIER_DATA')))"
    )
    with Children(tmp_path / "s") as children:
        assert children.run("tell", "teller", threads=3) == "3 None /data\n"


def test_leaving_stops_children_and_their_children_even_stubborn_ones(
    tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owner.simulate.processes.POLITE_SECONDS", 0.3)
    (modules / "stubborn.py").write_text(
        "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\nopen(sys.argv[1] + ('.c' if child == 0 else '.p'), 'w').write(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    pids: list[int] = []

    def interrupted() -> None:
        with Children(tmp_path / "s") as children:
            children.start("stubborn", "stubborn", str(tmp_path / "pid"), threads=1)
            pids.extend(_read_number(tmp_path / f"pid.{who}") for who in "pc")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    until(lambda: not any(_alive(pid) for pid in pids))


def test_a_later_run_stops_what_a_killed_run_left_behind(tmp_path: Path, modules: Path) -> None:
    (modules / "sleeper.py").write_text("import time; time.sleep(60)")
    code = (
        "import sys, os, pathlib; from owner.simulate.processes import Children\n"
        "child = Children(pathlib.Path(sys.argv[1])).start('s', 'sleeper', threads=1)\n"
        "print(child.process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "s"], capture_output=True, text=True, check=False)
    left = int(killed.stdout)
    assert _alive(left)
    with Children(tmp_path / "s"):
        until(lambda: not _alive(left))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _read_number(path: Path) -> int:
    until(lambda: path.exists() and path.read_text() != "")
    return int(path.read_text())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_that_a_destructor_swallows_is_not_lost() -> None:
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interruption = Interruption()
    interruption.check()
    interruption.listen()
    try:
        Dying()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with pytest.raises(KeyboardInterrupt):
        interruption.check()
