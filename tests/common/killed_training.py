"""A training that kills itself in the middle: `python killed_training.py CHECKPOINT`."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from common.devices import choose_compute
from common.examples import Examples
from common.training import train
from common.training_options import TrainingOptions


def weights_after_training(checkpoint: Path | None, *, killed_at: int = 0) -> dict[str, Tensor]:
    """killed_at: the batch it is killed (SIGKILL) at, counted from 1; 0 is none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 2)
        model = nn.Sequential(*layers)
        examples = Examples((torch.rand(64, 1, 8, 8),), torch.arange(64) % 2, ("a", "b"))
    batches = itertools.count(1)

    def count(*_: object) -> None:
        if next(batches) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    if killed_at:
        model.register_forward_pre_hook(count)
    options = TrainingOptions(epochs=30, batch_size=16, augmentation="crop-flip")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(model, examples, options, compute=choose_compute("cpu", "float32"), checkpoint=checkpoint)
    finally:
        torch.set_num_threads(threads)
    return model.state_dict()


if __name__ == "__main__":
    weights_after_training(Path(sys.argv[1]), killed_at=30)  # in its eighth epoch
