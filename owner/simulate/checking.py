"""Mistakes in a scenario that can be seen before anything is started or written, whoever would meet them later."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from common.devices import choose_compute
from common.errors import ConfigurationError, PortierError
from common.model_spec import ModelSpec
from common.models import build
from common.partitions import parse_partition
from common.training_options import TrainingOptions
from owner.guards import import_detectors
from owner.shares import divided
from owner.simulate.scenario import Participant, Scenario
from owner.simulate.shares import divide

ATTACKS = "contributor.attacks"
"""Read by the contributors' own parser. The two sides share no code, so the module is named as the processes' modules are."""

TUNING = ("epochs", "learning_rate", "batch_size", "optimiser", "frozen_layers", "reinitialise_head")


def check(scenario: Scenario) -> None:
    """Reads the data set, builds the model and divides the data, as the processes will.

    Raises UnknownNameError, ConfigurationError, DataError, ModelError: what an owner or a contributor would, naming the contributor.
    """
    for group in scenario.partition_groups.values():
        for index, one in enumerate(group):
            _of(one, parse_partition, one.partition_at(index, len(group), 0))
    for one in scenario.contributors:
        options = {name: getattr(one, name) for name in TUNING}
        _of(one, TrainingOptions.from_json, {name: value for name, value in options.items() if value is not None})
    import_detectors(scenario.settings)
    parse_attack = importlib.import_module(ATTACKS).parse_attack
    attacks = [(one, _of(one, parse_attack, one.attack)) for one in scenario.contributors if one.attack is not None]
    model, data = scenario.settings.model, scenario.settings.data
    choose_compute(model.device, model.precision)
    # A mistyped architecture is told before a data set is decoded.
    ModelSpec(model.architecture, (1, 8, 8), 2, model.head)
    owners = divided(data)
    build(ModelSpec(model.architecture, owners.train.input_shape, owners.train.classes, model.head), seed=0)
    parts = divide(scenario, owners.unclaimed)
    for one, attack in attacks:
        # As the attacker will, on the very examples: the classes that it names must be among them.
        try:
            _of(one, attack.victim_class, parts[one.name].class_names)
            _of(one, attack.prepare, parts[one.name], torch.Generator().manual_seed(one.seed or 0))
        except PortierError:
            raise
        except Exception as error:  # an attack may be the user's own code, which may raise anything
            raise ConfigurationError(
                f"contributor {one.name}: the attack {one.attack} failed: {type(error).__name__}: {error}"
            ) from error


def _of(one: Participant, call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` returns; its errors name the contributor."""
    try:
        return call(*arguments)
    except PortierError as error:
        error.message = f"contributor {one.name}: {error.message}"
        raise
