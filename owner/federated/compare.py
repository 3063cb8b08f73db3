"""Running a grid: one record a cell and seed, kept as they come and gone on from."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import ConfigurationError, GuardRangeError, PortierError, StorageError, VacuousGateError
from common.files import ensure_directory, write_atomically
from common.progress import progress_bar
from owner.federated.config import FederationConfig
from owner.federated.grids import PRECISION, Cell
from owner.federated.lanes import company, memory_of, run_in_processes
from owner.federated.provenance import code_of, data_digest, environment, software

FORMAT = 2
TAKEN_OVER = "taken_over"
"""Marks a record of published numbers: it counts, whatever code, data and precision it is of, until it is deleted."""

MEASURES = ("precision", "recall", "f1", "auroc", "honest_dropped")
SUMMARY = ("accuracy", "attack_success", "own_attack_success", "seconds_per_round", "guard_seconds_per_round")


def check_cells(grid: Sequence[Cell]) -> None:
    """Raises UnknownNameError for an attack, data set, architecture or detector of the guard that does not exist, naming the nearest;
    ConfigurationError, DataError and ModelError for what else would fail in every cell, MissingExtraError."""
    from owner.federated.running import check_config  # noqa: PLC0415

    seen = set()
    for cell in grid:
        if cell.config is None:
            continue
        c = cell.config
        guard = c.guard_detectors if c.strategy == "gated" else ""
        what = (
            c.data,
            c.data_dir,
            c.examples,
            c.test_examples,
            c.model,
            c.attack,
            c.client_app,
            c.engine,
            c.partition,
            c.clients,
            guard,
        )
        if what not in seen:
            seen.add(what)
            check_config(c)


def run_grid(
    grid: Sequence[Cell],
    directory: Path,
    *,
    parallel: int = 1,
    progress: bool | None = None,
    on_record: Callable[[Mapping[str, Any]], None] = lambda _record: None,
    ray_address: str = "",
    deadline: float | None = None,
    keep_older: bool = False,
) -> list[dict[str, Any]]:
    """Run the cells that `directory` holds no record of, see `read_record`, and return the records of all that have one, in the grid's order.

    parallel: processes at a time, which share the cores. Each record is written when its cell is done, so that a run that was
    interrupted goes on. The first seed of every cell comes before the second of any.
    ray_address: of a running Ray cluster, on which the clients of every cell then run, whatever engine the grid names.
    deadline: of `time.monotonic()`; no cell begins after it.

    A cell whose strategy cannot serve its model (the gate on logistic regression), that cannot be configured, or whose guard is told to stay
    and is left by the model, is recorded as "n/a" with the reason; one that failed as "failed", and is tried again by the next run.
    Raises PortierError where a worker process died, ConfigurationError where no Ray cluster answers or the records are of another copy of the
    data, StorageError.
    """
    if ray_address:
        from owner.federated.running import check_ray  # noqa: PLC0415

        check_ray(ray_address)
    ensure_directory(directory)
    read = partial(read_record, directory, keep_older=keep_older)
    found = {cell.name: record for cell in grid if (record := read(cell)) is not None}
    todo = ordered(list({cell.name: cell for cell in grid if cell.name not in found}.values()))
    _check_data(directory, {cell.name: cell for cell in grid}, found, todo)
    count = len({cell.name for cell in grid})
    with progress_bar("cells", count, shown=progress, done=count - len(todo)) as advance:

        def keep(cell: Cell, record: dict[str, Any]) -> None:
            write_record(directory, cell, record)
            found[cell.name] = record
            advance(1, str(record["status"]))
            on_record(record)

        if parallel <= 1:
            from owner.federated.memory import remembering  # noqa: PLC0415 - Flower, once something is to run

            with remembering(memory_of(1)):
                for cell in todo:
                    if not _late(deadline):
                        keep(cell, run_cell(cell, ray_address))
        elif todo:
            run_in_processes(todo, partial(run_cell, ray_address=ray_address), parallel, partial(_late, deadline), keep)
    return [found[cell.name] for cell in grid if cell.name in found]


def ordered(todo: Sequence[Cell]) -> list[Cell]:
    """By seed, so that were the run to stop, every cell has as many seeds as any other; then so that cells follow each other
    that have much in common: release and guards (data set, model), honest clients (partition), attackers, and last strategies."""
    places: dict[object, int] = {}

    def place(*what: object) -> int:
        return places.setdefault(what, len(places))

    def key(cell: Cell) -> tuple[int, ...]:
        c = cell.config
        if c is None:
            return (-1,)
        return c.seed, place(company(cell)), place(c.partition), place(c.attack), c.attackers

    return sorted(todo, key=key)


def _late(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def run_cell(cell: Cell, ray_address: str = "") -> dict[str, Any]:
    """The record of one cell: its values, status (done, n/a, failed), what it took, and the result as JSON or the reason."""
    from owner.federated.running import run_federation, run_submissions  # noqa: PLC0415 - in the worker

    started = time.perf_counter()
    config = cell.config
    record: dict[str, Any] = {
        "format": FORMAT,
        "values": dict(cell.values),
        "status": "n/a",
        "reason": cell.refused,
        "environment": software(config),
    }
    if config is None:
        return record
    if ray_address:
        config = dataclasses.replace(config, engine="ray", ray_address=ray_address)
    run: Callable[[FederationConfig], Any] = run_submissions if config.setting == "incremental" else run_federation
    try:
        record["environment"] = environment(config)
        data = config.about_data() | {"digest": data_digest(config)}
        result = run(config).to_json()
    except (VacuousGateError, GuardRangeError) as error:  # it would come out so again
        return {**record, "reason": error.message}
    except PortierError as error:
        return {**record, "status": "failed", "reason": error.diagnostics()}
    except Exception as error:  # noqa: BLE001 - one cell must not end the others; it is reported, and tried again
        return {**record, "status": "failed", "reason": f"{type(error).__name__}: {error}"}
    return {
        **record,
        "status": "done",
        "reason": "",
        "data": data,
        "wall_seconds": time.perf_counter() - started,
        "result": result,
    }


def read_record(
    directory: Path, cell: Cell, *, failed: bool = False, keep_older: bool = False
) -> dict[str, Any] | None:
    """The record of a cell; None where there is none, where it failed (unless `failed` are wanted too), where it is of another
    format or precision, or was made by other code than today's (unless `keep_older`). One that was taken over is as it is.

    Raises StorageError for a file that cannot be read.
    """
    path = directory / f"{cell.name}.json"
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"the record {path} cannot be read: {error}", hint="delete it, and run again") from None
    if not is_record(record, ("done", "n/a", "failed") if failed else ("done", "n/a")):
        return None
    found: dict[str, Any] = record
    return found if found.get(TAKEN_OVER) or _is_todays(found, cell, keep_older) else None


def older_records(directory: Path, cells: Sequence[Cell]) -> int:
    """How many of the cells have a record that does not count, and would with `keep_older`. Raises StorageError."""
    return sum(
        read_record(directory, cell) is None and read_record(directory, cell, keep_older=True) is not None
        for cell in cells
    )


def _is_todays(record: Mapping[str, Any], cell: Cell, keep_older: bool) -> bool:
    about, config = record.get("environment", {}), cell.config
    if not keep_older and about.get("code") != code_of(config):
        return False
    asked = config.precision if config is not None else "auto"
    return asked == "auto" or about.get("dtype", asked) == asked


def _check_data(
    directory: Path, cells: Mapping[str, Cell], found: Mapping[str, Mapping[str, Any]], todo: Sequence[Cell]
) -> None:
    """Raises ConfigurationError where cells of a data set are about to be run beside records that were made here with another copy of it."""
    waiting = {cell.config.data: cell.config for cell in todo if cell.config is not None}
    digests: dict[str, list[str]] = {}
    for name, record in found.items():
        config, digest = cells[name].config, record.get("data", {}).get("digest")
        if config is not None and config.data in waiting and digest and not record.get(TAKEN_OVER):
            digests.setdefault(config.data, []).append(digest)
    for data, theirs in digests.items():
        mine = data_digest(waiting[data])
        others = [digest for digest in theirs if digest != mine]
        if others:
            raise ConfigurationError(
                f"{len(others)} records in {directory} were made with another copy of {data} (digest {others[0]}) than the one at hand ({mine})",
                hint="name the folder of that copy by $PORTIER_DATA, or begin anew in another folder with --work",
            )


def is_record(found: object, statuses: Sequence[str]) -> bool:
    """Whether this is a record of today's format, of one of these statuses."""
    return isinstance(found, dict) and found.get("format") == FORMAT and found.get("status") in statuses


def write_record(directory: Path, cell: Cell, record: Mapping[str, Any]) -> None:
    """Raises StorageError."""
    write_atomically(directory / f"{cell.name}.json", json.dumps(record, allow_nan=False, indent=1).encode())


def summarise(records: Sequence[Mapping[str, Any]], *, over: str = "seed") -> list[dict[str, Any]]:
    """One row a cell, mean and spread (standard deviation, n - 1) over `over`: detection, accuracy, attack success, seconds a round.

    A measure that no seed has is None; `dtype` lists the precisions they ran in; `n` counts the seeds that are done, and `..._n` those of them that have the measure.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        told = {name: value for name, value in record["values"].items() if name not in (over, PRECISION)}
        key = json.dumps(told, sort_keys=True)
        groups.setdefault(key, []).append(record)
    return [_row(json.loads(key), members) for key, members in groups.items()]


def _row(values: dict[str, Any], members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    results = [member["result"] for member in members if member["status"] == "done"]
    measured = {name: [r["detection"].get(name) for r in results] for name in MEASURES}
    measured |= {name: [r["summary"].get(name) for r in results] for name in SUMMARY}
    own = [r.get("own_rule") or {} for r in results]
    measured |= {f"own_rule_{name}": [one.get(name) for one in own] for name in ("precision", "recall", "f1")}
    row: dict[str, Any] = {**values, "n": len(results)}
    row["dtype"] = sorted({member.get("environment", {}).get("dtype", "not recorded") for member in members})
    row["reason"] = next((m["reason"] for m in members if m["status"] != "done"), "")
    for name, found in measured.items():
        known = [value for value in found if value is not None]
        row[name] = statistics.fmean(known) if known else None
        row[f"{name}_spread"] = statistics.stdev(known) if len(known) > 1 else None
        row[f"{name}_n"] = len(known)
    return row
