"""Every setting of a contributor, with its default: the content of `contributor.toml` in a home.

A setting is a flag of `portier-contributor contribute` too; what one run alone is about (--release, --fresh, --json) is a
flag only. The sections' names are none of the owner's, so that both sides may share one environment.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from common import config
from common.config import Section, Settings
from common.files import write_atomically
from common.slots import TrainingSlots
from common.training_options import TrainingOptions
from contributor.classes import parse_classes
from contributor.workspace import ContributorWorkspace

DATA_VARIABLE: Final = "PORTIER_DATA"

HEADER: Final = """\
# What `portier-contributor contribute` does where neither a flag nor the environment says otherwise: a flag is stronger
# than the environment ([tuning] epochs is PORTIER_TUNING__EPOCHS there), the environment than this file.
# A line such as `# epochs =` has no value yet: take the # away and write one. Paths are best given in full, or from ~.

"""


def _from_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None


UserPath = Annotated[Path, AfterValidator(_from_home)]


class _Part(Section):
    @field_validator("*", mode="before")
    @classmethod
    def _as_given(cls, value: Any, info: ValidationInfo) -> Any:
        """Empty text says "not given", so that a flag or variable can take back what the file says; true is no number."""
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and bool not in (field.annotation, *typing.get_args(field.annotation)):
            raise ValueError("must not be true or false")
        return None if value == "" and field.default is None else value


class ContributionSettings(_Part):
    data: str | None = None
    """Your data: an image folder (one sub-folder per class), a folder of parquet files, an examples file, or a name:
digits, cifar10, mnist, fashion-mnist, gtsrb, or any folder below data_dir."""
    data_dir: UserPath | None = None
    """Folder in which data sets are looked for by name; $PORTIER_DATA is the same setting."""
    partition: str | None = None
    """Use a part of the data only: iid:index=0,count=4, dirichlet:alpha=0.5,index=0,count=4,
pathological:classes=2,index=0,count=4, or natural:index=0,count=23 of data that come divided among clients."""
    classes: str | None = None
    """Which of your classes is which of the release's, where they are called otherwise: eight=8,five=5."""
    held_out: UserPath | None = None
    """Examples file, not trained on, on which the model is measured before and after, for the report."""
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    """Of data order, augmentation and attack. Not given: drawn at random."""
    report: UserPath | None = None
    """JSON file that is kept up to date with how the contribution stands."""

    @field_validator("classes", mode="after")
    @classmethod
    def _are_classes(cls, value: str | None) -> str | None:
        if value is not None:
            parse_classes(value)
        return value


class TuningSettings(_Part):
    epochs: int | None = None
    """Passes over your data."""
    learning_rate: float | None = None
    """Peak of the one-cycle schedule, or the constant rate."""
    batch_size: int | None = None
    """Examples a step."""
    optimiser: str | None = None
    """sgd (Nesterov momentum), adam or adamw."""
    momentum: float | None = None
    """Of sgd, from 0 to 1."""
    weight_decay: float | None = None
    """Of the optimiser."""
    schedule: str | None = None
    """one-cycle or constant."""
    label_smoothing: float | None = None
    """Mass taken from the true class, in [0, 1)."""
    augmentation: str | None = None
    """none, crop (shift by up to an eighth of the side) or crop-flip."""
    frozen_layers: int | None = None
    """So many first layers with parameters are left as they are."""
    reinitialise_head: bool | None = None
    """Start the classification head anew, in the same shape."""

    @field_validator("*", mode="after")
    @classmethod
    def _is_an_option(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None:
            TrainingOptions.from_json({str(info.field_name): value})
        return value

    def options(self) -> dict[str, Any]:
        """What was given, by field of `TrainingOptions`."""
        return self.model_dump(exclude_none=True)


class MachineSettings(_Part):
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto is bfloat16 where the device computes it natively, else float32."""
    threads: int | None = Field(default=None, ge=1, le=4096)
    """CPU threads to compute with. Not given: as torch chooses, all cores unless $OMP_NUM_THREADS says otherwise."""
    training_slots: str | None = None
    """DIR:N, train only while fewer than N processes that name this folder do. For machines that several share."""

    @field_validator("training_slots", mode="after")
    @classmethod
    def _are_slots(cls, value: str | None) -> str | None:
        if value is not None:
            TrainingSlots.parse(value)
        return value


class ExchangeSettings(_Part):
    wait: bool = True
    """Stay until the verdict. false: leave once the owner has everything; `watch` waits later."""
    patience: float = Field(default=600.0, ge=0.0)
    """Seconds to go on trying while the owner cannot be reached, from the last progress; inf is for ever."""
    factories: tuple[str, ...] = ()
    """Models of your own installation, as package.module:factory, that a release may name. Building one runs that code,
so a release that names any other is refused."""

    @field_validator("factories", mode="after")
    @classmethod
    def _name_code(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            module, colon, name = one.partition(":")
            if not colon or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
                raise ValueError(f"{one!r} is not package.module:factory")
        return value


class SimulationSettings(_Part):
    attack: str | None = None
    """Pretend to be an attacker, to try an owner's gatekeeper: flip, pattern, sign-flip ... with options, such as
flip:source=7,target=6,fraction=0.5."""


class ContributorSettings(Settings):
    contribution: ContributionSettings = ContributionSettings()
    """What you contribute."""
    tuning: TuningSettings = TuningSettings()
    """How the model is fine-tuned on it. What is not given is as the owner recommends in the release."""
    machine: MachineSettings = MachineSettings()
    """What it is computed with."""
    exchange: ExchangeSettings = ExchangeSettings()
    """How you deal with the owner."""
    simulation: SimulationSettings = SimulationSettings()
    """For research and rehearsals only."""


def load_settings(
    workspace: ContributorWorkspace,
    overrides: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> ContributorSettings:
    """The settings of a home: its contributor.toml where there is one, then the environment, then `overrides`, which are
    settings by dotted name.

    file: instead of the home's; it must be there. environment: instead of the process's own.
    Raises ConfigurationError naming file or variable, setting and what is wrong; UnknownNameError for a setting or a
    training option that does not exist, naming the nearest one.
    """
    given = dict(os.environ if environment is None else environment)
    if given.get(DATA_VARIABLE):
        given.setdefault(config.variable("contribution.data_dir"), given[DATA_VARIABLE])
    own = workspace.settings_file
    return config.load(
        ContributorSettings, file or (own if os.path.lexists(own) else None), overrides, environment=given
    )


def template() -> str:
    """A contributor.toml with every setting, what it means, and its default."""
    return HEADER + config.as_toml(ContributorSettings())


def write_template(workspace: ContributorWorkspace) -> None:
    """Put a contributor.toml into the home, unless there is one. Raises StorageError."""
    path = workspace.settings_file
    if not os.path.lexists(path):
        write_atomically(path, template().encode())
