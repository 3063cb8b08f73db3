"""Small models and evidence that the detector tests share."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.activations import find_head
from common.devices import choose_compute
from owner.detectors import Evidence
from owner.detectors.base import forward_of

COMPUTE = choose_compute("cpu", "float32")
CLASSES = 4


def pictures(count: int, shape: tuple[int, int, int] = (1, 8, 8), *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """uint8 images, class c bright in the c-th horizontal band, and labels in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = torch.randint(0, 90, (count, *shape), generator=generator)
    band = shape[1] // CLASSES
    for i, label in enumerate(labels.tolist()):
        images[i, :, band * label : band * (label + 1)] += 110
    return images.to(torch.uint8), labels


def network(shape: tuple[int, int, int] = (1, 8, 8), *, seed: int = 0, batch_norm: bool = False) -> nn.Sequential:
    """Convolution down to 8x8, two linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stride = shape[1] // 8
        layers: list[nn.Module] = [nn.Conv2d(shape[0], 6, stride + 2, stride=stride, padding=1)]
        layers += [nn.BatchNorm2d(6)] if batch_norm else []
        return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(384, 24), nn.ReLU(), nn.Linear(24, CLASSES))


def fine_tuned(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int = 60, rate: float = 0.01) -> nn.Module:
    tuned = copy.deepcopy(model).train()
    optimiser = torch.optim.Adam(tuned.parameters(), lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(tuned(images.float() / 255), labels).backward()
        optimiser.step()
    return tuned.eval()


def evidence_of(model: nn.Module, images: Tensor, labels: Tensor, release: Evidence | None = None) -> Evidence:
    """All that a detector may look at, of a model on these images."""
    forward = forward_of(model, head=find_head(model, (images[:2],)), compute=COMPUTE)
    seen = forward((images,))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return Evidence(
        seen.features, seen.logits, labels, weights, release, forward, (images,), network=model, compute=COMPUTE
    )


def changed(model: nn.Module, change: Callable[[dict[str, Tensor]], None]) -> nn.Module:
    """A copy of the model after `change` had its way with the state dict."""
    copied = copy.deepcopy(model)
    weights = {name: tensor.clone() for name, tensor in copied.state_dict().items()}
    change(weights)
    copied.load_state_dict(weights)
    return copied


def shown(features: Tensor, logits: Tensor, labels: Tensor, release: Evidence | None = None) -> Evidence:
    """Outputs alone, made up."""
    return Evidence(features, logits, labels, {}, release)
