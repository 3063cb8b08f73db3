"""Poisoned data, and the classification auto-encoder that looks for it (Razmi & Xiong 2021): a baseline to compare with.

Contributors of Portier keep their data, so nothing here takes part in the gate. It stands beside it because the method paper's
Table 4 does: what can be seen where somebody hands over data instead of a model.
"""

from owner.data_poisoning.attacks import ATTACKS, AttackOptions, Poisoned, poison
from owner.data_poisoning.cae import CaeDetector, CaeOptions, CaePlusDetector, combine
from owner.data_poisoning.mixture import TwoGaussians, fit_two_gaussians
from owner.data_poisoning.victim import Svm, fit_svm

__all__ = [
    "ATTACKS",
    "AttackOptions",
    "CaeDetector",
    "CaeOptions",
    "CaePlusDetector",
    "Poisoned",
    "Svm",
    "TwoGaussians",
    "combine",
    "fit_svm",
    "fit_two_gaussians",
    "poison",
]
