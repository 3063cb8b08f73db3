"""Descriptions that the gatekeeper has written and reads again. They are whole or refused: a default in the place of what is missing
would be another guard, or another job."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from common.errors import ConfigurationError


def whole(data: Mapping[str, Any], kind: type[Any], what: str) -> Mapping[str, Any]:
    """`data`, where it has every field of the dataclass `kind`; what does not belong there is for `from_json` of `kind` to refuse.

    what: its name in the message. Raises ConfigurationError, which names the fields that are missing.

    >>> from owner.gatekeeper.utility import UtilityLimits
    >>> whole({"accuracy_drop": 0.01}, UtilityLimits, "these limits")
    Traceback (most recent call last):
    common.errors.ConfigurationError: these limits lack recall_drop
    """
    missing = [field.name for field in dataclasses.fields(kind) if field.name not in data]
    if missing:
        raise ConfigurationError(f"{what} lack {', '.join(missing)}")
    return data
