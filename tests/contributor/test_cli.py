"""`portier-contributor` from outside: exit codes, what it says, what it leaves alone."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from common import timestamps
from common.identity.authority import Authority
from common.identity.invitation import Invitation
from common.identity.keys import SigningKey
from common.identity.requests import certificate_request
from common.identity.tls_keys import TlsKey
from contributor import contributing, session
from contributor.cli import enrolling, run
from contributor.contributing import Standing
from contributor.membership import Membership
from contributor.requests import Request
from contributor.settings import ContributorSettings, write_template
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
    workspace.membership_file.write_text("{}")
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
        (["contribute"], 21, "portier-contributor join"),
        (["contribut"], 2, "contribut"),
        (["contribute", "--data", "digits", "--seed", "-1"], 2, "--seed"),
        (["contribute", "--data", "digits", "--training-slots", "two"], 10, "DIR:N"),
        (["contribute", "--data", "digits"], 21, "portier-contributor join"),
        (["status"], 21, "belongs to no owner yet"),
        (["renew"], 21, "belongs to no owner yet"),
        (["address", "localhost:7443"], 21, "belongs to no owner yet"),
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


@pytest.fixture
def joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ContributorWorkspace:
    """A home that has joined an owner who is not there."""
    monkeypatch.delenv("PORTIER_DATA", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    home = tmp_path / "joined"
    membership = Membership(home, "ada", (f"127.0.0.1:{port}",), SigningKey.generate().public_key)
    membership.signing_key_or_new()
    authority, tls_key = Authority.create(), TlsKey.generate()
    issued = authority.sign_request(certificate_request(tls_key, "ada"), "ada", days=30)
    membership.authority_file.write_bytes(authority.certificate_pem)
    membership.save_identity(tls_key, issued.certificate_pem)
    membership.save()
    write_template(ContributorWorkspace(home))
    return ContributorWorkspace(home)


MISTAKES = [
    (["--data", "digitz"], "", 11, "did you mean digits?"),
    (["--data", "/no/such/folder"], "", 13, "/no/such/folder"),
    (["--data", "cifar10", "--data-dir", "/no/such/folder"], "", 13, "/no/such/folder/cifar10/train.parquet"),
    (["--data", "digits", "--held-out", "/no/such/file"], "", 13, "/no/such/file"),
    (["--data", "digits", "--attack", "flop"], "", 11, "did you mean flip?"),
    (["--data", "digits", "--attack", "flip:sorce=3"], "", 11, "did you mean source?"),
    (["--data", "digits", "--partition", "idd:index=0,count=2"], "", 11, "did you mean iid?"),
    (["--data", "digits", "--partition", "iid:index=2,count=2"], "", 10, "index"),
    (["--data", "digits", "--optimiser", "adan"], "", 11, "did you mean adam?"),
    (["--data", "digits", "--epochs", "-1"], "", 10, "epochs must be"),
    (["--data", "digits", "--device", "gpu"], "", 11, "gpu"),
    (["--data", "digits", "--precision", "float23"], "", 10, "float32"),
    (["--data", "digits", "--factory", "mine"], "", 10, "package.module:factory"),
    (["--data", "digits", "--release", "5f2a"], "", 10, "64 hex digits"),
    ([], '[contribution]\ndata = "digitz"\n', 11, "did you mean digits?"),
    ([], '[contribution]\ndata = "digits"\n[tuning]\nepoch = 3\n', 11, "did you mean tuning.epochs?"),
    ([], '[contribution]\ndata = "digits"\n[simulation]\nattack = "flop"\n', 11, "did you mean flip?"),
    ([], "[contribution\n", 10, "line 1"),
    ([], "", 2, "contributor.toml"),
]


@pytest.mark.parametrize(
    ("flags", "text", "code", "said"), MISTAKES, ids=[" ".join(flags) or text for flags, text, *_ in MISTAKES]
)
def test_a_mistake_is_told_where_no_owner_can_be_reached(
    joined: ContributorWorkspace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    text: str,
    code: int,
    said: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # a folded line would part the words looked for
    if text:
        joined.settings_file.write_text(text)
    assert run(["contribute", *flags, "--patience", "0", "--home", str(joined.home)]) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert joined.contributions() == []


def test_a_home_that_cannot_be_written_is_named(
    joined: ContributorWorkspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    work = joined.contribution_directory("0001").parent
    work.write_text("in the way")
    assert run(["contribute", "--data", "digits", "--patience", "0", "--home", str(joined.home)]) == 20
    assert str(work) in capsys.readouterr().err


def test_a_file_that_happens_to_be_called_digits_does_not_hide_the_data_set(
    joined: ContributorWorkspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").write_text("a shopping list")
    assert run(["contribute", "--data", "digits", "--patience", "0", "--home", str(joined.home)]) == 51
    assert "shopping" not in capsys.readouterr().err


def test_without_a_mistake_the_owner_is_called(
    joined: ContributorWorkspace, capsys: pytest.CaptureFixture[str]
) -> None:
    joined.settings_file.write_text('[contribution]\ndata = "digits"\n[exchange]\npatience = 0.0\n')
    assert run(["contribute", "--home", str(joined.home)]) == 51
    assert "no connection to the owner" in capsys.readouterr().err


def test_what_the_file_says_is_done_and_a_flag_is_stronger(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "contributor.toml").write_text(
        '[contribution]\ndata = "digits"\nseed = 3\n[tuning]\nepochs = 4\nbatch_size = 8\n'
        '[machine]\ndevice = "cpu"\nprecision = "float32"\n'
        '[exchange]\nwait = false\npatience = 7.0\nfactories = ["my.models:make"]\n'
    )
    seen: dict[str, Any] = {}

    def contribute(workspace: ContributorWorkspace, owner: object, request: Request, **given: object) -> Contribution:
        seen.update(given, request=request)
        return Contribution("000001", request.to_json(), 3, "ab" * 16, submission="ab" * 32)

    @contextmanager
    def connect(workspace: ContributorWorkspace, *, patience: float, **_: object) -> Iterator[StandInSession]:
        seen["patience"] = patience
        yield StandInSession()

    monkeypatch.setattr(session, "connect", connect)
    monkeypatch.setattr(session, "signing_key", lambda _: None)
    monkeypatch.setattr(contributing, "contribute", contribute)
    monkeypatch.setenv("PORTIER_TUNING__BATCH_SIZE", "16")
    assert run(["contribute", "--epochs", "5", "--wait", "--home", str(home)]) == 0
    assert (seen["request"].data, seen["request"].seed) == ("digits", 3)
    assert seen["request"].options == {"epochs": 5, "batch_size": 16}
    assert (seen["device"], seen["precision"], seen["patience"], seen["wait"]) == ("cpu", "float32", 7.0, True)
    assert seen["factories"] == ("my.models:make",)


@pytest.mark.parametrize("given", ["flag", "file"])
def test_threads_are_as_many_as_were_asked_for(
    joined: ContributorWorkspace, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    before = torch.get_num_threads()
    wanted = before + 1
    if given == "file":
        joined.settings_file.write_text(f"[machine]\nthreads = {wanted}\n")
    flags = ["--threads", str(wanted)] if given == "flag" else []
    try:
        assert run(["contribute", "--data", "digitz", *flags, "--home", str(joined.home)]) == 11
        assert torch.get_num_threads() == wanted
    finally:
        torch.set_num_threads(before)


def test_the_help_names_every_section_of_the_settings_and_every_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["contribute", "--help"]) == 0
    shown = capsys.readouterr().out
    for section in ContributorSettings.model_fields:
        assert f"[{section}]" in shown
    assert "…" not in shown, "an option's name or metavar is cut off on a terminal of 80 columns"
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    codes = {
        int(code) for code in re.findall(r"(?:^|; )\W*(\d+) [a-z]", shown.partition("Exit codes")[2], re.MULTILINE)
    }
    assert {0, 1, 2, 10, 11, 13, 14, 20, 21, 30, 31, 32, 33, 40, 41, 42, 50, 51, 52, 53, 130} == codes


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
    seen: list[Request] = []

    def contribute(workspace: ContributorWorkspace, owner: object, request: Request, **given: object) -> Contribution:
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


@pytest.mark.parametrize("side", ["contributor", "owner"])
def test_a_system_without_file_locks_is_told_in_two_lines(side: str) -> None:
    code = f"import sys; sys.modules['fcntl'] = None; import {side}.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 10
    assert "Linux and macOS" in done.stderr.splitlines()[0]
    assert "WSL2" in done.stderr.splitlines()[1]
    assert len(done.stderr.splitlines()) == 2


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("portier-contributor ")


def test_join_says_where_it_knocks_and_for_how_long(
    joined: ContributorWorkspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolling, "JOIN_SECONDS", 0.0)
    authority, [address] = Authority.create(), Membership.open(joined.home).addresses
    invitation = Invitation.create(
        name="ada",
        addresses=[address],
        enrolment_addresses=[address],
        ca_certificate=authority.certificate_pem,
        owner_key=SigningKey.generate().public_key,
        expires=timestamps.now() + timedelta(hours=1),
    )
    assert run(["join", invitation.to_string(), "--home", str(tmp_path / "new")]) == 51
    assert capsys.readouterr().err.splitlines()[0] == f"trying {address}, for up to 0 s"


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ("localhost", 30, "is not an address"),
        (",", 10, "1 to 8 addresses"),
        ("127.0.0.1:1", 51, "no connection to the owner at 127.0.0.1:1"),
    ],
)
def test_an_address_where_no_owner_answers_is_not_taken(
    joined: ContributorWorkspace, capsys: pytest.CaptureFixture[str], given: str, code: int, said: str
) -> None:
    before = Membership.open(joined.home).addresses
    assert run(["address", given, "--patience", "0", "--home", str(joined.home)]) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert Membership.open(joined.home).addresses == before


def test_an_interruption_says_how_to_go_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "connect", interrupted)
    assert run(["watch", "abab", "--home", str(home)]) == 130
    assert "nothing is lost" in capsys.readouterr().err
