"""The contributor's client against a real owner: it takes nothing on trust and repeats nothing that was done."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common import timestamps
from common.errors import (
    ConnectionLostError,
    IdentityError,
    ManifestError,
    PortierError,
    ProtocolError,
    QuotaError,
    RevokedError,
    SignatureError,
    StorageError,
    WeightsError,
    WireError,
    WorkspaceError,
)
from common.identity.authority import Authority
from common.identity.keys import SigningKey
from common.receipts import Receipt, sign_receipt
from contributor import session, transfers
from contributor.cli import run
from contributor.client import OfferedRelease, OwnerClient, State, SubmissionStatus
from contributor.membership import Membership
from contributor.patience import OnTrouble, Patience
from contributor.settings import template
from contributor.transfers import Download, Upload, part_of
from contributor.workspace import ContributorWorkspace
from owner.ledger.records import GuardState, SubmissionState
from protos import collaboration_pb2 as wire
from tests.disk import asked_of_the_disk
from tests.network import Owner, serving, sign, submission


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    owner = Owner.found(tmp_path / "owner", weights=3_000_000)
    with serving(owner):
        yield owner
    owner.store.close()


@pytest.fixture
def client(owner: Owner, tmp_path: Path) -> Iterator[OwnerClient]:
    with owner.contributor("ann", tmp_path / "homes") as client:
        yield client


def distrusting(client: OwnerClient) -> OwnerClient:
    """The same contributor, who was told another owner's signing key when it joined."""
    other = dataclasses.replace(client.membership, owner_key=SigningKey.generate().public_key)
    other.save()
    return OwnerClient(client.membership.home)


def test_a_release_the_owner_did_not_sign_is_refused(client: OwnerClient) -> None:
    with distrusting(client) as other, pytest.raises(SignatureError):
        other.release()


def test_a_receipt_the_owner_did_not_sign_is_refused(client: OwnerClient, tmp_path: Path) -> None:
    signed = submission(client, client.release().id, tmp_path / "s.safetensors")
    with distrusting(client) as other, pytest.raises(SignatureError, match="receipt"):
        other.submit(signed.manifest, signed.signature, signed.path)


def test_an_owner_that_moved_is_called_where_it_is_now(owner: Owner, client: OwnerClient) -> None:
    home = ContributorWorkspace(client.membership.home)
    dataclasses.replace(client.membership, addresses=("127.0.0.1:1",)).save()
    with pytest.raises(ConnectionLostError) as caught, OwnerClient(home.home, patience=0.0) as lost:
        lost.release()
    assert "portier-contributor address HOST:PORT" in caught.value.hint
    new = (f"localhost:{owner.port}", "127.0.0.1:1")
    moved, silent = session.move(home, new, patience=0.0)
    assert (tuple(moved["addresses"]), len(silent)) == (new, 1)
    with OwnerClient(home.home, patience=0.0) as found:
        assert found.release().current


def test_an_address_where_somebody_else_answers_is_not_taken(owner: Owner, client: OwnerClient) -> None:
    home = ContributorWorkspace(client.membership.home)
    client.membership.authority_file.write_bytes(Authority.create().certificate_pem)
    with pytest.raises(IdentityError, match="did not show a certificate of the owner's authority") as caught:
        session.move(home, [f"localhost:{owner.port}", "127.0.0.1:1"], patience=0.0)
    assert "portier-contributor address HOST:PORT" in caught.value.hint
    assert Membership.open(home.home).addresses == client.membership.addresses


def test_an_owner_that_does_not_know_the_contributor_is_not_moved_to(owner: Owner, client: OwnerClient) -> None:
    owner.store.revoke(client.name)
    with pytest.raises(RevokedError):
        session.move(ContributorWorkspace(client.membership.home), [f"127.0.0.1:{owner.port}"], patience=0.0)
    assert Membership.open(client.membership.home).addresses == client.membership.addresses


def test_the_commands_bring_a_home_back_whose_certificate_ran_out(
    owner: Owner, client: OwnerClient, capsys: pytest.CaptureFixture[str]
) -> None:
    home = client.membership.home
    owner.let_expire(client)
    assert run(["renew", "--home", str(home)]) == 30
    assert "portier-owner invite ann --renew" in " ".join(capsys.readouterr().err.split())
    assert run(["join", owner.invite("ann", renew=True).to_string(), "--home", str(home)]) == 0
    printed = capsys.readouterr()
    assert f"trying localhost:{owner.enrolment_port}, for up to 60 s" in printed.err
    assert "the certificate of ann holds until" in printed.out
    assert run(["renew", "--home", str(home)]) == 0
    assert run(["address", f"127.0.0.1:{owner.port}", "--home", str(home)]) == 0
    assert Membership.open(home).addresses == (f"127.0.0.1:{owner.port}",)


def test_a_release_is_found_by_its_id_and_an_unknown_one_named(client: OwnerClient) -> None:
    current = client.release()
    assert client.release(current.id) == current
    with pytest.raises(WireError, match="not offered"):
        client.release("0" * 64)


def test_an_owner_that_answers_with_another_release_than_the_one_asked_for_is_not_believed(
    client: OwnerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = client._call("GetRelease", wire.GetReleaseRequest())
    monkeypatch.setattr(client, "_call", lambda *_: current)
    with pytest.raises(ProtocolError, match="when asked for 000000000000"):
        client.release("0" * 64)


def test_a_download_is_the_owners_file(owner: Owner, client: OwnerClient, tmp_path: Path) -> None:
    release = client.release()
    done: list[tuple[int, int]] = []
    path = client.download(release, tmp_path / "in" / "w.safetensors", progress=lambda *at: done.append(at))
    assert path.read_bytes() == owner.workspace.release(release.id).weights.read_bytes()
    size = release.manifest.weights_bytes
    assert done[-1] == (size, size)


def test_a_download_goes_on_where_it_stopped(owner: Owner, client: OwnerClient, tmp_path: Path) -> None:
    release, path = client.release(), tmp_path / "w.safetensors"
    whole = owner.workspace.release(release.id).weights.read_bytes()
    part_of(path).write_bytes(whole[:2_500_000])
    done: list[int] = []
    client.download(release, path, progress=lambda at, _: done.append(at))
    assert done == [len(whole)]
    assert path.read_bytes() == whole


def test_a_damaged_part_is_fetched_anew(owner: Owner, client: OwnerClient, tmp_path: Path) -> None:
    release, path = client.release(), tmp_path / "w.safetensors"
    part_of(path).write_bytes(bytes(2_500_000))
    client.download(release, path)
    assert path.read_bytes() == owner.workspace.release(release.id).weights.read_bytes()


def test_a_file_with_a_wrong_digest_is_not_taken_for_the_release(
    owner: Owner, client: OwnerClient, tmp_path: Path
) -> None:
    release, path = client.release(), tmp_path / "w.safetensors"
    path.write_bytes(b"something else")
    client.download(release, path)
    assert path.read_bytes() == owner.workspace.release(release.id).weights.read_bytes()


def test_weights_with_another_digest_than_the_manifest_never_get_their_name(
    owner: Owner, client: OwnerClient, tmp_path: Path
) -> None:
    release, path = client.release(), tmp_path / "w.safetensors"
    file = owner.workspace.release(release.id).weights
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(WeightsError) as caught:
        client.download(release, path)
    assert caught.value.code == "DIGEST_MISMATCH"
    assert not path.exists()
    assert not part_of(path).exists()


def test_more_bytes_than_the_manifest_states_are_not_written(tmp_path: Path) -> None:
    download = Download(tmp_path / "w.safetensors", size=10, digest="0" * 64)
    with pytest.raises(ProtocolError, match="that have 10 bytes"):
        download.take([wire.DownloadChunk(offset=0, data=bytes(11))])
    assert download.offset == 0


def test_a_chunk_that_does_not_follow_what_is_there_is_not_written(tmp_path: Path) -> None:
    download = Download(tmp_path / "w.safetensors", size=10, digest="0" * 64)
    with pytest.raises(ProtocolError, match="bytes 3 to 6 of weights that have 10 bytes, at offset 2"):
        download.take([wire.DownloadChunk(offset=0, data=bytes(2)), wire.DownloadChunk(offset=3, data=bytes(3))])
    assert download.offset == 2


def test_a_download_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asked_of_the_disk(monkeypatch)
    data = bytes(10)
    download = Download(tmp_path / "w.safetensors", size=10, digest=hashlib.sha256(data).hexdigest())
    download.take([wire.DownloadChunk(offset=0, data=data)])
    download.finish()
    assert asked == [10, "named", "folder"]


def test_a_file_that_becomes_shorter_while_it_is_sent_is_named(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(5))
    upload = Upload(tmp_path / "w", submission="0" * 64, offset=0, size=10)
    with pytest.raises(StorageError, match="became shorter"):
        list(itertools.islice(upload.chunks(), 5))
    assert isinstance(upload.error, StorageError)


def test_weights_that_do_not_match_the_manifest_are_not_sent(owner: Owner, client: OwnerClient, tmp_path: Path) -> None:
    signed = submission(client, client.release().id, tmp_path / "s.safetensors")
    signed.path.write_bytes(signed.path.read_bytes()[:-1] + b"?")
    with pytest.raises(WeightsError):
        client.submit(signed.manifest, signed.signature, signed.path)
    assert owner.store.submissions() == []


def test_handing_in_twice_sends_once(owner: Owner, client: OwnerClient, tmp_path: Path) -> None:
    signed = submission(client, client.release().id, tmp_path / "s.safetensors")
    first = client.submit(signed.manifest, signed.signature, signed.path)
    sent: list[int] = []
    again = client.submit(signed.manifest, signed.signature, signed.path, progress=lambda at, _: sent.append(at))
    assert (again, sent) == (first, [])
    assert len(owner.store.submissions()) == 1


def test_an_owner_that_never_likes_an_offset_is_given_up(
    client: OwnerClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def never(status: SubmissionStatus, *_: object) -> SubmissionStatus:
        tried.append(status.committed_bytes)
        assert len(tried) < 50, "it goes on for ever"
        raise WireError("WRONG_OFFSET", "no")

    signed = submission(client, client.release().id, tmp_path / "s.safetensors")
    monkeypatch.setattr(client, "_upload", never)
    with pytest.raises(WireError, match="no"):
        client.submit(signed.manifest, signed.signature, signed.path)
    assert set(tried) == {0}


def test_a_manifest_that_is_none_is_refused_before_anything_is_sent(client: OwnerClient, tmp_path: Path) -> None:
    with pytest.raises(ManifestError):
        client.submit(b"{}", bytes(64), tmp_path)


def test_a_refused_submission_raises_the_owners_own_error(client: OwnerClient, tmp_path: Path) -> None:
    signed = submission(client, client.release().id, tmp_path / "s.safetensors")
    wrong = sign(client, "0" * 64, signed.path)
    with pytest.raises(WireError) as caught:
        client.submit(wrong.manifest, wrong.signature, wrong.path)
    assert (caught.value.code, "base_release" in caught.value.message) == ("UNKNOWN_RELEASE", True)


def test_a_watch_goes_from_pending_to_the_verdict(owner: Owner, client: OwnerClient, tmp_path: Path) -> None:
    signed = submission(client, client.release().id, tmp_path / "s.safetensors")
    status = client.submit(signed.manifest, signed.signature, signed.path)
    watch = client.watch(status.id)
    assert next(watch) == status
    owner.store.claim()
    owner.store.decide(status.id, SubmissionState.REJECTED, {"public_code": "utility"})
    (last,) = list(watch)
    assert (last.state, last.code, last.decided) == (State.DECLINED, "utility", True)
    assert last.verdict_receipt is not None
    assert owner.store.verify([last.verdict_receipt]).ok


def test_submissions_are_listed_newest_first(client: OwnerClient, tmp_path: Path) -> None:
    base = client.release().id
    made = [submission(client, base, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2)]
    for signed in made:
        client.submit(signed.manifest, signed.signature, signed.path)
    assert [status.id for status in client.submissions()] == [made[1].manifest.id, made[0].manifest.id]


def test_the_owner_lists_so_many_at_once_and_no_more(
    client: OwnerClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owner.service.collaboration.LISTED_SUBMISSIONS", 1)
    made = [submission(client, client.release().id, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2)]
    for signed in made:
        client.submit(signed.manifest, signed.signature, signed.path)
    for limit in (0, 1, 100):
        assert [status.id for status in client.submissions(limit)] == [made[1].manifest.id]


def test_a_renewed_certificate_is_another_and_works(owner: Owner, client: OwnerClient) -> None:
    before = client.membership.identity()
    client.renew()
    after = client.membership.identity()
    assert after.peer.serial != before.peer.serial
    assert after.key != before.key
    assert client.release().current
    assert {one.serial for one in owner.store.certificates("ann")} == {before.peer.serial, after.peer.serial}


def test_the_certificate_is_renewed_by_itself_in_its_last_third(
    client: OwnerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = client.membership.identity().peer
    lifetime = before.not_after - before.not_before
    now = timestamps.now()
    moment = before.not_before + lifetime * 0.6
    monkeypatch.setattr(timestamps, "now", lambda: moment)
    client.release()
    assert client.membership.identity().peer.serial == before.serial
    moment = before.not_after - lifetime / 4
    with pytest.MonkeyPatch.context() as patch:
        # The owner runs in this process; its clock must not see the contributor's.
        patch.setattr(timestamps, "now", lambda: now)
        patch.setattr("contributor.membership.timestamps", Clock(moment))
        client.release()
    assert client.membership.identity().peer.serial != before.serial


@dataclasses.dataclass(frozen=True)
class Clock:
    moment: Any

    def now(self) -> Any:
        return self.moment


def test_an_expired_certificate_is_named_before_anything_is_tried(
    client: OwnerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = client.membership.identity().peer.not_after + timedelta(seconds=1)
    monkeypatch.setattr("contributor.membership.timestamps", Clock(late))
    with pytest.raises(IdentityError, match="expired"):
        OwnerClient(client.membership.home)


def test_a_certificate_for_another_key_is_not_kept(client: OwnerClient, owner: Owner, tmp_path: Path) -> None:
    with owner.contributor("bob", tmp_path / "homes") as bob:
        key, certificate = client.membership.identity(), bob.membership.identity().certificate
        from common.identity.tls_keys import TlsKey

        with pytest.raises(IdentityError, match="bob"):
            client.membership.save_identity(TlsKey.generate(), certificate)
        with pytest.raises(IdentityError, match="another key"):
            client.membership.save_identity(TlsKey.generate(), key.certificate)


def test_a_home_that_has_not_joined_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="belongs to no owner") as caught:
        OwnerClient(tmp_path)
    assert "join INVITATION" in caught.value.hint


@pytest.mark.parametrize("text", ["", "[]", "{}", "\x00", '{"format": 1}'])
def test_a_damaged_membership_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "membership.json").write_text(text)
    with pytest.raises(WorkspaceError, match="damaged"):
        Membership.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"name": "../ann"},
        {"addresses": ["localhost"]},
        {"addresses": [7443]},
        {"owner_key": "ab"},
        {"owner_key": "00" * 32},
    ],
    ids=["format", "name", "address without a port", "address a number", "owner key short", "owner key of small order"],
)
def test_a_membership_with_one_wrong_field_is_damaged(tmp_path: Path, change: dict[str, Any]) -> None:
    whole = Membership(tmp_path, "ann", ("localhost:7443",), SigningKey.generate().public_key)
    whole.save()
    assert Membership.open(tmp_path) == whole
    path = tmp_path / "membership.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WorkspaceError, match="damaged"):
        Membership.open(tmp_path)


def test_the_second_address_is_tried_when_the_first_is_dead(owner: Owner, client: OwnerClient) -> None:
    two = dataclasses.replace(client.membership, addresses=("localhost:1", f"127.0.0.1:{owner.port}"))
    two.save()
    with OwnerClient(two.home, patience=20.0) as other:
        assert other.release().current


def test_without_patience_a_dead_owner_is_reported_at_once(client: OwnerClient) -> None:
    dataclasses.replace(client.membership, addresses=("localhost:1",)).save()
    with (
        OwnerClient(client.membership.home, patience=0.0) as other,
        pytest.raises(ConnectionLostError, match="localhost:1"),
    ):
        other.release()


class Nap:
    """Time that passes only while one sleeps."""

    def __init__(self) -> None:
        self.time = 0.0
        self.naps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.time += seconds

    def patience(self, seconds: float | None, on_trouble: OnTrouble | None = None) -> Patience:
        return Patience(
            seconds,
            on_trouble=on_trouble,
            sleep=self.sleep,
            clock=lambda: self.time,
            uniform=lambda low, high: high,
        )


def test_delays_double_up_to_fifteen_seconds() -> None:
    nap = Nap()
    patience = nap.patience(None)
    for _ in range(12):
        patience.wait(ConnectionLostError("cut"))
    assert nap.naps[:4] == [0.1, 0.2, 0.4, 0.8]
    assert nap.naps[-1] == 15.0


def cut() -> None:
    raise ConnectionLostError("cut")


def test_patience_runs_out_and_progress_renews_it() -> None:
    nap = Nap()
    patience = nap.patience(1.0)
    for _ in range(3):
        patience.wait(ConnectionLostError("cut"))
    patience.progress()
    with pytest.raises(ConnectionLostError, match="cut"):
        patience.persist(cut)
    assert nap.time == pytest.approx(0.7 + 1.0)


def test_who_waits_long_is_told_once_a_streak_why_and_for_how_long() -> None:
    told: list[tuple[str, float | None]] = []
    patience = Nap().patience(60.0, lambda error, left: told.append((error.message, left)))
    for _ in range(2):
        patience.wait(ConnectionLostError("a hiccup"))
    patience.progress()
    assert told == []
    for _ in range(6):
        patience.wait(ConnectionLostError("cut"))
    assert told == [("cut", pytest.approx(60.0 - 0.7))]


@pytest.mark.parametrize("error", [QuotaError("full"), WireError("REPLAY", "again"), SignatureError("bad")])
def test_what_waiting_cannot_mend_is_raised_at_once(error: PortierError) -> None:
    nap = Nap()
    with pytest.raises(type(error)):
        nap.patience(None).wait(error)
    assert nap.naps == []


def test_an_offered_release_is_named_by_its_manifest(client: OwnerClient) -> None:
    release = client.release()
    assert isinstance(release, OfferedRelease)
    assert release.id == release.manifest.id
    assert release.manifest.to_bytes() == release.data


def test_joining_writes_a_settings_file_and_leaves_one_alone_that_is_there(owner: Owner, tmp_path: Path) -> None:
    owner.contributor("ann", tmp_path).close()
    assert (tmp_path / "ann" / "contributor.toml").read_text() == template()
    (tmp_path / "ben").mkdir()
    (tmp_path / "ben" / "contributor.toml").write_text("[tuning]\nepochs = 3\n")
    owner.contributor("ben", tmp_path).close()
    assert (tmp_path / "ben" / "contributor.toml").read_text() == "[tuning]\nepochs = 3\n"


def test_a_release_of_more_bytes_than_a_weights_file_may_have_is_not_fetched(
    client: OwnerClient, tmp_path: Path
) -> None:
    offered = client.release()
    huge = dataclasses.replace(offered, manifest=dataclasses.replace(offered.manifest, weights_bytes=1 << 42))
    with pytest.raises(WeightsError, match="the limit is") as caught:
        client.download(huge, tmp_path / "w.safetensors")
    assert caught.value.code == "FILE_TOO_LONG"
    assert list(tmp_path.glob("w.*")) == []


def test_a_disk_without_room_is_told_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers.shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    download = Download(tmp_path / "w.safetensors", size=10, digest="0" * 64)
    with pytest.raises(StorageError, match="9 bytes free, and 10 bytes"):
        download.take([wire.DownloadChunk(offset=0, data=bytes(5))])
    assert download.offset == 0


def answers(owner: Owner, commit: Receipt, rejected: Receipt) -> dict[str, dict[str, Any]]:
    """What an owner may claim of a submission that it has taken in and rejected, and has not signed."""
    handed_in, verdict = commit.to_bytes(), rejected.to_bytes()
    named = {name: getattr(commit, name) for name in ("index", "entry_hash", "head_index", "head_hash", "subject")}
    at_once = sign_receipt(owner.key, **named, statement="rejected").to_bytes()
    kinds = wire.Submission
    return {
        "pending, without a receipt": {"state": kinds.PENDING},
        "pending, called expired": {"state": kinds.PENDING, "code": "expired"},
        "declined as expired, and handed in": {"state": kinds.DECLINED, "code": "expired", "commit_receipt": handed_in},
        "uploading, and decided": {"state": kinds.UPLOADING, "verdict_receipt": verdict},
        "accepted, without a verdict": {"state": kinds.ACCEPTED, "commit_receipt": handed_in},
        "declined, without a verdict": {"state": kinds.DECLINED, "code": "utility", "commit_receipt": handed_in},
        "accepted, by the receipt of handing in": {
            "state": kinds.ACCEPTED,
            "commit_receipt": handed_in,
            "verdict_receipt": handed_in,
        },
        "accepted, by a verdict that rejects": {
            "state": kinds.ACCEPTED,
            "commit_receipt": handed_in,
            "verdict_receipt": verdict,
        },
        "declined, by a verdict handed in as the commit": {
            "state": kinds.DECLINED,
            "commit_receipt": verdict,
            "verdict_receipt": verdict,
        },
        "pending, by the receipt of a verdict": {"state": kinds.PENDING, "commit_receipt": verdict},
        "declined, by a verdict in the place of the commit": {
            "state": kinds.DECLINED,
            "commit_receipt": handed_in,
            "verdict_receipt": at_once,
        },
    }


def test_nothing_is_believed_of_a_submission_that_the_owner_has_not_signed(
    owner: Owner, client: OwnerClient, tmp_path: Path
) -> None:
    signed = submission(client, client.release().id, tmp_path / "s.safetensors")
    status = client.submit(signed.manifest, signed.signature, signed.path)
    owner.store.set_guard_state(status.base_release, GuardState.READY)
    owner.store.claim()
    _, _, rejected = owner.store.decide(
        status.id, SubmissionState.REJECTED, {"decision": "rejected", "codes": ["GATE"]}
    )
    assert status.commit_receipt is not None
    for told, fields in answers(owner, status.commit_receipt, rejected).items():
        answer = wire.Submission(submission_id=status.id, base_release=status.base_release, **fields)
        with pytest.raises(ProtocolError, match=r"no receipt|no such verdict"):
            pytest.fail(f"{told}: {client._read(answer, status.id)}")
    assert client.status(status.id).state is State.DECLINED
    assert owner.store.verify([status.commit_receipt, rejected]).ok


def test_an_answer_about_another_submission_or_in_unknown_words_is_not_taken(
    owner: Owner, client: OwnerClient, tmp_path: Path
) -> None:
    signed = submission(client, client.release().id, tmp_path / "s.safetensors")
    status = client.submit(signed.manifest, signed.signature, signed.path)
    commit = status.commit_receipt
    assert commit is not None
    named = {name: getattr(commit, name) for name in ("index", "entry_hash", "head_index", "head_hash", "statement")}
    of_another = sign_receipt(owner.key, **named, subject="0" * 64).to_bytes()
    honest: dict[str, Any] = {
        "submission_id": status.id,
        "state": wire.Submission.PENDING,
        "commit_receipt": commit.to_bytes(),
    }
    for change, told in (
        ({"submission_id": "0" * 64}, "cannot be read"),
        ({"state": 99}, "cannot be read"),
        ({"state": wire.Submission.State.Value("STATE_UNSPECIFIED")}, "cannot be read"),
        ({"commit_receipt": of_another}, "receipt is about 000000"),
    ):
        with pytest.raises(ProtocolError, match=told):
            client._read(wire.Submission(**(honest | change)), status.id)
    assert client._read(wire.Submission(**honest, code="\x1b[2J"), status.id).code == ""
