"""docs/from-python.md, tried: its Python blocks as they stand, in the page's order, its scenario checked, its workspace made and its
comparison planned."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE, NETWORK = ((ROOT / "docs" / name).read_text("utf-8") for name in ("from-python.md", "own-network.md"))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.+?)^```$", page, re.DOTALL | re.MULTILINE)


def test_the_blocks_of_the_page_run_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "my_networks.py").write_text(blocks(NETWORK, "python")[0])
    for name, block in zip(("my_scenario.toml", "mine.toml"), blocks(PAGE, "toml"), strict=True):
        (tmp_path / name).write_text(block)
    steps = []
    for number, block in enumerate(blocks(PAGE, "python")):
        kept = re.match(r'"""(\w+\.py)"""', block)  # a module says what it is called
        (tmp_path / (kept[1] if kept else f"step_{number}.py")).write_text(block)
        if kept is None:
            steps.append(f"runpy.run_path('step_{number}.py')")
    compare = "run(['compare', 'mine.toml', '--plan', '--work', 'work'])"
    (founding,) = re.findall(r"^portier-owner (init .+)$", PAGE, re.MULTILINE)
    # One process for all of them: to import torch takes longer than most.
    lines = ["import runpy, torch", "from owner.cli.application import run", "torch.set_num_threads(1)"]
    checks = [
        "from owner.simulate import checking, scenario",
        "checking.check(scenario.load('my_scenario.toml'))",
        f"assert run({shlex.split(founding)}) == 0",
        f"assert {compare} == 0",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, *steps, *checks])],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT))), "FLWR_TELEMETRY_ENABLED": "0", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "'file': 'honest.pt', 'decision': 'accepted'" in done.stdout
    assert "'file': 'flipped.safetensors', 'decision': 'rejected'" in done.stdout
    assert "6 cells, 6 to do" in done.stdout
    assert (tmp_path / "ward" / "portier.toml").is_file()
