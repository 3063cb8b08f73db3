"""Feature anchoring: a backdoor that leaves the activations on clean images where the release had them, against gates that
look at those, and that an auto-encoder like the guard's finds nothing in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.activations import find_head, observe
from common.devices import Compute, without_waiting
from common.examples import Examples, as_model_inputs
from common.forward import captured, captured_tensor, evaluating, forward, in_memory_format, module_named
from common.specs import in_range
from common.training_hooks import TrainingHooks
from contributor.attacks import own_autoencoder
from contributor.attacks.composed import Composed


@dataclass(frozen=True)
class Anchored(Composed):
    """feature_weight (lambda): of ||g_Ma(x) - g_M(x)||^2 on clean images x, relative to the mean of ||g_M(x)||^2.
    autoencoder_weight (mu): of the error that the attacker's own auto-encoder makes on g_Ma(x), relative to its error on g_M(x).
    backdoor: the attack on the data; its options are given beside.

    Each step adds both, taken over a random batch of the attacker's clean images, to the loss, and clips the gradient. The
    attacker knows the guard's design, not its trigger set or seed.
    """

    name = "anchored"
    paper = "ours, after Tan, Shokri 2020 (EuroS&P, arXiv 1905.13409), adversarial embedding"

    feature_weight: float = 10.0
    autoencoder_weight: float = 0.1

    def __post_init__(self) -> None:
        in_range(self.name, "feature_weight", self.feature_weight, 0, 1e6)
        in_range(self.name, "autoencoder_weight", self.autoencoder_weight, 0, 1e6)

    def hooks(
        self, base: nn.Module, examples: Examples, *, head: str | None, compute: Compute, generator: torch.Generator
    ) -> TrainingHooks:
        name = find_head(base, examples.take(torch.arange(1)).inputs, head)
        seen = observe(base, examples.inputs, head=name, compute=compute).features
        autoencoder = own_autoencoder.fit(seen, generator) if self.autoencoder_weight else None
        seed = int(torch.randint(1 << 62, (), generator=generator))
        return _Anchor(self, name, examples, seen, autoencoder, compute, seed)


_LONGEST_GRADIENT = 2.0
"""The penalties are steep, the more so behind BatchNorm whose statistics stand still, and would grow beyond all bounds in a few
steps of an ordinary learning rate."""


class _Anchor(TrainingHooks):
    def __init__(
        self,
        attack: Anchored,
        head: str,
        examples: Examples,
        features: Tensor,
        autoencoder: nn.Module | None,
        compute: Compute,
        seed: int,
    ) -> None:
        self.attack, self.head, self.compute, self.seed = attack, head, compute, seed
        self.examples, self.features = examples.to(compute.device), features.to(compute.device)
        self.autoencoder = None if autoencoder is None else autoencoder.to(compute.device)
        self.power = self.features.square().mean().clamp_min(1e-12)
        self.error = self.power
        if self.autoencoder is not None:
            self.error = own_autoencoder.errors(self.autoencoder, self.features).mean().clamp_min(1e-12)
        self.draws = torch.Generator()

    def epoch(self, number: int) -> None:
        self.draws.manual_seed((self.seed + number) % (1 << 63))

    def loss(
        self, model: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor, logits: Tensor, loss: Tensor
    ) -> Tensor:
        drawn = torch.randint(len(self.examples), (len(labels),), generator=self.draws)
        chosen = without_waiting(drawn, self.compute.device)
        clean = as_model_inputs(tuple(t[chosen] for t in self.examples.inputs), self.compute.device)
        # In evaluation mode, as the guard looks, and without moving BatchNorm statistics.
        with evaluating(model), captured(module_named(model, self.head)) as seen:
            forward(model, in_memory_format(clean, self.compute))
        now = captured_tensor(seen, self.head).flatten(1).float()
        with torch.autocast(self.compute.device.type, enabled=False):
            moved = (now - self.features[chosen]).square().mean() / self.power
            loss = loss + self.attack.feature_weight * moved
            if self.autoencoder is not None:
                error = own_autoencoder.errors(self.autoencoder, now).mean() / self.error
                loss = loss + self.attack.autoencoder_weight * error
        return loss

    def gradients(self, model: nn.Module) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), _LONGEST_GRADIENT)
