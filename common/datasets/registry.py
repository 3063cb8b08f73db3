"""From a name or a path to a data set in memory."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common.datasets import decoding
from common.datasets.cache import cache_directory
from common.datasets.dataset import DataSet, hold_out
from common.datasets.downloads import is_downloaded, load_download
from common.datasets.files import SUFFIX, load_file, load_file_folder
from common.datasets.folders import folder_images, has_classes, load_folder
from common.datasets.parquet import find_parts, load_parquet, parquet_images
from common.datasets.synthetic import NAME as SYNTHETIC
from common.datasets.synthetic import load_synthetic, parse_synthetic
from common.errors import DataError, UnknownNameError
from common.examples import Examples

NAMES = ("digits", "synthetic", "cifar10", "mnist", "fashion-mnist", "gtsrb")
"""Data sets known by name. `-` and `_` are the same."""


def load(
    name_or_path: str,
    *,
    data_dir: Path | None = None,
    download: bool = False,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
) -> DataSet:
    """The data set called `name_or_path`, or that is kept at this path.

    A name is `digits` (comes with scikit-learn), `synthetic` or `synthetic:alpha=0.5,beta=0.5` (generated, see
    `common.datasets.synthetic`), one of NAMES, or any other folder below the data folder. cifar10, mnist, fashion-mnist
    and gtsrb are read from `<data_dir>/<name>/{train,test}.parquet`, else from where torchvision keeps its downloads. A path
    is an image folder, a folder of parquet or of examples files, or one examples file.

    data_dir: folder of data sets; None is $PORTIER_DATA.
    download: let torchvision fetch what is missing, into `data_dir` or the user's cache folder.
    seed: of the held-out quarter, for data that come without a test set.
    size: side, or (height, width), that images read from encoded files are resized to.

    >>> digits = load("digits")
    >>> len(digits.train), len(digits.test), digits.train.input_shape
    (1350, 447, (1, 8, 8))

    Raises UnknownNameError naming the nearest data set, DataError saying what is wrong with the data and what to do.
    """
    read = _reader(name_or_path, data_dir, download=download, seed=seed, size=size)
    try:
        return read()
    except OSError as error:
        raise DataError(f"{name_or_path} cannot be read: {error.strerror}") from None


def find(name_or_path: str, *, data_dir: Path | None = None) -> None:
    """Raises what `load` does where there is no such data set, without reading one: an answer at once, whatever its size."""
    _reader(name_or_path, data_dir, download=False, seed=0, size=None)


def image_sizes(name_or_path: str, *, data_dir: Path | None = None) -> Counter[tuple[int, int]] | None:
    """How many encoded images there are of each (width, height), training and test set together; None for data that are kept
    in another form, which `load` decodes nothing of and does not resize.

    Only headers are read, so it takes a fraction of what `load` does, and memory for none of them.
    Raises what `load` does, but for an image that is damaged behind its header.
    """
    reader = _reader(name_or_path, data_dir, download=False, seed=0, size=None)
    try:
        if reader.func is load_folder:
            sources = folder_images(*reader.args)
            return decoding.image_sizes(sources, len(sources))
        if reader.func is load_parquet and (found := parquet_images(*reader.args)) is not None:
            return decoding.image_sizes(*found)
    except OSError as error:
        raise DataError(f"{name_or_path} cannot be read: {error.strerror}") from None
    return None


def _reader(
    name_or_path: str, data_dir: Path | None, *, download: bool, seed: int, size: int | tuple[int, int] | None
) -> partial[DataSet]:
    given = data_dir or (Path(os.environ["PORTIER_DATA"]) if os.environ.get("PORTIER_DATA") else None)
    name = name_or_path.lower().replace("_", "-")
    if name == "digits":
        return partial(_digits, seed)
    if name.partition(":")[0] == SYNTHETIC:
        return partial(load_synthetic, parse_synthetic(name_or_path), seed=seed)
    if name in NAMES:
        return _by_name(name, given, download=download, seed=seed, size=size)
    path = Path(name_or_path).expanduser()
    if path.exists():
        return _by_path(path, size=size, seed=seed)
    if os.sep in name_or_path or path.suffix == SUFFIX:
        raise DataError(f"there is no data set at {path}", hint="check the path")
    if given is not None and (folder := _folder(given, name)) is not None:
        return _by_path(folder, size=size, seed=seed)
    raise UnknownNameError("data set", name_or_path, {*NAMES, *_others(given)})


def _by_name(
    name: str, data_dir: Path | None, *, download: bool, seed: int, size: int | tuple[int, int] | None
) -> partial[DataSet]:
    folder = _folder(data_dir, name) if data_dir is not None else None
    if folder is not None and find_parts(folder, "train"):
        return partial(load_parquet, folder, size=size, seed=seed, name=name)
    root = data_dir or cache_directory()
    if download or is_downloaded(name, root):
        return partial(load_download, name, root, download=download)
    looked = data_dir / name / "train.parquet" if data_dir is not None else "a data folder (none was given)"
    raise DataError(
        f"{name} was not found: looked for {looked} and for a download in {root}",
        hint=f"name the folder that holds {name}/train.parquet by $PORTIER_DATA or the data folder option, or allow "
        "the download",
    )


def _by_path(path: Path, *, size: int | tuple[int, int] | None, seed: int) -> partial[DataSet]:
    try:
        if path.is_file():
            if path.suffix != SUFFIX:
                raise DataError(f"{path} is a file of no known kind", hint=f"give a folder or a {SUFFIX} examples file")
            return partial(load_file, path, seed=seed)
        path = path.resolve()
        if (path / f"train{SUFFIX}").is_file():
            return partial(load_file_folder, path, seed=seed)
        if find_parts(path, "train"):
            return partial(load_parquet, path, size=size, seed=seed)
        if has_classes(path):
            return partial(load_folder, path, size=size, seed=seed)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    raise DataError(
        f"{path} holds no data set",
        hint="expected one sub-folder of images per class (in train/ and test/ or directly), train.parquet, or "
        f"train{SUFFIX}",
    )


def _digits(seed: int) -> DataSet:
    from sklearn.datasets import load_digits  # noqa: PLC0415 takes a second that other data sets need not wait for

    stored = load_digits()
    pixels = np.rint(stored.images * (255 / 16)).astype(np.uint8)
    examples = Examples(
        (torch.from_numpy(pixels).unsqueeze(1),),
        torch.from_numpy(stored.target.astype(np.int64)),
        tuple(str(number) for number in range(10)),
    )
    return hold_out("digits", examples, seed=seed)


def _folder(data_dir: Path, name: str) -> Path | None:
    spellings = (name, name.replace("-", "_"))
    return next((data_dir / spelling for spelling in spellings if (data_dir / spelling).is_dir()), None)


def _others(data_dir: Path | None) -> list[str]:
    if data_dir is None or not data_dir.is_dir():
        return []
    return [entry.name for entry in data_dir.iterdir() if entry.is_dir() and entry.name.replace("_", "-") not in NAMES]
