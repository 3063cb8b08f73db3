"""A small comparison, run once."""

from __future__ import annotations

from pathlib import Path

import pytest

from owner.compare.configuration import Comparison, parse
from owner.federated.compare import run_grid

SMALL = """
title = "A small one"
[federation]
clients = 5
rounds = 2
learning-rate = 0.1
engine = "inline"
device = "cpu"
precision = "float32"
guard-references = 9
[grid]
attack = ["sign-flip", "flip:source=7,target=1"]
attacker-share = [0.2]
strategy = ["fedavg", "krum", "gated"]
seed = [0, 1]
[marks]
digits = "scikit-learn's 1,797 of the original's 5,620"
[[blocks]]
name = "in rounds"
row = "Li et al. 2020"
own = "krum"
[blocks.federation]
model = "logistic"
[[blocks]]
name = "one at a time"
[blocks.federation]
model = "logistic"
setting = "incremental"
[[missing]]
row = "Li et al. 2020"
data = "femnist"
reason = "not at hand"
"""


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    return parse(SMALL, "small")


@pytest.fixture(scope="session")
def finished(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its records. Never change it."""
    folder = tmp_path_factory.mktemp("compare") / "runs"
    run_grid(comparison.cells, folder, progress=False)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return file
