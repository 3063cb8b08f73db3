"""Ledgers to test on. Each is made once and copied: making one takes longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.owner.ledger.world import World


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World.found(tmp_path_factory.mktemp("founded") / "ledger.sqlite")
    made.store.close()
    return made


@pytest.fixture(scope="session")
def busy(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World.found(tmp_path_factory.mktemp("busy") / "ledger.sqlite")
    made.enrol("ada")
    made.enrol("bob")
    made.publish()
    made.store.close()
    return made


@pytest.fixture(scope="session")
def eventful(busy: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    made = busy.copied(tmp_path_factory.mktemp("eventful") / "ledger.sqlite")
    made.live()
    made.store.close()
    return made


@pytest.fixture
def world(founded: World, tmp_path: Path) -> Iterator[World]:
    """A ledger with its first entry."""
    made = founded.copied(tmp_path / "ledger.sqlite")
    yield made
    made.store.close()


@pytest.fixture
def busy_world(busy: World, tmp_path: Path) -> Iterator[World]:
    """Two contributors (ada, bob), a release with a guard."""
    made = busy.copied(tmp_path / "ledger.sqlite")
    yield made
    made.store.close()


@pytest.fixture
def history(eventful: World, tmp_path: Path) -> Iterator[World]:
    """A submission in every state but expired, a rollback, a revocation (bob), a refusal."""
    made = eventful.copied(tmp_path / "ledger.sqlite")
    yield made
    made.store.close()
