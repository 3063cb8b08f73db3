"""Examples: inputs and labels held in memory, the one form in which data move through Portier."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.errors import DataError


@dataclass(frozen=True)
class Examples:
    """N labelled examples.

    inputs: one tensor per model input, each (N, ...), of any dtype. Images are uint8 (N, C, H, W), values 0..255;
        a two-view image is two tensors, a table one float tensor, a text one integer tensor.
    labels: (N,) int64, each in 0..C-1.
    class_names: C names, in label order.
    clients: (N,) int64, whose each example is where the data come so divided (a sensor, a hospital); None where nobody knows.

    >>> digits = Examples((torch.zeros(3, 1, 8, 8, dtype=torch.uint8),), torch.tensor([0, 1, 1]), ("zero", "one"))
    >>> len(digits), digits.classes, digits.input_shape
    (3, 2, (1, 8, 8))

    Raises DataError where lengths disagree or a label has no class.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor
    class_names: tuple[str, ...]
    clients: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise DataError("examples need at least one input tensor")
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise DataError(f"labels must be int64 of shape (N,), not {self.labels.dtype} {tuple(self.labels.shape)}")
        for i, tensor in enumerate(self.inputs):
            if len(tensor) != len(self.labels):
                raise DataError(f"input {i} holds {len(tensor)} examples, the labels {len(self.labels)}")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise DataError(
                f"labels run from {int(self.labels.min())} to {int(self.labels.max())}, "
                f"but there are {len(self.class_names)} classes"
            )
        if self.clients is not None and (self.clients.dtype != torch.int64 or self.clients.shape != self.labels.shape):
            raise DataError(
                f"clients must be int64 of shape ({len(self.labels)},) as the labels are, not {self.clients.dtype} "
                f"{tuple(self.clients.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def images(self) -> Tensor:
        """The only input, for code that is about images. Raises DataError where there are several inputs."""
        if len(self.inputs) != 1:
            raise DataError(f"these examples have {len(self.inputs)} inputs, not one image each")
        return self.inputs[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example of the first input, without N."""
        return tuple(self.inputs[0].shape[1:])

    def take(self, indices: Tensor) -> Examples:
        """The examples at `indices` ((n,) int64, or (N,) bool), in that order."""
        clients = None if self.clients is None else self.clients[indices]
        inputs = tuple(t[indices] for t in self.inputs)
        return replace(self, inputs=inputs, labels=self.labels[indices], clients=clients)

    def with_images(self, images: Tensor) -> Examples:
        return replace(self, inputs=(images,))

    def with_labels(self, labels: Tensor) -> Examples:
        return replace(self, labels=labels)

    def to(self, device: torch.device | str) -> Examples:
        clients = None if self.clients is None else self.clients.to(device)
        inputs = tuple(t.to(device) for t in self.inputs)
        return replace(self, inputs=inputs, labels=self.labels.to(device), clients=clients)


def join(*parts: Examples) -> Examples:
    """All examples of `parts`, one after the other; of clients only where each part knows them.

    Raises DataError where the classes differ.
    """
    if len({part.class_names for part in parts}) != 1:
        raise DataError("examples of different classes cannot be joined")
    columns = zip(*(part.inputs for part in parts), strict=True)
    clients = [part.clients for part in parts if part.clients is not None]
    return Examples(
        tuple(torch.cat(column) for column in columns),
        torch.cat([part.labels for part in parts]),
        parts[0].class_names,
        torch.cat(clients) if len(clients) == len(parts) else None,
    )


def as_model_inputs(inputs: tuple[Tensor, ...], device: torch.device | str) -> tuple[Tensor, ...]:
    """What the model sees: uint8 becomes float32 in [0, 1], every other dtype stays as it is."""
    moved = (t.to(device, non_blocking=True) for t in inputs)
    return tuple(t.float().div_(255) if t.dtype == torch.uint8 else t for t in moved)
