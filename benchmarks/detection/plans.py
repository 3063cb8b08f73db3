"""Which models are made: for each base, references that fit and that calibrate, honest test models, attacked ones.

Honest test models are drawn from the population the references are drawn from, but on images no reference has seen; that
the owner knows the population is an assumption, and the strata of the report show what happens outside it. An attacker's
data are drawn as an honest contributor's, clean otherwise; his rate, epochs and dose are his own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.detection.config import Config, Family
from common import canonical
from common.randomness import derived_seed
from common.training_options import Augmentation
from contributor.attacks import parse_attack

Role = Literal["owner", "fitting", "calibration", "honest", "attacked", "placebo"]


@dataclass(frozen=True)
class Plan:
    """One model of the zoo.

    role: `owner` is M_f of the paper's Eq. 4, fine-tuned by the owner as recommended. `placebo` is an honest model of the attackers'
        recipe: their data before the attack, their rate, epochs and augmentation.
    number: of the honest plan its data are drawn by; those of one role and base differ.
    family: of the attack, or of the recipe. attack: specification with every option, None for an honest model. version: of the attack's
        code; models of another one are other models. learning_rate, epochs: factors on the recommended ones, for an attacker and a
        placebo.
    """

    base: int
    role: Role
    number: int
    family: str | None = None
    attack: str | None = None
    learning_rate: float = 1.0
    epochs: float = 1.0
    augmentation: Augmentation | None = None
    version: str = ""

    @property
    def name(self) -> str:
        """Of its files; says what it is and is the same in every run."""
        kind = "-".join(filter(None, ("placebo" if self.role == "placebo" else "", self.family))) or self.role
        return f"{kind}-{self.number:04d}-{self.digest[:8]}"

    @property
    def digest(self) -> str:
        return hashlib.sha256(canonical.encode(dataclasses.asdict(self))).hexdigest()


def plans(config: Config, base: int) -> list[Plan]:
    """All models of one base, in an order in which a part of them is worth having: each role and family by turns."""
    streams = [
        (Plan(base, "calibration", number) for number in range(config.calibration)),
        (Plan(base, "honest", number) for number in range(config.honest)),
        (Plan(base, "fitting", number) for number in range(config.fitting)),
        *(attacked(family, base, config) for family in config.families),
        placebos(config, base),
    ]
    attacks = [family.count for family in config.families]
    sizes = [config.calibration, config.honest, config.fitting, *attacks, config.placebos]
    order = sorted(((i + 0.5) / size, s) for s, size in enumerate(sizes) for i in range(size))
    return [Plan(base, "owner", 0), *(next(streams[s]) for _, s in order)]


def attacked(family: Family, base: int, config: Config) -> Iterator[Plan]:
    for number in range(family.count):
        random = np.random.default_rng(derived_seed(base, f"{family.name} {number}"))
        source, target = (int(c) for c in random.choice(config.classes, 2, replace=False))
        spec = family.specs[number % len(family.specs)].format(source=source, target=target)
        rate = _log_uniform(random, family.learning_rate)
        epochs = _log_uniform(random, family.epochs)
        attack = parse_attack(spec)
        augmentation, version = family.augmentation, attack.version
        yield Plan(base, "attacked", number, family.name, str(attack), rate, epochs, augmentation, version)


def placebos(config: Config, base: int) -> Iterator[Plan]:
    for number in range(config.placebos):
        family = config.families[number % len(config.families)]
        random = np.random.default_rng(derived_seed(base, f"placebo {number}"))
        rate, epochs = (_log_uniform(random, bounds) for bounds in (family.learning_rate, family.epochs))
        yield Plan(base, "placebo", number, family.name, None, rate, epochs, family.augmentation)


def _log_uniform(random: np.random.Generator, bounds: tuple[float, float]) -> float:
    return round(math.exp(random.uniform(math.log(bounds[0]), math.log(bounds[1]))), 4)
