"""Incremental guards from the owner's side: what `protect` does with them, and what the ledger says about it."""

from __future__ import annotations

import pytest
import torch

from common.weights import Weights
from owner.assessment import settle, vet
from owner.ledger.records import GuardState, Release
from owner.operations.guarding import protect
from owner.operations.opening import Office
from tests.owner.people import Contributor, InProcess


def nudged(weights: Weights) -> Weights:
    generator = torch.Generator().manual_seed(2)
    return {
        name: tensor + 1e-5 * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }


def next_release(office: Office, contributor: Contributor) -> Release:
    """The release that an accepted submission makes; `protect` has not seen it."""
    contributor.hand_in(nudged)
    submission, current = office.store.claim(), office.store.current()
    assert submission is not None
    verdict = vet(office.workspace, office.store, office.settings, InProcess(), submission, current)  # type: ignore[arg-type]
    made = settle(office.workspace, office.store, office.signing_key, office.settings, submission, current, verdict)
    assert made is not None, verdict.codes
    return made


def guard_entry(office: Office, release: Release) -> dict[str, object]:
    """The newest of the ledger about its guard."""
    return dict([one.body for one in office.store.entries(kind="guard") if one.body["release"] == release.id][-1])


def test_the_second_incremental_guard_in_a_row_is_transplanted_and_the_ledger_says_from_where(
    office: Office, ada: Contributor
) -> None:
    first = next_release(office, ada)
    trained = protect(office, incremental=True, progress=False)
    assert "did not keep" in trained.guard.provenance["trained"]
    assert "did not keep" in str(guard_entry(office, first)["trained"])

    second = next_release(office, ada)
    moved = protect(office, incremental=True, progress=False)
    assert moved.guard.provenance["transplanted_from"] == first.weights_sha256
    entry = guard_entry(office, second)
    assert (entry["transplanted_from"], entry["generation"], entry["state"]) == (first.weights_sha256, 1, "ready")
    assert entry["news"] == pytest.approx(moved.guard.provenance["news"])
    assert moved.release.guard_state is GuardState.READY
    assert office.store.verify().ok

    fresh = protect(office, incremental=False, progress=False)
    assert not fresh.guard.provenance
    assert "transplanted_from" not in guard_entry(office, second)
