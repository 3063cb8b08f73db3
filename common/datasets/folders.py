"""Image folders in torchvision's ImageFolder layout: one sub-folder a class, any depth below it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from common.datasets.dataset import DataSet, hold_out
from common.datasets.decoding import Source, decode_images
from common.errors import DataError
from common.examples import Examples

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def load_folder(root: Path, *, size: int | tuple[int, int] | None, seed: int) -> DataSet:
    """The data set below `root`: `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone, of which a quarter of
    each class, by `seed`, becomes the test set (so too where there is `train/` and no `test/`).

    Classes are the names of the sub-folders, sorted. Raises DataError for a folder without classes, a class without
    images, a test class that the training set lacks, and all that `decode_images` refuses.
    """
    train, test = root / "train", root / "test"
    if not train.is_dir():
        return hold_out(root.name, _read(root, _classes(root), size), seed=seed)
    classes = _classes(train)
    if not test.is_dir():
        return hold_out(root.name, _read(train, classes, size), seed=seed)
    for name in _classes(test):
        if name not in classes:
            raise DataError(
                f"{test} has a class {name!r} that {train} lacks", hint=f"training classes: {', '.join(classes)}"
            )
    return DataSet(root.name, _read(train, classes, size), _read(test, classes, size, all_needed=False))


def folder_images(root: Path) -> list[Source]:
    """The encoded images that `load_folder` decodes. Raises DataError as it does, but for what is wrong with an image."""
    train, test = root / "train", root / "test"
    if not train.is_dir():
        return list(map(_source, _listed(root, _classes(root))[0]))
    paths, _ = _listed(train, _classes(train))
    if test.is_dir():
        paths += _listed(test, _classes(test), all_needed=False)[0]
    return list(map(_source, paths))


def has_classes(root: Path) -> bool:
    """Whether there is a sub-folder that could be a class (or `train`)."""
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in root.iterdir())


def _classes(root: Path) -> tuple[str, ...]:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{root} has no sub-folders", hint="put the images of each class into a sub-folder of its name")
    return tuple(names)


def _read(
    root: Path, classes: tuple[str, ...], size: int | tuple[int, int] | None, *, all_needed: bool = True
) -> Examples:
    paths, labels = _listed(root, classes, all_needed=all_needed)
    images = decode_images(map(_source, paths), len(paths), size=size)
    return Examples((images,), torch.tensor(labels, dtype=torch.int64), classes)


def _listed(root: Path, classes: tuple[str, ...], *, all_needed: bool = True) -> tuple[list[Path], list[int]]:
    """Paths, and the class of each."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images(root / name)
        if not found and all_needed:
            raise DataError(
                f"the class folder {root / name} holds no image", hint=f"known suffixes: {', '.join(sorted(SUFFIXES))}"
            )
        paths += found
        labels += [label] * len(found)
    return paths, labels


def _images(folder: Path) -> list[Path]:
    return sorted(
        Path(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    )


def _source(path: Path) -> Source:
    def fetch() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None

    return str(path), fetch
