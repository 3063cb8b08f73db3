"""Somebody with write access to the database file: what `verify` finds of it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta

import pytest

from common.errors import LedgerError
from common.identity.invitation import token_digest
from common.identity.keys import Domain
from common.receipts import Receipt, sign_receipt
from owner.ledger import Store, SubmissionState, chain
from tests.owner.ledger.world import START, World, digest_of, key_of, release_manifest, token_of

S = SubmissionState
LATER = START + timedelta(days=1)


def tamper(world: World, *statements: str) -> list[str]:
    """The problems found after these statements, run by somebody who has switched off what stands in the way."""
    world.store.close()
    with closing(sqlite3.connect(world.path)) as connection:
        connection.execute("DROP TRIGGER entries_no_update")
        connection.execute("DROP TRIGGER entries_no_delete")
        for statement in statements:
            assert connection.execute(statement).rowcount != 0, f"{statement} hit nothing"
        connection.commit()
    return world.store.verify().problems


def receipts_of(world: World) -> list[Receipt]:
    return [one.commit_receipt for one in world.store.submissions() if one.commit_receipt] + [
        one.verdict_receipt for one in world.store.submissions() if one.verdict_receipt
    ]


def test_a_ledger_nobody_touched_verifies_with_all_its_receipts(history):
    report = history.store.verify(receipts_of(history))
    assert report.problems == []
    assert report.ok
    assert report.entries == history.store.head().index + 1


@pytest.mark.parametrize("statement", ["UPDATE entries SET time = 'never'", "DELETE FROM entries WHERE position = 3"])
def test_the_database_itself_refuses_to_change_an_entry(history, statement):
    with (
        closing(sqlite3.connect(history.path)) as connection,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        connection.execute(statement)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("time = '2020-01-01T00:00:00.000000Z'", "was altered: its content"),
        ("kind = 'note'", "was altered: its content"),
        ("body = replace(body, 'ada', 'eve')", "was altered: its content"),
        ("body = body || ' '", "not canonical JSON"),
        ("body = '[]'", "not canonical JSON"),
        ("body = '{'", "not canonical JSON"),
        ("previous_hash = hash", "does not follow"),
        ("hash = previous_hash || ''", "was altered"),
        ("head_signature = zeroblob(64)", "did not sign"),
        ("head_signature = 'text'", "did not sign"),
        ("submission = 'abc'", "filed under another"),
    ],
)
def test_an_altered_entry_is_found_by_its_number(history, change, finding):
    if change.startswith("hash ="):
        change = "hash = substr(hash, 2) || 'f'"
    position = next(entry.index for entry in history.store.entries(kind="enrolment") if entry.body["name"] == "ada")
    problems = tamper(history, f"UPDATE entries SET {change} WHERE position = {position}")
    assert any(f"entry {position}" in problem and finding in problem for problem in problems), problems


def test_two_exchanged_entries_are_found(history):
    problems = tamper(
        history,
        "UPDATE entries SET position = 1000 WHERE position = 4",
        "UPDATE entries SET position = 4 WHERE position = 5",
        "UPDATE entries SET position = 5 WHERE position = 1000",
    )
    assert any("entry 4 " in problem for problem in problems)
    assert any("entry 5 " in problem for problem in problems)


def test_a_missing_entry_is_found(history):
    assert "entry 4 is missing" in tamper(history, "DELETE FROM entries WHERE position = 4")


def test_several_missing_entries_are_found(history):
    assert "entries 4 to 6 are missing" in tamper(history, "DELETE FROM entries WHERE position BETWEEN 4 AND 6")


def test_a_ledger_without_entries_is_found(history):
    assert any("no entry at all" in problem for problem in tamper(history, "DELETE FROM entries"))


def rewritten(world: World, key, edit) -> list[str]:
    """The whole chain made anew with another key, after `edit` of each body."""
    statements = []
    previous = None
    for entry in world.store.entries():
        new = chain.link(previous, entry.time, entry.kind, edit(entry.kind, dict(entry.body)))
        signature = chain.sign_head(key, new.index, new.hash).hex()
        body = json.dumps(new.body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).replace("'", "''")
        statements.append(
            f"UPDATE entries SET body = '{body}', hash = '{new.hash}', previous_hash = '{new.previous_hash}', "
            f"head_signature = x'{signature}' WHERE position = {new.index}"
        )
        previous = (new.index, new.hash)
    return statements


def test_a_chain_rewritten_without_the_owners_key_is_found(history):
    problems = tamper(history, *rewritten(history, key_of(666), lambda _, body: body))
    assert any("did not sign" in problem for problem in problems)


def test_a_chain_rewritten_with_the_owners_key_contradicts_the_receipts(history):
    """Rows and receipts in the tables changed along, as only the owner can."""
    receipts = receipts_of(history)

    def edit(kind, body):
        return {**body, "reason": "nothing happened"} if kind == "rollback" else body

    problems = tamper(history, *rewritten(history, history.owner, edit))
    assert all("receipt" in problem for problem in problems)
    shown = [problem for problem in history.store.verify(receipts).problems if "the ledger was rewritten" in problem]
    assert shown


def test_a_ledger_that_names_another_owner_first_is_found(history):
    other = key_of(66).public_key.hex()

    def edit(kind, body):
        return {**body, "owner_key": other} if kind == "ledger" else body

    problems = tamper(history, *rewritten(history, history.owner, edit))
    assert "the first entry does not name the owner's key" in problems


def test_a_ledger_cut_short_shows_against_a_receipt_and_only_so(busy_world):
    busy_world.decided("ada", "early", S.REJECTED)
    busy_world.store.close()
    early = busy_world.path.with_name("early.sqlite")
    shutil.copy(busy_world.path, early)
    late = busy_world.decided("ada", "late", S.REJECTED)
    with Store.open(f"sqlite:///{early}", busy_world.owner, clock=busy_world.clock) as old:
        assert old.verify().ok
        assert late.commit_receipt is not None
        problems = old.verify([late.commit_receipt]).problems
    assert len(problems) == 1
    assert "cut short" in problems[0]


def test_a_ledger_that_lost_the_head_of_a_receipt_is_cut_short(history):
    receipt = history.store.submissions(state=S.REJECTED)[0].commit_receipt
    named = {name: getattr(receipt, name) for name in ("index", "entry_hash", "subject", "statement")}
    newest = history.store.head().index
    later = sign_receipt(history.owner, **named, head_index=newest + 1, head_hash="f" * 64)
    (problem,) = history.store.verify([later]).problems
    assert f"knows entry {newest + 1}, but the ledger ends at entry {newest}: it was cut short" in problem


@pytest.mark.parametrize("lie", [{"statement": "accepted"}, {"subject": "ab" * 32}], ids=["statement", "subject"])
def test_a_kept_receipt_that_says_another_thing_than_its_entry_is_found(history, lie):
    receipt = history.store.submissions(state=S.REJECTED)[0].verdict_receipt
    names = ("index", "entry_hash", "head_index", "head_hash", "subject", "statement")
    other = sign_receipt(history.owner, **({name: getattr(receipt, name) for name in names} | lie)).to_bytes()
    problems = tamper(history, f"UPDATE submissions SET verdict_receipt = x'{other.hex()}' WHERE state = 'rejected'")
    assert len(problems) == 1
    assert "verdict receipt that does not fit" in problems[0]


def test_an_entry_over_64_kib_is_not_written():
    with pytest.raises(LedgerError, match="the limit is 65536"):
        chain.link(None, "2026-01-02T03:04:05.000000Z", "note", {"text": "x" * chain.BODY_LIMIT})


def test_a_receipt_of_another_owner_is_said_to_be_that(history):
    receipt = history.store.submissions(state=S.REJECTED)[0].commit_receipt
    forged = Receipt(**{**receipt.__dict__, "subject": "something-else"})
    assert "not one of this owner" in history.store.verify([forged]).problems[0]


REJECTED = "(SELECT id FROM submissions WHERE state = 'rejected')"


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        (
            "UPDATE submissions SET state = 'accepted' WHERE state = 'rejected'",
            "listed as accepted, the ledger says rejected",
        ),
        (
            "UPDATE submissions SET state = 'rejected' WHERE state = 'accepted'",
            "listed as rejected, the ledger says accepted",
        ),
        ("UPDATE submissions SET state = 'expired' WHERE state = 'received'", "handed in and not decided"),
        ("UPDATE submissions SET state = 'received' WHERE state = 'uploading'", "no entry says that it was handed in"),
        ("UPDATE submissions SET state = 'nonsense' WHERE state = 'rejected'", "listed as nonsense"),
        ("UPDATE submissions SET weights_sha256 = 'ab' WHERE state = 'rejected'", "than its manifest has"),
        ("UPDATE submissions SET contributor = 'bob' WHERE state = 'rejected'", "is not signed by bob"),
        ("UPDATE submissions SET manifest = x'00' WHERE state = 'rejected'", "manifest that was altered"),
        ("UPDATE submissions SET signature = zeroblob(64) WHERE state = 'rejected'", "is not signed by ada"),
        ("UPDATE submissions SET commit_receipt = NULL WHERE state = 'rejected'", "commit receipt that does not fit"),
        (
            "UPDATE submissions SET verdict_receipt = x'7b7d' WHERE state = 'rejected'",
            "verdict receipt that does not fit",
        ),
        ("UPDATE submissions SET verdict_position = NULL WHERE state = 'rejected'", "another verdict entry"),
        ("DELETE FROM submissions WHERE state = 'rejected'", "missing among the submissions"),
        ("UPDATE verdicts SET verdict = '{}'", "was altered"),
        (f"DELETE FROM verdicts WHERE submission = {REJECTED}", "is missing"),
        (f"UPDATE verdicts SET submission = 'ab' WHERE submission = {REJECTED}", "the ledger does not know"),
        ("UPDATE releases SET manifest = x'00' WHERE number = 1", "its manifest was altered"),
        ("UPDATE releases SET signature = zeroblob(64) WHERE number = 1", "not signed by the owner"),
        ("UPDATE releases SET weights_sha256 = 'ab' WHERE number = 1", "another number, parent or digest"),
        ("UPDATE releases SET status = 'past' WHERE number = 1", "listed as past, the ledger says rolled-back"),
        ("UPDATE releases SET submission_id = NULL WHERE number = 1", "digest or submission than the ledger has"),
        ("DELETE FROM releases WHERE number = 1", "missing among the releases"),
        ("UPDATE contributors SET signing_key = zeroblob(32) WHERE name = 'ada'", "another signing key"),
        ("UPDATE contributors SET revoked = NULL WHERE name = 'bob'", "bob: revoked is empty, the ledger says 2026"),
        ("UPDATE contributors SET revoked = '2027-01-01T00:00:00.000000Z' WHERE name = 'bob'", "bob: revoked is 2027"),
        ("UPDATE contributors SET reason = 'by mistake' WHERE name = 'bob'", "bob: reason is by mistake"),
        (
            "UPDATE contributors SET enrolled = '2020-01-01T00:00:00.000000Z' WHERE name = 'ada'",
            "ada: enrolled is 2020",
        ),
        ("UPDATE contributors SET name = 'eve' WHERE name = 'ada'", "eve was enrolled by no entry"),
        (
            "UPDATE certificates SET contributor = 'bob' WHERE contributor = 'ada'",
            "belongs to bob, the ledger says to ada",
        ),
        (
            "INSERT INTO certificates VALUES ('66', 'ada', '2026-01-02T03:04:05.000000Z', '2027-01-02T03:04:05.000000Z')",
            "belongs to ada, the ledger says to nobody",
        ),
        (
            "UPDATE certificates SET not_after = '2099-01-01T00:00:00.000000Z' WHERE contributor = 'ada'",
            "not_after is 2099-01-01T00:00:00.000000Z, the ledger says 2026",
        ),
        ("UPDATE certificates SET issued = '2020-01-01T00:00:00.000000Z' WHERE contributor = 'ada'", "issued is 2020"),
        ("UPDATE invitations SET used_at = NULL WHERE name = 'ada'", "used_at is empty, the ledger says 2026"),
        ("UPDATE invitations SET expires = '2099-01-01T00:00:00.000000Z' WHERE name = 'ada'", "expires is 2099"),
        ("UPDATE invitations SET created = '2020-01-01T00:00:00.000000Z' WHERE name = 'ada'", "created is 2020"),
        ("UPDATE releases SET published = '2020-01-01T00:00:00.000000Z' WHERE number = 1", "published is 2020"),
        ("UPDATE submissions SET updated = '2099-01-01T00:00:00.000000Z' WHERE state = 'quarantined'", "not at 2099"),
        ("UPDATE submissions SET pruned = '2026-01-02T03:04:05.000000Z' WHERE state = 'rejected'", "weights pruned at"),
        ("DELETE FROM invitations WHERE name = 'ada'", "is missing"),
        ("UPDATE ledger_state SET owner_key = zeroblob(32)", "does not name the owner's key"),
        ("UPDATE submissions SET manifest = 'text' WHERE state = 'rejected'", "cannot be one of ours"),
    ],
)
def test_a_table_that_contradicts_the_entries_is_found(history, statement, finding):
    problems = tamper(history, statement)
    assert any(finding in problem for problem in problems), problems


WITHDRAWN = {
    "invited again": lambda store: store.invite("eve", token_digest(token_of("a second")), LATER),
    "revoked": lambda store: store.revoke("eve"),
}


@pytest.mark.parametrize("withdraw", WITHDRAWN.values(), ids=WITHDRAWN)
def test_a_withdrawn_invitation_that_was_revived_is_found(busy_world, withdraw):
    digest = token_digest(token_of("a first"))
    busy_world.store.invite("eve", digest, LATER)
    withdraw(busy_world.store)
    assert busy_world.store.verify().ok
    problems = tamper(busy_world, f"UPDATE invitations SET withdrawn_at = NULL WHERE token_sha256 = '{digest}'")
    assert problems == [
        f"the invitation {digest[:12]} for eve: withdrawn_at is empty, the ledger says 2026-01-02T03:04:05.000000Z"
    ]


def test_an_open_invitation_that_was_prolonged_is_found(busy_world):
    busy_world.store.invite("eve", token_digest(token_of("one")), LATER)
    problems = tamper(busy_world, "UPDATE invitations SET expires = '2099-01-01T00:00:00.000000Z' WHERE name = 'eve'")
    assert len(problems) == 1
    assert "expires is 2099-01-01T00:00:00.000000Z, the ledger says 2026-01-03" in problems[0]


def renewed(world: World) -> str:
    """The digest of an invitation by which ada was taken in again."""
    token = token_of("renewal")
    world.store.invite("ada", token_digest(token), LATER, renew=True)
    world.store.redeem(token, signing_key=world.keys["ada"].public_key, serial="0e", not_after=LATER)
    return token_digest(token)


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE invitations SET used_at = NULL WHERE token_sha256 = '{}'", "used_at is empty, the ledger says 2026"),
        ("DELETE FROM invitations WHERE token_sha256 = '{}'", "is missing"),
        ("UPDATE contributors SET signing_key = zeroblob(32) WHERE name = 'ada'", "another signing key"),
    ],
)
def test_a_renewal_is_accounted_for_by_its_entries(busy_world, statement, finding):
    digest = renewed(busy_world)
    assert busy_world.store.verify().ok
    problems = tamper(busy_world, statement.format(digest))
    assert any(finding in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("kind", "finding"),
    [
        ("invitation", "invites ada for another key than the one that the name stands for"),
        ("re-enrolment", "takes ada in again with a key that the name does not stand for"),
    ],
)
def test_an_owner_who_writes_that_a_name_was_renewed_for_another_key_is_found(busy_world, kind, finding):
    renewed(busy_world)
    other = key_of(66).public_key.hex()

    def edit(entry_kind, body):
        return {**body, "signing_key": other} if entry_kind == kind and "signing_key" in body else body

    problems = tamper(busy_world, *rewritten(busy_world, busy_world.owner, edit))
    assert any(finding in problem for problem in problems), problems


def test_somebody_enrolled_by_an_invitation_that_had_been_withdrawn_is_found(busy_world):
    """The row revived, used, and put back: only the order of the entries tells."""
    token = token_of("withdrawn")
    busy_world.store.invite("eve", token_digest(token), LATER)
    busy_world.store.revoke("eve")
    tamper(busy_world, "UPDATE invitations SET withdrawn_at = NULL WHERE name = 'eve'")
    busy_world.store.redeem(token, signing_key=key_of(77).public_key, serial="77", not_after=LATER)
    problems = busy_world.store.verify().problems
    assert any("enrols eve by an invitation that was not open" in problem for problem in problems), problems


def test_a_release_that_was_slipped_in_is_found(history):
    data = release_manifest(9, None, note="slipped in").to_bytes()
    signature = history.owner.sign(Domain.RELEASE, data)
    problems = tamper(
        history,
        f"INSERT INTO releases VALUES ('{digest_of(data.decode())}', 9, NULL, x'{data.hex()}', x'{signature.hex()}', 'ab',"
        " NULL, 'ready', NULL, 'past', '2026-01-02T03:04:05.000000Z')",
    )
    assert any("was published by no entry" in problem for problem in problems)


def test_the_ledger_goes_on_while_it_is_verified(history):
    assert history.store.verify().ok
    history.hand_in("ada", "after")
    assert history.store.verify().ok


def test_a_receipt_that_says_another_thing_than_the_entry_it_names_is_told_of(history):
    """The owner signs one verdict for the contributor and writes down another."""
    rejected = history.store.submissions(state=S.REJECTED)[0].verdict_receipt
    named = {name: getattr(rejected, name) for name in ("index", "entry_hash", "head_index", "head_hash", "subject")}
    lie = sign_receipt(history.owner, **named, statement="accepted")
    (problem,) = history.store.verify([lie]).problems
    assert "says accepted, but entry" in problem
    assert "says rejected" in problem


def test_a_receipt_of_another_submissions_verdict_is_told_of(history):
    rejected = history.store.submissions(state=S.REJECTED)[0]
    accepted = history.store.submissions(state=S.ACCEPTED)[0].verdict_receipt
    named = {name: getattr(accepted, name) for name in ("index", "entry_hash", "head_index", "head_hash")}
    lie = sign_receipt(history.owner, **named, subject=rejected.id, statement="accepted")
    (problem,) = history.store.verify([lie]).problems
    assert f"says accepted of {accepted.subject[:12]}" in problem
