"""The ClientApp: what a contributor runs in a Flower federation, by the same training loop and attacks as over gRPC.

`flwr run .` reads the settings from `[tool.flwr.app.config]`; a simulation binds them with `client_app(task)`. Which share a
client holds is its `partition-id`, which Flower's simulation hands out and a SuperNode is started with.
"""

from __future__ import annotations

import functools

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from common.datasets import find
from common.devices import Compute, choose_compute
from common.errors import ConfigurationError, DataError
from common.evaluation import evaluate
from common.examples import Examples
from common.federation import FederatedTask
from common.models import build
from common.randomness import derived_seed, generator
from contributor.attacks import Attack, parse_attack
from contributor.attacks.naming import naming, victim_of
from contributor.finetuning import finetune

app = ClientApp()


def check(task: FederatedTask) -> None:
    """Mistakes that can be found before a federation starts. Raises UnknownNameError for an attack or a data set that does not
    exist, ConfigurationError for an attack's options, DataError for classes the data do not have."""
    from pathlib import Path  # noqa: PLC0415 - for this check alone

    find(task.data, data_dir=Path(task.data_dir) if task.data_dir else None)
    attack = _attack(task)
    if attack is not None:
        names = task.shares().train.class_names
        victim_of(attack, names)
        if attack.goal == "backdoor":
            few = task.shares().evaluation
            with naming(attack, "prepare"):
                attack.prepare(few, generator(task.seed, "check"))


@functools.lru_cache(maxsize=16)
def attacking(task: FederatedTask) -> frozenset[int]:
    """Which clients attack, by number: of the seed's order the first ones with whose share the attack can be carried out (a flip takes
    images of its source class), `task.attackers` of them or, where there are fewer, all these.

    Raises as `check` does.
    """
    attack = _attack(task) if task.attackers else None
    if attack is None:
        return frozenset()

    def can(share: Examples) -> bool:
        try:
            with naming(attack, "prepare"):
                return len(share) > 0 and len(attack.prepare(share, generator(task.seed, "who can attack"))) > 0
        except DataError:
            return False

    return task.attackers_among(can)


def client_app(task: FederatedTask) -> ClientApp:
    """A ClientApp that has its settings bound: for simulations, whose configuration no file holds."""
    bound = ClientApp()

    @bound.train()
    def _train(message: Message, context: Context) -> Message:
        return train(message, context, task)

    @bound.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        return measure(message, context, task)

    return bound


@app.train()
def _app_train(message: Message, context: Context) -> Message:
    return train(message, context, FederatedTask.from_flat(context.run_config, strict=False))


@app.evaluate()
def _app_evaluate(message: Message, context: Context) -> Message:
    return measure(message, context, FederatedTask.from_flat(context.run_config, strict=False))


def train(message: Message, context: Context, task: FederatedTask) -> Message:
    """Fine-tune the global model on this client's share, honestly or under the task's attack.

    Raises DataError where the share holds nothing to train on or to attack, ModelError where training diverges.
    """
    partition, number = _partition(context, task), _round(message)
    attack = _attack(task) if partition in attacking(task) else None
    examples = task.examples_of(partition)
    done = finetune(
        _weights(message),
        task.spec(),
        examples,
        task.training(partition, number),
        attack=attack,
        compute=choose_compute(task.device, task.precision),
        progress=False,
    )
    # What it holds, and not what it makes of that: stamped copies would weigh a liar more than he can show.
    metrics = MetricRecord({"num-examples": len(examples), "train-loss": done.report["loss_per_epoch"][-1]})
    content = RecordDict(
        {
            "arrays": ArrayRecord(done.weights),
            "metrics": metrics,
            "portier": ConfigRecord({"partition-id": partition}),
        }
    )
    return Message(content, reply_to=message)


def measure(message: Message, context: Context, task: FederatedTask) -> Message:
    """Accuracy of the global model on held-out data, and the success there of the task's attack.

    It is the same number whichever client is asked, for in a simulation each of them has all the data. A server that
    measures accuracy itself asks for none, with `accuracy = false` among what it sends; `success = false` likewise. With
    `effect = true` it is told by what the attack's goal is judged, too (`common.effectiveness`): the goal, the recall of a flip's
    source class, and what a backdoor's success is without its trigger.
    """
    held_out = task.shares().evaluation
    model = build(task.spec())
    model.load_state_dict(_weights(message))
    compute = choose_compute(task.device, task.precision)
    metrics: dict[str, int | float | list[int] | list[float]] = {
        "num-examples": len(held_out),
    }
    told = _told(message)
    if told.get("accuracy", True):
        metrics["accuracy"] = float(evaluate(model, held_out, compute=compute).accuracy)
    attack = _attack(task)
    more: dict[str, ConfigRecord] = {}
    if attack is not None:
        draws = torch.Generator().manual_seed(derived_seed(task.seed, f"attack success {_round(message)}"))
        with naming(attack, "success"):
            success = attack.success(model, held_out, compute, draws) if told.get("success", True) else None
        if success is not None:
            metrics["attack-success"] = float(success)
        if told.get("effect", False):
            metrics |= _effect(attack, model, held_out, compute, draws)
            more["portier"] = ConfigRecord({"goal": attack.goal})
    return Message(RecordDict({"metrics": MetricRecord(metrics), **more}), reply_to=message)


def _effect(
    attack: Attack, model: nn.Module, held_out: Examples, compute: Compute, draws: torch.Generator
) -> dict[str, float]:
    found = {}
    victim = victim_of(attack, held_out.class_names)
    if victim is not None and (of_victim := held_out.take(held_out.labels == victim)):
        found["victim-recall"] = float(evaluate(model, of_victim, compute=compute).accuracy)
    if attack.goal == "backdoor":
        unmarked = attack.success(model, held_out, compute, draws, marked=False)
        if unmarked is not None:
            found["attack-success-unmarked"] = float(unmarked)
    return found


def _attack(task: FederatedTask) -> Attack | None:
    return parse_attack(task.attack) if task.attack else None


def _weights(message: Message) -> dict[str, torch.Tensor]:
    return dict(next(iter(message.content.array_records.values())).to_torch_state_dict())


def _told(message: Message) -> ConfigRecord:
    return next(iter(message.content.config_records.values()), ConfigRecord())


def _round(message: Message) -> int:
    number = _told(message).get("server-round", 0)
    return number if isinstance(number, int) else 0


def _partition(context: Context, task: FederatedTask) -> int:
    given = context.node_config.get("partition-id")
    if not isinstance(given, int) or not 0 <= given < task.clients:
        raise ConfigurationError(
            f"this node's partition-id is {given!r}, and the federation has clients 0 to {task.clients - 1}",
            hint="start the SuperNode with --node-config 'partition-id=0', or set clients to the number of nodes",
        )
    return given
