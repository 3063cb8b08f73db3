"""Whole federations, small ones: what comes out, that it comes out again, and what is refused before anything starts."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
from flwr.clientapp import ClientApp

from common.errors import ConfigurationError, MissingExtraError, UnknownNameError, VacuousGateError
from common.federation import FederatedTask
from owner.federated import FederationConfig, run_federation

BASE: dict[str, Any] = {
    "model": "logistic",
    "clients": 6,
    "rounds": 2,
    "learning-rate": 0.1,
    "engine": "inline",
    "device": "cpu",
    "precision": "float32",
}


def configured(**changes: Any) -> FederationConfig:
    return FederationConfig.from_flat({**BASE, **{name.replace("_", "-"): value for name, value in changes.items()}})


def test_a_federation_learns_and_tells_what_it_cost() -> None:
    result = run_federation(configured(local_epochs=3))
    assert result.accuracy > result.initial_accuracy + 0.2
    assert [round_.record.number for round_ in result.rounds] == [1, 2]
    assert [len(round_.record.with_outcome("kept")) for round_ in result.rounds] == [6, 6]
    assert all(round_.seconds > 0 for round_ in result.rounds)
    assert result.detection.f1 is None


def test_the_same_seed_gives_the_same_table_and_another_seed_another() -> None:
    tables = [
        run_federation(
            configured(strategy="fedcvae", attackers=2, attack="add-noise", detector_epochs=5, seed=seed)
        ).table()
        for seed in (0, 0, 1)
    ]
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def test_the_success_of_a_backdoor_is_measured_every_round() -> None:
    attack = "pattern:source=any,target=3,fraction=0.9,position=bottom-right,size=3"
    result = run_federation(configured(attackers=3, attack=attack, local_epochs=3, rounds=3))
    assert [round_.attack_success is not None for round_ in result.rounds] == [True] * 3
    assert result.rounds[-1].attack_success > 0.3  # type: ignore[operator]


@pytest.mark.parametrize(
    ("attack", "attackers", "effective"),
    [
        ("flip:source=7,target=5,fraction=1", 5, True),
        ("flip:source=7,target=5,fraction=0.1", 1, False),
        ("badnets:trigger=pattern,target=3,fraction=1", 5, True),
        ("sign-flip", 5, True),
        ("add-noise:deviation=0.001", 5, False),
    ],
)
def test_whether_the_attack_took_is_told_by_its_own_goal(attack: str, attackers: int, effective: bool) -> None:
    config = configured(attackers=attackers, attack=attack, local_epochs=5, rounds=4, release_epochs=8, owner_train=0.3)
    assert run_federation(config).attack_effective is effective


@pytest.mark.parametrize(
    ("strategy", "few", "many"), [("krum", 3, 3), ("multikrum", 3, 3), ("bulyan", 1, 1), ("fedtrimmedavg", 3, 4)]
)
def test_whoever_is_told_f_is_told_the_number_of_attackers_or_the_most_of_its_theory(
    strategy: str, few: int, many: int
) -> None:
    """Of ten clients, with three attackers and with five; none where nobody attacks."""
    told = [
        configured(strategy=strategy, clients=10, attackers=attackers, attack="sign-flip").malicious
        for attackers in (0, 3, 5)
    ]
    assert told == [0, few, many]
    assert configured(strategy=strategy, clients=10, assumed_malicious=1).malicious == 1


def test_with_more_attackers_than_krum_can_be_told_of_it_still_judges() -> None:
    result = run_federation(configured(strategy="krum", clients=4, attackers=2, attack="sign-flip", rounds=1))
    assert len(result.rounds[0].record.with_outcome("kept")) == 1


def test_where_fewer_can_attack_than_are_wanted_the_record_says_both_and_what_they_weigh() -> None:
    flip = "flip:source=7,target=5,fraction=1"
    config = configured(clients=10, partition="pathological:classes=2", attackers=4, attack=flip, rounds=1)
    found = run_federation(config).to_json()
    assert (found["attackers_wanted"], len(found["attackers"])) == (4, 2)
    held = sum(len(config.examples_of(client)) for client in found["attackers"])
    assert found["attackers_weight"] == pytest.approx(held / len(config.shares().unclaimed))
    assert found["detection"]["missed"] == 2
    assert {client["outcome"] for client in found["rounds"][0]["clients"]} == {"kept"}


def test_clients_of_ones_own_that_attack_must_say_who_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crashing_clients", _Crashing().module)
    with pytest.raises(ConfigurationError, match=r"has no attacking\(task\)"):
        run_federation(configured(client_app="crashing_clients", attackers=1, attack="sign-flip"))


class _Crashing:
    """A client app module whose client number 1 raises, and whose others answer honestly."""

    def __init__(self) -> None:
        self.module = types.ModuleType("crashing_clients")
        self.module.check = lambda task: None  # type: ignore[attr-defined]
        self.module.client_app = self.client_app  # type: ignore[attr-defined]

    def client_app(self, task: FederatedTask) -> ClientApp:
        honest = importlib.import_module("contributor.federated").client_app(task)
        bound = ClientApp()

        @bound.train()
        def train(message, context):  # type: ignore[no-untyped-def]
            if context.node_config["partition-id"] == 1:
                raise MemoryError("no memory left")
            return honest(message, context)

        return bound


def test_a_crashed_client_does_not_end_the_federation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crashing_clients", _Crashing().module)
    result = run_federation(configured(client_app="crashing_clients"))
    for round_ in result.rounds:
        assert [c.reason for c in round_.record.with_outcome("failed")] == [
            "the client failed: MemoryError: no memory left"
        ]
        assert len(round_.record.with_outcome("kept")) == 5


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"strategy": "krumm"}, "did you mean krum?"),
        ({"strategy": "spectral"}, "did you mean spectral-vae?"),
        ({"engine": "rey"}, "did you mean ray?"),
        ({"data": "digit"}, "did you mean digits?"),
        ({"attackers": 1, "attack": "sign-flop"}, "did you mean sign-flip?"),
        ({"model": "logistics"}, "did you mean logistic?"),
        ({"strategie": "krum"}, "did you mean strategy?"),
    ],
)
def test_an_unknown_name_is_told_the_nearest_before_anything_starts(changes: dict[str, Any], hint: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        run_federation(configured(**changes))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strategy": "bulyan", "attackers": 2, "attack": "sign-flip", "assumed_malicious": 2},
            r"needs at least 11 clients \(4f \+ 3\), and there are 6",
        ),
        ({"strategy": "krum", "assumed_malicious": 2}, "needs at least 7 clients"),
        ({"strategy": "krum", "clients": 2}, "needs at least 3 clients"),
        ({"strategy": "fedtrimmedavg", "assumed_malicious": 3}, r"needs at least 7 clients \(2f \+ 1\)"),
        ({"attackers": 7, "attack": "sign-flip"}, "7 attackers among 6 clients"),
        ({"rounds": 0}, "rounds must be from 1"),
        ({"refresh": "often"}, "refresh must be"),
        ({"client_app": "no.such.module"}, "cannot be imported"),
        ({"client_app": "common.errors"}, "has no client_app"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run_federation(configured(**changes))


def test_the_gate_fits_a_guard_for_the_release_and_drops_the_ruined() -> None:
    changes = {"model": "mlp", "release_epochs": 8, "owner_train": 0.3, "local_epochs": 2, "guard_references": 9}
    result = run_federation(configured(strategy="gated", attackers=2, attack="sign-flip", rounds=1, **changes))
    assert result.detection.recall == 1.0
    assert result.detection.auroc == 1.0
    assert result.rounds[0].record.guard_seconds > result.rounds[0].record.vetting_seconds


def test_the_gate_on_a_model_without_a_penultimate_layer_is_refused() -> None:
    with pytest.raises(VacuousGateError, match="does not depend on the model's weights"):
        run_federation(configured(strategy="gated"))


def test_without_ray_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ray" else found(name, *a))
    with pytest.raises(MissingExtraError) as caught:
        run_federation(configured(engine="ray"))
    assert 'pip install "portier[simulation]"' in caught.value.hint


def test_the_project_file_configures_a_federation_that_flwr_run_can_start() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]
    given = project["config"]
    assert FederationConfig.from_flat(given) == FederationConfig()
    simulations_own = {"engine", "client-cpus", "ray-address", "client-app"}
    assert set(FederationConfig().to_flat()) - set(given) == simulations_own
    for component in project["components"].values():
        module, name = component.split(":")
        assert hasattr(importlib.import_module(module), name)


def test_detectors_are_imported_without_flower_and_commands_without_both() -> None:
    script = (
        "import sys, owner.federated.spectral, owner.federated.cvae, owner.federated.clean, owner.federated.config; "
        "assert not any(m.partition('.')[0] in ('flwr', 'ray') for m in sys.modules)"
    )
    import subprocess

    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_flowers_engine_and_the_inline_one_give_the_same_table() -> None:
    pytest.importorskip("ray")
    changes = {"strategy": "multikrum", "clients": 5, "attackers": 1, "attack": "sign-flip"}
    inline, on_ray = (run_federation(configured(**changes, engine=engine)) for engine in ("inline", "ray"))
    assert on_ray.table() == inline.table()


DYING = """
import importlib
import os

from flwr.clientapp import ClientApp


def check(task):
    pass


def client_app(task):
    honest = importlib.import_module("contributor.federated").client_app(task)
    bound = ClientApp()

    @bound.train()
    def train(message, context):
        if context.node_config["partition-id"] == 1:
            os._exit(1)
        return honest(message, context)

    return bound
"""


@pytest.mark.slow
def test_a_client_whose_process_dies_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    (tmp_path / "dying_clients.py").write_text(DYING)
    monkeypatch.syspath_prepend(tmp_path)
    result = run_federation(configured(client_app="dying_clients", engine="ray"))
    for round_ in result.rounds:
        assert [c.reason for c in round_.record.with_outcome("failed")] == ["the client failed: its process died"]
        assert len(round_.record.with_outcome("kept")) == 5
