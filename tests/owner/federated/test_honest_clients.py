"""What the owner assumes of clients: the same for every strategy, and nothing that only a look at their data could tell."""

from __future__ import annotations

from typing import Any

import pytest

from common.examples import Examples
from owner.federated import FederationConfig, pretraining, shared_work
from owner.federated.choosing import guard_options
from owner.federated.honest_clients import SPREAD
from owner.gatekeeper.references import plan_reference

BASE: dict[str, Any] = {
    "model": "logistic",
    "clients": 8,
    "rounds": 1,
    "learning-rate": 0.1,
    "strategy": "fedcvae",
    "pretraining-contributors": 6,
    "detector-epochs": 2,
    "engine": "inline",
    "device": "cpu",
    "precision": "float32",
}


def configured(**changes: Any) -> FederationConfig:
    return FederationConfig.from_flat({**BASE, **changes})


@pytest.mark.parametrize("partition", ["dirichlet:alpha=0.1", "dirichlet:alpha=5", "pathological:classes=2"])
def test_how_clients_really_differ_changes_nothing_of_what_is_assumed(partition: str) -> None:
    assumed = [guard_options(configured(partition=p), pool=10_000).population for p in ("iid", partition)]
    assert assumed[0] == assumed[1]


def test_a_share_is_half_to_twice_an_equal_one_as_far_as_the_pool_goes() -> None:
    config = configured()
    equal = len(config.shares().unclaimed) / 8
    assert guard_options(config, pool=10_000).population.sizes == (round(equal / SPREAD), round(equal * SPREAD))
    assert guard_options(config, pool=70).population.sizes == (round(equal / SPREAD), 70)
    assert guard_options(config, pool=5).population.sizes == (5, 5)


def natural(**changes: Any) -> FederationConfig:
    return configured(data="synthetic", clients=30, partition="natural", **changes)


def test_of_a_natural_division_sizes_are_those_that_clients_say_they_have() -> None:
    """Their shares differ more than tenfold there, and attackers announce theirs as all do."""
    config = natural(attackers=9, attack="add-noise")
    sizes = config.sizes()
    assert max(sizes) > 10 * min(sizes)
    assert guard_options(config, pool=100_000).population.sizes == (min(sizes), max(sizes))
    assert guard_options(config, pool=70).population.sizes == (min(sizes), 70)
    assert guard_options(natural(), pool=70) == guard_options(config, pool=70)


def test_references_of_another_division_are_not_recalled_where_sizes_follow_from_it() -> None:
    other = configured(data="synthetic", clients=30, partition="dirichlet:alpha=1")
    assert natural().owner_key != other.owner_key
    assert natural().owner_key == natural(attackers=3, attack="sign-flip").owner_key
    assert other.owner_key == configured(data="synthetic", clients=30, partition="iid").owner_key


def test_vae_and_cvae_learn_from_the_population_that_the_gates_references_are_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not from equal parts of the pool with its own class mix."""
    config, learnt_from = configured(), []
    train = pretraining.train

    def noted(model: Any, examples: Examples, options: Any, **more: Any) -> Any:
        learnt_from.append((len(examples), tuple(examples.labels.bincount(minlength=10).tolist())))
        return train(model, examples, options, **more)

    monkeypatch.setattr(pretraining, "train", noted)
    for kept in (shared_work._release, shared_work._honest, shared_work._detector):
        kept.cache_clear()
    shared_work.fitted_detector(config, progress=False)
    pool = config.shares().references
    population = guard_options(config, pool=len(pool)).population
    expected = []
    for k in range(6):
        plan = plan_reference(
            10_000 + k, pool=pool, recommended=config.training(0, 0), population=population, seed=config.seed
        )
        mix = plan.examples(pool).labels.bincount(minlength=10)
        expected.append((len(plan.indices), tuple(mix.tolist())))
    assert learnt_from == expected
    assert len({size for size, _ in learnt_from}) > 1
