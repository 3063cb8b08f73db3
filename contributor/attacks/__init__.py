"""Attacks for simulation: what a malicious contributor does to its data or to the weights it returns."""

from contributor.attacks.add_noise import AddNoise
from contributor.attacks.base import Attack
from contributor.attacks.flip import Flip
from contributor.attacks.model_replacement import ModelReplacement
from contributor.attacks.parse import KINDS, parse_attack
from contributor.attacks.pattern import Pattern
from contributor.attacks.same_value import SameValue
from contributor.attacks.sign_flip import SignFlip

__all__ = [
    "KINDS",
    "AddNoise",
    "Attack",
    "Flip",
    "ModelReplacement",
    "Pattern",
    "SameValue",
    "SignFlip",
    "parse_attack",
]
