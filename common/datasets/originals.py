"""How much of a published data set is at hand, for tables that must say when it is a part only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from common.datasets.dataset import DataSet

SIZES: Final[Mapping[str, int]] = {"sentiment140": 1_600_498, "vehicle-sensors": 43_695}
"""Examples of the originals, training and test: Go, Bhayani & Huang 2009; Duarte & Hu 2004 as Smith et al. 2017 use it."""


def part_of_original(data: DataSet) -> str | None:
    """What to write beside a result on `data`; None where it is whole, or its original's size is not known.

    >>> from common.datasets import load
    >>> part_of_original(load("digits")) is None
    True
    """
    whole = SIZES.get(data.name.lower().replace("_", "-"))
    found = len(data.train) + len(data.test)
    return f"{found:,} of the original's {whole:,} examples" if whole is not None and found < whole else None
