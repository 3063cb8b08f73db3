"""What all hidden layers of a model make of images, before their nonlinearities: what FedCLEAN looks at."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)

from common.activations import observe
from common.devices import Compute
from common.errors import GuardError, ModelError
from common.examples import as_model_inputs
from common.forward import evaluating, forward, module_named, run

MOST: Final = 1 << 17
"""Numbers of an image: of 250 images 128 MiB a model."""

_LAYERS: Final = (_ConvNd, nn.Linear)
_POOLINGS: Final = (_MaxPoolNd, _AvgPoolNd, _LPPoolNd, _AdaptiveMaxPoolNd, _AdaptiveAvgPoolNd)
_POOLED: Final[dict[int, Any]] = {
    1: nn.functional.adaptive_avg_pool1d,
    2: nn.functional.adaptive_avg_pool2d,
    3: nn.functional.adaptive_avg_pool3d,
}


@dataclass(frozen=True)
class HiddenLayer:
    """name: of the module whose output is looked at, the layer or the pooling that directly follows it.
    channels: of its output. places: over which an image's output extends, () of a plain linear layer; averaged down to these.
    """

    name: str
    channels: int
    places: tuple[int, ...]

    @property
    def width(self) -> int:
        return self.channels * math.prod(self.places)


class ActivationMaps:
    """The outputs of every convolution and linear layer before the head, side by side, as the forward pass comes to them.

    Where a pooling module directly follows, its output is taken instead, as FedCLEAN's code does; one that follows the nonlinearity
    does not count. Of a layer that runs twice, the last output.

    width: numbers of an image beyond which maps are averaged over 2 x 2 neighbours (2 of sequences), the largest first, until they fit or
    nothing is left to average.

    Where no such layer runs before the head (recurrent networks), the head's input is all there is.

    Raises GuardError where maps remain larger than MOST, ModelError where the model does not run.

    >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> ActivationMaps(network, (torch.zeros(1, 4),), head="2", width=100).layers
    (HiddenLayer(name='0', channels=3, places=()),)
    """

    def __init__(self, model: nn.Module, example_inputs: tuple[Tensor, ...], *, head: str, width: int) -> None:
        self.layers = _fitted(_hidden_layers(model, example_inputs, head), width)
        self._head = head
        self._width = sum(layer.width for layer in self.layers)
        if self._width > MOST:
            widest = max(self.layers, key=lambda layer: layer.width)
            raise GuardError(
                f"the hidden layers give {self._width} numbers an image, more than {MOST}; the most, {widest.width}, "
                f"come from {widest.name!r}",
                hint="take another defence, or a model with narrower layers",
            )

    def of(self, model: nn.Module, inputs: tuple[Tensor, ...], *, compute: Compute, batch_size: int = 500) -> Tensor:
        """(N, d) float32 on the CPU, in evaluation mode. inputs: each (N, ...), as `Examples.inputs` holds them.

        Raises ModelError for a model of another architecture, or one that does not run.
        """
        if not self.layers:
            return observe(model, inputs, head=self._head, compute=compute, batch_size=batch_size).features
        count = len(inputs[0])
        maps = torch.empty(count, self._width)
        for start in range(0, count, batch_size):
            batch = tuple(tensor[start : start + batch_size] for tensor in inputs)
            with self._written(model, maps[start : start + batch_size]) as seen:
                run(model, batch, compute=compute, batch_size=batch_size)
            for layer in self.layers:
                if layer.name not in seen:
                    raise ModelError(f"the layer {layer.name!r} did not run")
        return maps

    @contextmanager
    def _written(self, model: nn.Module, rows: Tensor) -> Iterator[set[str]]:
        """Each layer's output goes to its columns at once: the nonlinearity behind it may work in place."""
        seen: set[str] = set()
        handles = []
        start = 0
        for layer in self.layers:
            columns = rows[:, start : start + layer.width]
            start += layer.width

            def write(
                module: nn.Module, _inputs: Any, output: Tensor, layer: HiddenLayer = layer, columns: Tensor = columns
            ) -> None:
                part = _averaged(_channels_first(module, output), layer.places)
                if part.shape != columns.shape:
                    raise ModelError(
                        f"the layer {layer.name!r} gave {tuple(part.shape)} numbers, not {tuple(columns.shape)} as before"
                    )
                columns.copy_(part)
                seen.add(layer.name)

            handles.append(module_named(model, layer.name).register_forward_hook(write))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def _hidden_layers(model: nn.Module, example_inputs: tuple[Tensor, ...], head: str) -> list[HiddenLayer]:
    """In the order in which one pass over the examples comes to them, up to the head."""
    names = {module: name for name, module in model.named_modules()}
    last = module_named(model, head)
    found: dict[str, HiddenLayer] = {}
    pooled: dict[str, HiddenLayer] = {}
    poolings: Counter[str] = Counter()
    # The latest layer's output and its version: a nonlinearity in place changes it before a pooling sees it.
    fresh: list[tuple[str, Tensor, int]] = []
    reached: list[bool] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if reached or not isinstance(output, Tensor):
            return
        seen = _layer(names[module], module, output, len(example_inputs[0]))
        if isinstance(module, _LAYERS):
            found.pop(seen.name, None)
            found[seen.name] = seen
            fresh[:] = [(seen.name, output, output._version)]
            return
        poolings[seen.name] += 1
        if fresh and inputs and inputs[0] is fresh[0][1] and inputs[0]._version == fresh[0][2]:
            pooled[fresh[0][0]] = seen

    watched = [module for module in names if isinstance(module, (*_LAYERS, *_POOLINGS)) and module is not last]
    handles = [module.register_forward_hook(note) for module in watched]
    handles.append(last.register_forward_pre_hook(lambda _module, _inputs: reached.append(True)))
    device = next(iter((*model.parameters(), *model.buffers()))).device
    try:
        with evaluating(model, gradients=False), torch.no_grad():
            forward(model, as_model_inputs(example_inputs, device))
    finally:
        for handle in handles:
            handle.remove()
    if not reached:
        raise ModelError(f"the head {head!r} does not run in the forward pass")
    # A pooling module that several layers share has several outputs.
    return [
        pooled[name] if name in pooled and poolings[pooled[name].name] == 1 else layer for name, layer in found.items()
    ]


def _layer(name: str, module: nn.Module, output: Tensor, count: int) -> HiddenLayer:
    if output.ndim < 2 or len(output) != count:
        raise ModelError(f"the layer {name!r} gives {tuple(output.shape)} of {count} images, not one row an image")
    _, channels, *places = _channels_first(module, output).shape
    return HiddenLayer(name, channels, tuple(places))


def _channels_first(module: nn.Module, output: Tensor) -> Tensor:
    """(n, channels, up to three places)."""
    first = output.movedim(-1, 1) if isinstance(module, nn.Linear) else output
    return first.flatten(2) if first.ndim > 5 else first


def _fitted(layers: Sequence[HiddenLayer], width: int) -> tuple[HiddenLayer, ...]:
    fitted = list(layers)
    while sum(layer.width for layer in fitted) > width:
        large = [i for i, layer in enumerate(fitted) if max(layer.places, default=1) > 1]
        if not large:
            break
        i = max(large, key=lambda i: fitted[i].width)
        fitted[i] = replace(fitted[i], places=tuple(-(-places // 2) for places in fitted[i].places))
    return tuple(fitted)


def _averaged(output: Tensor, places: tuple[int, ...]) -> Tensor:
    """(n, channels * places) float32."""
    whole = output.float()
    if tuple(whole.shape[2:]) != places and len(places) in _POOLED and whole.ndim == len(places) + 2:
        whole = _POOLED[len(places)](whole, list(places))
    return whole.flatten(1)
