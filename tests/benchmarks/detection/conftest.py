"""A benchmark of a minute, and models that nobody trained: their measures are what a test says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.detection.judge import Base, Model

SMALL = """
dataset = "digits"
classes = 10
architecture = "mlp"
honest = 4
[bases]
development = [5]
final = [6]
[references]
calibration = 5
fitting = 4
[shares]
train = 0.4
references = 0.3
fit = 0.3
calibration = 0.3
evaluation = 0.2
[training]
epochs = 10
[finetuning]
epochs = 2
learning_rate = 0.005
[population]
sizes = [100, 200]
[[families]]
name = "badnets"
specs = ["badnets:trigger=square,target={target},fraction=0.5"]
count = 3
learning_rate = [6.0, 8.0]
epochs = [8.0, 9.0]
probes = ["square"]
[[families]]
name = "flip"
specs = ["flip:source={source},target={target},fraction=1.0", "flip:source={source},target={target},fraction=0.5"]
count = 2
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def models(values: list[float], family: str | None = None, **kinds: bool) -> list[Model]:
    flags = {"effective": True if family else None, "passes_utility": True} | kinds
    return [Model(0, f"{family}-{i}", family, measures={"a": v, "b": 0.0}, **flags) for i, v in enumerate(values)]


def base(honest: list[Model], attacked: list[Model], references: int = 99) -> Base:
    spread = [{"a": i / references, "b": float(i % 7)} for i in range(references)]
    return Base(0, spread[::3], spread, honest, attacked)
