"""Settings: which source wins, what is merged, and what a wrong one gets."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.config import Section, Settings, as_toml, load, variable
from common.errors import ConfigurationError, UnknownNameError
from common.training_options import TrainingOptions


class Gate(Section):
    references: int = 19
    """How many honest models."""
    names: tuple[str, ...] = ("localhost",)
    """Where it is reached."""
    folder: Path | None = None
    """Where it lies."""


@dataclass(frozen=True)
class Crowd:
    """sizes: from .. to; None: as they come. rates: from .. to."""

    sizes: tuple[int, int] | None = None
    rates: tuple[float, float] = (0.5, 2.0)


class Example(Settings):
    gate: Gate = Gate()
    crowd: Crowd = Crowd()
    training: TrainingOptions = TrainingOptions(epochs=3, learning_rate=0.005)
    """How it is trained."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "portier.toml"
    path.write_text("[gate]\nreferences = 7\n[training]\nepochs = 9\n")
    return path


def test_nothing_given_leaves_the_defaults() -> None:
    assert load(Example, environment={}) == Example()


def test_a_flag_beats_the_environment_which_beats_the_file(file: Path) -> None:
    environment = {"PORTIER_GATE__REFERENCES": "8"}
    assert load(Example, file, environment={}).gate.references == 7
    assert load(Example, file, environment=environment).gate.references == 8
    assert load(Example, file, {"gate.references": 9}, environment=environment).gate.references == 9


def test_a_flag_that_was_not_given_leaves_the_file_alone(file: Path) -> None:
    assert load(Example, file, {"gate.references": None}, environment={}).gate.references == 7


@pytest.mark.parametrize("source", ["file", "environment", "flag"])
def test_setting_one_field_of_a_dataclass_section_keeps_its_other_defaults(file: Path, source: str) -> None:
    settings = {
        "file": lambda: load(Example, file, environment={}),
        "environment": lambda: load(Example, environment={"PORTIER_TRAINING__EPOCHS": "9"}),
        "flag": lambda: load(Example, overrides={"training.epochs": 9}, environment={}),
    }[source]()
    assert settings.training == TrainingOptions(epochs=9, learning_rate=0.005)


def test_sources_are_merged_field_by_field(file: Path) -> None:
    settings = load(Example, file, {"training.seed": 4}, environment={"PORTIER_TRAINING__BATCH_SIZE": "32"})
    assert settings.training == TrainingOptions(epochs=9, learning_rate=0.005, batch_size=32, seed=4)


@pytest.mark.parametrize("source", ["environment", "flag"])
@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("gate.names", "a.example,b.example", ("a.example", "b.example")),
        ("gate.names", '["a.example", "b.example"]', ("a.example", "b.example")),
        ("gate.names", "", ()),
        ("crowd.sizes", "40, 80", (40, 80)),
        ("crowd.sizes", "[40, 80]", (40, 80)),
        ("crowd.sizes", "", None),
        ("crowd.rates", "0.3,3", (0.3, 3.0)),
        ("gate.folder", "", None),
    ],
)
def test_text_is_a_list_by_commas_or_json_and_nothing_leaves_out_what_may_be(
    source: str, name: str, text: str, value: Any
) -> None:
    given: dict[str, Any] = (
        {"environment": {variable(name): text}} if source == "environment" else {"overrides": {name: text}}
    )
    settings = load(Example, **{"environment": {}, **given})
    section, _, leaf = name.partition(".")
    assert getattr(getattr(settings, section), leaf) == value


def test_a_wrong_element_of_a_list_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"crowd\.sizes\.1.*'many'"):
        load(Example, overrides={"crowd.sizes": "40,many"}, environment={})


def test_an_unknown_setting_lists_those_of_its_section_alone() -> None:
    with pytest.raises(UnknownNameError) as caught:
        load(Example, overrides={"gate.referenses": 7}, environment={})
    assert caught.value.hint == "did you mean gate.references? (known: gate.folder, gate.names, gate.references)"
    with pytest.raises(UnknownNameError) as caught:
        load(Example, overrides={"gaet.references": 7}, environment={})
    assert caught.value.hint == "did you mean gate.references? (known: gate.folder, gate.names, gate.references)"
    with pytest.raises(UnknownNameError) as caught:
        load(Example, overrides={"nonsense": 7}, environment={})
    assert "[crowd], [gate], [training]" in caught.value.hint


def test_a_variable_that_only_shares_the_prefix_is_not_a_section() -> None:
    assert load(Example, environment={"PORTIER_TRAINING": "/somewhere", "PORTIER_OTHER__X": "1"}) == Example()


@pytest.mark.parametrize(
    ("text", "overrides", "environment"),
    [
        ("[gate]\nreferenses = 7\n", {}, {}),
        ("", {"gate.referenses": 7}, {}),
        ("", {}, {"PORTIER_GATE__REFERENSES": "7"}),
    ],
    ids=["file", "flag", "environment"],
)
def test_an_unknown_setting_is_refused_with_the_nearest_one(
    tmp_path: Path, text: str, overrides: dict[str, int], environment: dict[str, str]
) -> None:
    path = tmp_path / "portier.toml"
    path.write_text(text)
    with pytest.raises(UnknownNameError, match=r"gate\.referenses") as caught:
        load(Example, path, overrides, environment=environment)
    assert "did you mean gate.references?" in caught.value.hint


def test_an_unknown_section_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    path = tmp_path / "portier.toml"
    path.write_text("[gates]\nreferences = 7\n")
    with pytest.raises(UnknownNameError) as caught:
        load(Example, path, environment={})
    assert "did you mean gate?" in caught.value.hint


def test_a_wrong_value_names_the_field_and_the_source_it_came_from(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gate\.references.*PORTIER_GATE__REFERENCES"):
        load(Example, file, environment={"PORTIER_GATE__REFERENCES": "many"})


def test_a_value_out_of_range_names_its_section() -> None:
    with pytest.raises(ConfigurationError, match=r"\[training\] momentum must be a number from 0 to 1"):
        load(Example, overrides={"training.momentum": 2.0}, environment={})


@pytest.mark.parametrize("text", ["gate = 3\n", "[gate\n", "\x00"])
def test_a_malformed_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "portier.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"portier\.toml"):
        load(Example, path, environment={})


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no settings file"):
        load(Example, tmp_path / "portier.toml", environment={})


def test_a_written_file_reads_back_as_the_same_settings(tmp_path: Path) -> None:
    settings = load(Example, overrides={"gate.names": ("a", "b"), "training.optimiser": "adam"}, environment={})
    path = tmp_path / "portier.toml"
    path.write_text(as_toml(settings))
    assert load(Example, path, environment={}) == settings


def test_a_written_file_documents_every_field() -> None:
    text = as_toml(Example())
    for sentence in ("How many honest models.", "How it is trained.", "passes over the data", "of the optimiser"):
        assert f"# {sentence}" in text
    assert "# folder =" in text
    assert set(tomllib.loads(text)) == {"crowd", "gate", "training"}


def test_the_variable_of_a_setting_is_its_name_in_capitals() -> None:
    assert load(Example, environment={variable("gate.references"): "3"}).gate.references == 3
