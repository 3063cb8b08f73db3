"""Scenario files: what they may say, and what a mistake in one is answered with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigurationError, PortierError, UnknownNameError
from owner.cli.application import run
from owner.simulate import scenario
from owner.simulate.runner import Simulation

ADA = '[[contributors]]\nname = "ada"\n'


@pytest.mark.parametrize("name", scenario.shipped())
def test_a_shipped_scenario_has_honest_contributors_and_attackers(name: str) -> None:
    found = scenario.load(name)
    assert {one.honest for one in found.contributors} == {True, False}


def test_the_cifar10_scenario_is_the_papers_cnn_against_six_honest_contributors_and_every_attack() -> None:
    found = scenario.load("cifar10")
    attacks = [one.attack.partition(":")[0] for one in found.contributors if one.attack is not None]
    assert found.settings.model.architecture == "cnn"
    assert found.settings.data.train < 1
    assert sorted(attacks) == ["add-noise", "flip", "model-replacement", "pattern", "same-value", "sign-flip"]
    honest = [one for one in found.contributors if one.honest]
    assert len(honest) >= 6
    assert len({one.partition for one in honest}) > 1


def test_settings_stand_over_defaults_and_nothing_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTIER_GUARD__REFERENCES", "99")
    monkeypatch.setenv("PORTIER_MODEL__ARCHITECTURE", "resnet18")
    found = scenario.parse(f"[settings.guard]\nreferences = 39\n{ADA}", name="s")
    assert found.settings.guard.references == 39
    assert found.settings.model.architecture == "cnn"


def test_a_seed_reaches_the_owner_and_every_contributor() -> None:
    text = f"{ADA}seed = 5\n[[contributors]]\nname = 'bo'\n"
    found = scenario.parse(text, name="s", seed=7)
    assert found.settings.data.seed == found.settings.guard.seed == found.settings.training.seed == 7
    assert [one.seed for one in found.contributors] == [7001, 7002]
    assert [one.seed for one in scenario.parse(text, name="s").contributors] == [5, 2]


def test_contributors_of_one_partition_rule_form_a_group() -> None:
    text = "".join(
        f'[[contributors]]\nname = "{name}"\npartition = "{rule}"\n'
        for name, rule in (("ada", "iid"), ("bo", "dirichlet:alpha=0.5"), ("cy", "iid"), ("di", "dirichlet:alpha=0.5"))
    )
    groups = scenario.parse(text, name="s").partition_groups
    assert {rule: [one.name for one in group] for rule, group in groups.items()} == {
        "iid": ["ada", "cy"],
        "dirichlet:alpha=0.5": ["bo", "di"],
    }


@pytest.mark.parametrize(
    ("text", "kind", "named"),
    [
        ("", ConfigurationError, "contributors"),
        ("[settings", ConfigurationError, "TOML"),
        (f"threads = 0\n{ADA}", ConfigurationError, "threads must be from 1"),
        (f"threads = true\n{ADA}", ConfigurationError, "threads must be from 1"),
        ("settings = 3", ConfigurationError, "settings must be a table"),
        (f"titel = 'x'\n{ADA}", UnknownNameError, "title"),
        (f"[settings.gaurd]\nreferences = 19\n{ADA}", UnknownNameError, "guard.references"),
        (f"[settings.guard]\nreference = 19\n{ADA}", UnknownNameError, "guard.references"),
        (f"[settings.guard]\nreferences = 3\n{ADA}", ConfigurationError, "resolution"),
        (f"[settings]\nguard = 3\n{ADA}", UnknownNameError, "settings section"),
        (f"[settings.service]\nport = 7443\n{ADA}", ConfigurationError, "settings.service.port"),
        ("contributors = 3", ConfigurationError, "list of tables"),
        ("contributors = [3]", ConfigurationError, "must be a table"),
        ("[[contributors]]\nattack = 'flip'", ConfigurationError, "contributor 1 has no name"),
        (f"{ADA}epoch = 3", UnknownNameError, "epochs"),
        (f"{ADA}epochs = '3'", ConfigurationError, "epochs must be of type int"),
        (f"{ADA}epochs = true", ConfigurationError, "epochs must be of type int"),
        (f"{ADA}{ADA}", ConfigurationError, "two contributors are called 'ada'"),
        ("[[contributors]]\nname = '../ada'", ConfigurationError, "contributor name"),
        (f"{ADA}partition = 'dirichlet:alpha=1'", ConfigurationError, "at least two contributors"),
        (f"{ADA}partition = 'dirichlt:alpha=1'", UnknownNameError, "dirichlet"),
        (f"{ADA}partition = 'iid:index=1'", ConfigurationError, "takes nothing"),
        (f"{ADA}partition = 'dirichlet:'", ConfigurationError, "partition of contributor ada"),
    ],
)
def test_a_mistake_is_named(text: str, kind: type[PortierError], named: str) -> None:
    with pytest.raises(kind) as caught:
        scenario.parse(text, name="s")
    assert named in caught.value.diagnostics()


def test_an_unknown_scenario_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="scenario") as caught:
        scenario.load("cifar")
    assert "did you mean cifar10?" in caught.value.hint


def test_a_scenario_file_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"title = 'Mine'\n{ADA}")
    assert (scenario.load(str(path)).name, scenario.load(str(path)).title) == ("mine", "Mine")


def test_a_missing_scenario_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml"):
        scenario.load(str(tmp_path / "none.toml"))


def test_flags_say_as_much_as_a_file() -> None:
    found = scenario.compose(
        data="cifar10",
        architecture="resnet18",
        honest=2,
        attacks=["flip:source=7,target=1", "sign-flip"],
        partition="dirichlet:alpha=0.5",
        settings=["guard.references=39", "finetuning.learning_rate=0.001", "finetuning.optimiser=adam"],
        seed=3,
    )
    people = [(one.name, one.partition, one.attack, one.seed) for one in found.contributors]
    assert people == [
        ("honest-1", "dirichlet:alpha=0.5", None, 3001),
        ("honest-2", "dirichlet:alpha=0.5", None, 3002),
        ("attacker-1", "iid", "flip:source=7,target=1", 3003),
        ("attacker-2", "iid", "sign-flip", 3004),
    ]
    chosen = found.settings
    assert (chosen.data.name, chosen.model.architecture, chosen.guard.references) == ("cifar10", "resnet18", 39)
    assert (chosen.finetuning.learning_rate, chosen.finetuning.optimiser) == (0.001, "adam")


def test_equal_flags_go_on_in_a_directory_and_others_do_not() -> None:
    given: dict[str, Any] = {"honest": 2, "attacks": ["sign-flip"], "settings": ["guard.references=39"]}
    described = scenario.compose(**given).to_json()
    assert scenario.compose(**given).to_json() == json.loads(json.dumps(described))
    changes: list[dict[str, Any]] = [
        {"honest": 1},
        {"attacks": ["add-noise"]},
        {"settings": []},
        {"data": "mnist"},
        {"seed": 1},
    ]
    for change in changes:
        assert scenario.compose(**{**given, **change}).to_json() != described


@pytest.mark.parametrize(
    ("flags", "kind", "named"),
    [
        ({"honest": 0}, ConfigurationError, "--honest"),
        ({"settings": ["guard.references"]}, ConfigurationError, "--set section.key=value"),
        ({"settings": ["guard.reference=39"]}, UnknownNameError, "guard.references"),
        ({"settings": ["guard.references=3"]}, ConfigurationError, "resolution"),
        ({"settings": ["service.port=7443"]}, ConfigurationError, "settings.service.port"),
        ({"partition": "dirichlt:alpha=1"}, UnknownNameError, "dirichlet"),
        ({"partition": "dirichlet:alpha=1", "honest": 1}, ConfigurationError, "at least two contributors"),
    ],
)
def test_a_mistake_in_a_flag_is_named(flags: dict[str, Any], kind: type[PortierError], named: str) -> None:
    with pytest.raises(kind) as caught:
        scenario.compose(**flags)
    assert named in caught.value.diagnostics()


def test_a_setting_on_the_command_line_stands_above_the_scenarios() -> None:
    assert scenario.load("demo", settings=["training.epochs=2"]).settings.training.epochs == 2


def test_a_scenario_and_flags_that_say_who_takes_part_contradict_each_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["simulate", "demo", "--attack", "sign-flip", "--directory", str(tmp_path / "run")]) == 10
    said = " ".join(capsys.readouterr().err.split())
    assert "so does --attack" in said
    assert "leave the scenario out" in said
    assert not (tmp_path / "run").exists()


def test_flags_reach_the_simulation_and_an_interrupted_one_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[scenario.Scenario] = []

    def interrupted(simulation: Simulation) -> None:
        started.append(simulation.scenario)
        raise KeyboardInterrupt

    monkeypatch.setattr(Simulation, "run", interrupted)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    flags = ["--honest", "1", "--attack", "flip:source=7,target=1", "--attack", "sign-flip", "--set", "guard.seed=2"]
    assert run(["simulate", *flags, "--directory", str(tmp_path)]) == 130
    assert started == [
        scenario.compose(honest=1, attacks=["flip:source=7,target=1", "sign-flip"], settings=["guard.seed=2"])
    ]
    assert f"portier-owner simulate {' '.join(flags)} --directory {tmp_path}" in capsys.readouterr().out
