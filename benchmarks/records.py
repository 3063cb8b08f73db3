"""The record a benchmark leaves: a figure with its budget, the command that made it, the hardware and n."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Record:
    """name, value, unit: the figure. budget: what DESIGN allows, None where it is not bounded. command: what printed it.
    n: repetitions behind the figure. notes: versions, accuracies, medians: whatever a reader needs to judge it."""

    name: str
    value: float
    unit: str
    budget: float | None
    command: str
    n: int
    hardware: str = ""
    notes: str = ""


def hardware() -> str:
    """CPU model and cores, bf16 instructions, GPU if there is one, torch version: what a figure depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    extensions = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in text]
    parts = [f"{os.cpu_count()} x {name.group(1) if name else platform.processor() or platform.machine()}", *extensions]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"torch {torch.__version__}", f"Python {platform.python_version()}"])


def emit(records: Iterable[Record], out: Path | None) -> None:
    """Print the records as JSON, and write them to `out`, replacing there the records of the same name."""
    rows = [asdict(record) | {"hardware": record.hardware or hardware()} for record in records]
    print(json.dumps(rows, indent=2))
    if out is not None:
        names = {row["name"] for row in rows}
        old = json.loads(out.read_text()) if out.exists() else []
        kept = [row for row in old if row["name"] not in names]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(sorted(kept + rows, key=lambda row: str(row["name"])), indent=2) + "\n")
