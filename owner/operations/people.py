"""Who may contribute: invitations and revocations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from common import timestamps
from common.errors import ConfigurationError, StorageError
from common.files import read_bounded
from common.identity.invitation import Invitation, token_digest
from common.identity.names import check_contributor_name
from owner.addresses import Reached
from owner.certificates import load_authority
from owner.histories import standing
from owner.ledger.records import Contributor, SubmissionState
from owner.operations.opening import Office
from owner.settings import OwnerSettings
from owner.workspace import Workspace

if TYPE_CHECKING:
    from owner.e_process import HistoryFinding

_PORTS_FILE_BYTES = 4096


@dataclass(frozen=True)
class Standing:
    """A contributor, what became of its submissions, and what they say together; None where none has a p-value."""

    contributor: Contributor
    submissions: dict[str, int]
    history: HistoryFinding | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.contributor.name,
            "enrolled": self.contributor.enrolled,
            "revoked": self.contributor.revoked,
            "reason": self.contributor.reason,
            "submissions": self.submissions,
            "history": None if self.history is None else self.history.to_json(),
        }


def invite(office: Office, name: str, *, renew: bool = False) -> Invitation:
    """An invitation for a new contributor, good once until it expires; renew: for one that is enrolled and whose certificate ran
    out, good for the signing key it has alone. Raises IdentityError, ConfigurationError."""
    check_contributor_name(name)
    service = office.settings.service
    port, enrolment_port = ports(office.workspace, office.settings)
    reached = [Reached.parse(one).addresses(port, enrolment_port) for one in service.names]
    invitation = Invitation.create(
        name=name,
        addresses=list(dict.fromkeys(service_at for service_at, _ in reached)),
        enrolment_addresses=list(dict.fromkeys(enrolment_at for _, enrolment_at in reached)),
        ca_certificate=load_authority(office.workspace).certificate_der,
        owner_key=office.signing_key.public_key,
        expires=timestamps.now() + timedelta(hours=service.invitation_hours),
    )
    office.store.invite(name, token_digest(invitation.token), invitation.expires, renew=renew)
    return invitation


def ports(workspace: Workspace, settings: OwnerSettings) -> tuple[int, int]:
    """The service's and the enrolment listener's port: as configured, or, where that is 0, as the running service got them.

    Raises ConfigurationError where a port is 0 and no service has run yet.
    """
    configured = settings.service.port, settings.service.enrolment_port
    if all(configured):
        return configured
    try:
        running = json.loads(read_bounded(workspace.ports_file, _PORTS_FILE_BYTES))
    except (StorageError, ValueError):
        running = {}
    found = configured[0] or running.get("port", 0), configured[1] or running.get("enrolment_port", 0)
    if not all(found):
        raise ConfigurationError(
            "service.port or service.enrolment_port is 0 (any free one), and no service runs that could tell which",
            hint="start `portier-owner serve` first, or give the ports numbers",
        )
    return found


def standings(office: Office) -> list[Standing]:
    """Every contributor, by name, with its submissions counted by state and its history."""
    counts = office.store.counts()
    people = sorted(office.store.contributors(), key=lambda one: one.name)
    return [
        Standing(one, counts.get(one.name, {}), standing(office.store, office.settings, one.name)) for one in people
    ]


def revoke(office: Office, name: str, reason: str = "") -> int:
    """Shut a contributor out, at once and for good, open connections included; returns how many of its submissions
    were undecided (they will be rejected when their turn comes).

    Raises IdentityError where nobody has that name.
    """
    office.store.revoke(name, reason)
    undecided = {SubmissionState.RECEIVED, SubmissionState.AWAITING_GUARD, SubmissionState.VETTING}
    return sum(one.state in undecided for one in office.store.submissions(contributor=name))
