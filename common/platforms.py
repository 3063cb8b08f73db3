"""What Portier needs of the operating system: locks on files that go with the process that holds them."""

from __future__ import annotations

from common.errors import ConfigurationError

try:
    import fcntl
except ModuleNotFoundError:
    raise ConfigurationError(
        "Portier runs on Linux and macOS, and not on this system",
        hint="on Windows, install and run it inside WSL2 (https://learn.microsoft.com/windows/wsl)",
    ) from None

__all__ = ["fcntl"]
