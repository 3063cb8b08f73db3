"""Running a model to look at it, and the small duties around every forward pass: modes, memory format, capture, errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common.devices import Compute, keep_freed_memory
from common.errors import ModelError
from common.examples import as_model_inputs


def run(
    model: nn.Module, inputs: tuple[Tensor, ...], *, compute: Compute, batch_size: int, head: str | None = None
) -> tuple[Tensor, Tensor | None]:
    """Logits (N, C), and where a head is named its inputs (N, d), both float32 on the CPU and fit for autograd.

    The one way in which Portier runs a model to look at it: in evaluation mode, under the autocast of `compute`.
    Raises ModelError as `observe` does.
    """
    count = len(inputs[0])
    if not count:
        raise ModelError("there are no examples to run the model on")
    keep_freed_memory()
    model.to(compute.device)
    watched: AbstractContextManager[list[tuple[Any, ...]]]
    watched = nullcontext([]) if head is None else captured(module_named(model, head))
    logits: Tensor | None = None
    features: Tensor | None = None
    # One autocast context around all batches: it casts every weight once instead of once a batch.
    with watched as seen, evaluating(model, gradients=False), compute.autocast():
        for start in range(0, count, batch_size):
            batch = as_model_inputs(tuple(t[start : start + batch_size] for t in inputs), compute.device)
            with torch.inference_mode():
                logits = _put(logits, forward(model, in_memory_format(batch, compute)), start, count)
                if head is not None:
                    features = _put(features, captured_tensor(seen, head).flatten(1), start, count)
    assert logits is not None  # noqa: S101 - for the type checker: there was at least one batch
    return logits, features


def _put(whole: Tensor | None, part: Tensor, start: int, count: int) -> Tensor:
    """`part` copied to its rows of `whole`, which is made on the first call."""
    if whole is None:
        with torch.inference_mode(False):  # tensors of inference mode could not be trained on
            whole = torch.empty(count, part.shape[1])
    if part.shape[1] != whole.shape[1]:
        raise ModelError(f"the model gave {part.shape[1]} numbers for one batch and {whole.shape[1]} for another")
    whole[start : start + len(part)].copy_(part)
    return whole


def in_memory_format(inputs: tuple[Tensor, ...], compute: Compute) -> tuple[Tensor, ...]:
    """The inputs, images among them laid out as the device likes them best."""
    if not compute.channels_last:
        return inputs
    return tuple(_channels_last(t) if t.ndim == 4 else t for t in inputs)


def _channels_last(images: Tensor) -> Tensor:
    laid_out = images.contiguous(memory_format=torch.channels_last)
    if images.shape[1] != 1:
        return laid_out
    # Of one channel both orders are the same bytes, and strides alone tell convolutions which one is meant.
    height, width = images.shape[2:]
    return laid_out.as_strided(images.shape, (height * width, 1, width, 1))


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards each module is in the mode, training or not, that it was found in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module, *, gradients: bool = True) -> Iterator[None]:
    """Evaluation mode inside, and `view` as in `forward`; afterwards each module is back in its own.

    gradients: whether some may be wanted of what runs inside. cuDNN has none of recurrent layers in evaluation mode, so that
        a model with such layers runs on torch's own kernels, which are slower.
    """
    kernels: AbstractContextManager[None] = nullcontext()
    if gradients and any(isinstance(module, nn.RNNBase) for module in model.modules()):
        kernels = torch.backends.cudnn.flags(enabled=False)
    with modes_kept(model), kernels, _AnyLayout():
        model.eval()
        yield


class _AnyLayout(TorchFunctionMode):
    """A model that flattens by `view` counts on images in the usual memory order, and Portier lays them out channels-last where that is
    faster: there `view` copies, as `reshape` does."""

    _COPYING: ClassVar[dict[Any, Any]] = {Tensor.view: Tensor.reshape, Tensor.view_as: Tensor.reshape_as}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError:
            if func not in self._COPYING or any(isinstance(one, torch.dtype) for one in args):
                raise
            return self._COPYING[func](*args, **(kwargs or {}))


@contextmanager
def captured(module: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    """The positional arguments of the latest call of `module`, as a list of at most one."""
    seen: list[tuple[Any, ...]] = []

    def keep(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen[:] = [arguments]

    handle = module.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def captured_tensor(seen: list[tuple[Any, ...]], head: str) -> Tensor:
    if not seen:
        raise ModelError(f"the head {head!r} does not run in the forward pass")
    (arguments,) = seen
    if len(arguments) != 1 or not isinstance(arguments[0], Tensor):
        raise ModelError(f"the head {head!r} does not take a single tensor")
    return arguments[0]


def module_named(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ModelError(f"the model has no module {name!r}", hint="names are those of named_modules()") from None


def forward(model: nn.Module, inputs: tuple[Tensor, ...], classes: int | None = None) -> Tensor:
    """Logits (n, C) of one batch, in whatever memory order the images are. Raises ModelError where the model fails on it, or gives another shape or class count."""
    try:
        with _AnyLayout():
            logits = model(*inputs)
    except Exception as error:  # a user's model may raise anything
        shapes = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in inputs)
        raise ModelError(f"the model does not run on inputs {shapes}: {error}") from error
    if (
        not isinstance(logits, Tensor)
        or logits.ndim != 2
        or logits.shape != (len(inputs[0]), classes or logits.shape[1])
    ):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"the model must give logits of shape ({len(inputs[0])}, {classes or 'classes'}), not {got}")
    return logits
