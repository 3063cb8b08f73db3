"""Parquet files in the Hugging Face layout: `image` = struct{bytes, path} (or a `features` vector, or a `text`), and `label`.

A column `client` of whole numbers says whose each row is. Texts become sequences of word numbers, by `vocabulary.txt` in the
folder, else by the words of the training rows: who brings texts to a model that is trained already needs its vocabulary. Class
names come from the feature metadata in the schema (`ClassLabel`); without them classes are named by number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from common.datasets.cache import cached
from common.datasets.dataset import DataSet, hold_out
from common.datasets.decoding import Source, decode_images
from common.errors import DataError
from common.examples import Examples
from common.vocabulary import FILE_NAME as VOCABULARY_FILE
from common.vocabulary import FORMAT as TOKENS_FORMAT
from common.vocabulary import Vocabulary

BATCH = 1024

CLIENT_COLUMN = "client"
"""Numbers the client that a row comes from, from 0."""

GROUP_COLUMNS = ("track", "patient_id", "patient", "pole", "group")
"""Columns that say which rows belong together. Tracks are numbered anew in each class, the others name one thing."""


def find_parts(folder: Path, part: str) -> list[Path]:
    """The files of `train` or `test`: `<part>.parquet`, or `<part>-*.parquet`, also in a sub-folder `data`."""
    for place in (folder, folder / "data"):
        if (place / f"{part}.parquet").is_file():
            return [place / f"{part}.parquet"]
        if found := sorted(place.glob(f"{part}-*.parquet")):
            return found
    return []


def load_parquet(folder: Path, *, size: int | tuple[int, int] | None, seed: int, name: str | None = None) -> DataSet:
    """The data set in `folder`; where it has no test file, a quarter of each class, by `seed`, is held out.

    Raises DataError naming file, column or row for whatever is missing, damaged or unlabelled.
    """
    name = name or folder.name
    train, test = (_Part.open(find_parts(folder, part)) for part in ("train", "test"))
    if train is None:
        raise DataError(f"{folder} holds no train.parquet")
    classes = train.class_names or _numbered(torch.cat([part.labels for part in (train, test) if part is not None]))
    if train.is_text:
        return _load_texts(folder, name, classes, train, test, seed)
    if test is None:
        return hold_out(name, train.examples(classes, size), seed=seed, groups=train.groups)
    return DataSet(name, train.examples(classes, size), test.examples(classes, size), train.groups, test.groups)


def parquet_images(folder: Path) -> tuple[Iterator[Source], int] | None:
    """The encoded images that `load_parquet` decodes and how many there are; None where it decodes none.

    Raises DataError as it does, but for what is wrong with an image.
    """
    found = [part for part in (_Part.open(find_parts(folder, part)) for part in ("train", "test")) if part is not None]
    columns = [(part, _image_column(part.schema, part.features)) for part in found]
    images = [part._sources(column) for part, column in columns if column is not None]
    return (chain.from_iterable(images), sum(len(part.labels) for part in found)) if images else None


def _load_texts(
    folder: Path, name: str, classes: tuple[str, ...], train: _Part, test: _Part | None, seed: int
) -> DataSet:
    # The vocabulary is the training rows', so rows are parted, by their numbers, before words are counted.
    rows = train.having(torch.arange(len(train.labels))[:, None], classes)
    if test is None:
        data = hold_out(name, rows, seed=seed, groups=train.groups)
    elif test.is_text:
        held_out = test.having(torch.arange(len(test.labels))[:, None], classes)
        data = DataSet(name, rows, held_out, train.groups, test.groups)
    else:
        raise DataError(f"{test.files[0]} has no column `text`, and {train.files[0]} has one")
    file = folder / VOCABULARY_FILE
    given = (file,) if file.is_file() else ()

    def in_numbers() -> Tensor:
        texts = train.texts()
        others = texts if test is None else test.texts()
        learnt = [texts[row] for row in data.train.images.flatten().tolist()]
        vocabulary = Vocabulary.read(file) if given else Vocabulary.of(learnt)
        rest = [others[row] for row in data.test.images.flatten().tolist()]
        return torch.cat([vocabulary.encode(learnt), vocabulary.encode(rest)])

    parts = (*train.files, *given) if test is None else (*train.files, *test.files, *given)
    kind = f"texts {TOKENS_FORMAT}, {len(parts)} files, {'given' if given else 'own'} words, held out {test is None and seed}"
    numbers = cached([*parts, kind], in_numbers)
    count = len(data.train)
    return replace(data, train=data.train.with_images(numbers[:count]), test=data.test.with_images(numbers[count:]))


def first_image_bytes(file: Path) -> bytes:
    """The encoded bytes of the first image, which tell its format. Raises DataError where there is none."""
    schema = _opened(file).schema_arrow
    column = _image_column(schema, _features(schema))
    for batch in _batches(file, column) if column is not None else ():
        for value in batch.field("bytes"):
            return _Embedded(value, f"row 0 of {file}")()
    raise DataError(f"{file} holds no images")


@dataclass(frozen=True)
class _Part:
    files: tuple[Path, ...]
    schema: pa.Schema
    features: dict[str, Any]
    label_column: str
    labels: Tensor
    groups: Tensor | None
    clients: Tensor | None

    @classmethod
    def open(cls, files: Sequence[Path]) -> _Part | None:
        if not files:
            return None
        schema = _opened(files[0]).schema_arrow
        features = _features(schema)
        label = _label_column(files[0], schema, features)
        labels = torch.from_numpy(np.concatenate([_whole_numbers(file, label) for file in files]))
        whose = None
        if CLIENT_COLUMN in schema.names and pa.types.is_integer(schema.field(CLIENT_COLUMN).type):
            whose = torch.from_numpy(np.concatenate([_whole_numbers(file, CLIENT_COLUMN) for file in files]))
        return cls(tuple(files), schema, features, label, labels, _groups(files, schema, labels), whose)

    @property
    def class_names(self) -> tuple[str, ...]:
        names = self.features.get(self.label_column, {}).get("names")
        return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()

    def examples(self, classes: tuple[str, ...], size: int | tuple[int, int] | None) -> Examples:
        image = _image_column(self.schema, self.features)
        try:
            if image is not None:
                inputs = cached(
                    [*self.files, image, str(size)],
                    lambda: decode_images(self._sources(image), len(self.labels), size=size),
                )
            elif "features" in self.schema.names:
                inputs = torch.from_numpy(np.concatenate([_vectors(file) for file in self.files]))
            else:
                raise DataError(
                    f"{self.files[0]} has neither images nor a `features` or `text` column, but "
                    f"{', '.join(self.schema.names)}",
                    hint="images are a struct{bytes, path} column, as Hugging Face datasets write it",
                )
            return self.having(inputs, classes)
        except DataError as error:
            if str(self.files[0].parent) in error.message:
                raise
            raise DataError(f"{self.files[0]}: {error.message}", hint=error.hint) from None

    def having(self, inputs: Tensor, classes: tuple[str, ...]) -> Examples:
        return Examples((inputs,), self.labels, classes, self.clients)

    @property
    def is_text(self) -> bool:
        names = self.schema.names
        return "text" in names and "features" not in names and _image_column(self.schema, self.features) is None

    def texts(self) -> list[str]:
        """Raises DataError for a column `text` that holds something else."""
        return [text for file in self.files for text in _texts(file)]

    def _sources(self, column: str) -> Iterator[Source]:
        for file in self.files:
            row = 0
            for batch in _batches(file, column):
                encoded, paths = batch.field("bytes"), batch.field("path") if _has(batch.type, "path") else None
                for i in range(len(batch)):
                    path = paths[i].as_py() if paths is not None else None
                    where = f"row {row} of {file}" + (f" ({path})" if path else "")
                    yield where, _Embedded(encoded[i], where)
                    row += 1


@dataclass(frozen=True)
class _Embedded:
    value: pa.Scalar
    where: str

    def __call__(self) -> bytes:
        data = self.value.as_py()
        if data is None:
            raise DataError(f"{self.where} names an image but does not hold its bytes", hint="embed the images")
        return bytes(data)


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} is not a readable parquet file: {error}") from None


def _batches(file: Path, column: str) -> Iterator[Any]:
    parquet = _opened(file)
    try:
        for batch in parquet.iter_batches(BATCH, columns=[column]):
            yield batch.column(0)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}, column {column}, is damaged: {error}") from None


def _features(schema: pa.Schema) -> dict[str, Any]:
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}
    return {k: v for k, v in features.items() if isinstance(v, dict)} if isinstance(features, dict) else {}


def _image_column(schema: pa.Schema, features: dict[str, Any]) -> str | None:
    holders = [field.name for field in schema if pa.types.is_struct(field.type) and _has(field.type, "bytes")]
    named = [name for name in holders if name in ("image", "img") or features.get(name, {}).get("_type") == "Image"]
    return next(iter(named or holders), None)


def _label_column(file: Path, schema: pa.Schema, features: dict[str, Any]) -> str:
    classes: list[str] = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    candidates = ["label", *classes] if len(classes) == 1 else ["label"]
    for name in candidates:
        if name in schema.names:
            return name
    raise DataError(f"{file} has no column `label`, but {', '.join(schema.names)}")


def _whole_numbers(file: Path, column: str) -> np.ndarray:
    parts: list[np.ndarray] = []
    row = 0
    for values in _batches(file, column):
        if not pa.types.is_integer(values.type):
            raise DataError(f"{file}: column {column} must hold whole numbers, not {values.type}")
        if values.null_count:
            raise DataError(f"row {row + values.is_null().index(True).as_py()} of {file} has no {column}")
        numbers = values.to_numpy(zero_copy_only=False).astype(np.int64)
        if numbers.size and numbers.min() < 0:
            raise DataError(
                f"row {row + int(np.argmax(numbers < 0))} of {file} has the {column} {numbers.min()}",
                hint=f"rows without a {column} (-1) cannot be used: leave them out",
            )
        parts.append(numbers)
        row += len(numbers)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _texts(file: Path) -> Iterator[str]:
    row = 0
    for values in _batches(file, "text"):
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            raise DataError(f"{file}: column text must hold texts, not {values.type}")
        if values.null_count:
            raise DataError(f"row {row + values.is_null().index(True).as_py()} of {file} has no text")
        yield from values.to_pylist()
        row += len(values)


def _vectors(file: Path) -> np.ndarray:
    rows: list[np.ndarray] = []
    for values in _batches(file, "features"):
        if pa.types.is_fixed_size_list(values.type):
            width = values.type.list_size
        else:
            raise DataError(f"{file}: column features must hold vectors of one fixed size, not {values.type}")
        flat = values.flatten()
        if not pa.types.is_floating(flat.type) or flat.null_count or len(flat) != width * len(values):
            raise DataError(f"{file}: column features must hold floating point numbers without gaps")
        rows.append(flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width))
    return np.concatenate(rows)


def _groups(files: Sequence[Path], schema: pa.Schema, labels: Tensor) -> Tensor | None:
    column = next((name for name in GROUP_COLUMNS if name in schema.names), None)
    if column is None:
        return None
    values = [value for file in files for batch in _batches(file, column) for value in batch.to_pylist()]
    alone = [value in (None, -1, "") for value in values]
    if all(alone):
        return None
    keys = zip(labels.tolist(), values, strict=True) if column == "track" else ((0, value) for value in values)
    numbers: dict[tuple[int, Any], int] = {}
    groups = [-1 if lonely else numbers.setdefault(key, len(numbers)) for key, lonely in zip(keys, alone, strict=True)]
    return torch.tensor(groups, dtype=torch.int64)


def _numbered(labels: Tensor) -> tuple[str, ...]:
    return tuple(str(number) for number in range(int(labels.max()) + 1 if len(labels) else 0))


def _has(kind: pa.DataType, field: str) -> bool:
    return any(kind.field(i).name == field for i in range(kind.num_fields))
