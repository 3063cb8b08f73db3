"""What of a model is trained: frozen first layers, a head that starts anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from common.devices import Compute
from common.errors import ConfigurationError, ModelError
from common.forward import module_named
from common.randomness import derived_seed, random_state

_NORMALISATION = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def reinitialise(model: nn.Module, head: str, seed: int) -> None:
    """Starts the weights of module `head` anew, in the shapes they have.

    Raises ModelError where there is no such module, or part of it does not know how to start (reset_parameters).
    """
    parts = [
        m for m in module_named(model, head).modules() if next(iter(m.parameters(recurse=False)), None) is not None
    ]
    stuck = [type(part).__name__ for part in parts if not hasattr(part, "reset_parameters")]
    if stuck or not parts:
        reason = f"{', '.join(stuck)} has no reset_parameters()" if stuck else "it holds no parameters"
        raise ModelError(f"the head {head!r} cannot be reinitialised: {reason}")
    device = next(parts[0].parameters()).device
    with random_state(derived_seed(seed, "head"), device):
        for part in parts:
            part.reset_parameters()  # type: ignore[operator]


@contextmanager
def frozen(model: nn.Module, count: int) -> Iterator[list[nn.Module]]:
    """The first `count` layers with parameters fixed inside the block; gives the normalisation layers among them, which
    the caller keeps in evaluation mode.

    Layers count in the order in which the model registers them. A normalisation layer is none of its own: it belongs to the
    layer before it. Raises ConfigurationError where no layer would be left to train.
    """
    layers: list[list[nn.Module]] = [[]]
    for module in model.modules():
        if isinstance(module, _NORMALISATION):
            layers[-1].append(module)
        elif next(iter(module.parameters(recurse=False)), None) is not None:
            layers.append([module])
    if count >= len(layers) - 1 and count > 0:
        raise ConfigurationError(
            f"frozen_layers is {count}, but the model has {len(layers) - 1} layers and one must train"
        )
    fixed = [module for layer in layers[: count + 1] for module in layer] if count else []
    before = [(p, p.requires_grad) for module in fixed for p in module.parameters(recurse=False)]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield [module for module in fixed if isinstance(module, _NORMALISATION)]
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextmanager
def laid_out(model: nn.Module, compute: Compute) -> Iterator[None]:
    """Filters in channels-last order inside the block where that is faster; in the usual order after it."""
    if not compute.channels_last:
        yield
        return
    model.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)
