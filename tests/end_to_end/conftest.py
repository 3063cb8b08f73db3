"""The protected workspace of the owner's rooms, here too."""

from tests.owner.conftest import protected_workspace

__all__ = ["protected_workspace"]
