"""A data set: a training and a test set that agree on classes and input shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import DataError
from common.examples import Examples
from common.splits import stratified

TEST_FRACTION = 0.25

ONE_SIZE = (
    "bring all images to one size: an owner by data.size (`init --set data.size=32`), in Python by load(..., size=32)"
)
"""What to do about images of different sizes, for whoever reads them."""


@dataclass(frozen=True)
class DataSet:
    """train_groups, test_groups: (N,) int64 where some examples belong together (frames of one traffic sign, images of
    one patient) and a split must not part them; -1 marks an example on its own.
    came_whole: whether the test set was taken out of data that came without one.

    Raises DataError where the two sets have different classes or input shapes.
    """

    name: str
    train: Examples
    test: Examples
    train_groups: Tensor | None = None
    test_groups: Tensor | None = None
    came_whole: bool = False

    def __post_init__(self) -> None:
        if self.train.class_names != self.test.class_names:
            raise DataError(
                f"{self.name}: the training set has classes {_some(self.train.class_names)}, "
                f"the test set {_some(self.test.class_names)}"
            )
        shapes = [tuple(tuple(t.shape[1:]) for t in part.inputs) for part in (self.train, self.test)]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"{self.name}: a training example has the shape {shapes[0]}, a test example {shapes[1]}",
                hint=ONE_SIZE,
            )


def hold_out(name: str, examples: Examples, *, seed: int, groups: Tensor | None = None) -> DataSet:
    """Make a data set of what came without a test set: a quarter of each class, by `seed`, becomes the test set."""
    generator = torch.Generator().manual_seed(seed)
    test, train = stratified(examples.labels, (TEST_FRACTION,), generator, groups=groups)
    if not len(test) or not len(train):
        raise DataError(f"{name} holds {len(examples)} examples, too few to hold out a quarter as test set")
    return DataSet(
        name,
        examples.take(train),
        examples.take(test),
        None if groups is None else groups[train],
        None if groups is None else groups[test],
        came_whole=True,
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (f", ... ({len(names)} in all)" if len(names) > 6 else "")
