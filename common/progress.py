"""A progress bar where somebody watches: on a terminal, and nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Advance = Callable[[float, str], None]
"""Called with how many steps were done, and a short note that stands behind the bar ("" keeps the last one)."""


@contextmanager
def progress_bar(label: str, total: float, *, shown: bool | None = None, done: float = 0) -> Iterator[Advance]:
    """A bar on standard error while the block runs; on a terminal it is gone when the block ends.

    shown: True draws it, False does not, None draws it where standard error is a terminal.

    >>> with progress_bar("fitting", 10, shown=False) as advance:
    ...     advance(1, "loss 0.5")
    """
    if not (sys.stderr.isatty() if shown is None else shown):
        yield lambda _steps, _note: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=console.is_terminal) as bar:
        task = bar.add_task(label, total=total, note="")
        bar.update(task, completed=done)

        def advance(steps: float, note: str) -> None:
            if note:
                bar.update(task, advance=steps, note=note)
            else:
                bar.update(task, advance=steps)

        yield advance
