"""What a model is trained to lower: cross-entropy, unless the model says otherwise.

A loss belongs to the model, as the hinge loss makes a linear classifier a support vector machine: so whoever trains one, owner,
contributor or reference, lowers the same. A module says so by a method `training_loss(logits, labels)`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import ConfigurationError, ModelError


def training_loss(model: nn.Module, logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean loss of a batch. logits: (n, C) float32; labels: (n,) int64.

    Raises ConfigurationError for label smoothing where the model has a loss of its own, ModelError where that gives no number.
    """
    own = getattr(model, "training_loss", None)
    if not callable(own):
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if label_smoothing:
        raise ConfigurationError(
            f"label_smoothing is for cross-entropy, and a {type(model).__name__} has a loss of its own",
            hint="set label_smoothing to 0",
        )
    loss = own(logits, labels)
    if not isinstance(loss, Tensor) or loss.ndim:
        raise ModelError(f"training_loss of {type(model).__name__} must give a scalar tensor")
    return loss


def multiclass_hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of max(0, 1 + max_{j != y} s_j - s_y) (Crammer & Singer 2001, JMLR 2, equation 3).

    Of two classes it is the ordinary hinge loss max(0, 1 - y f), with f the difference of the two scores.

    >>> multiclass_hinge(torch.tensor([[2.0, 0.5, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 1]))
    tensor(0.5000)
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return (1 + others.amax(1) - own).clamp_min(0).mean()
