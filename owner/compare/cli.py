"""`portier-owner compare`."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.errors import ConfigurationError, MissingExtraError, PortierError

if TYPE_CHECKING:
    from owner.compare.configuration import Comparison


console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


class Stage(StrEnum):
    RUN = "run"
    REPORT = "report"
    ALL = "all"


def compare(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A TOML file, or one that ships: digits, table4, sweep.")
    ],
    block: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this block of the configuration. Can be given many times."),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="NUMBERS", help="In place of the configuration's, separated by commas.")
    ] = "",
    plan: Annotated[
        bool, typer.Option("--plan", help="Check everything, say what is done and what is left; run nothing.")
    ] = False,
    stage: Annotated[
        Stage,
        typer.Option(
            help="run: the cells that are missing. report: page, numbers and plots from the records there are."
        ),
    ] = Stage.ALL,
    work: Annotated[
        Path, typer.Option(help="Records, one a cell and seed. Given again, the work goes on there.")
    ] = Path("compare-runs"),
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where federated.md, federated.json and the plots go.",
            show_default="results/CONFIG in the work folder",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a page there that is of another configuration.")
    ] = False,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Take over the records of a published federated.json. Can be given many times."
        ),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time. Default: one per core.", show_default=False)
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run the clients of every cell on this running Ray cluster (auto, HOST:PORT, ray://HOST:PORT).",
        ),
    ] = None,
    keep_older: Annotated[
        bool,
        typer.Option(
            "--keep-older", help="Count cells as done that other code has made; without it they are run again."
        ),
    ] = False,
    stop_after: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", min=0.0, help="Begin no further cell after so long; the same command goes on."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the rows (with --plan: the plan) as JSON on standard output.")
    ] = False,
) -> None:
    """The gatekeeper against the baselines of federated learning, as one grid.

    Federated setting: rounds of clients, some of them attacking. Incremental
    setting: one submission at a time against one release. Who was dropped,
    right or wrong; accuracy and attack success after every round; seconds.

    It may be interrupted at any moment: the same command goes on. Data sets
    are read from $PORTIER_DATA. The exit code is 1 where a cell failed.
    """
    from owner.compare.configuration import load  # noqa: PLC0415 - `--help` waits for nothing

    comparison = load(config, blocks=block or (), seeds=_seeds(seeds))
    out = out or work / "results" / comparison.name
    if not plan and stage is not Stage.RUN and not force:
        _check_replaceable(comparison, out)
    if plan or stage is not Stage.REPORT:
        from owner.federated.compare import check_cells  # noqa: PLC0415

        check_cells(comparison.cells)
    for numbers in merge or ():
        from owner.compare.report import strangers, take_over  # noqa: PLC0415

        taken = take_over(comparison, numbers, work, keep_older=keep_older)
        errors.print(f"{taken} records taken over from {numbers}", soft_wrap=True)
        if others := strangers(comparison, numbers):
            errors.print(
                f"{others} records there are of cells that this comparison does not have, of an older configuration perhaps: left out",
                style="yellow",
                soft_wrap=True,
            )
    if not keep_older:
        _tell_older(comparison, work)
    if plan:
        _plan(comparison, work, parallel or _cores(), as_json=as_json, keep_older=keep_older)
        return
    failed: list[Mapping[str, Any]] = []
    if stage is not Stage.REPORT:
        failed = _run(comparison, work, parallel or _cores(), ray or "", stop_after, keep_older)
    if stage is not Stage.RUN:
        _report(comparison, work, out, quiet=as_json, keep_older=keep_older)
    if as_json:
        _rows(comparison, work, keep_older)
    if failed:
        raise PortierError(
            f"{len(failed)} cells failed, the first: {failed[0]['reason']}", hint="the same command tries them again"
        )


def _tell_older(comparison: Comparison, work: Path) -> None:
    from owner.federated.compare import older_records  # noqa: PLC0415

    if found := older_records(work, comparison.cells):
        errors.print(
            f"{found} records in {work} were made by other code: their cells count as not run; --keep-older counts them as done",
            style="yellow",
            soft_wrap=True,
        )


def _run(
    comparison: Comparison, work: Path, parallel: int, ray: str, stop_after: float | None, keep_older: bool
) -> list[Mapping[str, Any]]:
    """The records that failed."""
    from owner.federated.compare import run_grid  # noqa: PLC0415

    failed: list[Mapping[str, Any]] = []
    seen = 0

    def note(record: Mapping[str, Any]) -> None:
        nonlocal seen
        seen += 1
        if record["status"] == "failed":
            failed.append(record)
        if not errors.is_terminal:
            values = record["values"]
            about = ", ".join(
                str(values[key]) for key in ("strategy", "attack", "data", "model", "seed") if key in values
            )
            errors.print(f"{record['status']}: {about}", highlight=False, markup=False, soft_wrap=True)

    deadline = None if stop_after is None else time.monotonic() + 60 * stop_after
    records = run_grid(
        comparison.cells,
        work,
        parallel=parallel,
        ray_address=ray,
        deadline=deadline,
        on_record=note,
        keep_older=keep_older,
    )
    left = len(comparison.cells) - len(records)
    if left:
        errors.print(f"stopped, as asked: {left} cells are left; the same command goes on from here", style="yellow")
    return failed


def _plan(comparison: Comparison, work: Path, parallel: int, *, as_json: bool, keep_older: bool) -> None:
    from owner.compare.planning import plan_of  # noqa: PLC0415

    rows = plan_of(comparison, work, keep_older=keep_older)
    if as_json:
        _print_json({"comparison": comparison.name, "seeds": comparison.seeds, "blocks": rows})
        return
    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("block", overflow="fold")
    for name in ("cells", "done", "n/a", "to do", "estimated"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        counts = [str(row[key]) for key in ("cells", "done", "unserved", "to_do")]
        shown.add_row(row["block"], *counts, _hours(row["seconds"]))
    console.print(shown)
    known = [row["seconds"] for row in rows if row["seconds"] is not None]
    cells, left = sum(row["cells"] for row in rows), sum(row["to_do"] for row in rows)
    total = _hours(sum(known) / parallel if left and known else None)
    console.print(f"{cells} cells, {left} to do, {parallel} at a time; seeds {', '.join(map(str, comparison.seeds))}")
    if left:
        console.print(
            f"about {total} in all, by what is known of cells like them"
            if known
            else "no cell has run yet to tell times by"
        )


def _report(comparison: Comparison, work: Path, out: Path, *, quiet: bool, keep_older: bool) -> None:
    from owner.compare.drawings import draw_all  # noqa: PLC0415
    from owner.compare.report import read_records, write_report  # noqa: PLC0415

    records = read_records(comparison, work, keep_older=keep_older)
    if not records:
        raise ConfigurationError(f"{work} holds no records of this comparison", hint="run it first, or check --work")
    figures: Mapping[str, Sequence[str]] = {}
    try:
        figures = draw_all(comparison, records, out)
    except MissingExtraError as error:
        errors.print(f"no plots: {error.message}", style="yellow", soft_wrap=True)
    for path in write_report(comparison, records, out, command=_command(), figures=figures):
        if not quiet:
            console.print(f"written {path}", highlight=False, soft_wrap=True)


def _check_replaceable(comparison: Comparison, out: Path) -> None:
    """A page in `out` is made anew by its own configuration. Raises ConfigurationError for another one's, which would be lost."""
    from owner.compare.report import NUMBERS, PAGE  # noqa: PLC0415

    page, numbers = out / PAGE, out / NUMBERS
    if not page.exists() and not numbers.exists():
        return
    try:
        found = json.loads(numbers.read_bytes())
        title = found["title"] if isinstance(found, dict) else None
    except (OSError, ValueError, KeyError):
        title = None
    if title != comparison.title:
        theirs = "a page, and not the numbers that it was made of" if title is None else f"the comparison {title!r}"
        raise ConfigurationError(
            f"{out} holds {theirs}, and this one is {comparison.title!r}",
            hint="name another folder with --out, or replace it with --force",
        )


def _rows(comparison: Comparison, work: Path, keep_older: bool) -> None:
    from owner.compare.report import read_records  # noqa: PLC0415
    from owner.federated.compare import summarise  # noqa: PLC0415

    records = read_records(comparison, work, keep_older=keep_older)
    in_order = [records[cell.name] for cell in comparison.cells if cell.name in records]
    _print_json({"comparison": comparison.name, "seeds": comparison.seeds, "rows": summarise(in_order)})


def _seeds(text: str) -> list[int]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    for part in found:
        if not part.isdecimal() or int(part) >= 2**31:
            raise ConfigurationError(
                f"a seed must be a whole number from 0, not {part!r}", hint="for instance --seeds 0,1,2"
            )
    return list(dict.fromkeys(map(int, found)))


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _cores() -> int:
    return os.cpu_count() or 1


def _command() -> str:
    return shlex.join(["portier-owner", *sys.argv[1:]]) if sys.argv[1:2] == ["compare"] else "portier-owner compare"


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()
