"""What the entries tell must be a story that can have happened, whoever wrote and signed them."""

from __future__ import annotations

from typing import Any

import pytest

from owner.ledger import chain
from owner.ledger.replay import Replay

EARLY, NOW, LATE = (f"2026-01-0{day}T00:00:00.000000Z" for day in (1, 2, 3))
Told = tuple[str, dict[str, Any]]


def invited(name: str, token: str, *, expires: str = LATE, **bound: str) -> Told:
    return "invitation", {"name": name, "token_sha256": token, "expires": expires, **bound}


def enrolled(name: str, token: str, kind: str = "enrolment") -> Told:
    return kind, {"name": name, "token_sha256": token, "signing_key": f"{name}'s key"}


def released(name: str, parent: str | None) -> Told:
    return "release", {"release": name, "parent": parent, "number": 0, "weights_sha256": ""}


def handed_in(name: str) -> Told:
    return "submission", {"submission": name}


def decided(name: str, decision: str) -> Told:
    return "verdict", {"submission": name, "decision": decision}


def rolled_back(to: str, *taken_back: str) -> Told:
    return "rollback", {"release": to, "rolled_back": list(taken_back)}


HONEST = [
    invited("ada", "first"),
    enrolled("ada", "first"),
    invited("ada", "second", signing_key="ada's key"),
    enrolled("ada", "second", "re-enrolment"),
    released("root", None),
    handed_in("one"),
    decided("one", "quarantined"),
    decided("one", "rejected"),
    released("next", "root"),
    rolled_back("root", "next"),
    ("revocation", {"name": "ada", "reason": "left"}),
]


def problems(*told: Told) -> list[str]:
    replay, previous = Replay(), None
    for kind, body in told:
        entry = chain.link(previous, NOW, kind, body)
        previous = (entry.index, entry.hash)
        replay.follow(entry)
    return replay.problems


def test_a_story_that_can_have_happened_has_no_problem() -> None:
    assert problems(*HONEST) == []


@pytest.mark.parametrize(
    ("told", "finding"),
    [
        ([handed_in("one")], "hands in a submission for the second time"),
        ([decided("two", "rejected")], "decides on submission two, which was not handed in"),
        ([decided("one", "accepted")], "decides on submission one, which was decided for good"),
        ([released("other", "next")], "publishes release other on another than the current one"),
        ([released("other", None)], "publishes release other on another than the current one"),
        ([rolled_back("root")], "rolls back to root, which was no past release"),
        ([rolled_back("next")], "rolls back to next, which was no past release"),
        ([("rollback", {"release": "root", "rolled_back": "next"})], "rolls back to root, which was no past release"),
        ([("revocation", {"name": "bob", "reason": ""})], "revokes bob, whom no entry enrolled"),
        ([invited("ada", "third"), enrolled("ada", "third")], "enrols ada for the second time"),
        ([enrolled("bob", "third")], "enrols bob by an invitation that was not open"),
        ([invited("eve", "third"), enrolled("bob", "third")], "enrols bob by an invitation that was not open"),
        (
            [invited("bob", "third", expires=EARLY), enrolled("bob", "third")],
            "enrols bob by an invitation that was not open",
        ),
        ([enrolled("bob", "first")], "enrols bob by an invitation that was not open"),
    ],
)
def test_an_entry_that_cannot_have_come_is_told_of(told: list[Told], finding: str) -> None:
    (problem,) = problems(*HONEST, *told)
    assert problem == f"entry {len(HONEST) + len(told) - 1} {finding}"


def test_an_invitation_that_was_used_is_not_open_a_second_time() -> None:
    again = [invited("ada", "first"), enrolled("ada", "first"), enrolled("ada", "first", "re-enrolment")]
    assert problems(*again) == ["entry 2 enrols ada by an invitation that was not open"]
