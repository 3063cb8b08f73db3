"""One architecture on one device: a single network object that every step loads its weights into, compiled where that pays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.activations import Activations, find_head, observe
from common.devices import Compute
from common.examples import Examples
from common.forward import forward, in_memory_format
from common.model_spec import ModelSpec
from common.models import build
from common.randomness import random_state
from common.training import TrainingReport, train
from common.training_hooks import TrainingHooks
from common.training_options import TrainingOptions
from common.weights import weights_of

Compile = Literal["auto", "on", "off"]

CHECKPOINT_SECONDS: Final = 20.0
_EVALUATION_BATCH: Final = 1000


class StoppedError(Exception):
    """The time that was given is over; what is done is kept. No error: the command ends well."""


class Snapshot(TrainingHooks):
    """Hands out the model as it is after `epochs` epochs, to be kept, before the next one begins.

    At the beginning of an epoch, not at the end: a run that was interrupted between its checkpoint and the end begins there
    again, and the weights are handed out all the same.
    """

    def __init__(self, model: nn.Module, epochs: int, keep: Callable[[Mapping[str, Tensor]], None]) -> None:
        self.model, self.epochs, self.keep = model, epochs, keep

    def epoch(self, number: int) -> None:
        if number == self.epochs:
            self.keep(self.model.state_dict())


class Engine:
    """compile: `auto` compiles for CUDA, where it works; `on` anywhere, `off` nowhere.
    check_deadline: called after each epoch; raises StoppedError where no further one is to begin.
    checkpoint_seconds: shortest time between two checkpoints of a training."""

    def __init__(
        self,
        spec: ModelSpec,
        compute: Compute,
        *,
        compile: Compile = "auto",
        check_deadline: Callable[[], None] = lambda: None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        self.spec, self.compute = spec, compute
        self.check_deadline, self.checkpoint_seconds = check_deadline, checkpoint_seconds
        self.model = build(spec, seed=0)
        self.head = find_head(self.model, (torch.zeros(1, *spec.input_shape),))
        self.note = ""
        self._wanted, self._tried = compile, False
        self._compiled_call: Callable[..., Any] | None = None

    @property
    def compiled(self) -> bool:
        return self._compiled_call is not None

    def start(self, seed: int) -> None:
        """Fresh weights."""
        self.load(build(self.spec, seed=seed).state_dict())

    def load(self, weights: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(dict(weights))

    def weights(self) -> dict[str, Tensor]:
        return weights_of(self.model)

    def train(
        self,
        examples: Examples,
        options: TrainingOptions,
        *,
        checkpoint: Path | None,
        label: str,
        progress: bool | None,
        hooks: TrainingHooks | None = None,
    ) -> TrainingReport:
        """Trains the loaded weights. Raises StoppedError after the first epoch beyond the deadline; else as `train` does."""

        def on_epoch(_number: int, _loss: float) -> None:
            self.check_deadline()

        self._prepare(options.batch_size)
        with self._as_compiled():
            return train(
                self.model,
                examples,
                options,
                compute=self.compute,
                head=self.head,
                checkpoint=checkpoint,
                checkpoint_seconds=self.checkpoint_seconds,
                label=label,
                progress=progress,
                on_epoch=on_epoch,
                hooks=hooks,
            )

    def observe(self, inputs: tuple[Tensor, ...]) -> Activations:
        return observe(self.model, inputs, head=self.head, compute=self.compute, batch_size=_EVALUATION_BATCH)

    def classify(self, examples: Examples) -> Tensor:
        """(N,) int64 classes."""
        return self.observe(examples.inputs).logits.argmax(1)

    def _prepare(self, batch_size: int) -> None:
        """Compiles once, on a batch of zeros; where the compiler fails under `auto`, training goes on without it."""
        wanted = self._wanted == "on" or (self._wanted == "auto" and self.compute.device.type == "cuda")
        if not wanted or self._tried:
            return
        self._tried = True
        kept = self.weights()
        torch._dynamo.reset()  # its limit of compiled shapes is one for all networks of a process
        self.model.to(self.compute.device)
        self.model.compile(dynamic=False)
        try:
            _one_step(self.model, self.spec, self.compute, batch_size)
            self._compiled_call = self.model._compiled_call_impl
        except Exception as error:
            if self._wanted == "on":
                raise
            self.note = f"not compiled: {type(error.__cause__ or error).__name__}"
        finally:
            self.model._compiled_call_impl = None
            self.model.zero_grad(set_to_none=True)
            self.load(kept)

    @contextmanager
    def _as_compiled(self) -> Iterator[None]:
        """Only while training: the compiled form knows nothing of hooks that are set later to look at activations."""
        module: Any = self.model
        module._compiled_call_impl = self._compiled_call
        try:
            yield
        finally:
            module._compiled_call_impl = None


def _one_step(model: nn.Module, spec: ModelSpec, compute: Compute, batch_size: int) -> None:
    model.train()
    if compute.channels_last:
        model.to(memory_format=torch.channels_last)
    images = torch.zeros(batch_size, *spec.input_shape, device=compute.device)
    # In training's own surroundings: a graph that is compiled in others is compiled anew in the first batch, where `auto` catches nothing.
    with random_state(0, compute.device), compute.autocast():
        logits = forward(model, in_memory_format((images,), compute))
        loss = F.cross_entropy(logits.float(), torch.zeros(batch_size, dtype=torch.int64, device=compute.device))
    loss.backward()  # type: ignore[no-untyped-call]
