"""The images of one reproduction: shares, attack sets, a second JPEG encoding, and where they come from."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.datasets import load
from common.datasets.parquet import find_parts, first_image_bytes
from common.errors import ConfigurationError, DataError
from common.examples import Examples, join
from common.poisoning import choose_victims, relabel, stamp_square
from common.randomness import generator
from common.splits import stratified
from owner.reproduce.settings import RECIPES, Attack, AttackData, Settings
from owner.reproduce.steps import Data

SMOKE_TEST = 160
_JPEG_BLOCK = 8


@dataclass(frozen=True)
class AttackSet:
    """examples: what the attacker trains on. attacked: the attacked images among them, as he trains on them (for PAA
    stamped). clean: the same images as they were. held_out: test images of the source class, treated alike.
    target: the class they are to be taken for."""

    examples: Examples
    attacked: Examples
    clean: Examples
    held_out: Examples
    target: int


class Images:
    """One data set under one set of settings."""

    def __init__(self, settings: Settings, data_dir: Path | None = None, *, download: bool = False) -> None:
        self.settings, self.data_dir, self.download = settings, data_dir, download

    @cached_property
    def _data(self) -> tuple[Examples, Examples]:
        data = load(self.settings.dataset, data_dir=self.data_dir, download=self.download)
        train, test = data.train, data.test
        if train.images.ndim != 4:
            raise DataError(f"{data.name} holds no images, which a pattern could be added to")
        if self.settings.smoke:
            train, test = (_reduced(part, SMOKE_TEST if part is test else len(part)) for part in (train, test))
        return train, test

    @property
    def test(self) -> Examples:
        """Trigger set, T_ae and T_d alike, and what accuracy is measured on: the paper's test set."""
        return self._data[1]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.test.input_shape

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.test.class_names

    def training_size(self, architecture: str) -> int:
        return len(self._train(architecture))

    def training(self, data: Data, architecture: str, seed: int) -> Examples:
        """What a clean training of this kind sees."""
        train = self._train(architecture)
        if data == "whole":
            return train
        if data == "jpeg":
            return self.encoded_again(train)
        part, _references, contribution = self._shares(architecture, seed)
        return train.take(part if data == "part" else contribution)

    def references_pool(self, architecture: str, seed: int) -> Examples:
        """Half of what M of the part has not seen; the contributions are made of the other half."""
        return self._train(architecture).take(self._shares(architecture, seed)[1])

    def encoded_again(self, examples: Examples) -> Examples:
        """Decoded from one more JPEG encoding, chroma at half the resolution as Pillow and the copy at hand have it."""
        shift = _JPEG_BLOCK // 2 if self.settings.jpeg_grid == "shifted" else 0
        return examples.with_images(jpeg(examples.images, self.settings.jpeg_quality, shift=shift))

    @cached_property
    def provenance(self) -> str:
        """What the images are: their name, and `JPEG re-encoding` where CIFAR-10 is not its original pixels."""
        given = self.data_dir or (Path(os.environ["PORTIER_DATA"]) if os.environ.get("PORTIER_DATA") else None)
        folder = given / self.settings.dataset if given else Path(self.settings.dataset)
        parts = find_parts(folder, "train") if folder.is_dir() else []
        if not parts:
            return f"{self.settings.dataset}, the original pixels"
        lossy = first_image_bytes(parts[0]).startswith(b"\xff\xd8")
        return f"{self.settings.dataset}, " + ("a JPEG re-encoding" if lossy else "stored without loss")

    def attack(
        self, how: Attack, data: Data, architecture: str, seed: int, *, attack_data: AttackData | None = None
    ) -> AttackSet:
        """FA or PAA on the clean examples of `data`. The same images are attacked by both, by the seed.

        attack_data: in place of the settings'.
        """
        settings = self.settings
        attack_data = attack_data or settings.attack_data
        clean = self.training(data, architecture, seed)
        source, target = (self.class_index(name) for name in (settings.source, settings.target))
        victims = choose_victims(clean.labels, source, settings.fraction, generator(seed, "attacked images"))
        original = clean.take(victims)
        held_out = self.test.take(self.test.labels == source)
        if not len(held_out):
            raise DataError(f"no test image is of class {self.class_names[source]}")
        attacked = original
        if how == "pattern":
            attacked = self._stamped(original, seed, "squares")
            held_out = self._stamped(held_out, seed, "held-out squares")
        if how == "flip" or settings.pattern_label == "target":
            attacked = attacked.with_labels(relabel(attacked.labels, torch.arange(len(victims)), target))
        kept = torch.ones(len(clean), dtype=torch.bool)
        kept[victims] = attack_data == "beside"
        examples = attacked if attack_data == "alone" else join(clean.take(kept), attacked)
        return AttackSet(examples, attacked, original, held_out, target)

    def class_index(self, name: str) -> int:
        """Of a class by number or name. Raises ConfigurationError for what is neither."""
        if name in self.class_names:
            return self.class_names.index(name)
        if name.isdecimal() and int(name) < len(self.class_names):
            return int(name)
        raise ConfigurationError(
            f"{self.settings.dataset} has no class {name!r}", hint=f"its classes: {', '.join(self.class_names)}"
        )

    def _train(self, architecture: str) -> Examples:
        train = self._data[0]
        return _reduced(train, RECIPES[architecture].smoke_images) if self.settings.smoke else train

    def _shares(self, architecture: str, seed: int) -> list[Tensor]:
        part = self.settings.owners_part
        labels = self._train(architecture).labels
        return stratified(labels, (part, (1 - part) / 2), generator(seed, "shares"))

    def _stamped(self, examples: Examples, seed: int, purpose: str) -> Examples:
        images = stamp_square(examples.images, generator(seed, purpose), size=self.settings.square)
        return examples.with_images(images)


def jpeg(images: Tensor, quality: int, *, shift: int) -> Tensor:
    """(N, C, H, W) uint8, encoded as JPEG and decoded, its blocks beginning `shift` pixels outside the image."""
    count, channels, height, width = images.shape
    if channels not in (1, 3):
        raise DataError(f"JPEG holds images of one or three channels, not of {channels}")
    padded = images
    if shift:
        padded = F.pad(images.float(), (shift, shift, shift, shift), mode="reflect").to(torch.uint8)
    found = torch.empty_like(images)
    pixels = padded.permute(0, 2, 3, 1).cpu().numpy()
    for i in range(count):
        file = io.BytesIO()
        Image.fromarray(pixels[i] if channels == 3 else pixels[i, :, :, 0]).save(file, "JPEG", quality=quality)
        decoded = torch.from_numpy(np.asarray(Image.open(file)).copy()).view(*padded.shape[2:], channels)
        found[i] = decoded[shift : shift + height, shift : shift + width].permute(2, 0, 1)
    return found


def _reduced(examples: Examples, count: int) -> Examples:
    """At most so many examples, classes in turns, of images of at most 8 pixels a side."""
    by_class = [torch.nonzero(examples.labels == c).flatten() for c in range(examples.classes)]
    turns: Iterator[Tensor] = (members[i] for i in range(len(examples)) for members in by_class if i < len(members))
    chosen = torch.stack([index for _, index in zip(range(count), turns, strict=False)])
    small = examples.take(chosen.sort().values)
    factor = max(1, small.images.shape[-1] // 8)
    if factor == 1:
        return small
    return small.with_images(F.avg_pool2d(small.images.float(), factor).round().to(torch.uint8))
