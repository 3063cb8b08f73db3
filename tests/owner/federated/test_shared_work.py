"""What federations of a comparison share is done once, and changes no figure."""

from __future__ import annotations

from typing import Any

import pytest

from owner.federated import FederationConfig, run_federation, shared_work

BASE: dict[str, Any] = {
    "strategy": "fedcvae",
    "model": "logistic",
    "clients": 5,
    "attackers": 1,
    "attack": "sign-flip",
    "rounds": 1,
    "learning-rate": 0.1,
    "release-epochs": 2,
    "detector-epochs": 5,
    "engine": "inline",
    "device": "cpu",
    "precision": "float32",
}


def configured(**changes: Any) -> FederationConfig:
    return FederationConfig.from_flat({**BASE, **changes})


@pytest.fixture(autouse=True)
def _nothing_shared_yet() -> None:
    for kept in (shared_work._release, shared_work._honest, shared_work._detector):
        kept.cache_clear()


def test_federations_that_differ_in_attack_and_partition_share_the_release_and_the_detector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = {"release": 0, "honest": 0}
    train, honest_rounds = shared_work.train, shared_work.honest_rounds

    def counted_train(*given: Any, **options: Any) -> Any:
        done["release"] += 1
        return train(*given, **options)

    def counted_rounds(*given: Any, **options: Any) -> Any:
        done["honest"] += 1
        return honest_rounds(*given, **options)

    monkeypatch.setattr(shared_work, "train", counted_train)
    monkeypatch.setattr(shared_work, "honest_rounds", counted_rounds)
    run_federation(configured())
    run_federation(configured(attack="add-noise", partition="dirichlet:alpha=1"))
    assert done == {"release": 1, "honest": 1}
    run_federation(configured(seed=1))
    assert done == {"release": 2, "honest": 2}


def test_shared_work_changes_no_figure() -> None:
    alone = run_federation(configured()).table()
    run_federation(configured(attack="add-noise"))
    assert run_federation(configured()).table() == alone
