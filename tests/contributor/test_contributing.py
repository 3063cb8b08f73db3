"""A contribution's steps: each leads to the next, and a killed one goes on where it stood."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.datasets import save_examples
from common.errors import (
    ConfigurationError,
    DataError,
    ManifestError,
    PortierError,
    ProtocolError,
    QuotaError,
    TriesUsedUpError,
    UnknownNameError,
    WireError,
    WorkspaceError,
)
from common.examples import Examples
from common.identity.keys import Domain, SigningKey, verify
from common.manifest import ReleaseManifest, SubmissionManifest, parse_submission
from common.model_spec import ModelSpec
from common.models import build
from common.slots import TrainingSlots
from common.training_options import TrainingOptions
from common.weights import load, save
from contributor import contributing
from contributor.contributing import Standing, contribute
from contributor.requests import Request
from contributor.workspace import Contribution, ContributorWorkspace, Step

SPEC = ModelSpec("logistic", (1, 2, 2), 2)
NAMES = ("dark", "bright")


class StandInOwner:
    """An owner without a network: hands out one release, remembers submissions, gives the standings it was told to."""

    name = "ada"

    def __init__(self, folder: Path) -> None:
        self.weights = folder / "release.safetensors"
        digest = save(self.weights, build(SPEC, seed=0).state_dict())
        self.manifest = ReleaseManifest(
            number=0,
            parent=None,
            spec=SPEC,
            class_names=NAMES,
            weights_sha256=digest,
            weights_bytes=self.weights.stat().st_size,
            finetuning=TrainingOptions(epochs=1, learning_rate=0.1, batch_size=4),
            created="2026-01-02T03:04:05Z",
        )
        self.submissions: list[tuple[bytes, bytes, Path]] = []
        self.standings = [Standing("pending"), Standing("accepted", verdict_receipt=b"verdict")]
        self.refuses: Exception | None = None
        self.left: int | None = 5

    def fetch_release(self, release_id: str) -> tuple[str, ReleaseManifest]:
        assert release_id in {"", self.manifest.id}
        return self.manifest.id, self.manifest

    def tries_left(self, release_id: str) -> int | None:
        return self.left

    def weights_path(self, release_id: str) -> Path:
        assert release_id == self.manifest.id
        return self.weights

    def submit(
        self, manifest: bytes, signature: bytes, weights: Path, on_progress: Callable[[int, int], None]
    ) -> Standing:
        if self.refuses is not None:
            raise self.refuses
        self.submissions.append((manifest, signature, weights))
        on_progress(1, 2)
        return Standing("pending", commit_receipt=b"commit")

    def watch(self, submission_id: str) -> Iterator[Standing]:
        yield from self.standings


@pytest.fixture
def owner(tmp_path: Path) -> StandInOwner:
    return StandInOwner(tmp_path)


@pytest.fixture
def workspace(tmp_path: Path) -> ContributorWorkspace:
    return ContributorWorkspace(tmp_path / "home")


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    labels = torch.arange(16) % 2
    images = (200 * labels).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 2, 2)
    save_examples(tmp_path / "mine.safetensors", Examples((images,), labels, NAMES))
    return Request(data=str(tmp_path / "mine.safetensors"), seed=3)


KEY = SigningKey.generate()


def _run(workspace: ContributorWorkspace, owner: StandInOwner, request: Request, **options: object) -> Contribution:
    return contribute(workspace, owner, request, signing_key=KEY, device="cpu", precision="float32", **options)  # type: ignore[arg-type]


def _manifest(owner: StandInOwner, number: int = -1) -> SubmissionManifest:
    return parse_submission(owner.submissions[number][0])


def test_what_is_handed_in_is_signed_and_says_what_was_done(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request
) -> None:
    done = _run(workspace, owner, dataclasses.replace(request_, options={"epochs": 2}))
    manifest_bytes, signature, weights = owner.submissions[0]
    verify(Domain.SUBMISSION, manifest_bytes, signature, KEY.public_key)
    manifest = _manifest(owner)
    assert (manifest.contributor, manifest.base_release, manifest.samples) == ("ada", owner.manifest.id, 16)
    assert (manifest.training.epochs, manifest.training.learning_rate, manifest.training.seed) == (2, 0.1, 3)
    assert (done.submission, done.verdict) == (manifest.id, "accepted")
    load(weights, digest=manifest.weights_sha256)


def test_a_model_built_by_code_that_only_the_owner_named_is_refused_before_it_is_built(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request
) -> None:
    spec = dataclasses.replace(SPEC, architecture="this:model")
    owner.manifest = dataclasses.replace(owner.manifest, spec=spec)
    with pytest.raises(ConfigurationError, match="this:model") as refused:
        _run(workspace, owner, request_)
    assert "--factory this:model" in refused.value.hint
    with pytest.raises(ConfigurationError):
        _run(workspace, owner, request_, factories=("this:other",))
    assert owner.submissions == []
    assert "this" not in sys.modules


def test_receipts_are_kept(workspace: ContributorWorkspace, owner: StandInOwner, request_: Request) -> None:
    done = _run(workspace, owner, request_)
    folder = workspace.contribution_directory(done.label)
    assert (folder / "commit.receipt").read_bytes() == b"commit"
    assert (folder / "verdict.receipt").read_bytes() == b"verdict"


def test_stages_come_in_order(workspace: ContributorWorkspace, owner: StandInOwner, request_: Request) -> None:
    seen: list[str] = []
    _run(workspace, owner, request_, on_stage=lambda stage, _: seen.append(stage))
    assert list(dict.fromkeys(seen)) == [
        "reading the data",
        "fetching the release",
        "connected",
        "training",
        "uploading",
        "pending",
        "accepted",
    ]


@pytest.mark.parametrize("step", [Step.FETCHED, Step.TRAINED, Step.SIGNED, Step.COMMITTED])
def test_a_contribution_killed_after_a_step_goes_on_to_the_same_submission(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request, step: Step
) -> None:
    class KilledError(BaseException):
        pass

    def die(contribution: Contribution) -> None:
        if contribution.step == step:
            raise KilledError

    with pytest.raises(KilledError):
        _run(workspace, owner, request_, on_change=die)
    [interrupted] = workspace.contributions()
    assert interrupted.step == step
    done = _run(workspace, owner, request_)
    assert (done.label, done.nonce, done.verdict) == (interrupted.label, interrupted.nonce, "accepted")
    assert interrupted.submission in {"", done.submission}
    assert {parse_submission(manifest).id for manifest, _, _ in owner.submissions} == {done.submission}


def test_what_training_made_is_not_made_again(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request, tmp_path: Path
) -> None:
    owner.refuses = QuotaError("no more today")
    with pytest.raises(QuotaError):
        _run(workspace, owner, request_)
    (tmp_path / "mine.safetensors").unlink()
    owner.refuses = None
    assert _run(workspace, owner, request_).verdict == "accepted"


def test_another_request_begins_another_contribution(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request
) -> None:
    _run(workspace, owner, request_, wait=False)
    _run(workspace, owner, dataclasses.replace(request_, options={"epochs": 2}))
    assert [c.step for c in workspace.contributions()] == [Step.COMMITTED, Step.DECIDED]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_decided_contribution_is_not_gone_on_with_and_fresh_never_is(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request, fresh: bool
) -> None:
    _run(workspace, owner, request_, wait=fresh is False)
    _run(workspace, owner, request_, fresh=fresh)
    assert len({parse_submission(manifest).nonce for manifest, _, _ in owner.submissions}) == 2


def test_a_declined_submission_says_why(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request
) -> None:
    owner.standings = [Standing("pending"), Standing("declined", code="utility")]
    done = _run(workspace, owner, request_)
    assert (done.step, done.verdict, done.code) == (Step.DECIDED, "declined", "utility")


def test_an_attack_changes_what_is_returned_and_is_measured(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request
) -> None:
    attack = "flip:source=dark,target=bright,fraction=1.0"
    request = dataclasses.replace(request_, attack=attack, held_out=request_.data, options={"epochs": 20})
    done = _run(workspace, owner, request)
    assert done.measured["attack_success"] == 1.0
    assert done.measured["attack"]["attack"] == "flip"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"data": "digitz"}, UnknownNameError),
        ({"attack": "flop"}, UnknownNameError),
        ({"partition": "iid:index=0,count=1,sead=1"}, UnknownNameError),
        ({"classes": "dork=dark"}, UnknownNameError),
        ({"options": {"epoch": 3}}, UnknownNameError),
        ({"data": "digits"}, DataError),
    ],
)
def test_a_mistake_in_the_request_hands_in_nothing(
    workspace: ContributorWorkspace,
    owner: StandInOwner,
    request_: Request,
    change: dict[str, object],
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        _run(workspace, owner, dataclasses.replace(request_, **change))  # type: ignore[arg-type]
    assert owner.submissions == []


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"data": "digitz"}, UnknownNameError, "did you mean digits"),
        ({"data": "/no/such/folder"}, DataError, "/no/such/folder"),
        ({"data": "cifar10", "data_dir": "/no/such/folder"}, DataError, "cifar10 was not found"),
        ({"held_out": "/no/such.safetensors"}, DataError, "/no/such.safetensors"),
        ({"attack": "flop"}, UnknownNameError, "did you mean flip"),
        ({"attack": "flip:sorce=1"}, UnknownNameError, "did you mean source"),
        ({"partition": "idd:index=0,count=1"}, UnknownNameError, "did you mean iid"),
        ({"classes": "dark"}, ConfigurationError, "OWN=RELEASE"),
        ({"options": {"epoch": 3}}, UnknownNameError, "did you mean epochs"),
        ({"options": {"optimiser": "sdg"}}, UnknownNameError, "did you mean sgd"),
    ],
)
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "with slots"])
def test_what_can_be_seen_before_the_owner_is_called_leaves_nothing_behind(
    workspace: ContributorWorkspace,
    owner: StandInOwner,
    request_: Request,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    error: type[PortierError],
    said: str,
    shared: bool,
) -> None:
    monkeypatch.setattr(owner, "fetch_release", lambda _: pytest.fail("the owner was called"))
    slots = TrainingSlots(tmp_path / "slots", 1) if shared else None
    with pytest.raises(error) as raised:
        _run(workspace, owner, dataclasses.replace(request_, **change), slots=slots)  # type: ignore[arg-type]
    assert said in raised.value.diagnostics()
    assert workspace.contributions() == []


def test_data_that_cannot_be_read_are_found_before_the_owner_is_called(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "fetch_release", lambda _: pytest.fail("the owner was called"))
    Path(request_.data).write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot be read"):
        _run(workspace, owner, request_)


@pytest.mark.parametrize(("device", "precision"), [("cqu", "auto"), ("cpu", "float23")])
def test_a_machine_that_cannot_be_used_is_told_before_the_owner_is_called(
    workspace: ContributorWorkspace,
    owner: StandInOwner,
    request_: Request,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    precision: str,
) -> None:
    monkeypatch.setattr(owner, "fetch_release", lambda _: pytest.fail("the owner was called"))
    with pytest.raises(UnknownNameError, match=f"{device}|{precision}"):
        contribute(workspace, owner, request_, signing_key=KEY, device=device, precision=precision)


def test_with_slots_data_are_read_only_while_one_is_held(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request, tmp_path: Path
) -> None:
    seen: list[str] = []
    slots = TrainingSlots(tmp_path / "slots", 1)
    done = _run(workspace, owner, request_, slots=slots, on_stage=lambda stage, _: seen.append(stage))
    assert (done.verdict, done.measured["samples"]) == ("accepted", 16)
    assert "reading the data" not in seen


def test_two_processes_do_not_work_on_one_contribution(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request
) -> None:
    begun = workspace.start(request_.to_json(), seed=3, nonce="0" * 32)
    with workspace.lock(begun.label), pytest.raises(WorkspaceError, match="another process"):
        _run(workspace, owner, request_)


def test_a_partition_takes_its_part_only(request_: Request) -> None:
    half = dataclasses.replace(request_, partition="iid:index=1,count=2")
    assert len(half.load()) == 8


def test_a_folder_of_ones_own_is_trained_on_as_a_whole_and_a_shared_one_is_not(tmp_path: Path) -> None:
    """A test set taken out of a contributor's own data would serve nobody; one of a data set that an owner has too is the owner's."""
    folder = _folders(tmp_path / "photos", {"dark": (3, 3), "bright": (3, 3)})
    whole, shared = (
        Request(data=folder).load((4, 4)),
        Request(data=folder, partition="iid:index=0,count=1").load((4, 4)),
    )
    assert (len(whole), torch.bincount(whole.labels).tolist()) == (16, [8, 8])
    assert len(shared) == 12
    (tmp_path / "apart").mkdir()
    (tmp_path / "photos").rename(tmp_path / "apart" / "train")
    _folders(tmp_path / "apart" / "test", {"dark": (3, 3), "bright": (3, 3)})
    assert len(Request(data=str(tmp_path / "apart")).load((4, 4))) == 16
    assert len(Request(data="digits").load()) == 1350


def test_watching_a_submission_made_here_closes_it(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request
) -> None:
    begun = _run(workspace, owner, request_, wait=False)
    assert contributing.watch(workspace, owner, begun.submission).state == "accepted"
    assert workspace.contributions()[0].verdict == "accepted"


@pytest.mark.parametrize("refusal", [WireError("BASE_ROLLED_BACK", "gone"), ManifestError("FIELD_RANGE", "samples")])
def test_a_contribution_that_can_never_succeed_is_closed_and_the_next_run_begins_anew(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request, refusal: WireError
) -> None:
    owner.refuses = refusal
    with pytest.raises(type(refusal)) as refused:
        _run(workspace, owner, request_)
    assert "run `contribute` again to begin anew from the current release" in refused.value.hint
    [closed] = workspace.contributions()
    assert (closed.step, closed.verdict, closed.code) == (Step.DECIDED, "declined", refusal.code)
    owner.refuses = None
    done = _run(workspace, owner, request_)
    assert done.verdict == "accepted"
    assert done.nonce != closed.nonce


def test_where_no_try_is_left_nothing_is_trained_and_the_same_request_goes_on_with_the_next_release(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request
) -> None:
    owner.left = 0
    stages: list[str] = []
    with pytest.raises(TriesUsedUpError, match="takes no more submissions on release"):
        _run(workspace, owner, request_, on_stage=lambda stage, _detail: stages.append(stage))
    assert contributing.TRAINING not in stages
    owner.left = 1
    assert _run(workspace, owner, request_).verdict == "accepted"
    assert len(workspace.contributions()) == 1


def test_trained_weights_whose_tries_were_used_up_meanwhile_are_closed_and_hold_up_nothing(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request
) -> None:
    owner.refuses = TriesUsedUpError("ada has used its 5 tries")
    with pytest.raises(TriesUsedUpError) as refused:
        _run(workspace, owner, request_)
    assert "closed" in refused.value.hint
    [closed] = workspace.contributions()
    assert (closed.step, closed.verdict, closed.code) == (Step.DECIDED, "declined", "TRIES_USED_UP")
    owner.refuses = None
    assert _run(workspace, owner, request_).nonce != closed.nonce


def test_a_release_that_was_asked_for_and_is_gone_is_not_to_be_asked_for_again(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request
) -> None:
    owner.refuses = WireError("BASE_NOT_ALLOWED", "too old")
    with pytest.raises(WireError) as refused:
        _run(workspace, owner, dataclasses.replace(request_, release=owner.manifest.id))
    assert "without --release" in refused.value.hint


def test_a_refusal_that_may_pass_leaves_the_contribution_open(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request
) -> None:
    owner.refuses = WireError("UPLOAD_IN_PROGRESS", "another call uploads it")
    with pytest.raises(WireError):
        _run(workspace, owner, request_)
    assert workspace.contributions()[0].step == Step.SIGNED


def _folders(root: Path, sizes: dict[str, tuple[int, int]]) -> str:
    """A folder of pictures for each class, of the size given and twice that."""
    for shade, (name, (width, height)) in enumerate(sizes.items()):
        (root / name).mkdir(parents=True)
        for number in range(8):
            factor = 1 + number % 2
            picture = Image.new("RGB", (width * factor, height * factor), (200 * shade,) * 3)
            picture.save(root / name / f"{number}.png")
    return str(root)


def test_photos_of_all_sizes_are_brought_to_the_releases_and_it_is_said(
    workspace: ContributorWorkspace, owner: StandInOwner, tmp_path: Path
) -> None:
    said: list[str] = []
    data = _folders(tmp_path / "photos", {"dark": (3, 5), "bright": (8, 6)})
    done = _run(workspace, owner, Request(data=data, seed=3), on_note=said.append)
    assert (done.verdict, done.measured["samples"]) == ("accepted", 16)
    assert said == [
        "16 images in all 2 classes: dark (8), bright (8)",
        "16 images of 4 sizes, from 3x5 to 16x12, in colour brought to 2x2 in grey",
    ]


def test_a_damaged_photo_is_found_before_the_owner_is_called(
    workspace: ContributorWorkspace, owner: StandInOwner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "fetch_release", lambda _: pytest.fail("the owner was called"))
    data = _folders(tmp_path / "photos", {"dark": (3, 5), "bright": (8, 6)})
    (tmp_path / "photos" / "dark" / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"3\.png is not a readable image"):
        _run(workspace, owner, Request(data=data))
    assert workspace.contributions() == []


def test_folders_of_other_names_are_refused_and_with_classes_taken_for_what_they_are(
    workspace: ContributorWorkspace, owner: StandInOwner, tmp_path: Path
) -> None:
    said: list[str] = []
    # Sorted, these are the other way round than the release's classes.
    request = Request(data=_folders(tmp_path / "photos", {"noon": (2, 2), "moonless": (2, 2)}), seed=3)
    with pytest.raises(DataError, match="the release does not have: moonless, noon"):
        _run(workspace, owner, request)
    assert owner.submissions == []
    _run(workspace, owner, dataclasses.replace(request, classes="noon=bright,moonless=dark"), on_note=said.append)
    assert said[0] == "16 images in all 2 classes: moonless as dark (8), noon as bright (8)"


def test_held_out_examples_may_have_the_releases_names(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request, tmp_path: Path
) -> None:
    data = _folders(tmp_path / "photos", {"noon": (2, 2), "moonless": (2, 2)})
    request = Request(data=data, seed=3, classes="noon=bright,moonless=dark", held_out=request_.data)
    assert _run(workspace, owner, request).measured["accuracy"] is not None


def test_what_was_handed_in_does_not_expire_as_if_it_had_not_been(
    workspace: ContributorWorkspace, owner: StandInOwner, request_: Request
) -> None:
    owner.standings = [Standing("declined", "expired")]
    with pytest.raises(ProtocolError, match="never been handed in"):
        _run(workspace, owner, request_)
    owner.standings = [Standing("accepted", verdict_receipt=b"verdict")]
    assert _run(workspace, owner, request_).verdict == "accepted"
    assert len(owner.submissions) == 1
