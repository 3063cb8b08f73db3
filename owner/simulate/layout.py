"""Where a simulation keeps what.

DIR/scenario.json         the resolved scenario, ports and seed; a later run in DIR must agree with it
DIR/owner/                the owner's workspace
DIR/contributors/<name>/  a contributor's home; beside it <name>.invitation and <name>.json, what it reports
DIR/shares/               each contributor's examples; evaluation.safetensors
DIR/logs/                 one log per process
DIR/result.json, report.html
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Layout:
    """Paths below `root`.

    >>> Layout(Path("s")).report("ada").as_posix()
    's/contributors/ada.json'
    """

    root: Path

    @property
    def scenario(self) -> Path:
        return self.root / "scenario.json"

    @property
    def owner(self) -> Path:
        return self.root / "owner"

    @property
    def shares(self) -> Path:
        return self.root / "shares"

    @property
    def evaluation(self) -> Path:
        return self.shares / "evaluation.safetensors"

    @property
    def slots(self) -> Path:
        return self.root / "slots"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def html(self) -> Path:
        return self.root / "report.html"

    @property
    def bulk(self) -> tuple[Path, ...]:
        """What nobody needs once the result is written."""
        return (self.owner, self.root / "contributors", self.shares, self.slots)

    def share(self, name: str) -> Path:
        return self.shares / f"{name}.safetensors"

    def home(self, name: str) -> Path:
        return self.root / "contributors" / name

    def invitation(self, name: str) -> Path:
        return self.root / "contributors" / f"{name}.invitation"

    def report(self, name: str) -> Path:
        return self.root / "contributors" / f"{name}.json"


def read_report(path: Path) -> dict[str, Any]:
    """What a contributor has reported so far, {} before its first report."""
    try:
        report = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}
