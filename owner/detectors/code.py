"""Which code detectors are: scores compare only between equal ones."""

from __future__ import annotations

import functools
import hashlib
from importlib.resources import files


@functools.cache
def code_digest() -> str:
    """SHA-256 (hex) of the modules of this package. Detectors that are registered from elsewhere are not in it.

    A changed comment changes it too: no reader of a stored score can tell from a digest whether a change was of any consequence.
    """
    hasher = hashlib.sha256()
    for module in sorted(files(__package__).iterdir(), key=lambda one: one.name):
        if module.name.endswith(".py"):
            text = module.read_bytes()
            hasher.update(f"{module.name} {len(text)}\n".encode() + text)
    return hasher.hexdigest()
