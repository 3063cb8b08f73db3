"""Words from outside, on their way to a person's terminal."""

from __future__ import annotations

from typing import Final

_SHOWN: Final = 500


def shown(text: str) -> str:
    """Words that others had a part in, bounded and without control characters: a person will read them on a terminal.

    >>> shown("\\x1b[2Jno room")
    '�[2Jno room'
    """
    kept = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:_SHOWN])
    return kept if len(text) <= _SHOWN else kept + "…"
