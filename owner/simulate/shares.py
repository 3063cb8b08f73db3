"""Who gets which images: the part of the training set that the owner leaves, divided among the contributors."""

from __future__ import annotations

from pathlib import Path

import torch

from common.datasets import save_examples
from common.examples import Examples
from common.files import ensure_directory
from common.partitions import iid, parse_partition
from owner.shares import divided
from owner.simulate.scenario import Scenario


def write_shares(scenario: Scenario, folder: Path) -> dict[str, int]:
    """Write <folder>/<contributor>.safetensors for each, and evaluation.safetensors, on which attacks are measured.

    Returns how many examples each contributor holds. Raises DataError, StorageError.
    """
    owners = divided(scenario.settings.data)
    ensure_directory(folder)
    save_examples(folder / "evaluation.safetensors", owners.evaluation)
    shares = divide(scenario, owners.unclaimed)
    for name, examples in shares.items():
        save_examples(folder / f"{name}.safetensors", examples)
    return {name: len(examples) for name, examples in shares.items()}


def divide(scenario: Scenario, unclaimed: Examples) -> dict[str, Examples]:
    """Each contributor's examples: disjoint, and together all of `unclaimed`.

    A group of n contributors with one partition rule first gets n equal random parts, then divides them by its rule.
    """
    seed = scenario.settings.data.seed
    pieces = iter(iid(unclaimed.labels, len(scenario.contributors), seed))
    shares: dict[str, Examples] = {}
    for group in scenario.partition_groups.values():
        part = unclaimed.take(torch.cat([next(pieces) for _ in group]))
        for index, one in enumerate(group):
            shares[one.name] = parse_partition(one.partition_at(index, len(group), seed)).apply(part)
    return shares
