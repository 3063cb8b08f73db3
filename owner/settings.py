"""Every setting of an owner, with its default: the content of `portier.toml` in a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from common.config import Section, Settings
from common.errors import ConfigurationError, ResolutionError
from common.training_options import TrainingOptions
from owner.choices import DETECTOR_NAMES, ESCALATIONS, PAPER, PRESETS, STANDARD, expand
from owner.levels import RuleName, check_levels, check_tier
from owner.population import HonestPopulation

Share = Field(ge=0.0, le=1.0)


class DataSettings(Section):
    name: str = "digits"
    """Data set by name (digits, cifar10, mnist, fashion-mnist, gtsrb) or path (image folder, parquet folder, file)."""
    dir: Path | None = None
    """Folder that holds <name>/{train,test}.parquet; where it is not given, $PORTIER_DATA."""
    size: int = Field(default=0, ge=0, le=8192)
    """Side in pixels that images in files are resized to (antialiased, aspect not kept); 0: they stay as they are, and must all
    be of one size. Contributors' images are brought to the size that comes of it."""
    seed: int = 0
    """Seed of the split into disjoint shares."""
    train: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of the training set that the owner's model is trained on."""
    references: float = Field(default=0.2, gt=0.0, le=1.0)
    """Share of the training set kept as reference pool: images the model never sees in training."""
    trigger_fit: float = Field(default=0.3, gt=0.0, le=1.0)
    """Share of the test set on which the detectors are fitted."""
    trigger_calibration: float = Field(default=0.3, gt=0.0, le=1.0)
    """Share of the test set on which models are scored."""
    # What is left of the training set belongs to nobody (a simulation gives it to contributors), what is left of the
    # test set is the evaluation share.

    @field_validator("size", mode="before")
    @classmethod
    def _as_they_are(cls, given: object) -> object:
        return 0 if given == "" else given

    @model_validator(mode="after")
    def _disjoint(self) -> DataSettings:
        if self.train + self.references > 1.0:
            raise ValueError("train + references must not exceed 1, the shares are disjoint")
        if self.trigger_fit + self.trigger_calibration >= 1.0:
            raise ValueError("trigger_fit + trigger_calibration must leave some of the test set for evaluation")
        return self


class ModelSettings(Section):
    architecture: str = "cnn"
    """Architecture by name (see `portier-owner init --help`) or package.module:factory."""
    head: str | None = None
    """Dotted name of the classification head, where the last linear layer of the forward pass is not it."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto is bfloat16 where the device computes it natively, else float32."""


class GuardSettings(Section):
    detectors: tuple[str, ...] = (STANDARD,)
    """What returned models are measured by: standard (those of docs/detectors.md that the benchmark chose), paper (the activation
    auto-encoder alone), or detectors by name. Of several, one combined score decides."""
    modules: tuple[str, ...] = ()
    """Python modules that register detectors of your own (docs/from-python.md). Whatever fits or reads a guard imports them first:
    name none but code that you trust with this workspace."""
    combination: Literal["max", "sum", "top3", "fisher", "mahalanobis", "families", "detectors"] = "detectors"
    """How several detectors become one score (docs/detectors.md)."""
    given_size: bool = True
    """Whether they are judged given how far the update went: who trains longer moves everything further, honestly."""
    fitting_references: int = Field(default=19, ge=2, le=9999)
    """Honest fine-tunes beside the K that fit the scales of the combined score; none are made for one detector."""
    references: int = Field(default=19, ge=1, le=9999)
    """K, the number of honest reference fine-tunes that calibrate; the finest p-value is 1 / (K + 1)."""
    rule: RuleName = "conformal"
    """conformal: p-value over the references. seed: the paper's Eq. 4, one honest fine-tune; with detectors = ["paper"]."""
    reject_level: float = Field(default=0.05, gt=0.0, lt=1.0)
    """a_reject: a submission with p <= a_reject is rejected."""
    quarantine_level: float = Field(default=0.10, gt=0.0, lt=1.0)
    """a_quarantine: a submission with a_reject < p <= a_quarantine waits for a person."""
    seed: int = 0
    """Seed of the auto-encoder and of the references."""
    fit: Literal["eager", "on-demand"] = "eager"
    """eager: fit the guard of a new release as soon as it is published. on-demand: when a submission is based on it."""
    hidden: int = Field(default=256, ge=1)
    """Width of the auto-encoder's hidden layers."""
    latent: int = Field(default=64, ge=1)
    """Size of the auto-encoder's latent layer."""
    epochs: int = Field(default=60, ge=1)
    """Epochs the auto-encoder is trained for."""
    incremental: bool = False
    """Keep the weights of the honest fine-tunes (1 + references, and fitting_references with several detectors, each as large as
    the model), and move them to the next release where it is small news, instead of training."""
    incremental_news: float = Field(default=1.0, gt=0.0)
    """Small news: since the fine-tunes were trained, all releases together moved at most so many times as far as a median one."""
    incremental_generations: int = Field(default=3, ge=1)
    """After so many releases in a row that were guarded so, fine-tunes are trained again."""
    root_action: Literal["quarantine", "record"] = "quarantine"
    """What happens to a would-be release that the root release's guard finds inconsistent with honest fine-tuning."""
    escalation: Literal["off", "maximum-margin", "trigger-inversion", "both"] = "off"
    """What looks again, by gradients, at a submission that p alone put into quarantine, and may accept or reject it. It is
    calibrated when the first such submission comes, which takes escalation_references fine-tunes and searches."""
    escalation_references: int = Field(default=19, ge=1, le=9999)
    """K of the escalation tier: the first so many of the references, made again."""
    escalation_reject_level: float = Field(default=0.05, gt=0.0, lt=1.0)
    """A submission in quarantine with an escalation p <= this is rejected."""
    escalation_quarantine_level: float = Field(default=0.5, gt=0.0, lt=1.0)
    """One with an escalation p above this is accepted; in between it stays for a person."""

    @field_validator("detectors", "modules", mode="before")
    @classmethod
    def _one_name(cls, given: object) -> object:
        return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given

    @field_validator("modules")
    @classmethod
    def _importable(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
                raise ValueError(
                    f"{name!r} is no name of a module; write my_detectors for my_detectors.py, with its folder in PYTHONPATH"
                )
        return given

    @model_validator(mode="after")
    def _detectors(self) -> GuardSettings:
        if not self.detectors:
            raise ValueError("detectors must name at least one: paper, standard, or detectors by name")
        unknown = [name for name in expand(self.detectors) if name not in DETECTOR_NAMES]
        # What modules register is known once they are imported, which only whoever needs a guard does.
        if unknown and not self.modules:
            raise ValueError(
                f"detectors: there is no {unknown[0]!r}; paper, standard, or any of {', '.join(DETECTOR_NAMES)}; one of your own is "
                "known by the module that registers it, in guard.modules"
            )
        if self.rule == "seed" and expand(self.detectors) != PRESETS[PAPER]:
            raise ValueError(
                "the rule seed (Eq. 4) is the paper's, for detectors = ['paper']; several need the rule conformal"
            )
        return self

    @model_validator(mode="after")
    def _levels(self) -> GuardSettings:
        try:
            check_levels(self.reject_level, self.quarantine_level, rule=self.rule, references=self.references)
            if ESCALATIONS[self.escalation]:
                check_tier(
                    self.escalation_reject_level,
                    self.escalation_quarantine_level,
                    rule=self.rule,
                    references=self.escalation_references,
                    of=self.references,
                )
        except ResolutionError as error:
            raise ConfigurationError(error.message, hint=error.hint) from error
        return self


class HistorySettings(Section):
    level: float = Field(default=0.05, ge=0.001, le=0.5)
    """False alarms that so many honest submissions of one contributor may raise together, as a probability."""
    submissions: int = Field(default=50, ge=2, le=100)
    """How many of a contributor's newest submissions are looked at together."""
    per_guard: int = Field(default=50, ge=1)
    """How many successive ones are assumed to be compared with the same references; the more, the higher the threshold. Guards of
    successive releases plan their references alike, so the careful assumption is all of them."""
    action: Literal["quarantine", "record"] = "quarantine"
    """What happens to a submission whose contributor's history is not consistent with honest fine-tuning."""


class UtilitySettings(Section):
    accuracy_drop: float = Field(default=0.01, ge=0.0, le=1.0)
    """Accuracy the would-be release may lose against the current one."""
    recall_drop: float = Field(default=0.05, ge=0.0, le=1.0)
    """Recall any class may lose beyond binomial noise."""


class MergeSettings(Section):
    policy: Literal["average", "replace"] = "average"
    """average: current + weight * (submission - its base). replace: the submission itself, from the current release only."""
    weight: float = Field(default=0.5, gt=0.0, le=1.0)
    """w of the average policy."""
    bases_allowed: int = Field(default=3, ge=1)
    """How many releases back a submission may be based on (1: the current one only)."""


class ServiceSettings(Section):
    host: str = "0.0.0.0"  # noqa: S104 - contributors are on other machines
    """Address to listen on."""
    port: int = Field(default=7443, ge=0, le=65535)
    """Port of the mutual-TLS service; 0 picks a free one."""
    enrolment_port: int = Field(default=7444, ge=0, le=65535)
    """Port of the enrolment listener; 0 picks a free one."""
    names: tuple[str, ...] = Field(default=("localhost", "127.0.0.1"), min_length=1)
    """Host names and addresses the service is reached by: they go into its certificate and into invitations. Where ports are
forwarded to those above, host:port or host:port/enrolment_port; invitations name these, the certificate the host."""
    certificate_days: int = Field(default=90, ge=1, le=825)
    """Lifetime of TLS certificates; contributors renew theirs in the last third."""
    invitation_hours: float = Field(default=72.0, gt=0.0)
    """Lifetime of an invitation."""


class QuotaSettings(Section):
    upload_bytes: int = Field(default=8 << 30, ge=1)
    """Bytes a contributor may have on the owner's disk in open and undecided submissions."""
    open_submissions: int = Field(default=2, ge=1)
    """Submissions of one contributor that may be uploading at a time."""
    streams: int = Field(default=8, ge=1)
    """Calls one contributor may have open at a time."""
    tries_per_release: int = Field(default=5, ge=1)
    """Submissions one contributor may hand in against one release."""
    upload_hours: float = Field(default=24.0, gt=0.0)
    """An upload untouched for so long is dropped."""
    quarantine: int = Field(default=100, ge=1)
    """Submissions that may wait in quarantine; beyond it they are rejected."""
    quarantine_per_contributor: int = Field(default=10, ge=1)
    """Of these, submissions of one contributor; beyond it theirs are rejected, and others' still find room."""
    quarantine_days: float = Field(default=30.0, gt=0.0)
    """A quarantined submission nobody promotes is rejected after so long."""


class VettingSettings(Section):
    timeout_seconds: float = Field(default=600.0, gt=0.0)
    """Time one vetting may take before it is stopped and the submission quarantined."""
    memory_mib: int = Field(default=8192, ge=64)
    """Memory the vetting process may take beyond what it needs to start."""


class OwnerSettings(Settings):
    data: DataSettings = DataSettings()
    """What `init` reads and divides, once and for all: later commands take the division as it is, and refuse other values."""
    model: ModelSettings = ModelSettings()
    training: TrainingOptions = TrainingOptions(epochs=30, batch_size=64)
    """How the owner's model is trained."""
    finetuning: TrainingOptions = TrainingOptions(epochs=5, learning_rate=0.005, batch_size=32, schedule="constant")
    """How contributors are asked to fine-tune: published in the release manifest, and what the references follow."""
    guard: GuardSettings = GuardSettings()
    population: HonestPopulation = HonestPopulation()
    """How honest contributors are assumed to differ from what the release recommends; the references are drawn from this."""
    history: HistorySettings = HistorySettings()
    utility: UtilitySettings = UtilitySettings()
    merge: MergeSettings = MergeSettings()
    service: ServiceSettings = ServiceSettings()
    quotas: QuotaSettings = QuotaSettings()
    vetting: VettingSettings = VettingSettings()
