"""Setting F of the comparison: a grid of federations, one record a cell and seed, kept as they come and gone on from.

A grid is a TOML file: `[federation]` holds what all cells share (names of `FederationConfig`), `[grid]` lists what differs.

    [federation]
    data = "mnist"
    clients = 10
    rounds = 5

    [grid]
    strategy = ["fedavg", "spectral-vae"]
    attack = ["sign-flip", "add-noise"]
    attacker-share = [0.3, 0.5]
    seed = [0, 1, 2]
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigurationError, PortierError, StorageError, UnknownNameError, VacuousGateError
from common.files import ensure_directory, write_atomically
from common.progress import progress_bar
from owner.federated.config import FederationConfig

FORMAT = 1
SHARE = "attacker-share"
"""A dimension of its own: the attackers are then this share of the clients, rounded."""

MEASURES = ("precision", "recall", "f1", "auroc")


@dataclass(frozen=True)
class Cell:
    """One federation of the grid. refused: why it cannot be configured, "" where it can."""

    values: Mapping[str, Any]
    config: FederationConfig | None
    refused: str = ""

    @property
    def name(self) -> str:
        """Of its record's file: the same for the same values, whatever else the grid holds."""
        text = json.dumps(dict(self.values), sort_keys=True)
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
    combinations = itertools.product(*dimensions.values())
    return [_cell({**shared, **dict(zip(dimensions, chosen, strict=True))}) for chosen in combinations]


def _cell(values: dict[str, Any]) -> Cell:
    given = dict(values)
    share = given.pop(SHARE, None)
    if share is not None:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ConfigurationError(f"grid: {SHARE} must be from 0 to 1, not {share!r}")
        given["attackers"] = round(share * int(given.get("clients", FederationConfig.clients)))
    try:
        return Cell(values, FederationConfig.from_flat(given))
    except UnknownNameError:
        raise
    except ConfigurationError as error:
        return Cell(values, None, error.message)


def run_grid(
    grid: Sequence[Cell],
    directory: Path,
    *,
    parallel: int = 1,
    progress: bool | None = None,
    on_record: Callable[[Mapping[str, Any]], None] = lambda _record: None,
) -> list[dict[str, Any]]:
    """Run the cells that `directory` holds no record of, and return the records of all, in the grid's order.

    parallel: processes at a time. Each record is written when its cell is done, so that a run that was interrupted goes on.
    A cell whose strategy cannot serve its model (the gate on logistic regression), or that cannot be configured, is recorded as
    "n/a" with the reason; one that failed as "failed", and is tried again by the next run.
    Raises PortierError where a worker process died, StorageError.
    """
    ensure_directory(directory)
    found = {cell.name: record for cell in grid if (record := read_record(directory, cell)) is not None}
    todo = list({cell.name: cell for cell in grid if cell.name not in found}.values())
    with progress_bar("cells", len(grid), shown=progress, done=len(grid) - len(todo)) as advance:

        def keep(cell: Cell, record: dict[str, Any]) -> None:
            write_atomically(directory / f"{cell.name}.json", json.dumps(record, allow_nan=False, indent=1).encode())
            found[cell.name] = record
            advance(1, str(record["status"]))
            on_record(record)

        if parallel <= 1:
            for cell in todo:
                keep(cell, run_cell(cell))
        elif todo:
            # Spawned, for a fork of a process whose libraries hold threads may stand still.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(parallel, mp_context=context) as pool:
                running = {pool.submit(run_cell, cell): cell for cell in todo}
                try:
                    for done in as_completed(running):
                        keep(running[done], done.result())
                except BrokenProcessPool:
                    raise PortierError(
                        "a worker process died (killed for memory, perhaps)",
                        hint="run again, with fewer in parallel: cells that are done are not done again",
                    ) from None
    return [found[cell.name] for cell in grid]


def run_cell(cell: Cell) -> dict[str, Any]:
    """The record of one cell: its values, status (done, n/a, failed), and the result as JSON or the reason."""
    from owner.federated.running import run_federation  # noqa: PLC0415 - in the worker

    record: dict[str, Any] = {"format": FORMAT, "values": dict(cell.values), "status": "n/a", "reason": cell.refused}
    if cell.config is None:
        return record
    try:
        return {**record, "status": "done", "result": run_federation(cell.config).to_json()}
    except VacuousGateError as error:
        return {**record, "reason": error.message}
    except PortierError as error:
        return {**record, "status": "failed", "reason": error.diagnostics()}


def read_record(directory: Path, cell: Cell) -> dict[str, Any] | None:
    """The record of a cell; None where there is none, where it failed, or where it is of another format.

    Raises StorageError for a file that cannot be read.
    """
    path = directory / f"{cell.name}.json"
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"the record {path} cannot be read: {error}", hint="delete it, and run again") from None
    usable = isinstance(record, dict) and record.get("format") == FORMAT and record.get("status") in ("done", "n/a")
    return record if usable else None


def summarise(records: Sequence[Mapping[str, Any]], *, over: str = "seed") -> list[dict[str, Any]]:
    """One row a cell, mean and spread (standard deviation, n - 1) over `over`: detection, accuracy, attack success, seconds a round.

    A measure that no seed has is None; `n` counts the seeds that are done.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        key = json.dumps({name: value for name, value in record["values"].items() if name != over}, sort_keys=True)
        groups.setdefault(key, []).append(record)
    return [_row(json.loads(key), members) for key, members in groups.items()]


def _row(values: dict[str, Any], members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    results = [member["result"] for member in members if member["status"] == "done"]
    measured = {name: [r["detection"][name] for r in results] for name in MEASURES}
    measured["accuracy"] = [r["rounds"][-1]["accuracy"] for r in results]
    measured["attack_success"] = [r["rounds"][-1]["attack_success"] for r in results]
    measured["seconds_per_round"] = [statistics.fmean(x["seconds"] for x in r["rounds"]) for r in results]
    row: dict[str, Any] = {**values, "n": len(results)}
    row["reason"] = next((m["reason"] for m in members if m["status"] != "done"), "")
    for name, found in measured.items():
        known = [value for value in found if value is not None]
        row[name] = statistics.fmean(known) if known else None
        row[f"{name}_spread"] = statistics.stdev(known) if len(known) > 1 else None
    return row
