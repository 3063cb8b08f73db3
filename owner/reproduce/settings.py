"""What the paper leaves open, each a named option, and how each architecture is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, get_args

from common.errors import ConfigurationError, UnknownNameError
from common.training_options import Augmentation, TrainingOptions

AttackData = Literal["inside", "beside", "alone"]
PatternLabel = Literal["target", "own"]
HonestEpochs = Literal["as-attack", "short", "long"]
FinetuneAugmentation = Literal["as-training", "none", "crop", "crop-flip"]
JpegGrid = Literal["shifted", "same"]
Attack = Literal["flip", "pattern"]

ATTACKS: Final[tuple[Attack, ...]] = ("flip", "pattern")
LAST_RATE: Final = 0.01
"""Of the peak, where one cycle of training ends (`common.training.learning_rate`): the experiment `slow` fine-tunes at it."""

CALIBRATED: Final = ("cnn", "resnet18")
"""Architectures whose calibrated gate is fitted beside the paper's rule."""


@dataclass(frozen=True)
class Recipe:
    """How M of one architecture is trained from scratch; one-cycle SGD, see `common.training.learning_rate`.

    smoke_images: training images of a `smoke` run, few where a step is slow.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    smoke_images: int = 160


RECIPES: Final[Mapping[str, Recipe]] = {
    "cnn": Recipe(80, 0.05, 128),
    "resnet18": Recipe(30, 0.2, 500),
    "vgg19": Recipe(40, 0.1, 500, smoke_images=40),
    "resnet152": Recipe(40, 0.1, 250, smoke_images=40),
    "wrn-28-10": Recipe(30, 0.1, 250, smoke_images=40),
}
"""In the order in which they are run: Wide-ResNet last, whose tables take twice the operations of all the others' together. Batches of a GPU divide
every set that is trained on (50,000, 40,000, 5,000 images): a last batch of another size would be compiled anew, for minutes."""


@dataclass(frozen=True)
class Settings:
    """The options of one reproduction. Defaults are the paper's where it says, and our reading of it where it does not.

    dataset: name or path, as `common.datasets.load` takes it. The paper's is cifar10.
    source, target: the attacked class and the one its images are to be taken for, by number or name (horse to frog: the
        paper's Fig. 2 shows that pair and names none).
    fraction: of the images of the source class that are attacked (the paper's 50 %).
    square: side of the white square in pixels; None is 5/32 of the side, the paper's 5 on CIFAR-10.
    attack_data: fine-tune on the attacked images `inside` the training set, in place of their originals (its "corrupted training
        set"), `beside` it, whose originals stay as they are, or `alone` (its "fine-tuning of these attack sets").
    pattern_label: PAA images are labelled as the `target` class, or keep their `own` label.
    short, long: epochs of fine-tuning. wide_factor: Wide-ResNet's are so many times longer (the paper's 50 and 100).
    honest_epochs: M_f of Eq. 4 is fine-tuned as long as the attack it is compared with, or always `short` or `long`.
    finetune_rate: constant rate of fine-tuning as a share of the training's peak (the paper: a tenth of the initial rate).
    finetune_augmentation: of honest and attacked images alike.
    epochs, learning_rate, batch_size: of training from scratch, in place of the architecture's recipe.
    augmentation, weight_decay, label_smoothing: of training from scratch (and, but for augmentation, of fine-tuning).
    hidden, latent, autoencoder_epochs: of the auto-encoder.
    improve: architectures for which Fig. 6 is made: M of `part` of the training set, fine-tuned on all of it.
    references: K of the calibrated gate.
    jpeg_quality, jpeg_grid: of the second JPEG encoding; its 8x8 blocks where the first had them, or shifted by half a
        block. On the same grid encoding again changes next to nothing (0.1 grey levels against 5), and says nothing.
    smoke: everything tiny, to see that it runs; no figure of such a run means anything.

    Raises ConfigurationError, UnknownNameError.
    """

    dataset: str = "cifar10"
    source: str = "7"
    target: str = "6"
    fraction: float = 0.5
    square: int | None = None
    attack_data: AttackData = "inside"
    pattern_label: PatternLabel = "target"
    short: int = 25
    long: int = 50
    wide_factor: int = 2
    honest_epochs: HonestEpochs = "as-attack"
    finetune_rate: float = 0.1
    finetune_augmentation: FinetuneAugmentation = "as-training"
    epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    augmentation: Augmentation = "crop-flip"
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    hidden: int = 256
    latent: int = 64
    autoencoder_epochs: int = 60
    improve: tuple[str, ...] = ("resnet18",)
    part: float = 0.8
    references: int = 19
    jpeg_quality: int = 75
    jpeg_grid: JpegGrid = "shifted"
    smoke: bool = False

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise UnknownNameError(name.replace("_", "-"), str(getattr(self, name)), get_args(kind))
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigurationError(f"{name.replace('_', '-')} must be from {low:g} to {high:g}, not {value:g}")
        if self.source == self.target:
            raise ConfigurationError(f"source and target are the same class, {self.source}", hint="name two classes")
        if self.short >= self.long:
            raise ConfigurationError(f"short must be below long, not {self.short} and {self.long} epochs")
        for name in self.improve:
            check_architecture(name)

    def training(self, architecture: str, seed: int) -> TrainingOptions:
        """Of M from scratch."""
        recipe = RECIPES[architecture]
        if self.smoke:
            recipe = Recipe(1, recipe.learning_rate, 32)
        return TrainingOptions(
            epochs=self.epochs or recipe.epochs,
            learning_rate=recipe.learning_rate if self.learning_rate is None else self.learning_rate,
            batch_size=self.batch_size or recipe.batch_size,
            weight_decay=self.weight_decay,
            label_smoothing=self.label_smoothing,
            augmentation=self.augmentation,
            seed=seed,
        )

    def finetuning(self, architecture: str, seed: int) -> TrainingOptions:
        """Of every fine-tune, honest or attacked, over the long duration; the rate is constant, so that the model after
        the short one is met on the way."""
        base = self.training(architecture, seed)
        chosen = self.finetune_augmentation
        return dataclasses.replace(
            base,
            epochs=self.durations(architecture)[1],
            learning_rate=base.learning_rate * self.finetune_rate,
            schedule="constant",
            augmentation=base.augmentation if chosen == "as-training" else chosen,
        )

    def durations(self, architecture: str) -> tuple[int, int]:
        """Epochs of the short and the long fine-tuning.

        >>> Settings().durations("resnet18"), Settings().durations("wrn-28-10")
        ((25, 50), (50, 100))
        """
        if self.smoke:
            return 1, 2
        factor = self.wide_factor if architecture.startswith("wrn") else 1
        return factor * self.short, factor * self.long

    @property
    def owners_part(self) -> float:
        """Share of the training set that M of Fig. 6 and of the calibrated gate sees; half of a smoke run's few images."""
        return 0.5 if self.smoke else self.part

    @property
    def ae_epochs(self) -> int:
        return 2 if self.smoke else self.autoencoder_epochs

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"improve": list(self.improve)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises UnknownNameError for an option that does not exist."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in data:
            if name not in known:
                raise UnknownNameError("option", str(name), known)
        return cls(**{**data, "improve": tuple(data.get("improve", ()))})


def check_architecture(name: str) -> str:
    """Raises UnknownNameError where the paper has no such architecture."""
    if name not in RECIPES:
        raise UnknownNameError("architecture", name, RECIPES)
    return name


_CHOICES: Final = {
    "attack_data": AttackData,
    "pattern_label": PatternLabel,
    "honest_epochs": HonestEpochs,
    "finetune_augmentation": FinetuneAugmentation,
    "augmentation": Augmentation,
    "jpeg_grid": JpegGrid,
}
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "fraction": (0.001, 1),
    "square": (1, 4096),
    "short": (1, 10_000),
    "long": (2, 10_000),
    "wide_factor": (1, 100),
    "finetune_rate": (1e-6, 10),
    "epochs": (1, 10_000),
    "learning_rate": (1e-6, 100),
    "batch_size": (2, 1 << 16),
    "label_smoothing": (0, 0.999),
    "weight_decay": (0, 10),
    "hidden": (1, 1 << 16),
    "latent": (1, 1 << 16),
    "autoencoder_epochs": (1, 100_000),
    "part": (0.05, 0.95),
    "references": (19, 9999),
    "jpeg_quality": (1, 95),
}
