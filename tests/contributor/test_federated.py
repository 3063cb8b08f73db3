"""The ClientApp trains as any contributor does, honestly or under the task's attack."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict, UserConfig
from flwr.supercore.task_identity import TaskIdentity

from common.errors import ConfigurationError, DataError, UnknownNameError
from common.federation import FederatedTask
from common.models import build
from contributor.attacks import parse_attack
from contributor.federated import app, attacking, check, client_app
from contributor.finetuning import finetune

TASK = FederatedTask(model="logistic", clients=4, attackers=1, attack="sign-flip", device="cpu", precision="float32")


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def weights() -> dict[str, torch.Tensor]:
    return dict(build(TASK.spec(), seed=1).state_dict())


def context(partition: object, run_config: dict[str, object] | None = None) -> Context:
    node = UserConfig({"partition-id": partition})  # type: ignore[dict-item]
    return Context(1, 7, node, RecordDict(), UserConfig(run_config or {}))  # type: ignore[arg-type]


def instruction(kind: str, number: int = 2) -> Message:
    content = {"arrays": ArrayRecord(weights()), "config": ConfigRecord({"server-round": number})}
    return Message(RecordDict(content), 7, kind)


def returned(message: Message) -> dict[str, torch.Tensor]:
    return dict(message.content.array_records["arrays"].to_torch_state_dict())


def expected(partition: int, attack: str | None) -> dict[str, torch.Tensor]:
    from common.devices import choose_compute

    return finetune(
        weights(),
        TASK.spec(),
        TASK.examples_of(partition),
        TASK.training(partition, 2),
        attack=parse_attack(attack) if attack else None,
        compute=choose_compute("cpu", "float32"),
        progress=False,
    ).weights


@pytest.mark.parametrize("attacks", [False, True])
def test_it_returns_what_the_grpc_contributor_would(attacks: bool) -> None:
    partition = next(p for p in range(4) if (p in attacking(TASK)) is attacks)
    reply = client_app(TASK)(instruction("train"), context(partition))
    assert all(
        torch.equal(returned(reply)[n], t) for n, t in expected(partition, "sign-flip" if attacks else None).items()
    )


@pytest.mark.parametrize("attack", ["sign-flip", "badnets:target=6,fraction=0.5"])
def test_it_tells_its_partition_and_how_much_it_holds_whatever_it_adds_to_that(attack: str) -> None:
    task = FederatedTask.from_flat({**TASK.to_flat(), "attack": attack, "attackers": 4})
    reply = client_app(task)(instruction("train"), context(3))
    assert reply.content.config_records["portier"]["partition-id"] == 3
    assert reply.content.metric_records["metrics"]["num-examples"] == len(task.examples_of(3))


def test_attackers_are_drawn_among_those_who_can_attack_and_few_are_among_many() -> None:
    """Each class is held by two of ten, so that of the images a flip wants two clients have some, and three of any other kind are found."""
    shared = {"clients": 10, "partition": "pathological:classes=2", "data": "digits"}

    def chosen(attack: str, attackers: int) -> frozenset[int]:
        return attacking(FederatedTask.from_flat({**shared, "attack": attack, "attackers": attackers}))

    task = FederatedTask.from_flat(shared)
    holding = {client for client in range(10) if (task.examples_of(client).labels == 7).any()}
    assert len(holding) == 2
    assert chosen("flip:source=7,target=5", 3) == chosen("flip:source=7,target=5", 5) == holding
    assert chosen("flip:source=7,target=5", 1) < holding
    assert chosen("sign-flip", 3) < chosen("sign-flip", 5)
    assert [len(chosen("sign-flip", count)) for count in (0, 3, 5)] == [0, 3, 5]


def test_the_app_of_flwr_run_reads_its_settings_from_the_project_file() -> None:
    config = {**TASK.to_flat(), "strategy": "krum"}
    bound, loose = client_app(TASK)(instruction("train"), context(2)), app(instruction("train"), context(2, config))
    assert all(torch.equal(returned(loose)[name], tensor) for name, tensor in returned(bound).items())


def test_whoever_is_asked_measures_the_same_attack_success() -> None:
    task = FederatedTask.from_flat({**TASK.to_flat(), "attack": "pattern:source=any,target=3"})
    seen = [client_app(task)(instruction("evaluate"), context(p)).content.metric_records["metrics"] for p in (0, 3)]
    assert dict(seen[0]) == dict(seen[1])
    assert 0 <= float(seen[0]["attack-success"]) <= 1  # type: ignore[arg-type]


def test_an_attack_without_a_target_has_no_success_to_report() -> None:
    metrics = client_app(TASK)(instruction("evaluate"), context(0)).content.metric_records["metrics"]
    assert isinstance(metrics, MetricRecord)
    assert set(metrics) == {"num-examples", "accuracy"}


@pytest.mark.parametrize(
    ("attack", "goal", "measured"),
    [
        ("sign-flip", "ruin", set()),
        ("flip:source=7,target=5", "flip", {"victim-recall"}),
        ("badnets:target=6", "backdoor", {"attack-success-unmarked"}),
    ],
)
def test_a_server_that_asks_is_told_by_what_the_attacks_goal_is_judged(
    attack: str, goal: str, measured: set[str]
) -> None:
    task = FederatedTask.from_flat({**TASK.to_flat(), "attack": attack})
    message = instruction("evaluate")
    message.content.config_records["config"].update({"accuracy": False, "success": False, "effect": True})
    content = client_app(task)(message, context(0)).content
    assert content.config_records["portier"]["goal"] == goal
    assert set(content.metric_records["metrics"]) == {"num-examples", *measured}
    if goal == "flip":
        model = build(TASK.spec(), seed=1)
        sevens = TASK.shares().evaluation.take(TASK.shares().evaluation.labels == 7)
        found = (model(sevens.images.float() / 255).argmax(1) == 7).float().mean()
        assert content.metric_records["metrics"]["victim-recall"] == pytest.approx(float(found))


@pytest.mark.parametrize("partition", [4, -1, "0", None])
def test_a_partition_that_there_is_not_is_refused(partition: object) -> None:
    with pytest.raises(ConfigurationError, match="the federation has clients 0 to 3"):
        client_app(TASK)(instruction("train"), context(partition))


@pytest.mark.parametrize(
    ("changes", "error", "hint"),
    [
        ({"attack": "sign-flop"}, UnknownNameError, "did you mean sign-flip?"),
        ({"attack": "flip:sauce=1"}, UnknownNameError, "did you mean source?"),
        ({"data": "digit"}, UnknownNameError, "did you mean digits?"),
        ({"attack": "flip:source=12,target=3"}, ConfigurationError, "classes:"),
        ({"data": "/nowhere/at/all"}, DataError, "check the path"),
    ],
)
def test_mistakes_are_found_before_a_federation_starts(changes: dict, error: type, hint: str) -> None:
    with pytest.raises(error) as caught:
        check(FederatedTask.from_flat({**TASK.to_flat(), **changes}))
    assert hint in caught.value.hint
