"""Settings given for one run."""

from __future__ import annotations

import pytest

from common.errors import (
    ConfigurationError,
)
from owner.operations.opening import parse_overrides


def test_settings_given_for_one_run_are_parsed() -> None:
    assert parse_overrides(None) == {}
    assert parse_overrides(["guard.fit=eager"]) == {"guard.fit": "eager"}
    with pytest.raises(ConfigurationError, match=r"section\.field=value"):
        parse_overrides(["guard.fit"])
