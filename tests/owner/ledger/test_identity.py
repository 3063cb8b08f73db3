from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from common.errors import IdentityError, InvitationError, PortierError, QuotaError, RevokedError
from common.identity.invitation import token_digest
from owner.ledger import Store
from owner.ledger.identity_records import FRESH_CERTIFICATES
from tests.owner.ledger.world import World, key_of, token_of


def invited(world: World, name: str, which: str = "a token", **span: float) -> str:
    token = token_of(which)
    world.store.invite(name, token_digest(token), world.clock.now + timedelta(**span or {"hours": 1}))
    return token


def redeem(world: World, token: str, seed: int = 7, serial: str = "01", **options):
    return world.store.redeem(
        token,
        signing_key=key_of(seed).public_key,
        serial=serial,
        not_after=world.clock.now + timedelta(days=1),
        **options,
    )


def test_an_invitation_enrols_its_name_with_key_and_certificate(world):
    token = invited(world, "ada")
    assert world.store.check_token(token) == "ada"
    contributor = redeem(world, token, name="ada")
    assert (contributor.name, contributor.signing_key, contributor.revoked) == ("ada", key_of(7).public_key, None)
    assert world.store.identify("01", "ada") == contributor == world.store.contributor("ada")
    assert [record.serial for record in world.store.certificates("ada")] == ["01"]


def test_the_token_itself_is_nowhere_in_the_database(world):
    token = invited(world, "ada")
    redeem(world, token)
    world.store.close()
    kept = b"".join(path.read_bytes() for path in world.path.parent.iterdir() if path.is_file())
    assert token_digest(token).encode() in kept
    assert token.encode() not in kept


def test_a_token_works_once(world):
    token = invited(world, "ada")
    redeem(world, token)
    with pytest.raises(InvitationError, match="used already"):
        world.store.check_token(token)
    with pytest.raises(InvitationError, match="used already"):
        redeem(world, token, seed=8, serial="02")
    with pytest.raises(InvitationError, match="used already"):
        redeem(world, token, serial="02")


def test_of_many_who_redeem_one_token_at_once_exactly_one_is_enrolled(world):
    token = invited(world, "ada")
    stores = [Store.open(world.url, world.owner, clock=world.clock) for _ in range(4)]

    def attempt(number: int) -> bool:
        try:
            stores[number % 4].redeem(
                token,
                signing_key=key_of(100 + number).public_key,
                serial=f"{number}",
                not_after=world.clock.now + timedelta(days=1),
            )
        except InvitationError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        enrolled = list(pool.map(attempt, range(16)))
    for store in stores:
        store.close()
    assert sum(enrolled) == 1
    assert world.store.contributor("ada").signing_key == key_of(100 + enrolled.index(True)).public_key
    assert world.store.verify().ok


def test_the_key_that_used_a_token_may_come_again_where_its_answer_was_lost(world):
    token = invited(world, "ada")
    first = redeem(world, token)
    assert world.store.check_token(token, signing_key=key_of(7).public_key) == "ada"
    assert redeem(world, token, serial="02", allow_retry=True) == first
    assert world.store.identify("02", "ada") == first
    with pytest.raises(InvitationError):
        redeem(world, token, seed=8, serial="03", allow_retry=True)


def test_the_key_that_used_a_token_cannot_come_again_once_it_has_expired(world):
    token = invited(world, "ada", hours=1)
    redeem(world, token)
    world.clock.forward(hours=1)
    with pytest.raises(InvitationError, match="expired"):
        world.store.check_token(token, signing_key=key_of(7).public_key)
    with pytest.raises(InvitationError, match="expired"):
        redeem(world, token, serial="02", allow_retry=True)


def test_further_certificates_are_refused_until_the_last_third_of_one_begins(world):
    token = invited(world, "ada", hours=48)
    for number in range(FRESH_CERTIFICATES):
        redeem(world, token, serial=f"0{number}", allow_retry=True)
    expires = world.clock.now + timedelta(days=1)
    with pytest.raises(QuotaError, match="need no renewal yet"):
        redeem(world, token, serial="aa", allow_retry=True)
    with pytest.raises(QuotaError, match="need no renewal yet"):
        world.store.add_certificate("ada", "aa", expires)
    world.store.add_certificate("ada", "00", expires)
    world.clock.forward(hours=16)
    world.store.add_certificate("ada", "aa", expires + timedelta(hours=16))
    assert len(world.store.certificates("ada")) == FRESH_CERTIFICATES + 1


def test_a_revoked_contributor_cannot_come_again_with_its_old_token(world):
    token = invited(world, "ada")
    redeem(world, token)
    world.store.revoke("ada")
    with pytest.raises(InvitationError):
        redeem(world, token, serial="02", allow_retry=True)


def test_an_expired_token_is_refused(world):
    token = invited(world, "ada", hours=1)
    world.clock.forward(hours=1)
    with pytest.raises(InvitationError, match="expired"):
        world.store.check_token(token)
    with pytest.raises(InvitationError, match="expired"):
        redeem(world, token)
    assert world.store.contributors() == []


def test_an_invitation_that_has_expired_already_is_not_given_out(world):
    with pytest.raises(InvitationError, match="would have expired"):
        invited(world, "ada", hours=0)
    assert world.store.head().index == 0


def test_a_token_is_given_out_once(world):
    token = invited(world, "ada")
    with pytest.raises(InvitationError, match="given out already"):
        invited(world, "bob")
    assert world.store.check_token(token) == "ada"


@pytest.mark.parametrize("token", [token_of("another"), "another token", b"\xff\x00", "", "t" * 5000, "\udc80"])
def test_an_unknown_token_is_refused(world, token):
    invited(world, "ada")
    with pytest.raises(InvitationError):
        world.store.check_token(token)


def test_a_token_for_one_name_does_not_enrol_another(world):
    token = invited(world, "ada")
    with pytest.raises(InvitationError, match="is for ada, not for bob"):
        redeem(world, token, name="bob")
    assert redeem(world, token).name == "ada"


def test_a_new_invitation_withdraws_the_one_before(world):
    first = invited(world, "ada", "first")
    second = invited(world, "ada", "second")
    with pytest.raises(InvitationError, match="withdrawn"):
        redeem(world, first)
    assert redeem(world, second).name == "ada"
    assert world.store.verify().ok


def test_one_key_is_one_contributor(world):
    redeem(world, invited(world, "ada", "first"))
    token = invited(world, "bob", "second")
    with pytest.raises(IdentityError, match="belongs to ada already"):
        redeem(world, token, serial="02")
    assert redeem(world, token, seed=8, serial="02").name == "bob"


def test_an_enrolled_name_is_not_invited_again(world):
    world.enrol("ada")
    with pytest.raises(IdentityError, match="enrolled already") as caught:
        invited(world, "ada")
    assert "portier-owner invite ada --renew" in caught.value.hint
    assert "revoke ada" in caught.value.hint


def test_a_revoked_name_is_not_given_out_again(world):
    world.enrol("ada")
    world.store.revoke("ada")
    with pytest.raises(IdentityError, match="not given out twice") as caught:
        invited(world, "ada")
    assert "ada-2" in caught.value.hint


def renewed(world: World, name: str, which: str = "a renewal") -> str:
    token = token_of(which)
    world.store.invite(name, token_digest(token), world.clock.now + timedelta(hours=1), renew=True)
    return token


def test_an_enrolled_name_is_renewed_with_the_key_it_stands_for(world):
    before = redeem(world, invited(world, "ada"), serial="01")
    world.clock.forward(days=40)
    token = renewed(world, "ada")
    assert world.store.check_token(token, signing_key=key_of(7).public_key) == "ada"
    assert redeem(world, token, name="ada", serial="02") == before
    assert world.store.identify("02", "ada") == before
    assert [entry.kind for entry in world.store.entries()][-3:] == ["invitation", "re-enrolment", "certificate"]
    assert world.store.verify().ok


def test_a_renewal_is_of_no_use_to_another_key(world):
    redeem(world, invited(world, "ada"), serial="01")
    redeem(world, invited(world, "eve", "of eve"), seed=8, serial="02")
    token = renewed(world, "ada")
    for seed in (8, 9):
        with pytest.raises(InvitationError, match="for the signing key that ada enrolled with"):
            world.store.check_token(token, signing_key=key_of(seed).public_key)
        with pytest.raises(InvitationError, match="for the signing key that ada enrolled with"):
            redeem(world, token, seed=seed, serial="03", allow_retry=True)
    assert world.store.contributor("ada").signing_key == key_of(7).public_key
    assert redeem(world, token, serial="03").name == "ada"
    assert world.store.verify().ok


def test_a_renewal_works_once_and_again_for_a_lost_answer(world):
    redeem(world, invited(world, "ada"), serial="01")
    token = renewed(world, "ada")
    redeem(world, token, serial="02")
    with pytest.raises(InvitationError, match="used already"):
        redeem(world, token, serial="03")
    assert redeem(world, token, serial="03", allow_retry=True).name == "ada"
    assert world.store.verify().ok


def test_a_renewal_of_somebody_revoked_since_is_withdrawn(world):
    redeem(world, invited(world, "ada"), serial="01")
    token = renewed(world, "ada")
    world.store.revoke("ada")
    with pytest.raises(InvitationError, match="withdrawn"):
        redeem(world, token, serial="02")
    with pytest.raises(IdentityError, match="not given out twice"):
        renewed(world, "ada", "another")
    assert world.store.verify().ok


def test_nobody_is_renewed_who_is_not_enrolled(world):
    world.enrol("ward-north")
    with pytest.raises(IdentityError, match="nobody called 'ward-nort' is enrolled") as caught:
        renewed(world, "ward-nort")
    assert "ward-north" in caught.value.hint


@pytest.mark.parametrize("name", ["", "../ada", "Ada", "a" * 64, "ada\n"])
def test_a_name_that_is_none_is_not_invited(world, name):
    with pytest.raises(IdentityError):
        invited(world, name)


def test_a_revocation_shows_at_once_in_another_open_store(world):
    world.enrol("ada", serial="01")
    with Store.open(world.url, world.owner, clock=world.clock) as other:
        assert other.identify("01", "ada").name == "ada"
        before = other.change_counter()
        world.store.revoke("ada", "left the hospital")
        assert other.change_counter() > before
        with pytest.raises(RevokedError):
            other.identify("01", "ada")
        assert other.revoked_names() == {"ada"}
        assert other.contributor("ada").reason == "left the hospital"


def test_revoking_twice_is_one_revocation(world):
    world.enrol("ada")
    world.store.revoke("ada", "first")
    world.store.revoke("ada", "second")
    assert [entry.body["reason"] for entry in world.store.entries(kind="revocation")] == ["first"]


def test_revoking_a_name_that_was_only_invited_withdraws_the_invitation(world):
    token = invited(world, "ada")
    world.store.revoke("ada")
    with pytest.raises(InvitationError, match="withdrawn"):
        redeem(world, token)
    assert redeem(world, invited(world, "ada", "a second try")).name == "ada"


def test_revoking_nobody_names_the_nearest_contributor(world):
    world.enrol("ward-north")
    with pytest.raises(IdentityError) as caught:
        world.store.revoke("ward-nort")
    assert "ward-north" in caught.value.hint


@pytest.mark.parametrize(("serial", "name"), [("99", "ada"), ("01", "bob"), ("", "ada")])
def test_a_certificate_that_is_unknown_or_of_someone_else_identifies_nobody(world, serial, name):
    world.enrol("ada", serial="01")
    world.enrol("bob", serial="02")
    with pytest.raises(IdentityError, match="not known here"):
        world.store.identify(serial, name)


def test_an_expired_certificate_identifies_nobody_and_a_renewed_one_does(world):
    world.enrol("ada", serial="01")
    world.clock.forward(days=31)
    with pytest.raises(IdentityError, match="expired"):
        world.store.identify("01", "ada")
    world.store.add_certificate("ada", "02", world.clock.now + timedelta(days=30))
    assert world.store.identify("02", "ada").name == "ada"


def test_a_renewal_may_come_twice_but_not_for_two_people(world):
    world.enrol("ada")
    world.enrol("bob")
    until = world.clock.now + timedelta(days=30)
    world.store.add_certificate("ada", "0a", until)
    world.store.add_certificate("ada", "0a", until)
    with pytest.raises(IdentityError, match="issued to ada"):
        world.store.add_certificate("bob", "0a", until)


@pytest.mark.parametrize("serial", ["", "0" * 65, "01 02", "01\n", "0\x1b"])
def test_what_is_no_serial_is_not_recorded(world, serial):
    world.enrol("ada")
    with pytest.raises(IdentityError, match="not a certificate serial"):
        world.store.add_certificate("ada", serial, world.clock.now + timedelta(days=30))


def test_a_revoked_contributor_renews_nothing(world):
    world.enrol("ada")
    world.store.revoke("ada")
    with pytest.raises(RevokedError):
        world.store.add_certificate("ada", "02", world.clock.now + timedelta(days=30))


def test_a_public_key_nobody_can_hold_is_not_enrolled(world):
    token = invited(world, "ada")
    with pytest.raises(PortierError, match="small order"):
        world.store.redeem(token, signing_key=bytes(32), serial="01", not_after=world.clock.now + timedelta(days=1))
    assert world.store.check_token(token) == "ada"
