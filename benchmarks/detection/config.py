"""What a detection benchmark is made of: one TOML file says all of it."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigurationError
from common.training_options import Augmentation, TrainingOptions
from owner.gatekeeper.references import POPULATION_VERSION
from owner.population import HonestPopulation

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Shares:
    """train, references: of the training set; the rest of it is the contributors', honest and attacking.
    fit, calibration, evaluation: of the test set, for T_ae, T_cal and the utility check; on the rest attacks are measured.
    """

    train: float
    references: float
    fit: float
    calibration: float
    evaluation: float


@dataclass(frozen=True)
class Family:
    """Attacked models of one kind.

    specs: what `--attack` takes, `{source}` and `{target}` left open: two different classes drawn for each model. They take
        turns, so that every dose has as many models.
    learning_rate, epochs: ranges of factors on what the owner recommends; the attacker chooses his own.
    count: models a base.
    augmentation: the attacker's, where not the recommended one (a trigger at the border does not survive cropping).
    probes: kinds of the probe bank that come close to its trigger, and are left out for the figure "without its probes".
    """

    name: str
    specs: tuple[str, ...]
    count: int
    learning_rate: tuple[float, float] = (1.0, 3.0)
    epochs: tuple[float, float] = (1.0, 2.0)
    augmentation: Augmentation | None = None
    probes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Family:
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
        return cls(**fields)


@dataclass(frozen=True)
class Config:
    name: str
    dataset: str
    classes: int
    architecture: str
    shares: Shares
    training: TrainingOptions
    finetuning: TrainingOptions
    population: HonestPopulation
    fitting: int
    calibration: int
    honest: int
    families: tuple[Family, ...]
    development: tuple[int, ...]
    final: tuple[int, ...]
    placebos: int = 0
    """Honest models a base that are trained as the families' attackers train, families by turns: whether a gate sees the attack, or its
    rate, its epochs and what it does without."""
    remark: str = ""
    """What a reader of the report must know beside what it says by itself."""

    @classmethod
    def load(cls, name_or_path: str) -> Config:
        """A configuration that ships, by name, or one's own, by path. One that `extends` another has what it does not say itself
        from there, table by table; `further_families` stand beside the other's. Raises ConfigurationError."""
        path = _find(name_or_path)
        try:
            raw = tomllib.loads(path.read_text("utf-8"))
            if "extends" in raw:
                raw = tomllib.loads(_find(raw["extends"]).read_text("utf-8")) | raw
            return cls.parse(raw, path.stem)
        except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{path}: {error!r}") from error

    def kin(self, family: Family) -> set[str]:
        """Names of the families whose triggers come near the same kinds of probes as this one's, itself among them: attacks carry each
        other's triggers, and a choice that saw `patches` carried by one has seen those of another."""
        return {one.name for one in self.families if one is family or set(one.probes) & set(family.probes)}

    def made_with(self) -> dict[str, Any]:
        """What every model depends on beside its own plan, as JSON: models made with something else are of another benchmark."""
        return {
            "dataset": self.dataset,
            "classes": self.classes,
            "architecture": self.architecture,
            "shares": dataclasses.asdict(self.shares),
            "training": self.training.to_json(),
            "finetuning": self.finetuning.to_json(),
            "population": self.population.to_json(),
            "population_version": POPULATION_VERSION,
        }

    @classmethod
    def parse(cls, raw: dict[str, Any], name: str) -> Config:
        return cls(
            name=name,
            dataset=raw["dataset"],
            classes=raw["classes"],
            architecture=raw["architecture"],
            shares=Shares(**raw["shares"]),
            training=TrainingOptions.from_json(raw["training"]),
            finetuning=TrainingOptions.from_json(raw["finetuning"]),
            population=HonestPopulation.from_json(raw["population"]),
            fitting=raw["references"]["fitting"],
            calibration=raw["references"]["calibration"],
            honest=raw["honest"],
            families=tuple(Family.parse(one) for one in (*raw["families"], *raw.get("further_families", ()))),
            development=tuple(raw["bases"]["development"]),
            final=tuple(raw["bases"]["final"]),
            placebos=raw.get("placebos", 0),
            remark=raw.get("remark", ""),
        )


def _find(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = CONFIGS / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.toml")))
        raise ConfigurationError(f"no detection benchmark {name_or_path!r}", hint=f"there are: {known}")
    return path
