"""A training for a test to kill: `python killed_training.py CHECKPOINT`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from common.devices import choose_compute
from common.examples import Examples
from common.training import train
from common.training_options import TrainingOptions


def weights_after_training(checkpoint: Path | None) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 2)
        model = nn.Sequential(*layers)
        examples = Examples((torch.rand(64, 1, 8, 8),), torch.arange(64) % 2, ("a", "b"))
    options = TrainingOptions(epochs=30, batch_size=16, augmentation="crop-flip")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(model, examples, options, compute=choose_compute("cpu", "float32"), checkpoint=checkpoint)
    finally:
        torch.set_num_threads(threads)
    return model.state_dict()


if __name__ == "__main__":
    weights_after_training(Path(sys.argv[1]))
