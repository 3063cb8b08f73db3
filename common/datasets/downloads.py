"""torchvision's own downloads of the data sets we know by name, for whoever has no parquet copy of them.

torchvision checks each archive against a pinned MD5 before it unpacks it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.datasets.dataset import DataSet
from common.datasets.decoding import decode_images
from common.errors import DataError
from common.examples import Examples

GTSRB_SIDE = 32

_KINDS = {"cifar10": "CIFAR10", "mnist": "MNIST", "fashion-mnist": "FashionMNIST", "gtsrb": "GTSRB"}
_FOLDERS = {"cifar10": "cifar-10-batches-py", "mnist": "MNIST", "fashion-mnist": "FashionMNIST", "gtsrb": "gtsrb"}


def is_downloaded(name: str, root: Path) -> bool:
    return (root / _FOLDERS[name]).is_dir()


def load_download(name: str, root: Path, *, download: bool) -> DataSet:
    """The data set `name` as torchvision keeps it below `root`; with `download`, fetched first where it is missing.

    GTSRB's images have many sizes and are resized to 32x32. Raises DataError where it cannot be had.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        train, test = (_part(name, root, train=train, download=download) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} cannot be had through torchvision in {root}: {error}",
            hint=f"check the network, or put {name}/train.parquet and test.parquet into a folder and name it by "
            "$PORTIER_DATA or the data folder option",
        ) from None
    return DataSet(name, train, test)


def _part(name: str, root: Path, *, train: bool, download: bool) -> Examples:
    # Imported when it is wanted: it takes as long as torch itself.
    kind: Any = getattr(importlib.import_module("torchvision.datasets"), _KINDS[name])
    if name == "gtsrb":
        stored = kind(root, split="train" if train else "test", download=download)
        paths = [Path(path) for path, _ in stored._samples]
        images = decode_images(((str(path), path.read_bytes) for path in paths), len(paths), size=GTSRB_SIDE)
        labels = [label for _, label in stored._samples]
        names = tuple(str(number) for number in range(43))
        return Examples((images,), torch.tensor(labels, dtype=torch.int64), names)
    stored = kind(root, train=train, download=download)
    pixels = torch.as_tensor(np.asarray(stored.data))
    images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    names = tuple(name.partition(" - ")[0] for name in stored.classes) if name == "mnist" else tuple(stored.classes)
    return Examples((images.to(torch.uint8),), torch.as_tensor(stored.targets, dtype=torch.int64), names)
