"""Times on the wire: RFC 3339 in UTC with a Z, seconds, optionally a fraction of up to six digits."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_TEXT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z", re.ASCII)


def now() -> datetime:
    return datetime.now(UTC)


def to_text(moment: datetime) -> str:
    """The moment in whole seconds (rounded down). Raises ValueError where it has no time zone.

    >>> to_text(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    '2026-01-02T03:04:05Z'
    """
    if moment.tzinfo is None:
        raise ValueError("a time without a time zone means a different moment on every machine")
    return moment.astimezone(UTC).replace(tzinfo=None, microsecond=0).isoformat() + "Z"


def from_text(text: object) -> datetime:
    """The moment (aware, UTC). Raises ValueError for anything that is not such a time.

    >>> from_text("2026-01-02T03:04:05Z")
    datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    """
    if not isinstance(text, str) or len(text) > 32 or not _TEXT.fullmatch(text):
        raise ValueError("not a time in the form 2026-01-02T03:04:05Z")
    return datetime.fromisoformat(text)
