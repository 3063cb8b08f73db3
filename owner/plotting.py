"""matplotlib where it is installed: only the stages that draw figures need it."""

from __future__ import annotations

import importlib
from typing import Any

from common.errors import MissingExtraError


def pyplot() -> Any:
    """`matplotlib.pyplot`, drawing to files. Raises MissingExtraError."""
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise MissingExtraError(
            "figures need matplotlib, which is not installed", hint="pip install 'portier[report]', or --stage report"
        ) from None
