"""A grid of federations and submissions: every combination of what its file lists.

`[federation]` holds what all cells share (names of `FederationConfig`), `[grid]` lists what differs.

    [federation]
    data = "mnist"
    clients = 10
    rounds = 5

    [grid]
    strategy = ["fedavg", "spectral-vae", "spectral-vae:latent=100"]
    attack = ["sign-flip", "model-replacement:factor={replace},source=7,target=5"]
    attacker-share = [0.3, 0.5]
    seed = [0, 1, 2]

An attack may hold `{replace}`, the factor by which an update must be scaled so that the merged model becomes the attackers' own:
clients / attackers where a round's replies are averaged (Li et al. 2020, the authors' code), 1 / the merge weight where a submission comes
alone. A cell's values hold what it came to.

Of a share of 0 there is one scene, whatever attacks are listed: the first of them has its success measured, and nobody carries it out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config_values import read_value
from common.errors import ConfigurationError, UnknownNameError
from common.specs import split_spec
from owner.federated.config import DETECTORS, FederationConfig, UnservedError
from owner.gatekeeper.merging import MergePolicy

SHARE = "attacker-share"
"""A dimension of its own: the attackers are then this share of the clients, rounded down: a share of a half is never a majority."""

ATTACK = "attack"
REPLACE = "replace"
"""Placeholders of an attack, in braces."""

PRECISION = "precision"
"""The value that tells no two cells apart: which precision a cell ran in stands in its record."""


@dataclass(frozen=True)
class Cell:
    """One federation of the grid. refused: why it cannot be configured, "" where it can."""

    values: Mapping[str, Any]
    config: FederationConfig | None
    refused: str = ""

    @property
    def name(self) -> str:
        """Of its record's file: the same for the same values, whatever else the grid holds."""
        return name_of(self.values)


def name_of(values: Mapping[str, Any]) -> str:
    """Of the cell with these values. Its precision is no part of it, so that records made before precision was written are still of it.

    >>> name_of({"seed": 1, "precision": "float32"}) == name_of({"seed": 1}) != name_of({"seed": 2})
    True
    """
    text = json.dumps({name: value for name, value in values.items() if name != PRECISION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_grid(path: Path) -> list[Cell]:
    """The cells of a grid file. Raises ConfigurationError for a file that is none, UnknownNameError naming the nearest field."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"the grid {path} cannot be read: {error}") from None
    for section in data:
        if section not in ("federation", "grid"):
            raise UnknownNameError(f"section in {path}:", section, ("federation", "grid"))
    return cells(data.get("federation", {}), data.get("grid", {}))


def cells(shared: Mapping[str, Any], dimensions: Mapping[str, Any]) -> list[Cell]:
    """Every combination, the last dimension fastest. A combination that cannot be (Bulyan of too few clients) is a cell with a
    reason, and no error: it is a row of the table too.

    >>> [cell.values["seed"] for cell in cells({}, {"strategy": ["fedavg"], "seed": [0, 1]})]
    [0, 1]

    Raises ConfigurationError for a dimension that is no list, UnknownNameError for a name that does not exist.
    """
    for name, choices in dimensions.items():
        if not isinstance(choices, list) or not choices:
            raise ConfigurationError(f"grid: {name} must be a list of at least one value, not {choices!r}")
    if len(dimensions.get(PRECISION, ())) > 1:
        raise ConfigurationError(
            f"grid: cells that differ in {PRECISION} alone are the same cell",
            hint="run the grid once for each precision, with a --work of its own",
        )
    combinations = (
        {**shared, **dict(zip(dimensions, chosen, strict=True))} for chosen in itertools.product(*dimensions.values())
    )
    return [_cell(values) for values in combinations if not _said_before(values, dimensions)]


def _said_before(values: Mapping[str, Any], dimensions: Mapping[str, Any]) -> bool:
    """Whether nobody attacks, in the name of another attack than the first."""
    return values.get(SHARE) == 0 and values.get(ATTACK) != dimensions.get(ATTACK, [values.get(ATTACK)])[0]


def _cell(values: dict[str, Any]) -> Cell:
    given = {**values, **_of_strategy(values.get("strategy"))}
    share = given.pop(SHARE, None)
    if share is not None:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ConfigurationError(f"grid: {SHARE} must be from 0 to 1, not {share!r}")
        # A hair more: 0.29 * 100 is 28.999999999999996.
        given["attackers"] = int(share * _number(given, "clients") + 1e-9)
    if isinstance(values.get(ATTACK), str):
        values[ATTACK] = given[ATTACK] = _filled(values[ATTACK], given)
    try:
        return Cell(values, FederationConfig.from_flat(given))
    except UnservedError as error:
        return Cell(values, None, error.message)


def _filled(attack: str, given: Mapping[str, Any]) -> str:
    """
    >>> _filled("model-replacement:factor={replace}", {"clients": 10, "attackers": 4})
    'model-replacement:factor=2.5'
    """

    def value(found: re.Match[str]) -> str:
        if found[1] != REPLACE:
            raise UnknownNameError(f"placeholder of the attack {attack!r}", found[1], (REPLACE,))
        return f"{_replacing(given):.6g}"

    return re.sub(r"\{([^{}]*)\}", value, attack)


def _replacing(given: Mapping[str, Any]) -> float:
    """By what an update must be multiplied to replace the model; 1 where nobody attacks."""
    attackers = _number(given, "attackers")
    if not attackers:
        return 1.0
    if given.get("setting") == "incremental":
        return 1 / MergePolicy().weight
    return _number(given, "clients") / attackers


def _number(given: Mapping[str, Any], name: str) -> int:
    """Raises ConfigurationError for one that is no whole number."""
    return int(read_value(given.get(name, getattr(FederationConfig, name)), int, f"federation: {name}"))


def _of_strategy(text: Any) -> dict[str, Any]:
    """What `gated:guard-detectors=standard` or `fedcvae:latent=4` says, so that one list holds a strategy more than once: settings of
    the federation, and options of the strategy's detector."""
    if not isinstance(text, str) or ":" not in text:
        return {}
    name, options = split_spec(text, "strategy")
    settings = {field.name for field in dataclasses.fields(FederationConfig)}
    of_detector = {key: value for key, value in options.items() if key not in settings and name in DETECTORS}
    found = {key: value for key, value in options.items() if key not in of_detector}
    if of_detector:
        found["detector_options"] = ",".join(f"{key}={value}" for key, value in of_detector.items())
    return {"strategy": name, **found}
