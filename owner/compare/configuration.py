"""A comparison: blocks of cells, each a grid, and what the page has to say about rows and data sets.

```toml
title = "..."

[federation]                     # shared by all cells: the names of `FederationConfig`
clients = 10

[grid]                           # lists of values; a cell is a combination
strategy = ["fedavg", "spectral-vae", "gated"]
seed = [0, 1, 2]

[marks]                          # notes on data sets, which every table that shows them repeats
sentiment140 = "a subset of 100,000 tweets"

[[blocks]]                       # left out: the whole file is one block
name = "li-mnist"
row = "Li et al. 2020"           # of the paper's Table 4
own = "spectral-vae"             # the strategy that this row is about
about = "..."                    # a sentence for the page
[blocks.federation]              # above the shared values
data = "mnist"
[blocks.grid]                    # above the shared lists
attack = ["sign-flip", "add-noise"]

[poisoned-data]                  # a row of methods that judge data and not models, from what `python -m benchmarks.cae` wrote
row = "Razmi & Xiong 2021"
data = ["mnist"]

[[missing]]                      # cells that cannot be run here, and stand in the table all the same
row = "Li et al. 2020"
data = "femnist"
reason = "not at hand"
```
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from common.errors import ConfigurationError, UnknownNameError
from owner.federated.config import STRATEGIES
from owner.federated.grids import Cell, cells

SECTIONS = ("title", "federation", "grid", "marks", "blocks", "poisoned-data", "missing")
BLOCK = ("name", "row", "own", "about", "federation", "grid")
MISSING = ("row", "data", "reason")
POISONED = ("row", "data")


@dataclass(frozen=True)
class Block:
    """name: `--block` chooses by it. row: of the paper's Table 4, "" where it belongs to none. own: the strategy that row is about."""

    name: str
    cells: tuple[Cell, ...]
    row: str = ""
    own: str = ""
    about: str = ""


@dataclass(frozen=True)
class Missing:
    """A row's data set that cannot be had here."""

    row: str
    data: str
    reason: str


@dataclass(frozen=True)
class PoisonedData:
    """The row of a method that judges data, and the data sets it is measured on (`owner.compare.poisoned`)."""

    row: str
    data: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """name: of the configuration. marks: notes by data set, beside what records tell of it."""

    name: str
    title: str
    blocks: tuple[Block, ...]
    marks: Mapping[str, str]
    missing: tuple[Missing, ...] = ()
    poisoned: PoisonedData | None = None

    @property
    def cells(self) -> list[Cell]:
        """Of all blocks, each once."""
        return list({cell.name: cell for block in self.blocks for cell in block.cells}.values())

    @property
    def seeds(self) -> list[int]:
        return sorted({cell.values.get("seed", 0) for cell in self.cells})


def shipped() -> tuple[str, ...]:
    """Names of the configurations that come with Portier.

    >>> shipped()
    ('digits', 'sweep', 'table4')
    """
    folder = resources.files("owner.compare") / "grids"
    return tuple(sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load(name_or_file: str, *, blocks: Sequence[str] = (), seeds: Sequence[int] = ()) -> Comparison:
    """A shipped comparison by name, or the one in a TOML file.

    blocks: only these. seeds: in place of the file's.
    Raises UnknownNameError for an unknown configuration, block, section, field, strategy or detector; ConfigurationError for any
    other mistake.
    """
    if name_or_file in shipped():
        text = (resources.files("owner.compare") / "grids" / f"{name_or_file}.toml").read_text("utf-8")
        return parse(text, name_or_file, blocks=blocks, seeds=seeds)
    path = Path(name_or_file)
    if path.suffix != ".toml" and not path.exists():
        raise UnknownNameError("comparison", name_or_file, shipped())
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the comparison {path} cannot be read: {error}") from None
    return parse(text, path.stem, blocks=blocks, seeds=seeds)


def parse(text: str, name: str, *, blocks: Sequence[str] = (), seeds: Sequence[int] = ()) -> Comparison:
    """See `load`.

    >>> parse('[grid]\\nstrategy = ["fedavg", "krum"]\\nseed = [0, 1]', "mine").blocks[0].name
    'mine'
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"the comparison {name} cannot be read: {error}") from None
    _known(data, SECTIONS, f"section of {name}:")
    given = data.get("blocks", [{}])
    if not isinstance(given, list) or not given:
        raise ConfigurationError(f"{name}: blocks must be [[blocks]], at least one")
    names = [_text(block, "name", f"{name}: block {i}", default=name) for i, block in enumerate(given, 1)]
    if len(set(names)) < len(names):
        raise ConfigurationError(
            f"{name}: two blocks have the same name", hint="records are told apart by it on the page"
        )
    for wanted in blocks:
        if wanted not in names:
            raise UnknownNameError("block", wanted, names)
    made = tuple(
        _block(block, title, data, seeds)
        for title, block in zip(names, given, strict=True)
        if not blocks or title in blocks
    )
    _check_names(made, name)
    rows = {block.row for block in made}
    missing = [_missing(one, f"{name}: missing {i}") for i, one in enumerate(data.get("missing", []), 1)]
    return Comparison(
        name,
        _text(data, "title", name, default=name),
        made,
        {_plain(key): str(value) for key, value in _section(data, "marks", name).items()},
        tuple(one for one in missing if one.row in rows),
        None if blocks else _poisoned(data, name),
    )


def _block(block: Mapping[str, Any], name: str, data: Mapping[str, Any], seeds: Sequence[int]) -> Block:
    _known(block, BLOCK, f"field of block {name}:")
    own_values, own_lists = _section(block, "federation", name), _section(block, "grid", name)
    shared = {key: value for key, value in _section(data, "federation", name).items() if key not in own_lists}
    lists = {key: value for key, value in _section(data, "grid", name).items() if key not in own_values}
    lists |= own_lists
    if seeds:
        lists["seed"] = list(seeds)
        own_values = {key: value for key, value in own_values.items() if key != "seed"}
        shared.pop("seed", None)
    own = _text(block, "own", name)
    if own and own not in STRATEGIES:
        raise UnknownNameError("strategy", own, STRATEGIES)
    return Block(
        name,
        tuple(cells({**shared, **own_values}, lists)),
        _text(block, "row", name),
        own,
        _text(block, "about", name),
    )


def _check_names(blocks: Sequence[Block], name: str) -> None:
    values: dict[str, Mapping[str, Any]] = {}
    for block in blocks:
        for cell in block.cells:
            if values.setdefault(cell.name, cell.values) != cell.values:
                raise ConfigurationError(
                    f"{name}: block {block.name} has cells that differ from another block's in precision alone, and those are the same cells",
                    hint="give all blocks one precision, or make two comparisons",
                )


def _missing(one: Any, where: str) -> Missing:
    if not isinstance(one, dict):
        raise ConfigurationError(f"{where} must be a table [[missing]]")
    _known(one, MISSING, f"field of {where}:")
    return Missing(*(_text(one, key, where) for key in MISSING))


def _poisoned(data: Mapping[str, Any], name: str) -> PoisonedData | None:
    if "poisoned-data" not in data:
        return None
    found, where = _section(data, "poisoned-data", name), f"{name}: poisoned-data"
    _known(found, POISONED, f"field of {where}:")
    sets = found.get("data", [])
    if not isinstance(sets, list) or not sets or not all(isinstance(one, str) for one in sets):
        raise ConfigurationError(f"{where}: data must be a list of names, not {sets!r}")
    return PoisonedData(_text(found, "row", where), tuple(sets))


def _section(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = data.get(key, {})
    if not isinstance(found, dict):
        raise ConfigurationError(f"{where}: {key} must be a table, not {found!r}")
    return {name.replace("_", "-"): value for name, value in found.items()}


def _text(data: Mapping[str, Any], key: str, where: str, *, default: str = "") -> str:
    if not isinstance(data, dict):
        raise ConfigurationError(f"{where} must be a table")
    found = data.get(key, default)
    if not isinstance(found, str):
        raise ConfigurationError(f"{where}: {key} must be text, not {found!r}")
    return found


def _known(data: Any, names: Sequence[str], what: str) -> None:
    if not isinstance(data, dict):
        raise ConfigurationError(f"{what.split(' of ')[-1].rstrip(':')} must be a table")
    for key in data:
        if key not in names:
            raise UnknownNameError(what, key, names)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
