"""Releases kept in a contributor's home: believed as far as the owner's signature goes, and fetched anew otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import WireError
from common.identity.keys import Domain, SigningKey
from contributor.client import OwnerClient
from contributor.session import Session
from contributor.workspace import ContributorWorkspace
from tests.network import Owner, serving, weights_of


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    owner = Owner.found(tmp_path / "owner", weights=4000)
    with serving(owner):
        yield owner
    owner.store.close()


@pytest.fixture
def client(owner: Owner, tmp_path: Path) -> Iterator[OwnerClient]:
    with owner.contributor("ann", tmp_path / "homes") as client:
        yield client


@pytest.fixture
def home(client: OwnerClient) -> ContributorWorkspace:
    return ContributorWorkspace(client.membership.home)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_release_that_was_fetched_before_is_not_asked_for_again(
    client: OwnerClient, home: ContributorWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = Session(home, client).fetch_release("")
    monkeypatch.setattr(client, "release", lambda *_: pytest.fail("the owner was called"))
    assert Session(home, client).fetch_release(fetched[0]) == fetched


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def altered(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(bytes(64))


@pytest.mark.parametrize(
    "spoil",
    [
        without("weights.safetensors"),
        without("manifest.sig"),
        altered("manifest.json"),
        altered("manifest.sig"),
    ],
    ids=["no weights", "no signature", "another manifest", "another signature"],
)
def test_what_is_not_whole_any_more_is_fetched_anew(
    client: OwnerClient, home: ContributorWorkspace, spoil: Callable[[Path], None]
) -> None:
    release_id, manifest = Session(home, client).fetch_release("")
    whole = files_of(home.releases / release_id)
    spoil(home.releases / release_id)
    assert Session(home, client).fetch_release(release_id) == (release_id, manifest)
    assert files_of(home.releases / release_id) == whole


def test_another_release_of_the_owner_is_not_taken_for_the_one_asked_for(
    owner: Owner, client: OwnerClient, home: ContributorWorkspace
) -> None:
    first, _ = Session(home, client).fetch_release("")
    second = owner.publish(weights_of(4000, 5))
    folder = home.releases / first
    (folder / "manifest.json").write_bytes(second.manifest)
    (folder / "manifest.sig").write_bytes(second.signature)
    assert Session(home, client).fetch_release(first)[1].id == first


def test_a_release_that_somebody_else_signed_and_put_into_the_home_is_no_release(
    client: OwnerClient, home: ContributorWorkspace
) -> None:
    release_id, manifest = Session(home, client).fetch_release("")
    forged = dataclasses.replace(manifest, note="mine")
    folder = home.releases / forged.id
    folder.mkdir()
    (folder / "manifest.json").write_bytes(forged.to_bytes())
    (folder / "manifest.sig").write_bytes(SigningKey.generate().sign(Domain.RELEASE, forged.to_bytes()))
    (folder / "weights.safetensors").write_bytes((home.releases / release_id / "weights.safetensors").read_bytes())
    with pytest.raises(WireError, match="not offered"):
        Session(home, client).fetch_release(forged.id)
