"""Fill in the budget table of the design: run every performance benchmark and merge what they print.

    python -m benchmarks.budgets                      all of it, into docs/results/budgets.json
    python -m benchmarks.budgets transfer vetting     some of it
    python -m benchmarks.budgets demo tests           wall-clock of `make demo` and `make test`, installed already

Each figure is measured by its own command in its own process, one after the other: on two cores, two at a time would
measure each other. Exit code 1 when a budget is not held.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.records import Record, emit

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "budgets.json"
MEASURED = ("finetune_throughput", "vetting", "transfer", "upload_memory", "guard_fit")
TIMED = {"demo": ("demo_seconds", "make demo", 120.0), "tests": ("test_seconds", "make test", 360.0)}
AT_LEAST = ("finetune_throughput_ratio", "transfer_vs_raw_tls")


def held(row: dict[str, object]) -> bool:
    """Whether a record keeps its budget: a floor for ratios of speed, a ceiling for everything else."""
    value, budget = float(str(row["value"])), row["budget"]
    if budget is None:
        return True
    return value >= float(str(budget)) if row["name"] in AT_LEAST else value <= float(str(budget))


def time_make(what: str) -> Record:
    name, command, budget = TIMED[what]
    started = time.perf_counter()
    done = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout[-20_000:]}{done.stderr[-5_000:]}\n{command} failed: there is nothing to time")
    return Record(name, round(time.perf_counter() - started, 1), "s", budget, command, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", metavar="BENCHMARK", help=f"{', '.join((*MEASURED, *TIMED))}; default: all")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    which = arguments.which or [*MEASURED, *TIMED]
    if unknown := set(which) - {*MEASURED, *TIMED}:
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; choose from {', '.join((*MEASURED, *TIMED))}")
    for name in which:
        print(f"== {name}", flush=True)
        if name in TIMED:
            emit([time_make(name)], arguments.out)
        else:
            module = f"benchmarks.{name}"
            subprocess.run([sys.executable, "-m", module, "--out", str(arguments.out)], cwd=ROOT, check=True)
    rows = json.loads(arguments.out.read_text())
    for row in rows:
        sign = ">=" if row["name"] in AT_LEAST else "<="
        state = "held" if held(row) else "NOT HELD"
        print(f"{row['name']:28} {row['value']:>8} {row['unit']:4} budget {sign} {row['budget']}: {state}")
    return 0 if all(held(row) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
