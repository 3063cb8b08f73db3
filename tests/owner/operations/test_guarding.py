"""The guard of a release, made by hand."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from common.errors import (
    GuardError,
    WorkspaceError,
)
from owner.guards import GuardKeeper
from owner.operations.guarding import calibrate, protect
from owner.operations.opening import Office


def test_protecting_again_reads_the_guard_that_stands(office: Office) -> None:
    description = office.workspace.release(office.store.current().id).guard / "guard.json"
    before = description.stat().st_mtime_ns
    found = protect(office, progress=False).to_json()
    assert description.stat().st_mtime_ns == before
    assert (found["references"], found["resolution"]) == (4, pytest.approx(0.2))
    assert 0.2 < found["fpr_bound_95"] < 1
    assert found["accuracy"] > 0.5


def test_a_guard_is_fitted_by_one_process_at_a_time(office: Office) -> None:
    with office.workspace.lock("guard"), pytest.raises(WorkspaceError, match="guard lock"):
        protect(office, progress=False)


@pytest.mark.parametrize("by", ["protect", "calibrate", "serve"])
def test_while_it_is_fitted_nobody_else_uses_a_guard(office: Office, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    release, refused = office.store.current(), []

    def meanwhile(*_: object, **__: object) -> None:
        with pytest.raises(WorkspaceError, match="guard-"), office.workspace.guard_in_use(release.id):
            pass
        refused.append(release.id)
        raise GuardError("enough")

    async def never(*_: object, **__: object) -> bool:
        meanwhile()
        return False

    monkeypatch.setattr("owner.operations.guarding.fit", meanwhile)
    monkeypatch.setattr("owner.operations.guarding.fit_escalation", meanwhile)
    monkeypatch.setattr(GuardKeeper, "_run_process", never)
    keeper = GuardKeeper(office.workspace, office.settings, office.store)
    with suppress(GuardError):
        if by == "protect":
            protect(office, progress=False)
        elif by == "calibrate":
            calibrate(office, release, progress=False)
        else:
            asyncio.run(keeper._fit(release, asyncio.Event()))
    assert refused == [release.id]
    with office.workspace.guard_in_use(release.id):
        pass
