"""What server and clients of a federation agree on."""

from __future__ import annotations

import pytest
import torch

from common.errors import ConfigurationError, UnknownNameError
from common.federation import FederatedTask


def test_a_task_survives_the_way_through_flat_values() -> None:
    task = FederatedTask(
        clients=7, attackers=2, attack="sign-flip", learning_rate=0.25, partition="dirichlet:alpha=0.5"
    )
    assert FederatedTask.from_flat(task.to_flat()) == task


def test_values_come_as_text_too() -> None:
    task = FederatedTask.from_flat({"clients": "4", "learning-rate": "0.5", "seed": 3})
    assert (task.clients, task.learning_rate, task.seed) == (4, 0.5, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clients": 0}, "clients must be from 1"),
        ({"clients": "many"}, "clients must be a whole number"),
        ({"clients": 2.5}, "clients must be a whole number"),
        ({"clients": True}, "clients must be a whole number"),
        ({"learning-rate": "fast"}, "learning-rate must be a number"),
        ({"clients": 3, "attackers": 4, "attack": "sign-flip"}, "4 attackers among 3 clients"),
        ({"attackers": -1}, "attackers must not be negative"),
        ({"attackers": 1}, "no attack is named"),
        ({"partition": "iid:index=2"}, "index follows from the federation"),
        ({"local-epochs": 0}, "epochs"),
    ],
)
def test_what_cannot_be_is_refused_by_name(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FederatedTask.from_flat(values)


@pytest.mark.parametrize(
    ("values", "nearest"),
    [
        ({"learnin-rate": 0.1}, "learning-rate"),
        ({"partition": "dirichle"}, "dirichlet"),
        ({"optimiser": "adm"}, "adam"),
    ],
)
def test_an_unknown_name_is_told_the_nearest(values: dict[str, object], nearest: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown") as caught:
        FederatedTask.from_flat(values)
    assert f"did you mean {nearest}?" in caught.value.hint


def test_a_client_leaves_the_servers_settings_alone() -> None:
    assert FederatedTask.from_flat({"clients": 3, "strategy": "krum"}, strict=False).clients == 3


def test_clients_share_the_unclaimed_examples_without_overlap() -> None:
    task = FederatedTask(clients=4)
    shares = [task.share_of(client).divide(task.shares().unclaimed.labels)[client] for client in range(4)]
    together = torch.cat(shares)
    assert len(together.unique()) == len(together) == len(task.shares().unclaimed)


def attackers(task: FederatedTask) -> frozenset[int]:
    return task.attackers_among(lambda share: True)


def test_the_attackers_are_fixed_by_the_seed() -> None:
    chosen = [attackers(FederatedTask(clients=50, attackers=15, attack="sign-flip", seed=seed)) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0]) == 15


def test_who_cannot_attack_does_not_and_the_next_of_the_order_does() -> None:
    task = FederatedTask(clients=10, attackers=4, attack="sign-flip", partition="pathological:classes=2")
    held = [set(task.examples_of(client).labels.tolist()) for client in range(10)]
    (left_out, *_) = sorted(attackers(task))
    able = {client for client in range(10) if client != left_out}
    chosen = task.attackers_among(lambda share: set(share.labels.tolist()) in [held[client] for client in able])
    assert attackers(task) - {left_out} < chosen
    assert len(chosen) == 4


def test_what_clients_weigh_is_their_part_of_all_examples() -> None:
    task = FederatedTask(clients=4, partition="dirichlet:alpha=0.3")
    sizes = [len(task.examples_of(client)) for client in range(4)]
    assert task.sizes() == tuple(sizes)
    assert task.weight_of([1, 3]) == pytest.approx((sizes[1] + sizes[3]) / sum(sizes))
    assert task.weight_of([]) == 0


def test_no_two_clients_or_rounds_share_their_randomness() -> None:
    task = FederatedTask()
    seeds = {task.training(client, number).seed for client in range(5) for number in range(5)}
    assert len(seeds) == 25


def test_a_generated_data_set_is_of_the_federations_seed_unless_it_names_one() -> None:
    def sizes(data: str, seed: int) -> tuple[int, ...]:
        return FederatedTask(data=data, clients=30, partition="natural", seed=seed).sizes()

    drawn = [sizes("synthetic:alpha=1,beta=1", seed) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    fixed = [sum(sizes("synthetic:alpha=1,beta=1,seed=5", seed)) for seed in (0, 1)]
    assert abs(fixed[0] - fixed[1]) < 30  # of each class a part is held out, rounded


def test_fewer_examples_can_be_asked_for() -> None:
    few, every = FederatedTask(examples=300).shares(), FederatedTask().shares()
    assert len(few.unclaimed) < len(every.unclaimed)
    assert len(few.evaluation) == len(every.evaluation)


def test_fewer_test_examples_can_be_asked_for() -> None:
    few, every = FederatedTask(test_examples=100).shares(), FederatedTask().shares()
    assert len(few.trigger_fit) + len(few.trigger_calibration) + len(few.evaluation) == 100
    assert len(few.unclaimed) == len(every.unclaimed)
