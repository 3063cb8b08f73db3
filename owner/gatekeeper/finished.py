"""Fine-tunes that are done, kept while a guard is being fitted, so that what was interrupted goes on where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from common import canonical
from common.errors import StorageError, WireError
from common.files import ensure_directory, read_bounded, write_atomically
from common.weights import load as load_weights
from common.weights import save as save_weights
from owner.gatekeeper.fine_tunes import OWNER, checkpoint_name
from owner.gatekeeper.references import FIRST_FITTING, Reference

Part = Literal["owner", "fitting", "calibrating", "escalating"]
"""What a fine-tune is for: Eq. 4 and the histograms, the scales of the combined score, the p-values, or those of the
escalation tier."""


class FinishedReferences:
    """Scores of fine-tunes that are done, one JSON and one safetensors file each, and those that are known from elsewhere."""

    def __init__(self, path: Path | None, known: Mapping[Part, Sequence[Reference]]) -> None:
        self.path = path and ensure_directory(path)
        self._known = known

    def read(self, part: Part, k: int) -> Reference | None:
        """None where it is not there or does not read: it is then made again."""
        known, name = self._known.get(part, ()), file_name(part, k)
        if k < len(known):
            return known[k]
        if self.path is None:
            return None
        try:
            about = canonical.parse(read_bounded(self.path / f"{name}.json", 1 << 20), limit=1 << 20, depth=16)
            errors = load_weights(self.path / f"{name}.safetensors", digest=about["errors_sha256"])
            return Reference(about["plan"], about["scores"], about["accuracy"], errors)
        except (StorageError, WireError, KeyError, TypeError):
            return None

    def write(self, part: Part, k: int, result: Reference) -> Reference:
        if self.path is not None:
            name = file_name(part, k)
            digest = save_weights(self.path / f"{name}.safetensors", result.image_errors)
            write_atomically(self.path / f"{name}.json", canonical.encode(result.to_json() | {"errors_sha256": digest}))
            for leftover in self.path.glob(f"{checkpoint_name(number_of(part, k))}*"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return result


def number_of(part: Part, k: int) -> int:
    """Of the k-th fine-tune of a part in the population: no two share one, but that the escalation tier looks at those that
    calibrate."""
    return {"owner": OWNER, "fitting": FIRST_FITTING + k}.get(part, k)


def file_name(part: Part, k: int) -> str:
    """Of what is stored about the k-th fine-tune of a part, without an ending."""
    return {"owner": "owner", "calibrating": f"{k:04d}"}.get(part, f"{part}-{k:04d}")
