"""Evidence of a model: of one that has been run already, and, for studying detectors by themselves, from nothing but the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from common.activations import Activations, find_head, observe
from common.devices import Compute, choose_compute
from common.errors import ModelError
from common.examples import Examples
from owner.detectors.base import Evidence, forward_of


def gather_evidence(
    model: nn.Module,
    examples: Examples,
    *,
    weights: Mapping[str, Tensor] | None = None,
    release: Evidence | None = None,
    head: str | None = None,
    compute: Compute | None = None,
) -> Evidence:
    """All that a detector may look at, of `model` on clean `examples`.

    weights: in place of the model's own. release: what M shows on the same examples; None where this is M.
    head: of the model, where it is not the last nn.Linear that runs. compute: None is M's, or else the fastest of this machine.
    The model is copied. Raises ModelError where it cannot be run, or the weights are not of it.

    >>> import torch
    >>> examples = Examples((torch.rand(6, 4),), torch.arange(6) % 2, ("a", "b"))
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> release = gather_evidence(model, examples)
    >>> other = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    >>> gather_evidence(model, examples, weights=other, release=release).features.shape
    torch.Size([6, 3])
    """
    network = copy.deepcopy(model)
    if weights is not None:
        try:
            network.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise ModelError(f"the weights are not of this model: {error}") from None
    compute = compute or (release.compute if release is not None else None) or choose_compute()
    head = find_head(network, tuple(tensor[:2] for tensor in examples.inputs), head)
    seen = observe(network, examples.inputs, head=head, compute=compute)
    return evidence_of(network, seen, examples, head=head, compute=compute, release=release)


def evidence_of(
    model: nn.Module,
    seen: Activations,
    examples: Examples,
    *,
    head: str,
    compute: Compute,
    release: Evidence | None = None,
) -> Evidence:
    """All that a detector may look at, of a model that shows `seen` on these examples."""
    forward = forward_of(model, head=head, compute=compute)
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return Evidence(
        seen.features,
        seen.logits,
        examples.labels,
        weights,
        release,
        forward,
        examples.inputs,
        network=model,
        compute=compute,
    )
