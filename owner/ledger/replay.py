"""What the tables ought to hold, told by the entries alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from owner.ledger.records import Entry, ReleaseStatus


@dataclass(frozen=True)
class ReleaseEntry:
    number: Any
    parent: Any
    weights_sha256: Any
    submission: Any


@dataclass
class Replay:
    """State after the entries given to `follow` one by one; values are as found, since a body may have been tampered with.

    names: contributor -> signing key in hex. serials: certificate -> contributor. invitations, used: SHA-256 of tokens.
    commits, verdicts: submission -> its entries. statuses: release -> its status.
    """

    owner_key: str = ""
    names: dict[str, str] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    serials: dict[str, str] = field(default_factory=dict)
    invitations: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    releases: dict[str, ReleaseEntry] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Entry] = field(default_factory=dict)
    verdicts: dict[str, list[Entry]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def follow(self, entry: Entry) -> None:
        body = entry.body
        match entry.kind:
            case "ledger":
                self.owner_key = _text(body, "owner_key")
            case "invitation":
                self.invitations[_text(body, "token_sha256")] = _text(body, "name")
            case "enrolment":
                self.names[_text(body, "name")] = _text(body, "signing_key")
                self.used.add(_text(body, "token_sha256"))
            case "certificate":
                self.serials[_text(body, "serial")] = _text(body, "name")
            case "revocation":
                self.revoked.add(_text(body, "name"))
            case "release":
                self._release(entry)
            case "rollback":
                self._rollback(entry)
            case "submission":
                if _text(body, "submission") in self.commits:
                    self.problems.append(f"entry {entry.index} hands in a submission for the second time")
                self.commits[_text(body, "submission")] = entry
            case "verdict":
                self._verdict(entry)

    def _release(self, entry: Entry) -> None:
        body = entry.body
        identifier = _text(body, "release")
        current = self._current()
        if body.get("parent") != current:
            self.problems.append(
                f"entry {entry.index} publishes release {identifier[:12]} on another than the current one"
            )
        if current is not None:
            self.statuses[current] = ReleaseStatus.PAST
        self.releases[identifier] = ReleaseEntry(
            body.get("number"), body.get("parent"), body.get("weights_sha256"), body.get("submission")
        )
        self.statuses[identifier] = ReleaseStatus.CURRENT

    def _rollback(self, entry: Entry) -> None:
        target = _text(entry.body, "release")
        taken_back = entry.body.get("rolled_back")
        if self.statuses.get(target) != ReleaseStatus.PAST or not isinstance(taken_back, list):
            self.problems.append(f"entry {entry.index} rolls back to {target[:12]}, which was no past release")
            return
        for identifier in taken_back:
            self.statuses[str(identifier)] = ReleaseStatus.ROLLED_BACK
        self.statuses[target] = ReleaseStatus.CURRENT

    def _verdict(self, entry: Entry) -> None:
        identifier = _text(entry.body, "submission")
        earlier = self.verdicts.setdefault(identifier, [])
        if identifier not in self.commits:
            self.problems.append(
                f"entry {entry.index} decides on submission {identifier[:12]}, which was not handed in"
            )
        if earlier and earlier[-1].body.get("decision") != "quarantined":
            self.problems.append(
                f"entry {entry.index} decides on submission {identifier[:12]}, which was decided for good"
            )
        earlier.append(entry)

    def _current(self) -> str | None:
        return next((name for name, status in self.statuses.items() if status == ReleaseStatus.CURRENT), None)


def _text(body: Mapping[str, Any], name: str) -> str:
    return str(body.get(name, ""))
