"""The one training loop of owner, contributors and references.

What makes it fast: the data lie on the device as uint8, a batch is one gather and is augmented whole, convolutions run in
bfloat16 on channels-last memory where that is native, the optimiser is fused, and nothing waits for the device within an
epoch. What makes it repeatable: every random choice of an epoch comes from (seed, epoch) alone, never from global state.

Weight decay acts on matrices and filters; biases and the scales of normalisation layers are left alone, as usual since
Goyal et al., 2017 (arXiv 1706.02677, 5.3).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from common.activations import find_head
from common.augment import augment
from common.checkpoints import Checkpoint
from common.devices import Compute, keep_freed_memory
from common.errors import DataError, ModelError
from common.evaluation import Evaluation, evaluate
from common.examples import Examples, as_model_inputs
from common.fine_tuning import frozen, laid_out, reinitialise
from common.forward import forward, in_memory_format, modes_kept
from common.losses import training_loss
from common.progress import progress_bar
from common.randomness import derived_seed, generator, random_state
from common.training_hooks import TrainingHooks
from common.training_options import TrainingOptions

__all__ = ["Evaluation", "TrainingReport", "evaluate", "learning_rate", "train"]


@dataclass(frozen=True)
class TrainingReport:
    """loss_per_epoch: mean training loss of each epoch, those before an interruption too.
    images_per_second: throughput of the epochs run now (not resumed); 0 where none was left to run.
    seconds: wall-clock time of this call.
    """

    loss_per_epoch: tuple[float, ...]
    images_per_second: float
    seconds: float


def train(
    model: nn.Module,
    examples: Examples,
    options: TrainingOptions,
    *,
    compute: Compute,
    head: str | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 0.0,
    progress: bool | None = None,
    label: str = "training",
    on_epoch: Callable[[int, float], None] | None = None,
    hooks: TrainingHooks | None = None,
) -> TrainingReport:
    """Trains `model` in place; it ends on `compute.device`, each module in the mode (training or not) it was found in.

    The loss is cross-entropy, or the model's own `training_loss` (`common.losses`).

    head: of the model, where `options.reinitialise_head` should not take the last nn.Linear of the forward pass.
    checkpoint: file (or existing directory) that holds the state after each epoch. Where it is there already, training
        goes on from it, to the very weights an uninterrupted run gives; the caller passes the same starting weights.
    checkpoint_seconds: shortest time between two checkpoints; on a GPU a large model's epoch is shorter than its writing.
    progress: whether to draw a bar; None does where standard error is a terminal.
    on_epoch: called after each epoch with its number, from 1, and its mean loss.
    hooks: change loss, gradients or weights in every step. The mean loss is then the changed one's.

    The same model, examples, options and compute give the same weights on one machine, bit for bit on a CPU at one
    number of threads, on CUDA as far as cuDNN's deterministic kernels reach. torch's global random state is left as it was.

    A last batch of one example joins the batch before it. Where a batch can only have one, BatchNorm layers use their
    running statistics for it: one example has no variance.

    Raises DataError without examples; ModelError where the model does not run on them or training diverges (non-finite
    loss or weights); ConfigurationError where options do not fit the model or the data; StorageError for the checkpoint.

    >>> from common.devices import choose_compute
    >>> examples = Examples((torch.eye(2).repeat(8, 1),), torch.tensor([0, 1] * 8), ("a", "b"))
    >>> report = train(nn.Linear(2, 2), examples, TrainingOptions(epochs=3), compute=choose_compute("cpu", "float32"))
    >>> len(report.loss_per_epoch)
    3
    """
    started = time.perf_counter()
    if not len(examples):
        raise DataError("there are no examples to train on")
    augment(tuple(t[:1] for t in examples.inputs), options.augmentation, generator(options.seed, "probe"))
    keep_freed_memory()
    model.to(compute.device)
    saved = None
    if checkpoint is not None:
        saved = Checkpoint.at(checkpoint, model, examples, options, str(compute.to_json()))
    if options.reinitialise_head:
        reinitialise(model, head or find_head(model, examples.take(torch.arange(1)).inputs), options.seed)

    with ExitStack() as stack:
        stack.enter_context(modes_kept(model))
        norms = stack.enter_context(frozen(model, options.frozen_layers))
        stack.enter_context(laid_out(model, compute))
        model.zero_grad(set_to_none=True)
        stack.callback(model.zero_grad, set_to_none=True)
        optimiser = _optimiser(model, options, compute)
        losses = saved.resume(model, optimiser) if saved is not None else []
        done = len(losses)
        loop = _Loop(model, examples.to(compute.device), options, compute, optimiser, norms, hooks)
        advance = stack.enter_context(progress_bar(label, options.epochs, shown=progress, done=done))
        written = time.perf_counter()
        for epoch in range(done, options.epochs):
            losses.append(loop.run(epoch, lambda share: advance(share, "")))
            advance(0, f"epoch {epoch + 1}/{options.epochs}, loss {losses[-1]:.3f}")
            due = time.perf_counter() - written >= checkpoint_seconds or epoch + 1 == options.epochs
            if saved is not None and due:
                saved.save(model, optimiser, losses)
                written = time.perf_counter()
            if on_epoch is not None:
                on_epoch(epoch + 1, losses[-1])
        seen = len(examples) * (len(losses) - done)
    seconds = time.perf_counter() - started
    return TrainingReport(tuple(losses), seen / seconds, seconds)


def learning_rate(step: int, steps: int, options: TrainingOptions) -> float:
    """The rate of step `step` (from 0) out of `steps`.

    one-cycle (Smith & Topin, 2017, arXiv 1708.07120) rises in a line from a tenth of the peak, over the first fifth of the
    steps, and falls in half a cosine to a hundredth of it.

    >>> [round(learning_rate(step, 101, TrainingOptions(learning_rate=1.0)), 2) for step in (0, 20, 60, 100)]
    [0.1, 1.0, 0.51, 0.01]
    """
    peak = options.learning_rate
    if options.schedule == "constant" or steps == 1:
        return peak
    share = step / (steps - 1)
    if share < 0.2:
        return peak * (0.1 + 0.9 * share / 0.2)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * (share - 0.2) / 0.8)) / 2)


def batch_bounds(count: int, size: int) -> list[tuple[int, int]]:
    """First and one past the last of each batch; a last batch of one joins the one before it.

    >>> batch_bounds(9, 4), batch_bounds(10, 4), batch_bounds(1, 4)
    ([(0, 4), (4, 9)], [(0, 4), (4, 8), (8, 10)], [(0, 1)])
    """
    starts = list(range(0, count, size))
    if size > 1 and len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


class _Loop:
    """One training's epochs: everything they share."""

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        options: TrainingOptions,
        compute: Compute,
        optimiser: torch.optim.Optimizer,
        frozen_norms: list[nn.Module],
        hooks: TrainingHooks | None = None,
    ) -> None:
        self.model, self.examples, self.options, self.compute = model, examples, options, compute
        self.optimiser, self.frozen_norms, self.hooks = optimiser, frozen_norms, hooks
        self.batches = batch_bounds(len(examples), options.batch_size)
        self.steps = len(self.batches) * options.epochs

    def run(self, epoch: int, advance: Callable[[float], None]) -> float:
        """One pass over the data; returns its mean loss. Raises ModelError where it is not finite."""
        device, count = self.compute.device, len(self.examples)
        draws = generator(self.options.seed, f"epoch {epoch}")
        order = torch.randperm(count, generator=draws).to(device)
        total = torch.zeros((), device=device)
        self._train_mode()
        if self.hooks is not None:
            self.hooks.epoch(epoch)
        with random_state(derived_seed(self.options.seed, f"modules {epoch}"), device):
            for i, (start, stop) in enumerate(self.batches):
                rate = learning_rate(epoch * len(self.batches) + i, self.steps, self.options)
                loss = self._step(order[start:stop], rate, draws)
                total += loss * (stop - start)
                advance(1 / len(self.batches))
        mean = float(total) / count
        finite = all(bool(torch.isfinite(p).all()) for p in self.model.parameters() if p.requires_grad)
        if not finite or not math.isfinite(mean):
            raise ModelError(
                f"training diverged in epoch {epoch + 1} of {self.options.epochs}: mean loss {mean:g}, "
                f"weights {'finite' if finite else 'not finite'}",
                hint=f"lower the learning rate, now {self.options.learning_rate:g}",
            )
        return mean

    def _step(self, indices: Tensor, rate: float, draws: torch.Generator) -> Tensor:
        batch = tuple(t.index_select(0, indices) for t in self.examples.inputs)
        batch = augment(batch, self.options.augmentation, draws)
        inputs = in_memory_format(as_model_inputs(batch, self.compute.device), self.compute)
        labels = self.examples.labels.index_select(0, indices)
        alone = len(indices) == 1
        if alone:
            _evaluating_batch_norm(self.model)
        with self.compute.autocast():
            logits = forward(self.model, inputs, self.examples.classes)
            loss = training_loss(self.model, logits.float(), labels, label_smoothing=self.options.label_smoothing)
            if self.hooks is not None:
                loss = self.hooks.loss(self.model, inputs, labels, logits, loss)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.hooks is not None:
            self.hooks.gradients(self.model)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        if self.hooks is not None:
            self.hooks.stepped(self.model)
        self.optimiser.zero_grad(set_to_none=True)
        if alone:
            self._train_mode()
        return loss.detach()

    def _train_mode(self) -> None:
        self.model.train()
        for norm in self.frozen_norms:
            norm.eval()


def _optimiser(model: nn.Module, options: TrainingOptions, compute: Compute) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ModelError("the model has no parameters to train")
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = compute.device.type in {"cpu", "cuda"} and all(p.is_floating_point() for p in trained)
    rate = options.learning_rate
    if options.optimiser == "sgd":
        nesterov = options.momentum > 0
        return torch.optim.SGD(groups, lr=rate, momentum=options.momentum, nesterov=nesterov, fused=fused)
    kind = torch.optim.Adam if options.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, lr=rate, fused=fused)


def _evaluating_batch_norm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _NormBase):
            module.eval()
