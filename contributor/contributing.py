"""One contribution from beginning to end: get the release, verify it, fine-tune, sign, submit, wait for the verdict.

Each step ends in a state on disk (`workspace.Step`), and each begins by looking whether it is done already; so a killed
`contribute`, started again with the same request, goes on, and hands in the submission it had begun and no second one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from common import timestamps
from common.errors import (
    ConfigurationError,
    ManifestError,
    ProtocolError,
    TriesUsedUpError,
    WireError,
    WorkspaceError,
)
from common.files import ensure_directory, write_atomically
from common.identity.keys import Domain, SigningKey
from common.slots import TrainingSlots
from contributor.classes import parse_classes
from contributor.requests import Request
from contributor.workspace import Contribution, ContributorWorkspace, Step

if TYPE_CHECKING:
    from common.examples import Examples
    from common.manifest import ReleaseManifest
    from contributor.finetuning import FineTuned
    from contributor.matching import Sizes

READING, CONNECTED, WAITING = "reading the data", "connected", "waiting for a slot"
TRAINING, UPLOADING, PENDING = "training", "uploading", "pending"
ACCEPTED, DECLINED = "accepted", "declined"
TRIES_USED_UP = "TRIES_USED_UP"

_NEVER_AGAIN = frozenset(
    {
        "BASE_NOT_ALLOWED",
        "BASE_ROLLED_BACK",
        "BASE_UNKNOWN",
        "NOT_UPLOADING",
        "REPLAY",
        "SPEC_MISMATCH",
        "UNKNOWN_RELEASE",
    }
)
"""Codes of the owner's refusals that hold for these weights and this base for good: no later attempt can succeed."""

_UNTRAINED = frozenset({Step.STARTED, Step.FETCHED})

OnStage = Callable[[str, str], None]
"""Called with a stage (one of the words above) and a detail, whenever either changes."""


@dataclass(frozen=True)
class Standing:
    """A submission as the owner tells it. state: uploading, pending, accepted or declined; code: why declined.

    commit_receipt, verdict_receipt: verified, b"" where there is none yet.
    """

    state: str
    code: str = ""
    commit_receipt: bytes = b""
    verdict_receipt: bytes = b""


class Owner(Protocol):
    """The owner as a contributor meets it. Every call survives cut lines and restarts of the owner by itself."""

    @property
    def name(self) -> str:
        """The name this contributor is enrolled under."""
        ...

    def fetch_release(self, release_id: str) -> tuple[str, ReleaseManifest]:
        """Id and manifest of a release ("": the current one), its signature verified, its weights on disk and verified."""
        ...

    def tries_left(self, release_id: str) -> int | None:
        """How many more submissions on it the owner will take; None where the owner was not asked for it in this run."""
        ...

    def weights_path(self, release_id: str) -> Path: ...

    def submit(
        self, manifest: bytes, signature: bytes, weights: Path, on_progress: Callable[[int, int], None]
    ) -> Standing:
        """Begin and upload; on_progress gets bytes on the owner's disk and bytes in all."""
        ...

    def watch(self, submission_id: str) -> Iterator[Standing]:
        """The submission's standing now and at every change, up to accepted or declined."""
        ...


def contribute(
    workspace: ContributorWorkspace,
    owner: Owner,
    request: Request,
    *,
    signing_key: SigningKey,
    fresh: bool = False,
    wait: bool = True,
    slots: TrainingSlots | None = None,
    factories: Collection[str] = (),
    device: str = "auto",
    precision: str = "auto",
    progress: bool | None = None,
    on_stage: OnStage = lambda _stage, _detail: None,
    on_note: Callable[[str], None] = lambda _text: None,
    on_change: Callable[[Contribution], None] = lambda _contribution: None,
) -> Contribution:
    """Make the contribution that `request` describes, or go on with an equal one that was interrupted.

    fresh: begin anew even where one could go on. wait: stay until the verdict; else return once the owner has it all.
    slots: train only while holding one of these; data are then read while one is held, else before the owner is called. Encoded
        images are only looked at then, and decoded at the size that the release takes.
    on_note: told, before the training, what of the data is trained on (`matching.inventory`).
    factories: each a `package.module:factory` that a release may name as its model. Building one runs code installed here,
        so a name that only came over the wire is refused.

    Mistakes in the request are found before the owner is called, and leave nothing behind.
    Raises what the steps raise: DataError, UnknownNameError, ConfigurationError, SignatureError, WireError (a release that does
    not verify), QuotaError, ConnectionLostError; WorkspaceError where another process works on the same contribution.
    A WireError that no later attempt can mend, such as BASE_ROLLED_BACK, closes the contribution as declined with that code, and
    TriesUsedUpError one that is trained already with TRIES_USED_UP, so that an equal request begins a new one. Where the owner
    says with the release that no try is left, TriesUsedUpError comes before the training.
    """
    request.check()
    contribution = None if fresh else workspace.open_contribution(request.to_json())
    work = _Work(workspace, owner, request, signing_key, on_stage, on_note, on_change)
    if contribution is None or contribution.step in _UNTRAINED:
        _check_machine(device, precision)
        work.look_at_data(read=slots is None)
    if contribution is None:
        contribution = _start(workspace, request)
    with workspace.lock(contribution.label):
        try:
            contribution = work.fetch(contribution, factories)
            if contribution.step == Step.FETCHED:
                contribution = work.train(contribution, slots, device=device, precision=precision, progress=progress)
            if contribution.step == Step.TRAINED:
                contribution = work.sign(contribution)
            if contribution.step == Step.SIGNED:
                contribution = work.submit(contribution)
        except (WireError, TriesUsedUpError) as error:
            work.close_if_hopeless(contribution, error)
            raise
        if contribution.step == Step.COMMITTED and wait:
            contribution = work.watch(contribution)
        return contribution


def watch(
    workspace: ContributorWorkspace,
    owner: Owner,
    submission_id: str,
    *,
    on_stage: OnStage = lambda _stage, _detail: None,
) -> Standing:
    """Wait for the verdict of a submission; keeps the receipt where the submission was made in this home."""
    standing = Standing("")
    for standing in owner.watch(submission_id):
        on_stage(standing.state, standing.code)
    contribution = workspace.find(submission_id)
    if contribution is not None and standing.state in {ACCEPTED, DECLINED}:
        _decided(workspace, contribution, standing)
    return standing


@dataclass
class _Work:
    """sizes: of encoded images that were looked at. material: the examples and the held-out ones, from when they are read until
    they have been trained on; encoded images wait for the size that the release takes."""

    workspace: ContributorWorkspace
    owner: Owner
    request: Request
    signing_key: SigningKey
    on_stage: OnStage
    on_note: Callable[[str], None]
    on_change: Callable[[Contribution], None]
    sizes: Sizes | None = None
    material: tuple[Examples, Examples | None] | None = None

    def look_at_data(self, *, read: bool) -> None:
        self.request.check_data()
        if read:
            self.on_stage(READING, "")
            self.sizes, held_out = self.request.image_sizes(), self.request.load_held_out()
            if self.sizes is None:
                self.material = self.request.load(), held_out

    def fetch(self, contribution: Contribution, factories: Collection[str]) -> Contribution:
        if contribution.step not in _UNTRAINED:
            return contribution
        self.on_stage("fetching the release", "")
        release_id, manifest = self.owner.fetch_release(contribution.release or self.request.release)
        if manifest.spec.is_factory and manifest.spec.architecture not in factories:
            raise ConfigurationError(
                f"the owner's model is built by {manifest.spec.architecture}, code on this machine that you have not named",
                hint=f"if you trust that code, allow it with --factory {manifest.spec.architecture}, or in the settings",
            )
        if self.owner.tries_left(release_id) == 0:
            raise TriesUsedUpError(
                f"the owner takes no more submissions on release {release_id[:12]} from {self.owner.name}",
                hint="wait for the next release; nothing was trained",
            )
        self.on_stage(CONNECTED, f"release {release_id[:12]}")
        return self._save(contribution, step=Step.FETCHED, release=release_id)

    def train(
        self,
        contribution: Contribution,
        slots: TrainingSlots | None,
        *,
        device: str,
        precision: str,
        progress: bool | None,
    ) -> Contribution:
        # Import and waiting before the slot is held would be free; importing torch is not, so it waits its turn as well.
        holding: AbstractContextManager[object] = nullcontext()
        if slots is not None:
            holding = slots.hold(on_wait=lambda: self.on_stage(WAITING, ""))
        with holding:
            self.on_stage(TRAINING, "")
            done = self._finetune(contribution, device=device, precision=precision, progress=progress)
            from common.weights import save  # noqa: PLC0415 - torch, which a contributor that only waits does not need

            save(self._directory(contribution) / "weights.safetensors", done.weights)
        self._checkpoint(contribution).unlink(missing_ok=True)
        return self._save(contribution, step=Step.TRAINED, measured=done.report)

    def _finetune(self, contribution: Contribution, *, device: str, precision: str, progress: bool | None) -> FineTuned:
        from common.devices import choose_compute  # noqa: PLC0415 - as above
        from common.training_options import TrainingOptions  # noqa: PLC0415
        from common.weights import load  # noqa: PLC0415
        from contributor.attacks import parse_attack  # noqa: PLC0415
        from contributor.finetuning import finetune  # noqa: PLC0415

        _, manifest = self.owner.fetch_release(contribution.release)
        examples, held_out = self._brought_to(manifest)
        recommended = manifest.finetuning.to_json()
        options = TrainingOptions.from_json({**recommended, **self.request.options, "seed": contribution.seed})
        return finetune(
            load(self.owner.weights_path(contribution.release), digest=manifest.weights_sha256),
            manifest.spec,
            examples,
            options,
            attack=parse_attack(self.request.attack) if self.request.attack else None,
            held_out=held_out,
            class_names=manifest.class_names,
            compute=choose_compute(device, precision),
            checkpoint=self._checkpoint(contribution),
            progress=progress,
        )

    def _brought_to(self, release: ReleaseManifest) -> tuple[Examples, Examples | None]:
        """The examples and the held-out ones, as the release takes them."""
        from contributor.matching import decoded_size, fit_to_model, inventory  # noqa: PLC0415 - as above

        sizes = self.sizes
        if self.material is None:
            sizes = self.request.image_sizes() if sizes is None else sizes
            self.material = self.request.load(decoded_size(sizes, release.spec)), self.request.load_held_out()
        (own, held_out), self.material = self.material, None
        classes = parse_classes(self.request.classes) if self.request.classes else {}
        fitted = fit_to_model(own, release.spec, release.class_names, classes)
        for line in inventory(own, fitted, sizes):
            self.on_note(line)
        if held_out is not None:
            theirs = {name: classes[name] for name in held_out.class_names if name in classes}
            held_out = fit_to_model(held_out, release.spec, release.class_names, theirs)
        return fitted, held_out

    def sign(self, contribution: Contribution) -> Contribution:
        from common.manifest import SubmissionManifest  # noqa: PLC0415
        from common.training_options import TrainingOptions  # noqa: PLC0415
        from common.weights import digest_file  # noqa: PLC0415

        _, release = self.owner.fetch_release(contribution.release)
        weights = self._directory(contribution) / "weights.safetensors"
        options = {**release.finetuning.to_json(), **self.request.options, "seed": contribution.seed}
        manifest = SubmissionManifest(
            contributor=self.owner.name,
            base_release=contribution.release,
            spec=release.spec,
            weights_sha256=digest_file(weights),
            weights_bytes=weights.stat().st_size,
            samples=int(contribution.measured["samples"]),
            training=TrainingOptions.from_json(options),
            nonce=contribution.nonce,
            created=timestamps.to_text(timestamps.now()),
        )
        # The manifest first, its id in the state last: what the state names lies on disk.
        write_atomically(self._directory(contribution) / "manifest.json", manifest.to_bytes())
        signature = self.signing_key.sign(Domain.SUBMISSION, manifest.to_bytes())
        write_atomically(self._directory(contribution) / "manifest.sig", signature)
        return self._save(contribution, step=Step.SIGNED, submission=manifest.id)

    def submit(self, contribution: Contribution) -> Contribution:
        directory = self._directory(contribution)
        self.on_stage(UPLOADING, "")
        standing = self.owner.submit(
            _read(directory / "manifest.json"),
            _read(directory / "manifest.sig"),
            directory / "weights.safetensors",
            lambda done, total: self.on_stage(UPLOADING, f"{100 * done // max(total, 1)} %"),
        )
        _keep_receipts(self.workspace, contribution, standing)
        self.on_stage(PENDING, contribution.submission[:12])
        return self._save(contribution, step=Step.COMMITTED)

    def watch(self, contribution: Contribution) -> Contribution:
        standing = Standing(PENDING)
        for standing in self.owner.watch(contribution.submission):
            self.on_stage(standing.state, standing.code)
        decided = _decided(self.workspace, contribution, standing)
        self.on_change(decided)
        return decided

    def close_if_hopeless(self, contribution: Contribution, error: WireError | TriesUsedUpError) -> None:
        """Records a contribution that the owner refuses for good as declined, and says in `error` what to do instead."""
        if isinstance(error, TriesUsedUpError):
            if contribution.step != Step.SIGNED:
                return
            code = TRIES_USED_UP
        else:
            manifest_refused = contribution.step == Step.SIGNED and isinstance(error, ManifestError)
            if not contribution.release or not (manifest_refused or error.code in _NEVER_AGAIN):
                return
            code = error.code
        self._save(contribution, step=Step.DECIDED, verdict=DECLINED, code=code)
        self.on_stage(DECLINED, code)
        error.hint = (
            "this contribution is closed; run `contribute` again without --release to begin anew from the current release"
            if self.request.release
            else "this contribution is closed; run `contribute` again to begin anew from the current release"
        )

    def _save(self, contribution: Contribution, **changes: Any) -> Contribution:
        changed = dataclasses.replace(contribution, **changes)
        self.workspace.save(changed)
        self.on_change(changed)
        return changed

    def _directory(self, contribution: Contribution) -> Path:
        return self.workspace.contribution_directory(contribution.label)

    def _checkpoint(self, contribution: Contribution) -> Path:
        return self._directory(contribution) / "checkpoint.safetensors"


def _check_machine(device: str, precision: str) -> None:
    """Raises UnknownNameError, ConfigurationError for a device or precision that this machine does not have."""
    from common.devices import choose_compute  # noqa: PLC0415 - torch, which `watch` does not need

    choose_compute(device, precision)


def _start(workspace: ContributorWorkspace, request: Request) -> Contribution:
    seed = request.seed if request.seed is not None else int.from_bytes(os.urandom(4), "big") >> 1
    return workspace.start(request.to_json(), seed=seed, nonce=os.urandom(16).hex())


def _decided(workspace: ContributorWorkspace, contribution: Contribution, standing: Standing) -> Contribution:
    kept = workspace.contribution_directory(contribution.label) / "commit.receipt"
    if standing.code == "expired" and not standing.commit_receipt and kept.exists():
        raise ProtocolError(
            f"the owner says that submission {contribution.submission[:12]} expired, as if it had never been handed in",
            hint=f"ask the owner; it signed the receipt in {kept}",
        )
    _keep_receipts(workspace, contribution, standing)
    decided = dataclasses.replace(contribution, step=Step.DECIDED, verdict=standing.state, code=standing.code)
    workspace.save(decided)
    return decided


def _keep_receipts(workspace: ContributorWorkspace, contribution: Contribution, standing: Standing) -> None:
    directory = ensure_directory(workspace.contribution_directory(contribution.label))
    for name, receipt in (("commit", standing.commit_receipt), ("verdict", standing.verdict_receipt)):
        if receipt:
            write_atomically(directory / f"{name}.receipt", receipt)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WorkspaceError(
            f"{path} cannot be read: {error.strerror}", hint="begin anew with `contribute --fresh`"
        ) from None
