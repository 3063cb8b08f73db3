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

    published: str


@dataclass(frozen=True)
class CertificateEntry:
    contributor: str
    issued: str
    not_after: str


@dataclass
class InvitationEntry:
    """used, withdrawn: when, or None."""

    name: str
    created: str
    expires: str
    used: str | None = None
    withdrawn: str | None = None

    def open_at(self, time: str) -> bool:
        return self.used is None and self.withdrawn is None and time < self.expires


@dataclass
class PersonEntry:
    """signing_key: hex. revoked: when, or None."""

    signing_key: str
    enrolled: str
    revoked: str | None = None
    reason: str = ""


@dataclass
class Replay:
    """State after the entries given to `follow` one by one; values are as found, since a body may have been tampered with.

    people: by name. certificates: by serial. invitations: by the SHA-256 of their token. commits, verdicts: submission -> its
    entries. pruned: submission -> when. statuses: release -> its status.
    """

    owner_key: str = ""
    people: dict[str, PersonEntry] = field(default_factory=dict)
    certificates: dict[str, CertificateEntry] = field(default_factory=dict)
    invitations: dict[str, InvitationEntry] = field(default_factory=dict)
    releases: dict[str, ReleaseEntry] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Entry] = field(default_factory=dict)
    verdicts: dict[str, list[Entry]] = field(default_factory=dict)
    pruned: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def follow(self, entry: Entry) -> None:
        body = entry.body
        match entry.kind:
            case "ledger":
                self.owner_key = _text(body, "owner_key")
            case "invitation":
                self._invitation(entry)
            case "invitation-withdrawn":
                self._withdraw(entry)
            case "enrolment" | "re-enrolment":
                self._enrolment(entry)
            case "certificate":
                self.certificates[_text(body, "serial")] = CertificateEntry(
                    _text(body, "name"), entry.time, _text(body, "not_after")
                )
            case "revocation":
                self._revocation(entry)
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
            case "pruned":
                self.pruned[_text(body, "submission")] = entry.time

    def _invitation(self, entry: Entry) -> None:
        self._withdraw(entry)
        name = _text(entry.body, "name")
        if _text(entry.body, "signing_key") != self._key_of(name):
            self.problems.append(
                f"entry {entry.index} invites {name} for another key than the one that the name stands for"
            )
        self.invitations[_text(entry.body, "token_sha256")] = InvitationEntry(
            name, entry.time, _text(entry.body, "expires")
        )

    def _withdraw(self, entry: Entry) -> None:
        """Of the invitations of a name only the newest works; a revocation leaves none."""
        for invitation in self.invitations.values():
            if invitation.name == _text(entry.body, "name") and invitation.used is None:
                invitation.withdrawn = invitation.withdrawn or entry.time

    def _enrolment(self, entry: Entry) -> None:
        name, signing_key = _text(entry.body, "name"), _text(entry.body, "signing_key")
        if entry.kind == "re-enrolment":
            if not signing_key or self._key_of(name) != signing_key:
                self.problems.append(
                    f"entry {entry.index} takes {name} in again with a key that the name does not stand for"
                )
        elif name in self.people:
            self.problems.append(f"entry {entry.index} enrols {name} for the second time")
        else:
            self.people[name] = PersonEntry(signing_key, entry.time)
        invitation = self.invitations.get(_text(entry.body, "token_sha256"))
        if invitation is None or invitation.name != name or not invitation.open_at(entry.time):
            self.problems.append(f"entry {entry.index} enrols {name} by an invitation that was not open")
        if invitation is not None:
            invitation.used = invitation.used or entry.time

    def _key_of(self, name: str) -> str:
        """Hex; "" where nobody of that name is enrolled, or no longer."""
        person = self.people.get(name)
        return "" if person is None or person.revoked else person.signing_key

    def _revocation(self, entry: Entry) -> None:
        self._withdraw(entry)
        person = self.people.get(_text(entry.body, "name"))
        if person is None:
            self.problems.append(f"entry {entry.index} revokes {_text(entry.body, 'name')}, whom no entry enrolled")
        else:
            person.revoked, person.reason = entry.time, _text(entry.body, "reason")

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
            body.get("number"), body.get("parent"), body.get("weights_sha256"), body.get("submission"), entry.time
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
