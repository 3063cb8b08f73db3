"""What tests of the owner's rooms share: quick settings, and contributors without a network in between."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import torch

from common import timestamps
from common.identity.invitation import new_token, token_digest
from common.identity.keys import Domain, SigningKey
from common.manifest import SubmissionManifest, new_nonce
from common.weights import Weights, digest_file, load, save
from owner import assessment
from owner.gatekeeper.jobs import VettingJob
from owner.gatekeeper.verdict import Check, Decision, Verdict
from owner.gatekeeper.worker import Vetter
from owner.ledger.records import Release, Submission
from owner.operations.opening import Office
from owner.releases import read_manifest

# Small enough to be quick, and yet every stage is real: mlp on digits, four references, level 1/5.
QUICK = {
    "data.name": "digits",
    "model.architecture": "mlp",
    "model.precision": "float32",
    "training.epochs": 8,
    "training.learning_rate": 0.1,
    "finetuning.epochs": 1,
    "guard.references": 4,
    "guard.fitting_references": 3,
    "guard.reject_level": 0.2,
    "guard.quarantine_level": 0.2,
    "guard.epochs": 5,
    "service.host": "127.0.0.1",
    "service.port": 7443,
    "service.names": ["127.0.0.1"],
}


class InProcess:
    """The vetting worker without the process: the same checks, at once."""

    def __init__(self) -> None:
        self.vetter = Vetter()
        self.jobs: list[VettingJob] = []

    def vet(self, job: VettingJob) -> Verdict:
        self.jobs.append(job)
        return self.vetter.vet(job)

    def close(self) -> None:
        pass


class Contributor:
    """Somebody enrolled, who hands in weights without a network in between."""

    def __init__(self, office: Office, name: str) -> None:
        self.name = name
        self.key = SigningKey.generate()
        self._office = office
        token = new_token()
        expires = timestamps.now() + timedelta(hours=1)
        office.store.invite(name, token_digest(token), expires)
        office.store.redeem(
            token, signing_key=self.key.public_key, serial=self.key.public_key.hex()[:40], not_after=expires
        )

    def hand_in(
        self,
        change: Callable[[Weights], Weights] = dict,
        *,
        base: Release | None = None,
        sign_as: SigningKey | None = None,
    ) -> Submission:
        """A received submission: the base's weights after `change`."""
        return self._office.store.committed(self.announce(change, base=base, sign_as=sign_as).id)[0]

    def announce(
        self,
        change: Callable[[Weights], Weights] = dict,
        *,
        base: Release | None = None,
        sign_as: SigningKey | None = None,
    ) -> Submission:
        """As `hand_in`, up to the moment before the upload is committed."""
        office = self._office
        base = base or office.store.current()
        release = office.workspace.release(base.id)
        draft = office.workspace.work / f"{self.name}.safetensors"
        save(draft, change(load(release.weights)))
        manifest = SubmissionManifest(
            contributor=self.name,
            base_release=base.id,
            spec=read_manifest(base).spec,
            weights_sha256=digest_file(draft),
            weights_bytes=draft.stat().st_size,
            samples=100,
            training=read_manifest(base).finetuning,
            nonce=new_nonce(),
            created=timestamps.to_text(timestamps.now()),
        )
        data = manifest.to_bytes()
        begun = office.store.begin(data, (sign_as or self.key).sign(Domain.SUBMISSION, data), self.name)
        files = office.workspace.submission(manifest.id)
        files.directory.mkdir(parents=True)
        files.manifest.write_bytes(data)
        draft.rename(files.weights)
        return begun


def slightly_changed(weights: Weights) -> Weights:
    """What an honest contributor with few images might return."""
    generator = torch.Generator().manual_seed(1)
    return {
        n: t + 1e-4 * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
        for n, t in weights.items()
    }


def negated(weights: Weights) -> Weights:
    return {name: -tensor for name, tensor in weights.items()}


def vet_and_settle(office: Office, submission: Submission, verdict: Verdict | None = None) -> Submission:
    claimed = office.store.claim()
    assert claimed is not None
    assert claimed.id == submission.id
    current = office.store.current()
    found = verdict or assessment.vet(office.workspace, office.store, office.settings, InProcess(), claimed, current)  # type: ignore[arg-type]
    assessment.settle(office.workspace, office.store, office.signing_key, office.settings, claimed, current, found)
    return office.store.submission(submission.id)


def quarantined(office: Office, submission: Submission) -> Submission:
    check = Check("activation-autoencoder", Decision.QUARANTINED, code="ACTIVATION_AUTOENCODER")
    return vet_and_settle(office, submission, Verdict(Decision.QUARANTINED, (check,), (check.code or "",)))
