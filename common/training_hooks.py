"""Where a training run can be bent without a training loop of one's own: what attacks with penalties or projections need."""

from __future__ import annotations

from torch import Tensor, nn


class TrainingHooks:
    """Called by `common.training.train`; every method does nothing here.

    A run that was interrupted goes on with new hooks, so that a hook keeps nothing from one epoch to the next, and takes what
    is random in it from the number that `epoch` gives.
    """

    def epoch(self, number: int) -> None:
        """Called before the first step of each epoch, with its number from 0."""

    def loss(
        self, model: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor, logits: Tensor, loss: Tensor
    ) -> Tensor:
        """The loss to go down on, called under autocast after the forward pass.

        inputs: of the batch as the model saw them, augmented, uint8 images as floats in [0, 1].
        labels: (n,). logits: (n, C), as the model gave them. loss: scalar, the model's own (`common.losses`).
        """
        return loss

    def gradients(self, model: nn.Module) -> None:
        """Called after the backward pass, before the optimiser's step: may change the parameters' `grad`."""

    def stepped(self, model: nn.Module) -> None:
        """Called after the optimiser's step: may change the weights, for instance project them."""
