"""Numbers as people read them, on a terminal and in a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number(value: float | None, digits: int = 3) -> str:
    """So many significant digits, `-` where there is none.

    >>> number(0.0123456), number(None)
    ('0.0123', '-')
    """
    return "-" if value is None else f"{value:.{digits}g}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage with so many decimals, `-` where there is none.

    >>> percent(0.9374), percent(0.9374, 2), percent(None)
    ('93.7 %', '93.74 %', '-')
    """
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def rejection_bounds(gate: float | None, tier: Mapping[str, Any] | None) -> str:
    """How many honest submissions are rejected at most, and by what; "" under a rule that bounds nothing.

    gate: 95 % bound of the check on p. tier: with that of the escalation tier; empty where nothing is known of one, None where
    there is none. The tier rejects on top of the check on p, and each bound may fail by itself: both add up, and so do their 5 %.

    >>> rejection_bounds(0.146, None)
    'Of honest submissions the check on p rejects at most 14.6 % (95 % confidence)'
    >>> rejection_bounds(0.030, {"fpr_bound_95": 0.146}).partition(", ")[2]
    'the escalation tier at most 14.6 % of all more (95 %): together at most 17.6 % (90 %)'
    """
    if gate is None:
        return ""
    told = f"Of honest submissions the check on p rejects at most {percent(gate)} (95 % confidence)"
    if tier is None:
        return told
    more = tier.get("fpr_bound_95")
    if more is None:
        return f"{told}; what an escalation tier rejects comes on top"
    return (
        f"{told}, the escalation tier at most {percent(more)} of all more (95 %): together at most "
        f"{percent(min(1.0, gate + more))} (90 %)"
    )


def conditions(conditioning: Mapping[str, Any]) -> str:
    """What the references of a guard have in common beside honesty, and what it cost.

    >>> conditions({"references": 99, "drawn": 107, "turned_away": 8})
    '99 references of 107 honest fine-tunes drawn: 8 lose accuracy or recall and would be turned away for that'
    >>> conditions({"references": 99, "drawn": 99, "turned_away": 0})
    '99 references of 99 honest fine-tunes drawn: none loses so much accuracy or recall that it would be turned away for that'
    """
    away = conditioning["turned_away"]
    lost = (
        f"{away} lose{'s' if away == 1 else ''} accuracy or recall and would be turned away for that"
        if away
        else "none loses so much accuracy or recall that it would be turned away for that"
    )
    return f"{conditioning['references']} references of {conditioning['drawn']} honest fine-tunes drawn: {lost}"
