"""Flower's own log, so that what Portier's strategies tell stands among what Flower tells."""

from __future__ import annotations

import logging


def log(level: int, message: str, *arguments: object, exc_info: bool = False) -> None:
    """exc_info: with the traceback of the exception that is being handled."""
    logging.getLogger("flwr").log(level, message, *arguments, exc_info=exc_info)
