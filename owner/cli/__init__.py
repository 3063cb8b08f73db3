"""`portier-owner`: every command of the owner of a model."""

from __future__ import annotations

import sys

from common.errors import ConfigurationError

try:
    import common.platforms  # noqa: F401 - before any module that only some systems have
    from owner.cli.application import app, main
except ConfigurationError as error:  # a system that Portier does not run on
    sys.stderr.write(f"error: {error.diagnostics()}\n")
    sys.exit(error.exit_code)

__all__ = ["app", "main"]
