"""Scenario files: what they may say, and what a mistake in one is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigurationError, PortierError, UnknownNameError
from owner.simulate import scenario

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
