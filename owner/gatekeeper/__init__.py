"""The gatekeeper: what stands between a returned model and the next release."""

from __future__ import annotations

from owner.gatekeeper.gatekeeper import Gatekeeper
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.merging import MergePolicy, merge
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.triggers import Triggers
from owner.gatekeeper.utility import UtilityLimits
from owner.gatekeeper.verdict import Check, Decision, Verdict
from owner.population import HonestPopulation

__all__ = [
    "Check",
    "Decision",
    "Gatekeeper",
    "Guard",
    "GuardOptions",
    "HonestPopulation",
    "MergePolicy",
    "Triggers",
    "UtilityLimits",
    "Verdict",
    "merge",
]
