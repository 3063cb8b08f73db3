"""No probe of the bank is an attack's trigger: else detectors would be judged on the very mark they look for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.detection.config import CONFIGS, Config
from common.triggers import TRIGGERS, Trigger
from contributor.attacks import KINDS, parse_attack
from contributor.attacks.backdoor import Backdoor
from contributor.attacks.composed import Composed
from owner.detectors.probes import IMAGE_PROBES, stamp

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "digits": (1, 8, 8)}
ALIKE = 0.8
"""Cosine of the angle between two marks, as changes of the same images, from which on they count as one."""


def images(dataset: str) -> Tensor:
    channels, height, width = SHAPES[dataset]
    coarse = torch.rand(12, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True).clamp(0, 1)


def likeness(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def configured() -> list[tuple[str, str]]:
    """(data set, specification) of every attack a shipped configuration makes."""
    configs = [Config.load(path.stem) for path in sorted(CONFIGS.glob("*.toml"))]
    return sorted({(one.dataset, spec) for one in configs for family in one.families for spec in family.specs})


def marks(dataset: str) -> dict[str, Tensor]:
    """What each trigger, by default and as configured for this data set, changes about the images."""
    clean = images(dataset)
    found = {f"{name}, seed {seed}": Trigger(name, seed=seed).stamp(clean) for name in TRIGGERS for seed in range(3)}
    specs = [spec.format(source=7, target=3) for where, spec in configured() if where == dataset]
    for spec in [*specs, *KINDS]:
        attack = parse_attack(spec)
        carried = attack.backdoor if isinstance(attack, Composed) else attack
        if isinstance(carried, Backdoor):
            found[spec] = carried.stamp(clean)
    return {name: stamped - clean for name, stamped in found.items()}


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_no_probe_makes_the_mark_of_an_attack(dataset: str) -> None:
    clean = images(dataset)
    probes = {name: stamp((clean,), name, seed=0)[0] - clean for name in IMAGE_PROBES}
    alike = {
        (probe, attack): round(found, 2)
        for attack, mark in marks(dataset).items()
        for probe, change in probes.items()
        if (found := likeness(change, mark)) > ALIKE
    }
    assert alike == {}


def test_a_mark_is_known_again_by_its_likeness_whatever_its_strength() -> None:
    clean = images("mnist")
    strong, weak = (Trigger("pattern", strength).stamp(clean) - clean for strength in (1.0, 0.5))
    assert likeness(strong, weak) > 0.99
