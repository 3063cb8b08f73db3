"""Cells of a grid share what they have in common, and none of their figures depends on it."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from flwr.clientapp import ClientApp

from common.federation import FederatedTask
from contributor import federated as clients
from owner.federated.compare import ordered, run_cell
from owner.federated.grids import Cell, cells
from owner.federated.lanes import Queue
from owner.federated.memory import Memory, remembering

SHARED: dict[str, Any] = {
    "model": "mlp",
    "clients": 5,
    "rounds": 2,
    "learning-rate": 0.1,
    "release-epochs": 2,
    "owner-train": 0.3,
    "guard-references": 4,
    "level": 0.2,
    "pretraining-contributors": 3,
    "detector-epochs": 3,
    "engine": "inline",
    "device": "cpu",
    "precision": "float32",
}
ATTACKS = ["flip:source=7,target=5,fraction=1", "sign-flip"]
CLOCKS = (
    "seconds",
    "fitting_seconds",
    "vetting_seconds",
    "guard_seconds",
    "merging_seconds",
    "seconds_per_round",
    "guard_seconds_per_round",
    "node",
)


def grid(*strategies: str, setting: str = "federated", **lists: Any) -> list[Cell]:
    dimensions = {"strategy": list(strategies), "attack": ATTACKS, "attacker-share": [0.4], "seed": [0], **lists}
    return ordered(cells({**SHARED, "setting": setting}, dimensions))


def without_clocks(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: without_clocks(value) for key, value in data.items() if key not in CLOCKS}
    return [without_clocks(one) for one in data] if isinstance(data, list) else data


def figures(todo: list[Cell]) -> list[Any]:
    records = [run_cell(cell) for cell in todo]
    assert [record["reason"] for record in records] == [""] * len(todo)
    return [without_clocks(record["result"]) for record in records]


@pytest.mark.parametrize(
    "todo",
    [
        grid("fedavg", "krum:assumed-malicious=1"),
        grid("fedavg", "fedcvae", setting="incremental", model=["logistic"]),
        pytest.param(grid("fedavg", "fedclean", "spectral-vae", "gated"), marks=pytest.mark.slow),
        pytest.param(grid("fedavg", "fedclean", "fedcvae", "gated", setting="incremental"), marks=pytest.mark.slow),
    ],
    ids=[
        "federated",
        "incremental",
        "federated with every kind of detector",
        "incremental with every kind of detector",
    ],
)
def test_a_shared_and_an_unshared_run_give_the_same_records(todo: list[Cell]) -> None:
    alone = figures(todo)
    with remembering():
        assert figures(todo) == alone


def test_clients_train_once_for_all_strategies_and_honest_ones_once_for_all_attacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[str] = []
    finetune = clients.finetune

    def counted(*given: Any, **options: Any) -> Any:
        trained.append(str(options["attack"]))
        return finetune(*given, **options)

    monkeypatch.setattr(clients, "finetune", counted)
    with remembering():
        figures(grid("fedavg", "fedmedian", "krum:assumed-malicious=1", rounds=[1]))
    # Three of five are honest; two attack in each of two ways.
    assert (trained.count("None"), len(trained)) == (3, 7)


def test_a_client_app_of_somebodys_own_is_asked_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may keep a state that no key holds."""
    asked: list[object] = []

    def client_app(task: FederatedTask) -> ClientApp:
        honest, bound = clients.client_app(task), ClientApp()

        @bound.train()
        def train(message, context):  # type: ignore[no-untyped-def]
            asked.append(context.node_config["partition-id"])
            return honest(message, context)

        return bound

    module = types.ModuleType("counting_clients")
    module.check = lambda task: None  # type: ignore[attr-defined]
    module.client_app = client_app  # type: ignore[attr-defined]
    module.attacking = clients.attacking  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "counting_clients", module)
    todo = grid("fedavg", "fedmedian", rounds=[1], **{"client-app": ["counting_clients"]})
    with remembering():
        figures(todo)
    assert len(asked) == 5 * len(todo)


def test_what_is_recalled_counts_the_seconds_it_took() -> None:
    memory = Memory(1)
    started = memory.clock()
    memory.get("slow", lambda: sum(range(300_000)))
    took = memory.clock() - started
    started = memory.clock()
    memory.get("slow", lambda: pytest.fail("made twice"))
    assert memory.clock() - started >= 0.5 * took


def test_the_one_longest_not_asked_for_is_forgotten_first() -> None:
    memory = Memory(1)
    for name in ("a", "b", "a", "c"):
        memory.get(name, lambda: name, size=lambda _made: 400_000)  # noqa: B023 - called at once
    assert [memory.get(name, lambda: "anew") for name in ("a", "c", "b")] == ["a", "c", "anew"]


def test_a_failure_is_not_remembered() -> None:
    memory = Memory(1)
    with pytest.raises(ZeroDivisionError):
        memory.get("x", lambda: 1 / 0)
    assert memory.get("x", lambda: 2) == 2


def test_a_process_stays_with_one_model_and_helps_with_the_last_cells_of_another() -> None:
    todo = ordered(
        cells(SHARED, {"model": ["mlp", "logistic"], "partition": ["iid", "dirichlet:alpha=1"], "seed": [0]})
    )
    queue = Queue(todo)
    taken = [(process, queue.next_of(process)) for process in (0, 1, 0, 0, 1)]
    found = [(process, cell and (cell.values["model"], cell.values["partition"])) for process, cell in taken]
    iid, dirichlet = "iid", "dirichlet:alpha=1"
    assert found == [
        (0, ("mlp", iid)),
        (1, ("logistic", iid)),
        (0, ("mlp", dirichlet)),
        (0, ("logistic", dirichlet)),
        (1, None),
    ]


def test_no_cell_of_a_second_seed_begins_while_one_of_the_first_waits() -> None:
    todo = ordered(cells(SHARED, {"model": ["mlp"], "partition": ["iid", "dirichlet:alpha=1"], "seed": [0, 1]}))
    queue = Queue(todo)
    seeds = [cell.values["seed"] for process in (0, 1, 1, 0) if (cell := queue.next_of(process)) is not None]
    assert seeds == [0, 0, 1, 1]
