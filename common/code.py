"""Which code made something: scores compare only between equal ones."""

from __future__ import annotations

import functools
import hashlib
from importlib.resources import files
from pathlib import Path


@functools.cache
def code_digest(*packages: str) -> str:
    """SHA-256 (hex) of all Python modules of these packages and of those within them, as they are at the first call.

    A changed comment changes it too: no reader of a stored score can tell from a digest whether a change was of any consequence.

    >>> code_digest("common") == code_digest("common", "protos")
    False
    """
    hasher = hashlib.sha256()
    for package in packages:
        root = Path(str(files(package)))
        for path in sorted(root.rglob("*.py")):
            text = path.read_bytes()
            hasher.update(f"{package} {path.relative_to(root).as_posix()} {len(text)}\n".encode() + text)
    return hasher.hexdigest()
