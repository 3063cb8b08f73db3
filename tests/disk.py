"""A power cut cannot be staged; in which order the system is asked to bring what to the disk can be seen."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest


def asked_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What comes from now on, in its order: the size (bytes) of each file that is synced, "folder" for a folder, "named" where a file
    gets its name."""
    asked: list[object] = []
    fsync, link, rename = os.fsync, os.link, Path.replace

    def synced(handle: int) -> None:
        found = os.fstat(handle)
        asked.append("folder" if stat.S_ISDIR(found.st_mode) else found.st_size)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", lambda *names: (asked.append("named"), link(*names)))
    monkeypatch.setattr(Path, "replace", lambda *names: (asked.append("named"), rename(*names)))
    return asked
