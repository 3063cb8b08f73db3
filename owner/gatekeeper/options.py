"""The options a guard is fitted with; they are stored in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from common.errors import ConfigurationError, UnknownNameError
from owner.detectors import AutoEncoderOptions
from owner.detectors.activation_autoencoder import Scaling
from owner.gatekeeper.rules import RuleName, check_levels
from owner.population import HonestPopulation


@dataclass(frozen=True)
class GuardOptions:
    """references: K; the finest p-value is 1 / (K + 1).
    rule: conformal (p-value over the references) or seed (the paper's Eq. 4, which needs no references but one).
    reject_level, quarantine_level: p <= reject_level rejects, p <= quarantine_level waits for a person.
    seed: of the split of the triggers, the auto-encoder and the references.
    hidden, latent, epochs, scaling: of the auto-encoder, see `AutoEncoderOptions`.
    population: how honest contributors are assumed to differ.

    Raises ConfigurationError, UnknownNameError, and ResolutionError for a reject_level finer than 1 / (K + 1).

    >>> GuardOptions(references=99, reject_level=0.01).rule
    'conformal'
    """

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

    def __post_init__(self) -> None:
        if not 1 <= self.references <= 9999:
            raise ConfigurationError(f"references must be from 1 to 9999, not {self.references}")
        check_levels(self.reject_level, self.quarantine_level, rule=self.rule, references=self.references)
        self.autoencoder  # noqa: B018 - its own checks

    @property
    def autoencoder(self) -> AutoEncoderOptions:
        return AutoEncoderOptions(
            hidden=self.hidden, latent=self.latent, epochs=self.epochs, scaling=self.scaling, seed=self.seed
        )

    @property
    def references_to_fit(self) -> int:
        """K under the rule `conformal`; none under `seed`, which looks at the owner's own fine-tune alone."""
        return self.references if self.rule == "conformal" else 0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"population": self.population.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises UnknownNameError for an option that does not exist."""
        known = {f.name for f in dataclasses.fields(cls)}
        for name in data:
            if name not in known:
                raise UnknownNameError("guard option", str(name), known)
        population = HonestPopulation.from_json(data.get("population", {}))
        return cls(**{**data, "population": population})
