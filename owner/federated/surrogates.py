"""Surrogates: a few coordinates of a model's weights, fixed by a seed, on which parameter-based detectors look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from common.errors import GuardError, ModelError, UnknownNameError
from common.randomness import generator

Which = Literal["all", "matrices"]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Surrogates:
    """The same random coordinates of every model of one layout.

    size: how many; None, or more than there are, takes all of them.
    which: `all` trained tensors, or `matrices` and filters alone (no biases or normalisation scales). Statistics of
        normalisation layers are never among them: they are measured, not trained.

    >>> weights = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([5.0])}
    >>> Surrogates(weights, size=None, seed=0).of([weights])
    tensor([[1., 2., 3., 4., 5.]])

    Raises GuardError for a size below 1, ModelError for weights without trained tensors, UnknownNameError.
    """

    def __init__(self, like: Mapping[str, Tensor], *, size: int | None, seed: int, which: Which = "all") -> None:
        if which not in get_args(Which):
            raise UnknownNameError("choice of tensors", which, get_args(Which))
        if size is not None and size < 1:
            raise GuardError(f"a surrogate needs at least one coordinate, not {size}")
        self._shapes = {
            name: tensor.shape
            for name, tensor in like.items()
            if tensor.is_floating_point()
            and not name.endswith(_STATISTICS)
            and (which == "all" or tensor.ndim > 1)
            and tensor.numel()
        }
        total = sum(shape.numel() for shape in self._shapes.values())
        if not total:
            raise ModelError("the model has no trained tensors to take a surrogate of")
        self.width = total if size is None else min(size, total)
        self._coordinates: Tensor | None = None
        if self.width < total:
            order = torch.randperm(total, generator=generator(seed, "surrogate coordinates"))
            self._coordinates = order[: self.width].sort().values

    def of(self, models: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """(n, width) float32, one row a model. Raises GuardError for a model of another layout."""
        return torch.stack([self._of(weights) for weights in models]) if models else torch.empty(0, self.width)

    def _of(self, weights: Mapping[str, Tensor]) -> Tensor:
        for name, shape in self._shapes.items():
            if name not in weights or weights[name].shape != shape:
                raise GuardError(
                    f"tensor {name} is missing, or not of shape {tuple(shape)} as when surrogates were chosen"
                )
        flat = torch.cat([weights[name].detach().cpu().float().flatten() for name in self._shapes])
        return flat if self._coordinates is None else flat[self._coordinates]
