"""`portier-contributor` from outside: exit codes, what it says, what it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from contributor import contributing, session
from contributor.cli import run
from contributor.contributing import Standing
from contributor.workspace import Contribution, ContributorWorkspace, Step


class StandInSession:
    """A connected home without a network; `contribute` is stood in for as well."""

    name = "ada"

    def __init__(self, *standings: Standing) -> None:
        self.standings = standings

    def watch(self, submission_id: str) -> Iterator[Standing]:
        yield from self.standings


@pytest.fixture
def home(tmp_path: Path) -> Path:
    workspace = ContributorWorkspace(tmp_path)
    begun = workspace.start({"data": "digits"}, seed=1, nonce="ab" * 16)
    workspace.save(
        Contribution(**{**vars(begun), "step": Step.COMMITTED, "submission": "ab" * 32, "release": "cd" * 32})
    )
    return tmp_path


def _connect_to(monkeypatch: pytest.MonkeyPatch, *standings: Standing) -> None:
    @contextmanager
    def connect(workspace: ContributorWorkspace, **_: object) -> Iterator[StandInSession]:
        yield StandInSession(*standings)

    monkeypatch.setattr(session, "connect", connect)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Usage"),
        (["contribute"], 2, "--data"),
        (["contribut"], 2, "contribut"),
        (["contribute", "--data", "digits", "--seed", "-1"], 2, "--seed"),
        (["contribute", "--data", "digits", "--training-slots", "two"], 10, "DIR:N"),
        (["contribute", "--data", "digits"], 21, "portier-contributor join"),
        (["status"], 21, "belongs to no owner yet"),
        (["renew"], 21, "belongs to no owner yet"),
        (["watch", "ff"], 10, "no submission of this home"),
        (["join", "no-such-file"], 10, "no-such-file"),
        (["join", "portier1:AAAA"], 31, "invitation"),
        (["join", "portier9:AAAA"], 31, "another version"),
    ],
)
def test_mistakes_end_with_their_code_and_say_what_was_wrong(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*arguments, "--home", str(tmp_path)] if arguments and arguments[0] != "contribut" else arguments
    assert run(given) == code
    out, err = capsys.readouterr()
    assert said in " ".join((out + err).split())


def test_an_invitation_may_lie_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mail.txt").write_text("portier1:AAAA\n")
    assert run(["join", str(tmp_path / "mail.txt"), "--home", str(tmp_path)]) == 31
    assert "AAAA" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("standing", "code"),
    [(Standing("accepted"), 0), (Standing("declined", "utility"), 53)],
    ids=["accepted", "declined"],
)
def test_watch_ends_with_the_verdict(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], standing: Standing, code: int
) -> None:
    _connect_to(monkeypatch, Standing("pending"), standing)
    assert run(["watch", "abab", "--home", str(home), "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {
        "submission": "ab" * 32,
        "verdict": standing.state,
        "code": standing.code,
    }


@pytest.mark.parametrize(("verdict", "code"), [("accepted", 0), ("declined", 53), ("", 0)])
def test_contribute_ends_with_the_verdict(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verdict: str, code: int
) -> None:
    seen: list[contributing.Request] = []

    def contribute(
        workspace: ContributorWorkspace, owner: object, request: contributing.Request, **given: object
    ) -> Contribution:
        seen.append(request)
        done = Contribution("000001", request.to_json(), 3, "ab" * 16, submission="ab" * 32, verdict=verdict)
        given["on_change"](done)  # type: ignore[operator]
        return done

    _connect_to(monkeypatch)
    monkeypatch.setattr(session, "signing_key", lambda _: None)
    monkeypatch.setattr(contributing, "contribute", contribute)
    arguments = ["contribute", "--data", "digits", "--epochs", "4", "--lr", "0.01", "--seed", "3", "--home", str(home)]
    assert run([*arguments, "--report", str(home / "report.json"), "--json"]) == code
    assert seen[0].options == {"epochs": 4, "learning_rate": 0.01}
    assert (seen[0].data, seen[0].seed) == ("digits", 3)
    printed = json.loads(capsys.readouterr().out)
    assert (printed["submission"], printed["verdict"]) == ("ab" * 32, verdict)
    assert json.loads((home / "report.json").read_text()) == printed


@pytest.mark.parametrize("arguments", [["--help"], ["contribute", "--help"], ["status"], ["join", "portier1:AAAA"]])
def test_what_needs_no_model_does_not_wait_for_torch(arguments: list[str], tmp_path: Path) -> None:
    home = [] if "--help" in arguments else ["--home", str(tmp_path)]
    code = (
        "import sys; from contributor.cli import run; run(sys.argv[1:]); sys.stdout.flush()\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments, *home], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unexpected_error_is_no_bare_traceback(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("[oops]")

    monkeypatch.setattr(session, "connect", broken)
    assert run(["watch", "abab", "--home", str(home)]) == 1
    said = capsys.readouterr().err
    assert "RuntimeError: [oops]" in said
    assert "Traceback" not in said


def test_an_interruption_says_how_to_go_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "connect", interrupted)
    assert run(["watch", "abab", "--home", str(home)]) == 130
    assert "nothing is lost" in capsys.readouterr().err
