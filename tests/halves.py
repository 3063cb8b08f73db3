"""The fast tests in two processes side by side: most of them wait for one core, a disk or a socket.

python -m tests.halves [pytest options]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

OF_THE_SECOND = ("tests/owner/federated", "tests/owner/reproduce")
ELSEWHERE = sorted(
    str(path)
    for path in Path("tests").iterdir()
    if path.name.startswith("test_") or (path.is_dir() and path.name not in {"owner", "benchmarks", "__pycache__"})
)
HALVES = (
    ["tests/owner", "tests/benchmarks", "owner", "benchmarks", *(f"--ignore={path}" for path in OF_THE_SECOND)],
    [*ELSEWHERE, "common", "contributor", *OF_THE_SECOND],
)


def main(options: list[str]) -> int:
    """The worse exit code of the two. The second half's output follows the first's."""
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    # Each has its own folder for what its tests write: in a common one, either would clear away what the other is about to.
    with tempfile.TemporaryFile("w+") as later, tempfile.TemporaryDirectory(prefix="portier-tests-") as scratch:
        first, second = (
            subprocess.Popen(
                [sys.executable, "-m", "pytest", f"--basetemp={Path(scratch, str(n))}", *half, *options],
                env=environment,
                stdout=out,
                stderr=out,
            )
            for n, (half, out) in enumerate(zip(HALVES, (None, later), strict=True))
        )
        codes = [first.wait(), second.wait()]
        later.seek(0)
        sys.stdout.write(later.read())
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
