"""Which detectors an owner chooses, as settings take them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_args

import pytest

from common.config import load, variable
from common.errors import ConfigurationError
from owner.choices import ESCALATIONS
from owner.detectors import ESCALATION
from owner.detectors.combination import Method
from owner.settings import GuardSettings, OwnerSettings


def guard(**given: Any) -> GuardSettings:
    return load(OwnerSettings, None, {f"guard.{name}": value for name, value in given.items()}, environment={}).guard


def test_the_standard_detectors_are_the_default() -> None:
    assert guard().detectors == ("standard",)


def test_detectors_are_named_with_commas_by_flag_and_environment() -> None:
    assert guard(detectors="cka, update-norm").detectors == ("cka", "update-norm")
    found = load(OwnerSettings, None, None, environment={"PORTIER_GUARD__DETECTORS": "standard"})
    assert found.guard.detectors == ("standard",)


def test_detectors_of_ones_own_wait_for_the_modules_that_register_them() -> None:
    """Nothing is imported to read settings: `status` need not have what a guard needs."""
    found = guard(detectors="paper,of-my-own", modules="nowhere.my_detectors, my_others")
    assert (found.detectors, found.modules) == (("paper", "of-my-own"), ("nowhere.my_detectors", "my_others"))
    assert "nowhere" not in sys.modules


def test_settings_without_modules_are_read_without_torch() -> None:
    read = "import sys, owner.settings as s; s.GuardSettings(detectors=['cka']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", read], check=True)


@pytest.mark.parametrize("source", ["environment", "flag"])
def test_every_list_of_an_owner_can_be_set_without_a_file(source: str) -> None:
    lists = {
        "population.sizes": "200,800",
        "population.alpha": "[0.5, 2]",
        "population.learning_rate": "0.5,2",
        "population.epochs": "1,1.5",
        "guard.detectors": '["cka", "update-norm"]',
        "service.names": "a.example,b.example",
    }
    if source == "flag":
        found = load(OwnerSettings, None, lists, environment={})
    else:
        found = load(OwnerSettings, None, None, environment={variable(name): text for name, text in lists.items()})
    population = found.population
    assert (population.sizes, population.alpha) == ((200, 800), (0.5, 2.0))
    assert (population.learning_rate, population.epochs) == ((0.5, 2.0), (1.0, 1.5))
    assert (found.guard.detectors, found.service.names) == (("cka", "update-norm"), ("a.example", "b.example"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"detectors": "cca"}, "there is no 'cca'.*guard.modules"),
        ({"modules": "my_detectors.py"}, "write my_detectors for my_detectors.py"),
        ({"modules": "-c"}, "'-c' is no name of a module"),
        ({"detectors": []}, "at least one"),
        ({"rule": "seed"}, "Eq. 4"),
        ({"combination": "median"}, "combination"),
        ({"fitting_references": 1}, "fitting_references"),
        ({"escalation": "inversion"}, "escalation"),
        ({"escalation": "both", "rule": "seed", "detectors": "paper"}, "Eq. 4 quarantines nobody"),
        ({"escalation": "both", "escalation_references": 20}, "escalation_references must be from 1 to the 19"),
        ({"escalation": "both", "escalation_references": 9}, "finer than 1/.K.1. = 0.1"),
        ({"escalation": "both", "escalation_quarantine_level": 0.01}, "escalation_quarantine_level"),
    ],
)
def test_what_makes_no_gate_is_told_before_anything_is_fitted(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        guard(**given)


def test_the_escalation_tier_is_off_and_its_numbers_mean_nothing_then() -> None:
    assert guard(escalation_references=9).escalation == "off"
    assert guard(escalation="both", references=39).escalation_references == 19


def test_the_escalations_that_can_be_set_are_those_there_are() -> None:
    assert [guard(escalation=name).escalation for name in ESCALATIONS] == list(ESCALATIONS)
    assert set(ESCALATIONS["both"]) == set(ESCALATION)


def test_the_combinations_that_can_be_set_are_those_there_are() -> None:
    assert [guard(combination=name).combination for name in get_args(Method)] == list(get_args(Method))
