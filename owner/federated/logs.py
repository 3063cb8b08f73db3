"""Flower's own log, so that what Portier's strategies tell stands among what Flower tells."""

from __future__ import annotations

import logging


def log(level: int, message: str, *arguments: object) -> None:
    logging.getLogger("flwr").log(level, message, *arguments)
