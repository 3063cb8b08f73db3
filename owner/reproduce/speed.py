"""How fast a step ran, which share of the chip's peak that is, and how long the next one will take.

Work is counted by torch's own counter over one forward and backward pass (matrix products and convolutions, a multiply-add
as two operations; the first layer's input needs no gradient and none is counted). Peaks are the makers' figures for dense
bfloat16 products; a device that is not in the table has none, and its share is unknown.
"""

from __future__ import annotations

import functools
import math
import platform
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from common.code import code_digest
from common.devices import Compute, device_name
from common.model_spec import ModelSpec
from common.models import build
from owner.gatekeeper.options import GuardOptions
from owner.reproduce.settings import Settings
from owner.reproduce.steps import OTHER_ATTACK_DATA, Step
from owner.reproduce.variants import VARIANTS

PEAKS: Final[Mapping[str, float]] = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 operations a second, by what the device's name contains; the first that fits."""

_ASSUMED_SHARE = 0.15
_ASSUMED_CUDA = 20e12
_ASSUMED_CORE = {torch.bfloat16: 100e9, torch.float32: 25e9}
"""Operations a second that training reaches, assumed until a step of the same architecture has been timed on the device."""

_PEAK_SIDE, _PEAK_TRIES = 1024, 8
_OVERHEAD_SECONDS = 2.0
_AUTOENCODER_SECONDS_PER_FEATURE_EPOCH = 6e-4


@functools.cache
def training_flops(spec: ModelSpec) -> int:
    """Floating point operations of one training step, per image.

    >>> training_flops(ModelSpec("logistic", (1, 8, 8), 10)) == 2 * (2 * 64 * 10)  # forward, and the weights' gradient
    True
    """
    model = build(spec, seed=0).to("meta")
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.empty(2, *spec.input_shape, device="meta"))
        loss = F.cross_entropy(logits, torch.empty(2, dtype=torch.int64, device="meta"))
        loss.backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops()) // 2


def peak(name: str) -> float | None:
    """
    >>> peak("NVIDIA H200"), peak("8 x Some CPU")
    (989000000000000.0, None)
    """
    return next((flops for part, flops in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


def speed(spec: ModelSpec, images_per_second: float, compute: Compute) -> dict[str, Any]:
    """JSON: images a second, operations an image, the share of the peak: the maker's, or where that is unknown one that is measured now."""
    flops, known = training_flops(spec), peak(device_name(compute))
    if not images_per_second:
        return {"images_per_second": None, "flops_per_image": flops, "share_of_peak": None}
    most = known or measured_peak(compute)
    return {
        "images_per_second": round(images_per_second, 1),
        "flops_per_image": flops,
        "share_of_peak": round(images_per_second * flops / most, 4),
        "peak_measured": known is None,
    }


@functools.cache
def measured_peak(compute: Compute) -> float:
    """Operations a second of a product of two square matrices on this device, of as many threads as torch has: the best of some."""
    a, b = (torch.ones(_PEAK_SIDE, _PEAK_SIDE, dtype=compute.dtype, device=compute.device) for _ in range(2))
    best = math.inf
    for _ in range(_PEAK_TRIES):
        started = time.perf_counter()
        float((a @ b)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return float(2 * _PEAK_SIDE**3 / best)


def environment(compute: Compute, *, compiled: bool, processes: int = 1) -> dict[str, Any]:
    """JSON: device, precision, versions: what a figure depends on. processes: that shared the device."""
    return {
        **compute.to_json(),
        "device": device_name(compute),
        "compiled": compiled,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "code": code(),
    }


def code() -> str:
    """Of all that a figure may depend on: records of one value were made by equal code."""
    return code_digest("common", "owner")[:12]


def image_steps(step: Step, settings: Settings, train: int) -> int:
    """How many images a step pushes through training, of a training set of `train`."""
    scratch = settings.training(step.architecture, step.seed).epochs
    short, long = settings.durations(step.architecture)
    share = settings.owners_part
    part, rest = round(share * train), round((1 - share) / 2 * train)
    if step.is_scratch:
        return scratch * (part if step.name == "part" else train)
    if step.name == "gate":  # references of half to all of their pool, and half to twice the epochs
        fine_tunes = settings.references + GuardOptions.fitting_references + 1
        return round(fine_tunes * short * 0.75 * rest * 1.1)
    if step.kind is None:
        return 0
    if step.data == "contribution":
        return long * rest
    size = train
    if step.kind != "honest":
        attack_data = step.group if step.group in OTHER_ATTACK_DATA else settings.attack_data
        attacked = max(1, round(settings.fraction * train / 10))
        size = {"inside": train, "beside": train + attacked, "alone": attacked}[attack_data]
    return size * (short if step.group == "part" else long)


class Estimates:
    """Seconds a step will take, from those of the same architecture that were timed on this device, else from assumptions."""

    def __init__(
        self,
        settings: Settings,
        compute: Compute,
        train: int,
        records: Iterable[tuple[Step, Mapping[str, Any]]],
        *,
        threads: int | None = None,
    ) -> None:
        self.settings, self.compute, self.train = settings, compute, train
        self.threads = torch.get_num_threads() if threads is None else threads
        device = device_name(compute)
        self._rates: dict[str, list[float]] = {}
        for step, record in records:
            rate = record.get("speed", {}).get("images_per_second")
            if rate and record["environment"]["device"] == device:
                self._rates.setdefault(step.architecture, []).append(rate)

    def images_per_second(self, spec: ModelSpec) -> float:
        if measured := self._rates.get(spec.architecture):
            return sorted(measured)[len(measured) // 2]
        if self.compute.device.type == "cuda":
            most = peak(device_name(self.compute))
            reached = _ASSUMED_CUDA if most is None else _ASSUMED_SHARE * most
        else:
            reached = _ASSUMED_CORE[self.compute.dtype] * self.threads
        return reached / training_flops(spec)

    def seconds(self, step: Step, spec: ModelSpec) -> float:
        seconds = _OVERHEAD_SECONDS + image_steps(step, self.settings, self.train) / self.images_per_second(spec)
        if step.kind is None and not step.is_scratch:
            fits = len(VARIANTS) if step.name == "variants" else 1
            seconds += fits * 512 * self.settings.ae_epochs * _AUTOENCODER_SECONDS_PER_FEATURE_EPOCH
        return seconds
