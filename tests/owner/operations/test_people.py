"""Inviting, renewing and revoking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import (
    ConfigurationError,
    IdentityError,
)
from common.identity.authority import Authority
from common.identity.invitation import Invitation, token_digest
from owner.addresses import hosts
from owner.operations import people
from owner.operations.opening import Office, open_office
from tests.owner.people import Contributor, slightly_changed


def test_an_invitation_names_service_authority_and_key(office: Office) -> None:
    invitation = Invitation.from_string(people.invite(office, "bob").to_string())
    workspace = office.workspace
    authority = Authority.load(workspace.authority_key, workspace.authority_certificate)
    assert invitation.addresses == ("127.0.0.1:7443",)
    assert invitation.enrolment_addresses == ("127.0.0.1:7444",)
    assert invitation.ca_spki_sha256 == authority.spki_sha256
    assert invitation.owner_key == office.signing_key.public_key
    assert office.store.check_token(invitation.token) == "bob"


def test_the_ledger_keeps_no_token(office: Office) -> None:
    invitation = people.invite(office, "bob")
    entry = office.store.entries(kind="invitation")[-1]
    assert entry.body["token_sha256"] == token_digest(invitation.token)
    assert invitation.token not in str(entry.body)


def test_a_name_that_is_taken_is_not_invited(office: Office, ada: Contributor) -> None:
    with pytest.raises(IdentityError, match="ada is enrolled already"):
        people.invite(office, "ada")


def test_somebody_enrolled_is_invited_again_for_the_key_they_have(office: Office, ada: Contributor) -> None:
    invitation = people.invite(office, "ada", renew=True)
    assert office.store.check_token(invitation.token, signing_key=office.store.contributor("ada").signing_key) == "ada"
    with pytest.raises(IdentityError, match="nobody called 'bob' is enrolled"):
        people.invite(office, "bob", renew=True)


def test_an_invitation_names_the_ports_that_are_forwarded(root: Path) -> None:
    names = ["gate.example.org:17443/17444", "gate.example.org:443", "[::1]:443", "::1", "owner.local"]
    with open_office(root, {"service.names": names}) as office:
        invitation = people.invite(office, "bob")
    assert invitation.addresses == (
        "gate.example.org:17443",
        "gate.example.org:443",
        "[::1]:443",
        "[::1]:7443",
        "owner.local:7443",
    )
    assert invitation.enrolment_addresses == (
        "gate.example.org:17444",
        "gate.example.org:7444",
        "[::1]:7444",
        "owner.local:7444",
    )
    assert hosts(names) == ("gate.example.org", "::1", "owner.local")


@pytest.mark.parametrize(
    "name", ["gate.example.org:0", "gate.example.org:443/", "gate.example.org/443", "a b", "x:1:2"]
)
def test_a_name_the_service_cannot_be_reached_by_is_refused(root: Path, name: str) -> None:
    with open_office(root, {"service.names": [name]}) as office, pytest.raises(IdentityError, match="is not a"):
        people.invite(office, "bob")


def test_with_any_free_port_the_running_service_says_which(root: Path) -> None:
    with open_office(root, {"service.port": 0}) as office:
        with pytest.raises(ConfigurationError, match="any free one"):
            people.invite(office, "bob")
        office.workspace.ports_file.write_text(json.dumps({"port": 5001, "enrolment_port": 5002}))
        assert people.invite(office, "bob").addresses == ("127.0.0.1:5001",)


def test_revoking_tells_how_many_submissions_are_undecided(office: Office, ada: Contributor) -> None:
    ada.hand_in(slightly_changed)
    assert people.revoke(office, "ada", "left") == 1
    (standing,) = people.standings(office)
    assert standing.contributor.reason == "left"
    assert standing.to_json()["submissions"] == {"received": 1}
    with pytest.raises(IdentityError):
        people.revoke(office, "nobody")
