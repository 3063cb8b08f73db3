"""How the gatekeeper starts processes of its own modules: with this process's import path, and no other.

The working directory may hold a `common` of somebody else, and Python's `-m` would look there first.
"""

from __future__ import annotations

import os
import sys


def command(module: str, *arguments: str) -> tuple[str, ...]:
    """
    >>> command("owner.gatekeeper.worker", "512")[1:]
    ('-P', '-m', 'owner.gatekeeper.worker', '512')
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def environment(**changes: str) -> dict[str, str]:
    """This process's, with `changes`."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **changes}
