"""`portier-owner`: every command of the owner of a model."""

from __future__ import annotations

from owner.cli.application import app, main

__all__ = ["app", "main"]
