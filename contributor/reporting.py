"""Telling how a contribution stands: to a person as lines on standard error, to a simulator as a JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from common.files import ensure_directory, write_atomically
from contributor.workspace import Contribution

REPORT_FORMAT = 1


@dataclass
class Reporter:
    """file: rewritten as a whole whenever the stage changes or a step is done; None writes none."""

    name: str
    console: Console
    file: Path | None = None
    _stage: str = ""
    _detail: str = ""
    _contribution: Contribution | None = field(default=None)

    def stage(self, stage: str, detail: str) -> None:
        """For `contributing.contribute(on_stage=...)`: one line a stage, details of a stage go to the file alone."""
        if stage != self._stage:
            self.console.print(f"{stage}{': ' if detail else ''}{detail}", highlight=False, markup=False)
        self._stage, self._detail = stage, detail
        self._write()

    def note(self, text: str) -> None:
        """For `contributing.contribute(on_note=...)`."""
        self.console.print(text, markup=False, soft_wrap=True)

    def change(self, contribution: Contribution) -> None:
        """For `contributing.contribute(on_change=...)`."""
        self._contribution = contribution
        self._write()

    def document(self) -> dict[str, Any]:
        """The report as it stands now."""
        contribution = self._contribution
        return {
            "format": REPORT_FORMAT,
            "contributor": self.name,
            "stage": self._stage,
            "detail": self._detail,
            "release": contribution.release if contribution else "",
            "submission": contribution.submission if contribution else "",
            "verdict": contribution.verdict if contribution else "",
            "code": contribution.code if contribution else "",
            "seed": contribution.seed if contribution else None,
            "measured": dict(contribution.measured) if contribution else {},
        }

    def _write(self) -> None:
        if self.file is not None:
            ensure_directory(self.file.parent)
            write_atomically(self.file, (json.dumps(self.document(), indent=1) + "\n").encode())
