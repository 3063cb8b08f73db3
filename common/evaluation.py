"""How well a classifier does: accuracy, recall per class, confusion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.devices import Compute
from common.errors import DataError, ModelError
from common.examples import Examples
from common.forward import run


@dataclass(frozen=True)
class Evaluation:
    """What a classifier made of N labelled examples of C classes.

    accuracy: share of examples classified as labelled, in [0, 1].
    recall: (C,) float64, the same within each class; NaN for a class without examples.
    support: (C,) int64, examples of each class.
    confusion: (C, C) int64, examples of true class (row) that were classified as (column).
    """

    accuracy: float
    recall: Tensor
    support: Tensor
    confusion: Tensor

    @classmethod
    def from_logits(cls, logits: Tensor, labels: Tensor, classes: int) -> Evaluation:
        """logits: (N, classes) float; labels: (N,) int64. A row that is not finite counts as classified as its largest
        entry or its NaN, whichever torch's argmax takes.

        Raises ModelError where the logits are not of that shape, DataError where there are no examples.

        >>> result = Evaluation.from_logits(torch.tensor([[2.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1]), 2)
        >>> result.accuracy, result.confusion.tolist()
        (0.5, [[1, 0], [1, 0]])
        """
        if not len(labels):
            raise DataError("there are no examples to evaluate on")
        if logits.shape != (len(labels), classes):
            raise ModelError(
                f"{len(labels)} examples of {classes} classes need logits ({len(labels)}, {classes}), "
                f"not {tuple(logits.shape)}"
            )
        pairs = labels.cpu() * classes + logits.argmax(1).cpu()
        confusion = torch.bincount(pairs, minlength=classes * classes).view(classes, classes)
        support = confusion.sum(1)
        right = confusion.diagonal()
        return cls(int(right.sum()) / len(labels), right.double() / support, support, confusion)


def evaluate(model: nn.Module, examples: Examples, *, compute: Compute, batch_size: int = 1000) -> Evaluation:
    """The model on the examples, in evaluation mode; it is moved to `compute.device` and else left as it was found.

    Raises DataError where there are no examples, ModelError where the model does not run on them or has another number of classes.

    >>> from common.devices import choose_compute
    >>> examples = Examples((torch.eye(2),), torch.tensor([0, 1]), ("a", "b"))
    >>> evaluate(nn.Identity(), examples, compute=choose_compute("cpu", "float32")).accuracy
    1.0
    """
    if not len(examples):
        raise DataError("there are no examples to evaluate on")
    logits, _ = run(model, examples.inputs, compute=compute, batch_size=batch_size)
    return Evaluation.from_logits(logits, examples.labels, examples.classes)
