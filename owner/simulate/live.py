"""What a person sees while a simulation runs: a table that redraws itself, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

COLOURS = {
    "accepted": "green",
    "rejected": "red",
    "held": "yellow",
    "training": "cyan",
    "failed": "bold red",
}


@dataclass
class Row:
    """One contributor as it stands. attack: ground truth."""

    name: str
    attack: str | None
    stage: str = "waiting to join"
    detail: str = ""
    since: float = field(default_factory=time.monotonic)


class Board:
    """The rows and what the owner does at the moment; a context manager that draws for as long as it is open."""

    def __init__(self, console: Console, rows: list[Row], *, title: str) -> None:
        self._console = console
        self._rows = {row.name: row for row in rows}
        self._title = title
        self._owner = Spinner("dots", "")
        self._began = time.monotonic()
        # A file or pipe cannot be redrawn: it gets one line per change instead.
        self._live = (
            Live(console=console, get_renderable=self._table, refresh_per_second=4) if _draws(console) else None
        )

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        else:
            self._line(self._title)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def owner(self, doing: str) -> None:
        """What the owner does now."""
        if self._live is None and str(self._owner.text) != doing:
            self._line(f"owner: {doing}")
        self._owner.update(text=doing)

    def contributor(self, name: str, stage: str, detail: str = "") -> None:
        """Where contributor `name` stands. `detail` (epochs, percentages) is drawn, but no reason for a new line."""
        row = self._rows[name]
        if row.stage != stage:
            row.since = time.monotonic()
            if self._live is None:
                self._line(f"{name}: {stage}" + (f" ({detail})" if detail else ""))
        row.stage, row.detail = stage, detail

    def _line(self, text: str) -> None:
        self._console.print(
            f"[{time.monotonic() - self._began:6.1f} s] {text}", markup=False, highlight=False, soft_wrap=True
        )

    def _table(self) -> Group:
        now = time.monotonic()
        table = Table(title=self._title, title_justify="left", box=None, pad_edge=False, header_style="dim")
        for column in ("contributor", "attack (ground truth)", "now", "", ""):
            table.add_column(column, no_wrap=True)
        for row in self._rows.values():
            table.add_row(
                row.name,
                Text(row.attack or "none", style="magenta" if row.attack else "dim"),
                Text(row.stage, style=COLOURS.get(row.stage, "")),
                row.detail,
                Text(f"{now - row.since:.0f} s", style="dim"),
            )
        return Group(table, self._owner, Text(f"{now - self._began:.0f} s", style="dim"))


def _draws(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal
