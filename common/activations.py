"""Penultimate activations of any classifier: the vector that enters its head, the paper's g_M(t).

The head is the last nn.Linear that the forward pass runs, found by running it once; a name given by the caller goes
before. Features and logits come out of one pass, captured at the head's input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.devices import Compute
from common.errors import ModelError
from common.examples import as_model_inputs
from common.forward import captured, captured_tensor, evaluating, forward, module_named, run


@dataclass(frozen=True)
class Activations:
    """What a model makes of N inputs.

    features: (N, d) float32 on the CPU, the input of the head.
    logits: (N, C) float32 on the CPU.
    """

    features: Tensor
    logits: Tensor


def find_head(model: nn.Module, example_inputs: tuple[Tensor, ...], override: str | None = None) -> str:
    """Dotted name of the classification head: the last nn.Linear that runs in the forward pass.

    example_inputs: one or more examples, each tensor (n, ...), as `Examples.inputs` holds them.
    override: name of another module to take as head; it must run, on a single tensor.

    Raises ModelError where no nn.Linear runs, the override does not exist or does not run, or the forward pass fails.

    >>> find_head(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (torch.zeros(1, 4),))
    '2'
    """
    names = {module: name for name, module in model.named_modules()}
    if override is not None:
        head = module_named(model, override)
        with evaluating(model), torch.no_grad(), captured(head) as seen:
            forward(model, as_model_inputs(example_inputs, _device_of(model)))
        captured_tensor(seen, override)
        return override

    last: list[str] = []
    linears = [module for module in names if isinstance(module, nn.Linear)]

    def note(module: nn.Module, _arguments: Any) -> None:
        last[:] = [names[module]]

    handles = [linear.register_forward_pre_hook(note) for linear in linears]
    try:
        with evaluating(model), torch.no_grad():
            forward(model, as_model_inputs(example_inputs, _device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    if not last:
        raise ModelError(
            "the model runs no nn.Linear, so its classification head cannot be found",
            hint="name the module whose input are the penultimate activations (head)",
        )
    return last[0]


def activations_depend_on_parameters(
    model: nn.Module, head: str, example_inputs: tuple[Tensor, ...] | None = None
) -> bool:
    """Whether training can change the penultimate activations at all; where not, no gate on them can see anything.

    Without `example_inputs`, whether the model holds any weights outside its head; with them, exactly: whether the
    activations move when every weight outside the head does.

    Raises ModelError where there is no module `head`.

    >>> activations_depend_on_parameters(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "1")
    False
    """
    module = module_named(model, head)
    inside = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    outside = {
        name: tensor
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if id(tensor) not in inside and tensor.is_floating_point() and tensor.numel()
    }
    if not outside or example_inputs is None:
        return bool(outside)
    inputs = as_model_inputs(example_inputs, _device_of(model))
    with evaluating(model), torch.no_grad():
        with captured(module) as before:
            forward(model, inputs)
        moved = {name: tensor * 1.5 + 0.25 for name, tensor in outside.items()}
        with captured(module) as after:
            torch.func.functional_call(model, moved, inputs)
    return not torch.equal(captured_tensor(before, head), captured_tensor(after, head))


def observe(
    model: nn.Module, inputs: tuple[Tensor, ...], *, head: str, compute: Compute, batch_size: int = 500
) -> Activations:
    """Features and logits of N inputs in one forward pass, in evaluation mode; the model is left as it was found.

    inputs: each (N, ...), as `Examples.inputs` holds them. The model is moved to `compute.device`.
    Values may be non-finite where the weights make them so; nothing is hidden.

    Raises ModelError where there is no module `head`, it does not run, or the forward pass fails.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> seen = observe(model, (torch.ones(5, 4),), head="2", compute=Compute(torch.device("cpu"), torch.float32))
    >>> seen.features.shape, seen.logits.shape
    (torch.Size([5, 3]), torch.Size([5, 2]))
    """
    logits, features = run(model, inputs, compute=compute, batch_size=batch_size, head=head)
    assert features is not None  # noqa: S101 - for the type checker: a head was named
    return Activations(features, logits)


def _device_of(model: nn.Module) -> torch.device:
    first = next(iter((*model.parameters(), *model.buffers())), None)
    return first.device if first is not None else torch.device("cpu")
