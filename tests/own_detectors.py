"""Detectors of somebody's own, as modules that a test writes, imports and forgets again."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from owner.detectors import DETECTORS

MOVED = '''
from owner.detectors import Comparison, ReleaseComparison, register


@register
class Moved(ReleaseComparison):
    """How far the activations moved."""

    name, headline = "moved", "mean"

    def compare(self, evidence, release):
        return Comparison({"mean": float((evidence.features - release.features).abs().mean())})
'''

PAGE = Path(__file__).resolve().parents[1] / "docs" / "from-python.md"
(SHOWN,) = re.findall(
    r'^```python\n("{3}my_detectors\.py"{3}\n.+?)^```$', PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
)
"""`my_detectors` of the page about detectors of one's own, with the detector update-angle."""

Write = Callable[[str, str], None]


@contextmanager
def own_modules(folder: Path) -> Iterator[Write]:
    """A folder on the import path, and what writes a module into it; afterwards nothing is registered or imported of it."""
    known = dict(DETECTORS)
    written = []

    def write(name: str, text: str = MOVED) -> None:
        (folder / f"{name}.py").write_text(text)
        written.append(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        try:
            yield write
        finally:
            DETECTORS.clear()
            DETECTORS.update(known)
            for name in written:
                sys.modules.pop(name, None)
