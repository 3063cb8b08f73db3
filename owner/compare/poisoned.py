"""The row of Razmi & Xiong 2021, who judge training data and not models: from the records of `python -m benchmarks.cae`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import StorageError

ALPHA, LEARNT_FROM = 0.66, "clean"
"""Of the shown figures, chosen before anything was measured."""

_COMMAND = "python -m benchmarks.cae"


@dataclass(frozen=True)
class OnData:
    """What the detector came to on one data set: one value a seed, the mean over its scenes (attacks, poisoned shares).

    f1: of flagging poisoned examples. attacked, filtered: accuracy of the victim with them, and without what was flagged.
    scenes: 0 where nothing was run.
    """

    data: str
    scenes: int = 0
    f1: tuple[float, ...] = ()
    attacked: tuple[float, ...] = ()
    filtered: tuple[float, ...] = ()


def read_poisoned(path: Path, datasets: Sequence[str]) -> tuple[OnData, ...]:
    """One a data set, in their order. A file that is not there is nothing run. Raises StorageError for a damaged one."""
    try:
        cells = json.loads(path.read_bytes())["cells"]
        return tuple(_on(data, [cell for cell in cells if cell["cell"]["data"] == data]) for data in datasets)
    except FileNotFoundError:
        return tuple(OnData(data) for data in datasets)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} cannot be read: {type(error).__name__}: {error}",
            hint=f"make it anew by `{_COMMAND}`, or delete it",
        ) from None


def about_poisoned(row: str, found: Sequence[OnData]) -> str:
    """What a reader of that row must know."""
    what = (
        f"{row}: examples of poisoned training sets are flagged, and no models; F1 is of flagging them, accuracy is of the victim (a "
        f"linear SVM of two classes) before, and after what is flagged was left out (alpha = {ALPHA:g}, learnt from a {LEARNT_FROM} "
        "set). It stands beside the others as the paper's table has it, not in competition with them. "
    )
    if any(one.scenes for one in found):
        return what + "Every attack, share and alpha: [cae.md](cae.md)."
    return what + f"`{_COMMAND}` runs it."


def _on(data: str, cells: Sequence[Mapping[str, Any]]) -> OnData:
    by_seed: dict[int, list[tuple[float, float, float | None]]] = {}
    for cell in cells:
        row = next(one for one in cell["rows"] if (one["alpha"], one["learnt_from"]) == (ALPHA, LEARNT_FROM))
        by_seed.setdefault(cell["cell"]["seed"], []).append((row["f1"], cell["victim"]["attacked"], row["accuracy"]))
    most = max(map(len, by_seed.values()), default=0)
    # A seed of which only a part has run is not comparable.
    whole = [members for _, members in sorted(by_seed.items()) if len(members) == most]
    columns = [_means([[one[i] for one in members] for members in whole]) for i in range(3)]
    return OnData(data, most, *columns)


def _means(seeds: Sequence[Sequence[float | None]]) -> tuple[float, ...]:
    """Of what is known; the victim has no accuracy where a whole class was flagged."""
    known = [[value for value in values if value is not None] for values in seeds]
    return tuple(statistics.fmean(values) for values in known if values)
