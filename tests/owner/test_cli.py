"""The command line: what it prints, what a program reads, and the exit codes."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.models import CommandInfo

from common.errors import DataError, StorageError
from common.identity.invitation import Invitation
from common.weights import load, save
from owner.cli.application import DEBUG_VARIABLE, app, run
from owner.cli.verdicts import verdict_table
from owner.gatekeeper.pictures import as_png
from owner.gatekeeper.verdict import Check, Decision, Verdict
from owner.ledger.records import GuardState, SubmissionState
from owner.operations.opening import Office
from tests.owner.people import Contributor, InProcess, slightly_changed

COMMANDS = [
    "init",
    "train",
    "protect",
    "serve",
    "simulate",
    "reproduce",
    "compare",
    "invite",
    "contributors",
    "revoke",
    "status",
    "log",
    "show",
    "verify-ledger",
    "vet",
    "promote",
    "rollback",
    "prune",
]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PORTIER_"):
            monkeypatch.delenv(name)


def _name(command: CommandInfo) -> str:
    return command.name or getattr(command.callback, "__name__", "")


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The JSON a command prints; it must have succeeded and said nothing else."""
    assert run([str(one) for one in arguments] + ["--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 8


@pytest.mark.parametrize(
    ("command", "says"), [("show", "Of a submission or a release"), ("invite", "What the contributor will be known by")]
)
def test_help_says_what_an_argument_is(command: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    boxes = capsys.readouterr().out.partition("Arguments")[2].partition("Options")[0]
    assert says in boxes


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, owner.cli.application; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


LIGHT_COMMANDS = """
import json, sys
from owner.cli.application import run
for command in json.loads(sys.argv[1]):
    assert run(command) == 0
    heavy = {"torch", "torchvision", "sklearn", "numpy", "grpc", "alembic"} & set(sys.modules)
    assert not heavy, f"{command[0]} imports {', '.join(sorted(heavy))}"
"""


def test_commands_that_compute_nothing_do_not_wait_for_torch(root: Path, ada: Contributor) -> None:
    submission = ada.hand_in(slightly_changed)
    names = (["status"], ["log"], ["show", submission.id], ["contributors"], ["invite", "bob"], ["verify-ledger"])
    commands = [[*words, "-w", str(root)] for words in (*names, ["revoke", "ada"])]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT_COMMANDS, json.dumps(commands)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_all_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f" {command} " in printed for command in COMMANDS)


def test_a_known_error_is_a_message_a_hint_and_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "-w", str(tmp_path)]) == 21
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert "\n  -> make one with `portier-owner init DIR`" in printed.err
    assert "Traceback" not in printed.err


def test_an_unexpected_error_is_short_and_debug_shows_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("[nobody] expected this")

    monkeypatch.setattr("owner.operations.opening.open_office", broken)
    assert run(["status", "-w", str(tmp_path)]) == 1
    printed = capsys.readouterr().err
    assert "ZeroDivisionError: [nobody] expected this" in printed
    assert "--debug" in printed
    assert "Traceback" not in printed
    monkeypatch.setenv(DEBUG_VARIABLE, "")
    assert run(["--debug", "status", "-w", str(tmp_path)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_wrong_usage_has_the_usual_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["invite"]) == 2
    assert run(["no-such-command"]) == 2
    capsys.readouterr()


def test_an_interruption_says_that_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("owner.operations.opening.open_office", interrupted)
    assert run(["train", "-w", str(tmp_path)]) == 130
    assert "nothing is lost" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_all_that_is_written_in_brackets(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    def bracketed(text: str) -> set[str]:
        return set(re.findall(r"\[[\w.-]+\]", text.replace("\\", "")))

    (callback,) = (one.callback for one in app.registered_commands if _name(one) == command)
    written = bracketed(callback.__doc__ or "")
    for parameter in inspect.signature(callback, eval_str=True).parameters.values():
        written |= bracketed(str(parameter.annotation.__metadata__[0].help or ""))
    assert run([command, "--help"]) == 0
    assert written <= bracketed(capsys.readouterr().out)


def test_help_says_where_the_exit_codes_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "docs/settings.md" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["ward", "my ward"])
def test_what_comes_next_is_a_command_of_the_same_workspace(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = [part for one in ("training.epochs=1", "model.architecture=mlp") for part in ("--set", one)]

    def following(*arguments: str) -> str:
        assert run(list(arguments)) == 0
        return capsys.readouterr().out

    workspace = f"-w {shlex.quote(given)}"
    assert f"portier-owner train {workspace}\n" in re.sub(" +\n", "\n", following("init", given, *quick))
    assert f"portier-owner train {workspace}" in following("status", "-w", given)
    assert f"portier-owner protect {workspace}" in following("train", "-w", given)
    assert f"portier-owner protect {workspace}" in following("status", "-w", given)
    assert f"portier-owner invite NAME {workspace}" in following("contributors", "-w", given)
    monkeypatch.chdir(given)
    assert " -w " not in following("status")


def test_an_unknown_setting_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", str(tmp_path / "w"), "--set", "guard.reference=3"]) == 11
    assert "did you mean guard.references?" in capsys.readouterr().err


def test_the_workspace_may_be_named_by_the_environment(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTIER_WORKSPACE", str(root))
    assert output(capsys, "status")["workspace"] == str(root)


def test_init_train_and_protect_make_a_workspace_that_is_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "ward"
    settings = ["training.epochs=2", "finetuning.epochs=1", "guard.reject_level=0.5", "guard.quarantine_level=0.5"]
    flags = [part for one in [*settings, "guard.epochs=2"] for part in ("--set", one)]
    founded = output(capsys, "init", root, "--architecture", "mlp", "--references", 1, "--port", 5001, *flags)
    assert founded["shares"]["train"] > 500
    assert run(["train", "-w", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "the root" in printed
    assert "accuracy" in printed
    assert run(["protect", "-w", str(root)]) == 0
    assert "K = 1" in capsys.readouterr().out
    found = output(capsys, "status", "-w", root)
    assert (found["release"]["number"], found["release"]["guard"]) == (0, "ready")
    assert run(["status", "-w", str(root)]) == 0
    assert "guard" in capsys.readouterr().out


def test_an_invitation_is_all_that_goes_to_standard_output(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["invite", "bob", "-w", str(root)]) == 0
    printed = capsys.readouterr()
    assert Invitation.from_string(printed.out).name == "bob"
    assert printed.out.count("\n") == 1
    assert Invitation.from_string(printed.out).token not in printed.err


def test_an_invitation_in_a_file_is_for_its_owner_alone(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bob.invitation"
    found = output(capsys, "invite", "bob", "-w", root, "--output", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Invitation.from_string(path.read_text()).token not in json.dumps(found)


def test_an_enrolled_name_is_invited_again_where_that_is_asked_for(
    root: Path, ada: Contributor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["invite", "ada", "-w", str(root)]) == 30
    assert "portier-owner invite ada --renew" in " ".join(capsys.readouterr().err.split())
    assert Invitation.from_string(output(capsys, "invite", "ada", "--renew", "-w", root)["invitation"]).name == "ada"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("portier-owner ")


def test_contributors_are_listed_and_revoked(
    root: Path, office: Office, ada: Contributor, capsys: pytest.CaptureFixture[str]
) -> None:
    ada.hand_in(slightly_changed)
    assert output(capsys, "revoke", "ada", "-w", root, "--reason", "left")["undecided_submissions"] == 1
    (found,) = output(capsys, "contributors", "-w", root)
    assert (found["name"], found["reason"], found["submissions"]) == ("ada", "left", {"received": 1})
    assert run(["contributors", "-w", str(root)]) == 0
    assert "revoked" in capsys.readouterr().out
    assert run(["revoke", "ida", "-w", str(root)]) == 30
    capsys.readouterr()


def test_log_prints_one_json_object_a_line(root: Path, ada: Contributor, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["log", "-w", str(root), "--contributor", "ada", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == ["invitation", "enrolment", "certificate"]
    assert run(["log", "-w", str(root), "-n", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_show_prints_every_check_of_a_verdict(
    root: Path, office: Office, ada: Contributor, capsys: pytest.CaptureFixture[str]
) -> None:
    submission = ada.hand_in(slightly_changed)
    office.store.claim()
    checks = (
        Check("digest", Decision.ACCEPTED, 0.01, detail="SHA-256 [as declared]"),
        Check("activation-autoencoder", Decision.REJECTED, 0.5, 0.25, 0.125, 0.2, "ACTIVATION_AUTOENCODER", "p = 0.2"),
    )
    verdict = Verdict(Decision.REJECTED, checks, ("ACTIVATION_AUTOENCODER",), 0.2, 0.2, 0.5, 0.51)
    office.store.decide(submission.id, SubmissionState.REJECTED, verdict.to_json())
    assert run(["show", submission.id[:12], "-w", str(root)]) == 0
    printed = capsys.readouterr().out
    for part in ("rejected", "ACTIVATION_AUTOENCODER", "0.25", "0.125", "resolution 0.2", "SHA-256 [as declared]"):
        assert part in printed
    assert output(capsys, "show", submission.id, "-w", root)["verdict"]["codes"] == ["ACTIVATION_AUTOENCODER"]
    assert output(capsys, "show", office.store.current().id[:12], "-w", root)["status"] == "current"


def test_show_tells_what_a_combined_score_is_made_of_and_writes_the_suspected_mark(
    root: Path, office: Office, ada: Contributor, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    submission = ada.hand_in(slightly_changed)
    office.store.claim()
    gate = {
        "p_value": 0.05,
        "method": "max",
        "references": 19,
        "fitting_references": 9,
        "families": {"probes": 0.05, "weights": 0.65},
        "suspected": {"source": None, "target": "7", "moved_class": "2", "probe": "dots", "kind": "pixel"},
        "picture": as_png(torch.zeros(1, 8, 8, dtype=torch.uint8)),
    }
    measured = {"gate": gate, "detectors": {"probe-bank": {"score": 12.5, "p_value": 0.05}}}
    check = Check("gate", Decision.REJECTED, 0.5, 12.5, 4.0, 0.05, "GATE", "not consistent with honest fine-tuning")
    verdict = Verdict(Decision.REJECTED, (check,), ("GATE",), 0.05, 0.05, 0.146, 0.5, measured)
    office.store.decide(submission.id, SubmissionState.REJECTED, verdict.to_json())
    picture = tmp_path / "mark.png"
    assert run(["show", submission.id, "-w", str(root), "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    for part in ("weights  0.65", "probe-bank", "target class 7", "probe dots (pixel)", "It alone decides", "14.6 %"):
        assert part in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_show_tells_what_the_escalation_tier_found_and_writes_its_picture_before_the_probes(
    root: Path, office: Office, ada: Contributor, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tier = {
        "state": "decided",
        "p_value": 0.05,
        "resolution": 0.05,
        "fpr_bound_95": 0.146,
        "references": 19,
        "detectors": {"trigger-inversion": {"score": 0.61, "p_value": 0.05}},
        "suspected": {"target": "7", "kind": "patch", "by": "trigger-inversion"},
        "picture": as_png(torch.zeros(1, 8, 24, dtype=torch.uint8)),
    }
    gate = {"picture": as_png(torch.zeros(1, 8, 8, dtype=torch.uint8))}
    check = Check("escalation", Decision.REJECTED, score=4.0, p_value=0.05, code="ESCALATION", detail="looked at again")
    measured = {"escalation": tier, "gate": gate}
    verdict = Verdict(Decision.REJECTED, (check,), ("ESCALATION",), fpr_bound_95=0.03, measurements=measured)
    submission = ada.hand_in(slightly_changed)
    office.store.claim()
    office.store.decide(submission.id, SubmissionState.REJECTED, verdict.to_json())
    picture = tmp_path / "mark.png"
    assert run(["show", submission.id, "-w", str(root), "--picture", str(picture)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "p = 0.05 over 19 honest fine-tunes (resolution 0.05)" in shown
    assert "the check on p rejects at most 3.0 %" in shown
    assert "the escalation tier at most 14.6 % of all more (95 %): together at most 17.6 % (90 %)" in shown
    assert "target class 7, a mark of the kind patch" in shown
    with Image.open(picture) as drawn:
        assert drawn.size == (24, 8)


def test_protect_tells_of_the_escalation_tier_before_it_is_calibrated(
    root: Path, office: Office, capsys: pytest.CaptureFixture[str]
) -> None:
    tier = ["escalation=both", "escalation_references=4", "escalation_reject_level=0.2"]
    chosen = [part for setting in tier for part in ("--set", f"guard.{setting}")]
    found = output(capsys, "protect", "-w", root, *chosen)["escalation"]
    assert (found["references"], found["resolution"], found["quarantine_level"]) == (4, 0.2, 0.5)
    assert found["fpr_bound_95"] > 0.2
    assert run(["protect", "-w", str(root), *chosen]) == 0
    assert "when p alone first quarantines a submission: K = 4" in " ".join(capsys.readouterr().out.split())
    assert not office.workspace.release(office.store.current().id).escalation.exists()
    assert run(["protect", "-w", str(root), *chosen, "--set", "guard.escalation_reject_level=0.1"]) == 10
    assert "finer than 1/(K+1) = 0.2" in " ".join(capsys.readouterr().err.split())


def test_a_verdict_without_a_picture_says_so(
    root: Path, office: Office, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    release = office.store.current().id
    assert run(["show", release, "-w", str(root), "--picture", str(tmp_path / "mark.png")]) == DataError.exit_code
    assert "no picture" in capsys.readouterr().err
    assert not (tmp_path / "mark.png").exists()


def test_protect_says_what_it_fits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["guard.detectors=cka,update-norm", "guard.fitting_references=2", "guard.references=5"]
    assert run(["protect", "-w", str(root), *[part for one in settings for part in ("--set", one)]]) == 0
    printed = capsys.readouterr().out
    assert "2 detectors (cka, update-norm)" in printed
    assert "2 that fit the scales" in printed
    assert "finest p-value is 0.167" in printed
    assert "gate" in printed


def test_show_tells_why_an_upload_expired(
    root: Path, office: Office, ada: Contributor, capsys: pytest.CaptureFixture[str]
) -> None:
    submission = ada.announce(slightly_changed)
    assert output(capsys, "show", submission.id, "-w", root)["expiry"] is None
    office.store.expire_upload(submission.id, "DIGEST_MISMATCH", "the weights have another SHA-256")
    assert run(["show", submission.id[:12], "-w", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "the weights have another SHA-256 (DIGEST_MISMATCH)" in printed
    found = output(capsys, "show", submission.id, "-w", root)
    assert found["state"] == "expired"
    assert found["expiry"] == {"code": "DIGEST_MISMATCH", "detail": "the weights have another SHA-256"}


def test_status_tells_what_is_wrong_with_a_guard(
    root: Path, office: Office, capsys: pytest.CaptureFixture[str]
) -> None:
    release = office.store.current()
    office.store.set_guard_state(release.id, GuardState.FAILED, error="the disk is full")
    assert run(["status", "-w", str(root)]) == 0
    assert "failed: the disk is full" in capsys.readouterr().out
    found = output(capsys, "status", "-w", root)
    assert found["release"]["guard_error"] == "the disk is full"
    office.store.set_guard_state(release.id, GuardState.READY)
    assert output(capsys, "status", "-w", root)["guard_errors"] == []


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is heard, here and in processes that are started: the background jobs of a shell ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_log_follows_new_entries_until_ctrl_c_and_then_ends_without_complaint(root: Path, office: Office) -> None:
    command = [sys.executable, "-m", "owner", "log", "-w", str(root), "--follow", "--json", "--kind", "refusal"]
    office.store.record_refusal(None, "REPLAY", "before")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as log:
        try:
            assert log.stdout is not None
            assert json.loads(log.stdout.readline())["body"]["detail"] == "before"
            office.store.set_guard_state(office.store.current().id, GuardState.MISSING)
            for code in ("NON_FINITE", "MAGNITUDE"):
                office.store.record_refusal(None, code, "while it follows")
                assert json.loads(log.stdout.readline())["body"]["code"] == code
            log.send_signal(signal.SIGINT)
            rest, complaints = log.communicate(timeout=30)
        finally:
            log.kill()
    assert (log.returncode, rest, complaints) == (0, "", "")


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_the_middle_of_a_query_ends_a_log_that_follows_after_it(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def interrupted(*_: object, **__: object) -> list[object]:
        signal.raise_signal(signal.SIGINT)
        asked.append("to its end")
        return []

    monkeypatch.setattr("owner.operations.looking.entries", interrupted)
    assert run(["log", "-w", str(root), "--follow"]) == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert asked == ["to its end"]
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("ctrl_c")
def test_a_log_that_follows_where_ctrl_c_is_ignored_goes_on(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a background job of a shell."""
    looks = []

    def looked(*_: object, **__: object) -> list[object]:
        signal.raise_signal(signal.SIGINT)
        looks.append("whole")
        if len(looks) == 3:
            raise StorageError("enough")
        return []

    counter = itertools.count()
    monkeypatch.setattr("owner.operations.looking.entries", looked)
    monkeypatch.setattr("owner.ledger.store.Store.change_counter", lambda _: next(counter))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert run(["log", "-w", str(root), "--follow"]) == StorageError.exit_code
    assert looks == ["whole"] * 3


def test_a_verdict_without_numbers_is_shown_all_the_same() -> None:
    parts = verdict_table(Verdict(Decision.QUARANTINED, codes=("VETTING_TIMEOUT",)).to_json())
    assert "VETTING_TIMEOUT" in str(parts[0])


def test_an_altered_ledger_ends_with_61_and_names_the_entry(
    root: Path, office: Office, ada: Contributor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert output(capsys, "verify-ledger", "-w", root)["ok"]
    import sqlite3

    with sqlite3.connect(root / "ledger.sqlite") as database:
        (position, body) = database.execute("select position, body from entries where kind = 'enrolment'").fetchone()
        for (trigger,) in database.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            database.execute(f"drop trigger {trigger}")
        database.execute("update entries set body = ? where position = ?", (body.replace("ada", "eve"), position))
    database.close()
    assert run(["verify-ledger", "-w", str(root)]) == 61
    assert f"entry {position}" in capsys.readouterr().err


def test_vetting_a_file_tells_by_its_exit_code(
    root: Path, office: Office, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worker(InProcess):
        def __enter__(self) -> Worker:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("owner.operations.deciding.VettingWorker", lambda **_: Worker())
    weights = load(office.workspace.release(office.store.current().id).weights)
    save(tmp_path / "theirs.safetensors", slightly_changed(weights))
    assert output(capsys, "vet", tmp_path / "theirs.safetensors", "-w", root)["decision"] == "accepted"
    save(tmp_path / "theirs.safetensors", {name: -tensor for name, tensor in weights.items()})
    assert run(["vet", str(tmp_path / "theirs.safetensors"), "-w", str(root)]) == 53
    assert "UTILITY_ACCURACY" in capsys.readouterr().out

    # Of a folder, or several, each is told as it comes.
    save(tmp_path / "first.safetensors", slightly_changed(weights))
    assert run(["vet", str(tmp_path), "-w", str(root)]) == 53
    first, theirs, *rest = capsys.readouterr().out.splitlines()
    assert "first.safetensors  accepted" in first
    assert "theirs.safetensors  rejected  UTILITY_ACCURACY" in theirs
    assert rest == ["1 accepted, 1 rejected"]
    twice = [str(tmp_path / "first.safetensors")] * 2
    assert run(["vet", *twice, "-w", str(root), "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["file"], one["decision"]) for one in told] == [(path, "accepted") for path in twice]


@pytest.mark.parametrize("age", ["", "30", "d", "-1d", "1y", "9999999999d"])
def test_an_age_is_a_number_and_a_unit(root: Path, age: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prune", "-w", str(root), f"--older-than={age}"]) == 10
    assert "12h, 30d, 8w" in capsys.readouterr().err


def test_pruning_nothing_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "prune", "-w", root)["submissions"] == []
    assert run(["prune", "-w", str(root), "--dry-run"]) == 0
    assert "would remove the weights of 0 submissions" in capsys.readouterr().out


def test_rolling_back_to_the_current_release_is_refused(
    root: Path, office: Office, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["rollback", office.store.current().id, "--reason", "why not", "-w", str(root)]) == 60
    assert "is the current one already" in capsys.readouterr().err


def test_a_workspace_that_lost_its_settings_is_not_to_be_deleted(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "portier.toml").unlink()
    assert run(["serve", "-w", str(root)]) == 21
    assert "put it back from a backup" in capsys.readouterr().err


def test_locks_are_made_again_where_somebody_tidied_them_away(root: Path) -> None:
    shutil.rmtree(root / "locks")
    assert run(["status", "-w", str(root)]) == 0


@pytest.mark.parametrize("command", [["init"], ["simulate", "demo", "--directory"]], ids=" ".join)
def test_a_place_that_cannot_be_written_is_named(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    (tmp_path / "file").write_text("in the way")
    place = tmp_path / "file" / "folder"
    assert run([*command, str(place)]) == 20
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_full_disk_is_reported_with_its_exit_code(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageError("cannot write x: No space left on device", hint="free some space")

    monkeypatch.setattr("common.files.write_secret", full)
    assert run(["invite", "bob", "-w", str(root), "-o", str(root / "x")]) == 20
    assert "No space left" in capsys.readouterr().err


def test_one_service_runs_per_workspace_and_sigterm_ends_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "owner", "serve", "-w", str(root), "--port", "0", "--enrolment-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
        try:
            ports = root / "locks" / "ports.json"
            deadline = time.monotonic() + 120
            while not ports.exists():
                assert service.poll() is None, service.stderr and service.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert run(["serve", "-w", str(root)]) == 21
            assert f"pid {service.pid}" in capsys.readouterr().err
            assert run(["invite", "bob", "-w", str(root), "--set", "service.port=0"]) == 0
            port = json.loads(ports.read_text())["port"]
            assert Invitation.from_string(capsys.readouterr().out).addresses == (f"127.0.0.1:{port}",)
            service.send_signal(signal.SIGTERM)
            assert service.wait(60) == 0
        finally:
            service.kill()
    assert not ports.exists()
