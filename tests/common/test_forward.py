"""A model runs whatever memory order Portier lays its images out in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.devices import choose_compute
from common.errors import ModelError
from common.evaluation import evaluate
from common.examples import Examples
from common.forward import evaluating, forward, in_memory_format
from common.training import train
from common.training_options import TrainingOptions


class Flattening(nn.Module):
    """As most tutorials write it: `view` after the convolutions."""

    def __init__(self, length: int = 8 * 64) -> None:
        super().__init__()
        self.convolution, self.head, self.length = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 64, 3), length

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.convolution(images)).view(-1, self.length))


EXAMPLES = Examples(
    (torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),),
    torch.arange(40) % 3,
    ("a", "b", "c"),
)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_that_flattens_by_view_is_trained_and_measured(precision: str) -> None:
    compute, model = choose_compute("cpu", precision), Flattening()
    assert compute.channels_last
    train(model, EXAMPLES, TrainingOptions(epochs=1), compute=compute, progress=False)
    evaluate(model, EXAMPLES, compute=compute)
    (images,) = in_memory_format((EXAMPLES.images.float(),), compute)
    with pytest.raises(RuntimeError, match="view size"):
        model.to(memory_format=torch.channels_last)(images)
    with evaluating(model):  # where a search follows its gradients
        model(images).sum().backward()


def test_what_it_computes_is_the_same_in_both_orders() -> None:
    model, images = Flattening().eval(), torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    usual = model(images)
    laid_out = forward(model.to(memory_format=torch.channels_last), (images.to(memory_format=torch.channels_last),))
    torch.testing.assert_close(laid_out, usual)


def test_a_view_that_cannot_be_is_still_an_error() -> None:
    with pytest.raises(ModelError, match="does not run on inputs"):
        forward(Flattening(length=7), (torch.rand(4, 3, 8, 8),))
