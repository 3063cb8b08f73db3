"""The development bases as they were scored: what may be looked at as often as one likes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.detection.config import Config
from benchmarks.detection.judge import Base
from benchmarks.detection.plans import plans
from benchmarks.detection.report import table
from benchmarks.detection.zoo import Zoo


def development(config: Config, root: Path) -> Sequence[Base]:
    """With the scores that the benchmark last gave them. root: of the models and scores of this configuration."""
    zoo = Zoo(config, root)
    records, scores = {}, {}
    for base in config.development:
        for plan in plans(config, base):
            record, path = zoo.record(plan), zoo.scores_path(plan)
            if record is not None and path.exists():
                records[plan], scores[plan] = record, json.loads(path.read_text("utf-8"))
    return table(config.development, records, scores).bases


def arguments(description: str | None) -> argparse.Namespace:
    """config, work, out: the command line of who looks at these bases alone."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="one of benchmarks/detection/configs, by name or path")
    parser.add_argument(
        "--work", type=Path, default=Path("detection-work"), help="where the benchmark keeps its models"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    return parser.parse_args()
