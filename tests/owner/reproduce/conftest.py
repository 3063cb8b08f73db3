"""A reproduction that is over in seconds: digits, the paper's CNN, tiny everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.devices import choose_compute
from owner.reproduce.images import Images
from owner.reproduce.records import Work
from owner.reproduce.runner import Runner
from owner.reproduce.settings import Settings
from owner.reproduce.steps import EXPERIMENTS, all_steps

SMOKE = Settings(dataset="digits", smoke=True, improve=("cnn",))
TABLES = all_steps(["cnn"], [0], ["tables"], SMOKE)
TIMES = {"seconds", "made", "resumed", "speed"}

MakeRunner = Callable[..., Runner]


@pytest.fixture(scope="session")
def make_runner() -> MakeRunner:
    def make(root: Path, settings: Settings = SMOKE, *, checkpoint_seconds: float = 0, **options: object) -> Runner:
        work = Work(root)
        work.open(settings)
        compute = choose_compute("cpu", "float32")
        return Runner(
            settings, Images(settings), work, compute, checkpoint_seconds=checkpoint_seconds, progress=False, **options
        )  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def finished(make_runner: MakeRunner, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Every experiment of the CNN at seed 0."""
    runner = make_runner(tmp_path_factory.mktemp("reproduce"))
    assert runner.run(all_steps(["cnn"], [0], EXPERIMENTS, SMOKE))
    return runner


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what depends on the clock."""
    return {key: value for key, value in record.items() if key not in TIMES}
