"""Running a scenario: the owner's commands and the contributors' commands, in order, each in a process of its own.

Steps that are done are not done again, so a run that was interrupted goes on in the same directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from common.config import as_toml
from common.errors import PortierError, WorkspaceError
from common.files import ensure_directory, write_atomically
from common.slots import TrainingSlots
from owner.addresses import free_ports
from owner.choices import expand
from owner.ledger.records import Submission, SubmissionState
from owner.operations.opening import Office, open_office
from owner.settings import OwnerSettings
from owner.simulate.enrolling import Enrolment
from owner.simulate.layout import Layout, read_report
from owner.simulate.live import Board
from owner.simulate.outcome import Fate
from owner.simulate.processes import Child, Children, Interruption, failed
from owner.simulate.scenario import Participant, Scenario
from owner.suspicions import is_awaiting
from owner.workspace import Workspace

POLL_SECONDS = 0.2
READY_SECONDS = 120.0
ACCEPTED, DECLINED = 0, 53
FATES: Mapping[SubmissionState, Fate] = {
    SubmissionState.ACCEPTED: "accepted",
    SubmissionState.REJECTED: "rejected",
    SubmissionState.EXPIRED: "rejected",
    SubmissionState.QUARANTINED: "held",
}


class Simulation:
    """One scenario in one directory. `run` does whatever is left to do.

    parallel: how many contributors train at a time; each then has cores / parallel threads. interruption: looked at while it waits.
    """

    def __init__(
        self, scenario: Scenario, directory: Path, *, parallel: int, board: Board, interruption: Interruption
    ) -> None:
        self._interruption = interruption
        self.scenario = scenario
        self.layout = Layout(directory.absolute())
        self.seconds: dict[str, float] = {}
        self._board = board
        self._threads = scenario.threads or max(1, cores() // parallel)
        self._owners_threads = scenario.threads or cores()
        # A process whose threads fill the cores must run alone: while another one takes a core, its threads wait for
        # each other at every operation (measured: 5 to 10 times slower on 2 cores).
        self._overlap = self._owners_threads < cores()
        self._slots = TrainingSlots(self.layout.slots, parallel)
        self._workspace = Workspace(self.layout.owner)

    def run(self) -> None:
        """Raises ProcessFailedError where a process failed, WorkspaceError where the directory holds another scenario."""
        ensure_directory(self.layout.root)
        ports = self._ports()
        with Children(self.layout.root) as children:
            with self._stage("init"):
                self._init(children, ports)
            with self._stage("train"):
                self._train(children)
            with self._stage("protect and enrol"):
                service = self._protect_and_enrol(children, ports)
            with self._stage("contribute"), open_office(self.layout.owner, environment={}) as office:
                self._contribute(children, service, office)
            self._board.owner("stopping")

    def _ports(self) -> tuple[int, int]:
        """The two ports, chosen by the first run and kept, for contributors have them in their invitations."""
        described = self.scenario.to_json()
        if self.layout.scenario.exists():
            kept = json.loads(self.layout.scenario.read_text("utf-8"))
            if kept["scenario"] == described:
                return kept["ports"][0], kept["ports"][1]
            if self._workspace.settings_file.is_file():
                raise WorkspaceError(
                    f"{self.layout.root} holds the simulation of another scenario or seed",
                    hint="choose another --directory, or delete this one",
                )
            # Otherwise that simulation came to nothing before it had a workspace, and this one may have its place.
        # They are listened on once the model is trained, which may take hours, and again by each later run.
        port, enrolment_port = free_ports(2)
        ports = port, enrolment_port
        write_atomically(self.layout.scenario, json.dumps({"scenario": described, "ports": ports}, indent=1).encode())
        return ports

    def _init(self, children: Children, ports: tuple[int, int]) -> None:
        self._board.owner(f"init: a workspace for {self.scenario.settings.data.name}")
        if self._workspace.settings_file.is_file():
            return
        shutil.rmtree(self.layout.owner, ignore_errors=True)  # half made, where an earlier run was killed
        settings = self.layout.root / "portier.toml"
        write_atomically(settings, as_toml(self._settings(ports)).encode())
        arguments = ("init", str(self.layout.owner), "--settings", str(settings))
        children.run("owner-init", "owner", *arguments, threads=self._owners_threads)

    def _settings(self, ports: tuple[int, int]) -> OwnerSettings:
        settings = self.scenario.settings
        count = len(self.scenario.contributors)
        service = {"host": "127.0.0.1", "port": ports[0], "enrolment_port": ports[1], "names": ("127.0.0.1",)}
        return settings.model_copy(
            update={
                "service": settings.service.model_copy(update=service),
                # Everybody starts from the first release, however many are accepted before they are done.
                "merge": settings.merge.model_copy(update={"bases_allowed": count + 1}),
                # For that reason too nobody waits for the guard of a later release.
                "guard": settings.guard.model_copy(update={"fit": "on-demand"}),
            }
        )

    def _train(self, children: Children) -> None:
        """The owner's model; and meanwhile the contributors' shares."""
        self._board.owner(f"train: {self.scenario.settings.model.architecture} on the owner's share")
        if not self._overlap:
            self._write_shares()
        training = None
        if not any(self._workspace.releases.glob("*/manifest.json")):
            training = self._owner(children, "train")
        self._write_shares()
        if training is not None:
            _finish(training)

    def _write_shares(self) -> None:
        names = [one.name for one in self.scenario.contributors]
        if self.layout.evaluation.is_file() and all(self.layout.share(name).is_file() for name in names):
            return
        from owner.simulate.shares import write_shares  # noqa: PLC0415 - torch

        write_shares(self.scenario, self.layout.shares)

    def _protect_and_enrol(self, children: Children, ports: tuple[int, int]) -> Child:
        """The first release's guard, while the service runs already and everybody joins. Returns the service."""
        guard = self.scenario.settings.guard
        scales = f"{guard.fitting_references} + " if len(expand(guard.detectors)) > 1 else ""
        self._board.owner(
            f"protect: a guard over {scales}{guard.references} honest reference fine-tunes; serve: 127.0.0.1:{ports[0]}"
        )
        protecting = None
        if not any(self._workspace.releases.glob("*/guard/guard.json")):
            protecting = self._owner(children, "protect")
            if not self._overlap:
                _finish(protecting)
        service = self._owner(children, "serve", threads=self._threads)
        deadline = time.monotonic() + READY_SECONDS
        while not all(map(_listens, ports)):
            self._check(service)
            if time.monotonic() > deadline:
                raise failed(service.name, service.process.poll() or 1, service.log)
            time.sleep(0.1)
        enrolment = Enrolment(self.scenario.contributors, self.layout, children, self._board, at_a_time=cores())
        while not enrolment.done or (protecting is not None and protecting.running):
            self._check(service)
            enrolment.advance()
            time.sleep(0.05)
        if protecting is not None:
            _finish(protecting)
        return service

    def _contribute(self, children: Children, service: Child, office: Office) -> None:
        """Start everybody's `contribute` and watch until each has a verdict or waits for a person."""
        running: dict[str, Child] = {}
        for one in self.scenario.contributors:
            known = _fate(office, one.name)
            if known is None:
                arguments = self._arguments(one)
                running[one.name] = children.start(one.name, "contributor", *arguments, threads=self._threads)
            else:
                self._board.contributor(one.name, known)
        problems: list[PortierError] = []
        while running:
            self._check(service)
            for name, child in list(running.items()):
                fate = _fate(office, name)
                if fate == "held" and child.running:
                    children.stop(child)  # a person would have to promote it, and nobody will
                elif child.running:
                    self._board.contributor(name, *self._progress(name))
                    continue
                del running[name]
                if fate is None or (fate != "held" and child.process.returncode not in {ACCEPTED, DECLINED}):
                    problems.append(failed(name, child.process.returncode, child.log))
                self._board.contributor(name, fate or "failed")
            self._board.owner(_owners_desk(office))
            time.sleep(POLL_SECONDS)
        if problems:
            raise problems[0]

    def _check(self, service: Child) -> None:
        """That nobody has interrupted the simulation, and that the service runs."""
        self._interruption.check()
        if not service.running:
            raise failed(service.name, service.process.returncode, service.log)

    def _arguments(self, one: Participant) -> list[str]:
        arguments = [
            "contribute",
            "--home",
            str(self.layout.home(one.name)),
            "--data",
            str(self.layout.share(one.name)),
        ]
        arguments += ["--held-out", str(self.layout.evaluation), "--report", str(self.layout.report(one.name))]
        arguments += ["--training-slots", str(self._slots), "--seed", str(one.seed or 0)]
        # The gate compares activations with what it computes itself; a simulation has one kind of machine.
        model = self.scenario.settings.model
        arguments += ["--device", model.device, "--precision", model.precision]
        if ":" in model.architecture:
            arguments += ["--factory", model.architecture]
        options: Mapping[str, object] = {
            "--attack": one.attack,
            "--epochs": one.epochs,
            "--lr": one.learning_rate,
            "--batch-size": one.batch_size,
            "--optimiser": one.optimiser,
            "--frozen-layers": one.frozen_layers,
        }
        for flag, value in options.items():
            arguments += [flag, str(value)] if value is not None else []
        return arguments + (["--reinitialise-head"] if one.reinitialise_head else [])

    def _progress(self, name: str) -> tuple[str, str]:
        report = read_report(self.layout.report(name))
        return str(report.get("stage") or "connecting"), str(report.get("detail", ""))

    def _owner(self, children: Children, command: str, *, threads: int | None = None) -> Child:
        arguments = (command, "-w", str(self.layout.owner))
        return children.start(f"owner-{command}", "owner", *arguments, threads=threads or self._owners_threads)

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - began


def latest(office: Office, name: str) -> Submission | None:
    """The newest submission of contributor `name`."""
    return max(office.store.submissions(contributor=name), key=lambda one: one.created, default=None)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _waits_for_escalation(submission: Submission) -> bool:
    return submission.state is SubmissionState.QUARANTINED and is_awaiting(submission.verdict)


def _fate(office: Office, name: str) -> Fate | None:
    submission = latest(office, name)
    # What the escalation tier has yet to look at may still be moved, and is no result.
    return FATES.get(submission.state) if submission and not _waits_for_escalation(submission) else None


def _finish(child: Child) -> None:
    child.process.wait()
    child.require_success()


def _owners_desk(office: Office) -> str:
    states = [one.state for one in office.store.submissions()]
    counts: Mapping[str, Callable[[SubmissionState], bool]] = {
        "uploading": lambda state: state is SubmissionState.UPLOADING,
        "waiting": lambda state: state in {SubmissionState.RECEIVED, SubmissionState.AWAITING_GUARD},
        "in vetting": lambda state: state is SubmissionState.VETTING,
        "decided": lambda state: state in FATES,
    }
    return "submissions: " + ", ".join(f"{sum(map(test, states))} {name}" for name, test in counts.items())


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
