"""What stands out about a submission that did not pass, and what it waits for, as its verdict holds it and people read it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

PICTURE_LIMIT = 96 << 10
"""Characters of base64."""
ESCALATED = "escalation"
"""Name of the escalation tier's check, and of its measurements."""
AWAITING = "AWAITING_ESCALATION"
"""Code of that check while the tier is not calibrated yet."""


def is_awaiting(verdict: Mapping[str, Any] | None) -> bool:
    """Whether a verdict, as JSON, says that the escalation tier has yet to look.

    >>> is_awaiting({"checks": [{"name": "escalation", "code": "AWAITING_ESCALATION"}]}), is_awaiting(None)
    (True, False)
    """
    checks = (verdict or {}).get("checks", ())
    return any(check.get("name") == ESCALATED and check.get("code") == AWAITING for check in checks)


def suspicion(suspected: Mapping[str, Any]) -> str:
    """
    >>> suspicion({"source": "7", "target": "1", "probe": "dots", "kind": "pixel", "moved_class": None})
    'source class 7, target class 1, probe dots (pixel)'
    """
    parts = [
        f"{text} {suspected[key]}"
        for key, text in (("source", "source class"), ("target", "target class"), ("moved_class", "most moved class"))
        if suspected.get(key) is not None
    ]
    if suspected.get("probe") is not None:
        parts.append(f"probe {suspected['probe']} ({suspected.get('kind')})")
    return ", ".join(parts) or "no class and no mark in particular"


def png_bytes(picture: object) -> bytes | None:
    """The PNG file of such a picture; None for what is none."""
    text = picture.get("png") if isinstance(picture, dict) else None
    if not isinstance(text, str) or len(text) > PICTURE_LIMIT:
        return None
    try:
        found = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return found if found.startswith(b"\x89PNG\r\n\x1a\n") else None
