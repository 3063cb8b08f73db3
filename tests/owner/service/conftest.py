from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from contributor.client import OwnerClient
from tests.network import Owner, serving


@pytest.fixture
def serve_owner(tmp_path: Path) -> Iterator[Callable[..., Owner]]:
    """Found and serve an owner with the given settings (by dotted name, __ for the dot)."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Owner:
            owner = Owner.found(tmp_path / "owner", **settings)
            stack.callback(owner.store.close)
            return stack.enter_context(serving(owner))

        yield make


@pytest.fixture
def owner(serve_owner: Callable[..., Owner]) -> Owner:
    return serve_owner()


@pytest.fixture
def ann(owner: Owner, tmp_path: Path) -> Iterator[OwnerClient]:
    """An enrolled contributor."""
    with owner.contributor("ann", tmp_path / "homes") as client:
        yield client
