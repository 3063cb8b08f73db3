"""Makes the fixture of format version 1 in tests/data/golden/v1: run once, committed, never run by tests.

    python tests/data/make_golden.py

What these files hold must verify and parse for as long as Portier reads format 1. It refuses to run where the folder
exists: a change that breaks the old files needs a new format version and a new folder beside the old one.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import torch

from common import weights
from common.identity.authority import Authority
from common.identity.invitation import Invitation
from common.identity.keys import Domain, SigningKey
from common.identity.requests import enrolment_request
from common.identity.tls_keys import TlsKey
from common.manifest import ReleaseManifest, SubmissionManifest
from common.model_spec import ModelSpec
from common.receipts import sign_receipt
from common.training_options import TrainingOptions

GOLDEN = Path(__file__).parent / "golden" / "v1"
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def main() -> None:
    GOLDEN.mkdir(parents=True)
    owner, contributor = SigningKey.generate(), SigningKey.generate()
    spec = ModelSpec("logistic", (1, 8, 8), 10)
    generator = torch.Generator().manual_seed(0)
    digest = weights.save(
        GOLDEN / "weights.safetensors",
        {"1.weight": torch.randn(10, 64, generator=generator), "1.bias": torch.randn(10, generator=generator)},
    )
    weights.save(
        GOLDEN / "every_dtype.safetensors",
        {code: torch.tensor([[0, 1, 1]]).to(dtype) for code, dtype in weights.DTYPES.items()}
        | {"scalar": torch.tensor(7), "empty": torch.zeros(0, 3)},
        metadata={"made by": "tests/data/make_golden.py"},
    )
    release = ReleaseManifest(
        number=0,
        parent=None,
        spec=spec,
        class_names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "neuf·九"),
        weights_sha256=digest,
        weights_bytes=(GOLDEN / "weights.safetensors").stat().st_size,
        finetuning=TrainingOptions(epochs=3, learning_rate=0.005, schedule="constant"),
        created="2026-01-02T03:04:05Z",
        note="the golden release",
    )
    submission = SubmissionManifest(
        contributor="ward-3",
        base_release=release.id,
        spec=spec,
        weights_sha256=digest,
        weights_bytes=release.weights_bytes,
        samples=600,
        training=TrainingOptions(epochs=1, learning_rate=1e-05, optimiser="adam"),
        nonce="0123456789abcdef0123456789abcdef",
        created="2026-01-02T03:04:05.678901Z",
    )
    receipt = sign_receipt(
        owner,
        index=4,
        entry_hash="4" * 64,
        head_index=5,
        head_hash="5" * 64,
        subject=submission.id,
        statement="received",
    )
    authority = Authority.create(now=MOMENT)
    invitation = Invitation.create(
        name="ward-3",
        addresses=["owner.example.org:7443", "[2001:db8::1]:7443"],
        enrolment_addresses=["owner.example.org:7444"],
        ca_certificate=authority.certificate_der,
        owner_key=owner.public_key,
        expires=datetime(2026, 1, 5, 3, 4, 5, tzinfo=UTC),
    )
    request = enrolment_request(invitation.token, "ward-3", TlsKey.generate(), contributor)
    issued = authority.sign_request(request.certificate_request, "ward-3", days=90, now=MOMENT)
    files = {
        "release.json": release.to_bytes(),
        "release.sig": owner.sign(Domain.RELEASE, release.to_bytes()),
        "submission.json": submission.to_bytes(),
        "submission.sig": contributor.sign(Domain.SUBMISSION, submission.to_bytes()),
        "receipt.json": receipt.to_bytes(),
        "invitation.txt": invitation.to_string().encode("ascii"),
        "enrolment_request.der": request.certificate_request,
        "enrolment_proof.sig": request.proof,
        "contributor_certificate.pem": issued.certificate_pem,
        "authority_certificate.pem": authority.certificate_pem,
    }
    for name, data in files.items():
        (GOLDEN / name).write_bytes(data)
    about = {
        "owner_key": owner.public_key.hex(),
        "contributor_key": contributor.public_key.hex(),
        "release_id": release.id,
        "submission_id": submission.id,
        "weights_sha256": digest,
        "ca_spki_sha256": authority.spki_sha256,
        "contributor_serial": issued.serial,
    }
    (GOLDEN / "about.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
