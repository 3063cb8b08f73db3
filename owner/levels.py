"""Levels of the gate and of its escalation tier, and the finest that so many references resolve.

Plain numbers, so that settings are checked without loading torch.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from common.errors import ConfigurationError, ResolutionError, UnknownNameError

RuleName = Literal["conformal", "seed"]

ROUNDING = 1e-12
"""Levels are fractions such as 0.1, p-values fractions such as 2/20; both are rounded binary numbers."""


def resolution(references: int) -> float:
    """1 / (K + 1), the smallest p-value that K references can give."""
    return 1.0 / (references + 1)


def check_levels(reject: float, quarantine: float, *, rule: RuleName, references: int, tier: str = "") -> None:
    """tier: what the names of the options begin with.

    Raises ConfigurationError for levels out of order, ResolutionError for one finer than K references resolve.
    """
    if rule not in get_args(RuleName):
        raise UnknownNameError("rule", rule, get_args(RuleName))
    if not 0 < reject <= quarantine < 1:
        raise ConfigurationError(
            f"levels must satisfy 0 < {tier}reject_level <= {tier}quarantine_level < 1, not {reject:g} and {quarantine:g}"
        )
    if rule == "conformal" and reject < resolution(references) - ROUNDING:
        raise ResolutionError(
            f"{tier}reject_level {reject:g} is finer than 1/(K+1) = {resolution(references):.3g}, the resolution of "
            f"K = {references} references",
            hint=f"fit at least {math.ceil(1 / reject - ROUNDING) - 1} references, or raise the level",
        )


def check_tier(reject: float, quarantine: float, *, rule: RuleName, references: int, of: int) -> None:
    """The escalation tier's levels. references: its K, the first so many `of` those of the gate, whose rule `rule` is.

    Raises ConfigurationError, ResolutionError.
    """
    if rule != "conformal":
        raise ConfigurationError(
            "escalation needs the rule `conformal`: Eq. 4 quarantines nobody", hint="set escalation to off"
        )
    if not 1 <= references <= of:
        raise ConfigurationError(
            f"escalation_references must be from 1 to the {of} references, of which they are the first, not {references}"
        )
    check_levels(reject, quarantine, rule=rule, references=references, tier="escalation_")
