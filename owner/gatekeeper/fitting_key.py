"""What decides the scores of a fitting's references, in one digest: by it finished work and earlier guards are known again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common import canonical
from common.code import code_digest
from common.examples import Examples
from owner.detectors import Detector, DetectorState
from owner.gatekeeper.own_detectors import own_code
from owner.gatekeeper.references import POPULATION_VERSION

if TYPE_CHECKING:
    from owner.gatekeeper.protection import Protection

_OF_THE_GUARD_ALONE = (
    "references",
    "fitting_references",
    "combination",
    "given_size",
    "detectors",
    "rule",
    "reject_level",
    "quarantine_level",
    "escalation",
    "escalation_references",
    "escalation_reject_level",
    "escalation_quarantine_level",
    "incremental",
    "incremental_news",
    "incremental_generations",
)
"""Options that say how many references there are and what is made of their scores: whoever asks for more of them goes on with those
that are there. The detectors are in the digest by what they have learnt."""


def fitting_key(protection: Protection, head: str, detectors: Mapping[str, Detector]) -> str:
    """SHA-256 (hex) of everything that decides a reference's scores: work stored under another key is another fitting's.

    head: of the model, found. detectors: fitted on M, by name.
    """
    about = {
        "release": protection.release_sha256,
        "spec": protection.spec.to_json(),
        "head": head,
        "options": {k: v for k, v in protection.options.to_json().items() if k not in _OF_THE_GUARD_ALONE},
        "finetuning": protection.finetuning.to_json(),
        "compute": protection.compute.to_json(),
        "torch": torch.__version__,
        "code": code_digest("owner.detectors"),
        "population_version": POPULATION_VERSION,
        "data": [_digest(part) for part in (*protection.triggers.parts.values(), protection.references_pool)],
        # Those that the options name learn what follows from the rest; others from who knows where.
        "detectors": {
            name: detector.state().options if protection.detectors is None else _detector_digest(detector.state())
            for name, detector in detectors.items()
        },
    }
    if own := own_code(detectors):
        about["own_code"] = own
    if protection.usefulness is not None:
        about["usefulness"] = protection.usefulness.to_json()
    if protection.transplants is not None:  # they are not what training would make
        about["transplants"] = protection.transplants.provenance
    return hashlib.sha256(canonical.encode(about)).hexdigest()


def _detector_digest(state: DetectorState) -> str:
    hasher = hashlib.sha256(canonical.encode(state.options))
    for name in sorted(state.tensors):
        hasher.update(name.encode())
        _update(hasher, state.tensors[name])
    return hasher.hexdigest()


def _digest(examples: Examples) -> str:
    hasher = hashlib.sha256(canonical.encode(list(examples.class_names)))
    for tensor in (*examples.inputs, examples.labels):
        _update(hasher, tensor)
    return hasher.hexdigest()


def _update(hasher: hashlib._Hash, tensor: Tensor) -> None:
    hasher.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
    hasher.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
