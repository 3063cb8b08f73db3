"""The options a guard is fitted with; they are stored in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, get_args

from common.errors import ConfigurationError, UnknownNameError
from owner.choices import ESCALATIONS, PRESETS, STANDARD, expand
from owner.detectors import DETECTORS, AutoEncoderOptions, Detector, standard_detectors
from owner.detectors.activation_autoencoder import Scaling
from owner.detectors.combination import Method
from owner.gatekeeper.own_detectors import made
from owner.gatekeeper.stored import whole
from owner.levels import RuleName, check_levels, check_tier
from owner.population import HonestPopulation


@dataclass(frozen=True)
class GuardOptions:
    """detectors: by name; `standard` is what the benchmark chose, `paper` the activation auto-encoder alone. Several are
        combined into one score, and that score alone decides.
    combination, given_size: how, see `owner.detectors.Combination`.
    fitting_references: honest fine-tunes beside the K, on which the combination's scales are fitted; none where there is one
        detector, whose score needs no scale. A scale is a median absolute deviation, uncertain by 1.2 / sqrt(n): 27 % with 19.
    references: K, which calibrate; the finest p-value is 1 / (K + 1).
    rule: conformal (p-value over the references) or seed (the paper's Eq. 4, which needs no references but one, and an error for
        each image: with the detectors `paper`, not with the default).
    reject_level, quarantine_level: p <= reject_level rejects, p <= quarantine_level waits for a person.
    seed: of the split of the triggers, the auto-encoder and the references.
    hidden, latent, epochs, scaling: of the auto-encoder, see `AutoEncoderOptions`.
    population: how honest contributors are assumed to differ.
    escalation: off, maximum-margin, trigger-inversion or both: what looks again, by gradients, at a submission that p alone put
        into quarantine. It needs the rule `conformal`.
    escalation_references: K of that tier, its own: the first so many of the references, made again when they are first needed.
    escalation_reject_level, escalation_quarantine_level: of the tier's own p, as above; what stays in between waits for a person.
    incremental: keep the fine-tunes' weights, and move them to the next release where it is small news, instead of training.
    incremental_news, incremental_generations: up to which news since they were trained, and how often in a row
        (`owner.gatekeeper.transplants`).

    Raises ConfigurationError, UnknownNameError, and ResolutionError for a level finer than 1 / (K + 1) of its tier.

    >>> GuardOptions(references=99, reject_level=0.01).rule
    'conformal'
    """

    detectors: tuple[str, ...] = (STANDARD,)
    combination: Method = "detectors"
    given_size: bool = True
    fitting_references: int = 19
    references: int = 19
    rule: RuleName = "conformal"
    reject_level: float = 0.05
    quarantine_level: float = 0.10
    seed: int = 0
    hidden: int = 256
    latent: int = 64
    epochs: int = 60
    scaling: Scaling = "none"
    population: HonestPopulation = field(default_factory=HonestPopulation)
    escalation: str = "off"
    escalation_references: int = 19
    escalation_reject_level: float = 0.05
    escalation_quarantine_level: float = 0.5
    incremental: bool = False
    incremental_news: float = 1.0
    incremental_generations: int = 3

    def __post_init__(self) -> None:
        for name in self.detector_names:
            if name not in DETECTORS:
                raise UnknownNameError("detector", name, [*PRESETS, *DETECTORS])
        if self.combination not in get_args(Method):
            raise UnknownNameError("combination", self.combination, get_args(Method))
        if not 2 <= self.fitting_references <= 9999:
            raise ConfigurationError(f"fitting_references must be from 2 to 9999, not {self.fitting_references}")
        if not 1 <= self.references <= 9999:
            raise ConfigurationError(f"references must be from 1 to 9999, not {self.references}")
        if not self.incremental_news > 0:
            raise ConfigurationError(f"incremental_news must be above 0, not {self.incremental_news}")
        if self.incremental_generations < 1:
            raise ConfigurationError(f"incremental_generations must be at least 1, not {self.incremental_generations}")
        check_levels(self.reject_level, self.quarantine_level, rule=self.rule, references=self.references)
        self.autoencoder  # noqa: B018 - its own checks
        self._check_escalation()

    def _check_escalation(self) -> None:
        if self.escalation not in ESCALATIONS:
            raise UnknownNameError("escalation", self.escalation, ESCALATIONS)
        if self.escalation == "off":
            return
        check_tier(
            self.escalation_reject_level,
            self.escalation_quarantine_level,
            rule=self.rule,
            references=self.escalation_references,
            of=self.references,
        )

    @property
    def autoencoder(self) -> AutoEncoderOptions:
        return AutoEncoderOptions(
            hidden=self.hidden, latent=self.latent, epochs=self.epochs, scaling=self.scaling, seed=self.seed
        )

    @property
    def detector_names(self) -> tuple[str, ...]:
        return expand(self.detectors)

    def unfitted_detectors(self) -> tuple[Detector, ...]:
        """New ones of those names, the auto-encoders with this guard's options and the rest with their defaults."""
        standard = {detector.name: detector for detector in standard_detectors(self.autoencoder)}
        return tuple(standard[name] if name in standard else made(DETECTORS[name]) for name in self.detector_names)

    @property
    def escalation_names(self) -> tuple[str, ...]:
        """Detectors of the escalation tier; none where it is off."""
        return ESCALATIONS[self.escalation]

    @property
    def references_to_fit(self) -> int:
        """K under the rule `conformal`; none under `seed`, which looks at the owner's own fine-tune alone."""
        return self.references if self.rule == "conformal" else 0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"population": self.population.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises UnknownNameError for an option that does not exist, ConfigurationError for one that is missing."""
        known = {f.name for f in dataclasses.fields(cls)}
        for name in data:
            if name not in known:
                raise UnknownNameError("guard option", str(name), known)
        whole(data, cls, "the guard options")
        population = HonestPopulation.from_json(
            whole(data["population"], HonestPopulation, "the honest population's fields")
        )
        return cls(**{**data, "population": population, "detectors": tuple(data["detectors"])})
