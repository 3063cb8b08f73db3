"""Real processes on one ledger: they write at once, and they are killed at any moment."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from owner.ledger import SubmissionState
from tests.owner.ledger.world import World

ROOT = Path(__file__).parents[3]
Processes = Callable[..., list[int]]


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """Runs tasks of `writer.py` in a process each, at once; gives their exit statuses."""
    command = [sys.executable, "-m", "tests.owner.ledger.writer"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as parent:

        def run(*children: list[object], kill_after: float | None = None) -> list[int]:
            assert parent.stdin is not None
            assert parent.stdout is not None
            parent.stdin.write(json.dumps({"children": children, "kill_after": kill_after}) + "\n")
            parent.stdin.flush()
            return json.loads(parent.stdout.readline())

        yield run
        assert parent.stdin is not None
        parent.stdin.close()
        assert parent.wait(60) == 0


def test_processes_that_write_at_once_lose_nothing_and_keep_the_chain(busy_world, processes):
    path = str(busy_world.path)
    assert processes(*(["write", path, name, 4, tag] for name in ("ada", "bob") for tag in ("x", "y"))) == [0] * 4
    submissions = busy_world.store.submissions()
    assert len(submissions) == 16
    assert len(busy_world.store.entries(kind="submission")) == 16
    assert len(busy_world.store.entries(kind="verdict")) == len([one for one in submissions if one.verdict is not None])
    assert sum(busy_world.store.open_refusals().values()) == 16
    receipts = [one.commit_receipt for one in submissions if one.commit_receipt]
    assert busy_world.store.verify(receipts).problems == []


def test_an_open_ledger_takes_writes_while_other_processes_write(busy_world, processes):
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(processes, ["write", str(busy_world.path), "ada", 10, ""])
        for number in range(10):
            busy_world.store.invite(f"guest-{number}", f"{number:064x}", busy_world.clock.now.replace(year=2030))
        assert other.result() == [0]
    guests = [entry for entry in busy_world.store.entries(kind="invitation") if "guest" in entry.body["name"]]
    assert len(guests) == 10
    assert len(busy_world.store.submissions()) == 10
    assert busy_world.store.verify().problems == []


def test_a_ledger_that_several_processes_found_at_once_has_one_first_entry(tmp_path, processes):
    path = tmp_path / "ledger.sqlite"
    assert processes(*(["found", str(path)] for _ in range(6))) == [0] * 6
    world = World.found(path)
    assert [entry.kind for entry in world.store.entries()] == ["ledger"]
    assert world.store.verify().ok
    world.store.close()


def test_a_ledger_that_did_not_fit_on_the_disk_can_be_founded_later(tmp_path, processes):
    """A file-size limit stands for the full disk: the system itself refuses to write."""
    path = tmp_path / "ledger.sqlite"
    assert processes(["found-within", str(path), 20_000]) == [0]
    said = path.with_name("ledger.sqlite.said").read_text()
    assert str(path) in said
    assert "full" in said
    world = World.found(path)
    assert world.store.verify().ok
    world.store.close()


def test_a_decision_killed_before_any_of_its_statements_happened_wholly_or_not_at_all(busy_world, processes):
    happened = []
    status = -signal.SIGKILL
    while status == -signal.SIGKILL and len(happened) < 200:
        step = len(happened)
        (status,) = processes(["decide-until", str(busy_world.path), step, f"step-{step}"])
        accepted = busy_world.store.submissions(state=SubmissionState.ACCEPTED)
        assert busy_world.store.verify().problems == []
        assert len(busy_world.store.releases()) == 1 + len(accepted)
        happened.append(len(accepted))
        busy_world.store.requeue_interrupted()
    assert status == 0
    assert len(happened) > 10
    assert happened == [0] * (len(happened) - 1) + [1]


def killed_at_random(world: World, processes: Processes, times: int, seed: int) -> None:
    generator = random.Random(seed)
    for number in range(times):
        before = world.store.head().index
        children = [["write", str(world.path), name, 1_000_000, f"{number}-"] for name in ("ada", "bob")]
        assert processes(*children, kill_after=generator.uniform(0.0, 0.1)) == [-signal.SIGKILL] * 2
        assert world.store.head().index > before
        assert world.store.verify().problems == []
        world.store.requeue_interrupted()


def test_writers_killed_at_random_moments_leave_chain_and_tables_in_agreement(busy_world, processes):
    killed_at_random(busy_world, processes, 5, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_writers_killed_at_sixty_random_moments_leave_chain_and_tables_in_agreement(busy_world, processes):
    killed_at_random(busy_world, processes, 60, seed=1)
