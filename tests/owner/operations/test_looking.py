"""Status, entries, releases and receipts as a person sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import (
    LedgerError,
)
from owner.operations import looking
from owner.operations.opening import Office
from owner.releases import read_manifest
from tests.owner.people import Contributor, quarantined, slightly_changed


def test_the_status_page_counts_what_there_is(office: Office, ada: Contributor) -> None:
    quarantined(office, ada.hand_in(slightly_changed))
    ada.hand_in(slightly_changed)
    found = looking.status(office)
    assert found["submissions"] == {"quarantined": 1, "received": 1}
    assert found["contributors"] == {"enrolled": 1, "revoked": 0}
    assert found["release"]["guard"] == "ready"
    assert found["ledger"]["entries"] == office.store.head().index + 1
    json.dumps(found)


def test_an_id_finds_its_submission_or_release_by_the_first_digits(office: Office, ada: Contributor) -> None:
    submission = ada.hand_in(slightly_changed)
    assert looking.find(office, submission.id[:12]).id == submission.id
    assert looking.find(office, office.store.current().id[:12]).id == office.store.current().id
    with pytest.raises(LedgerError, match="no submission or release"):
        looking.find(office, "f" * 64)


def test_entries_are_chosen_by_kind_contributor_and_number(office: Office, ada: Contributor) -> None:
    Contributor(office, "bob")
    submission = quarantined(office, ada.hand_in(slightly_changed))
    about_ada = looking.entries(office, contributor="ada")
    assert [one.kind for one in about_ada] == ["invitation", "enrolment", "certificate", "submission", "verdict"]
    assert [one.index for one in about_ada] == sorted(one.index for one in about_ada)
    assert [one.kind for one in looking.entries(office, kind="verdict")] == ["verdict"]
    assert looking.entries(office, last=1)[0].body["submission"] == submission.id
    assert looking.entries(office, after=office.store.head().index) == []


def test_receipt_files_are_held_against_the_ledger(office: Office, ada: Contributor, tmp_path: Path) -> None:
    submission = ada.hand_in(slightly_changed)
    assert submission.commit_receipt is not None
    receipt = tmp_path / "receipt.json"
    receipt.write_bytes(submission.commit_receipt.to_bytes())
    assert looking.verify_ledger(office, [receipt]).ok
    receipt.write_bytes(b"{}")
    report = looking.verify_ledger(office, [receipt])
    assert not report.ok
    assert str(receipt) in report.problems[0]


def test_a_release_is_described_with_what_contributors_are_asked_to_do(office: Office) -> None:
    release = office.store.current()
    found = looking.release_facts(release)
    assert found["finetuning"] == read_manifest(release).finetuning.to_json()
    assert (found["architecture"], found["status"]) == ("mlp", "current")
