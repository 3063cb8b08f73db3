"""Admission: each check refuses for its own reason, and asks what was signed rather than what a table says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from common.identity.keys import Domain
from common.manifest import parse_submission
from common.model_spec import ModelSpec
from owner.admission import admit
from owner.ledger.records import Submission
from owner.operations.opening import Office
from tests.owner.people import Contributor


def outcome(office: Office, submission: Submission) -> tuple[str, str | None]:
    """The last check made, and its code."""
    last = admit(office.workspace, office.store, office.settings, submission).checks[-1]
    return last.name, last.code


def signed_anew(submission: Submission, ada: Contributor, **changes: Any) -> Submission:
    """As its contributor would have announced it with another manifest."""
    manifest = dataclasses.replace(parse_submission(submission.manifest), **changes)
    data = manifest.to_bytes()
    return dataclasses.replace(
        submission,
        id=manifest.id,
        manifest=data,
        signature=ada.key.sign(Domain.SUBMISSION, data),
        base_release=manifest.base_release,
    )


def test_an_honest_submission_passes_every_check(office: Office, ada: Contributor) -> None:
    assert outcome(office, ada.hand_in()) == ("layout", None)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"id": "0" * 64}, "MANIFEST_MISMATCH"),
        ({"contributor": "bob"}, "WRONG_CONTRIBUTOR"),
        ({"base_release": "0" * 64}, "MANIFEST_MISMATCH"),
        ({"weights_sha256": "0" * 64}, "MANIFEST_MISMATCH"),
        ({"weights_bytes": 1000}, "MANIFEST_MISMATCH"),
        ({"signature": bytes(64)}, "SIGNATURE_INVALID"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_row_that_says_another_thing_than_was_signed_is_refused(
    office: Office, ada: Contributor, change: dict[str, Any], code: str
) -> None:
    Contributor(office, "bob")
    assert outcome(office, dataclasses.replace(ada.hand_in(), **change)) == ("signature", code)


def test_a_model_or_a_base_that_is_not_the_owners_is_refused_although_it_is_signed(
    office: Office, ada: Contributor
) -> None:
    submission = ada.hand_in()
    other = signed_anew(submission, ada, spec=ModelSpec("logistic", (1, 8, 8), 10))
    assert outcome(office, other) == ("model", "SPEC_MISMATCH")
    assert outcome(office, signed_anew(submission, ada, base_release="0" * 64)) == ("base", "BASE_UNKNOWN")


@pytest.mark.parametrize(("bytes_more", "code"), [(-1, "FILE_TOO_SHORT"), (1, "FILE_TOO_LONG")])
def test_a_file_of_another_length_is_refused_before_it_is_hashed(
    office: Office, ada: Contributor, bytes_more: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = ada.hand_in()
    path = office.workspace.submission(submission.id).weights
    data = path.read_bytes()
    path.write_bytes(data[:bytes_more] if bytes_more < 0 else data + b"x")
    monkeypatch.setattr("owner.admission.check_digest", lambda *_: pytest.fail("it was hashed"))
    assert outcome(office, submission) == ("digest", code)
