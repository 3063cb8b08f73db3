"""The version of Portier that is installed."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """As in pyproject.toml; "unknown" where Portier runs out of a folder without having been installed."""
    try:
        return metadata.version("portier")
    except metadata.PackageNotFoundError:
        return "unknown"
