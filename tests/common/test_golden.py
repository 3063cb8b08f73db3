"""The files of format version 1 in tests/data/golden/v1 verify and parse, byte for byte, while format 1 is read.

Never mend this test by making the files anew: a change that breaks them needs a new format version.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from common import weights
from common.errors import InvitationError
from common.identity.certificates import load_certificate, read_peer
from common.identity.invitation import Invitation
from common.identity.keys import Domain, verify
from common.identity.requests import EnrolmentRequest, verify_enrolment_request
from common.manifest import parse_release, parse_submission
from common.receipts import Receipt, verify_receipt

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "v1"
ABOUT = json.loads((GOLDEN / "about.json").read_text("utf-8"))
OWNER, CONTRIBUTOR = bytes.fromhex(ABOUT["owner_key"]), bytes.fromhex(ABOUT["contributor_key"])

DIGESTS = {
    "release.json": "e03b91ca91c59e7d24f91c1fa29c5ac0d663882ba6c64728597aa984d02053b1",
    "submission.json": "98692b2bb4c31353f97f465569c2dacf836dbadb7fdb0aa2187eb5be4936ed99",
    "weights.safetensors": "62db1da51fe5137578e727c0bc66d81c682332ecc90e1fd4a27522e510f2224a",
    "every_dtype.safetensors": "a307cefab7306c9b7cbf2070288559e0ffde8aab416db618a4ec7a5485f78136",
    "receipt.json": "65bb6f2f24e8825e7249a619d58587b45cbe65fdd8ce03fcbb6f833e00a1971a",
    "invitation.txt": "72005209a4b33279679bcd31c9954cbdc4e937a659bd6a926146a61e6479e2a1",
}


def data(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


@pytest.mark.parametrize("name", DIGESTS)
def test_the_golden_files_are_those_that_were_committed(name: str) -> None:
    assert hashlib.sha256(data(name)).hexdigest() == DIGESTS[name]


def test_the_release_manifest_verifies_and_encodes_to_the_same_bytes() -> None:
    verify(Domain.RELEASE, data("release.json"), data("release.sig"), OWNER)
    release = parse_release(data("release.json"))
    assert release.to_bytes() == data("release.json")
    assert release.id == ABOUT["release_id"]
    assert release.class_names[-1] == "neuf·九"
    assert release.finetuning.learning_rate == 0.005


def test_the_submission_manifest_verifies_and_encodes_to_the_same_bytes() -> None:
    verify(Domain.SUBMISSION, data("submission.json"), data("submission.sig"), CONTRIBUTOR)
    submission = parse_submission(data("submission.json"))
    assert submission.to_bytes() == data("submission.json")
    assert submission.id == ABOUT["submission_id"]
    assert submission.base_release == ABOUT["release_id"]
    assert submission.training.learning_rate == 1e-05


def test_the_weights_load_with_the_digest_of_both_manifests_and_save_to_the_same_bytes(tmp_path: Path) -> None:
    release, submission = parse_release(data("release.json")), parse_submission(data("submission.json"))
    assert release.weights_sha256 == submission.weights_sha256
    loaded = weights.load(GOLDEN / "weights.safetensors", digest=release.weights_sha256)
    assert weights.layout_of(loaded) == weights.layout_of({"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)})
    weights.check_values(loaded)
    assert weights.save(tmp_path / "again", loaded) == release.weights_sha256


def test_every_dtype_still_has_its_meaning() -> None:
    loaded = weights.load(GOLDEN / "every_dtype.safetensors")
    for code, dtype in weights.DTYPES.items():
        assert torch.equal(loaded[code], torch.tensor([[0, 1, 1]]).to(dtype))
        assert loaded[code].dtype == dtype
    assert loaded["scalar"].item() == 7
    assert loaded["empty"].shape == (0, 3)


def test_the_receipt_verifies() -> None:
    receipt = Receipt.from_bytes(data("receipt.json"))
    verify_receipt(receipt, OWNER)
    assert (receipt.index, receipt.head_index, receipt.subject) == (4, 5, ABOUT["submission_id"])


def test_the_invitation_is_read_and_written_alike() -> None:
    text = data("invitation.txt").decode("ascii")
    invitation = Invitation.from_string(text)
    assert invitation.to_string() == text
    assert invitation.owner_key == OWNER
    assert invitation.ca_spki_sha256 == ABOUT["ca_spki_sha256"]
    assert invitation.ca_certificate_pem == data("authority_certificate.pem")
    invitation.check(datetime(2026, 1, 5, 3, 4, 4, tzinfo=UTC))
    with pytest.raises(InvitationError):
        invitation.check(datetime(2026, 1, 5, 3, 4, 5, tzinfo=UTC))


def test_the_enrolment_request_proves_both_keys() -> None:
    token = Invitation.from_string(data("invitation.txt").decode("ascii")).token
    verify_enrolment_request(
        EnrolmentRequest(token, data("enrolment_request.der"), CONTRIBUTOR, data("enrolment_proof.sig"))
    )


def test_the_contributors_certificate_names_it_and_is_the_authoritys() -> None:
    peer = read_peer(data("contributor_certificate.pem"))
    assert (peer.name, peer.serial) == ("ward-3", ABOUT["contributor_serial"])
    issuer = load_certificate(data("authority_certificate.pem"))
    load_certificate(data("contributor_certificate.pem")).verify_directly_issued_by(issuer)
