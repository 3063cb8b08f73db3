"""Guards re-calibrated from the fine-tunes of the guard before: when it is done, when not, and what comes of it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from common.weights import Weights, load, save
from owner.gatekeeper import Gatekeeper, Guard, GuardOptions, UtilityLimits, merge
from owner.gatekeeper.fitting import FittingJob, fit
from owner.gatekeeper.incremental import BigNewsError, small_news
from owner.gatekeeper.transplants import KEPT, KeptReferences, distance, transplant
from tests.owner.gatekeeper.conftest import fitting_job

OPTIONS = GuardOptions(
    detectors=("paper",),
    references=5,
    reject_level=0.2,
    quarantine_level=0.2,
    hidden=32,
    latent=8,
    epochs=2,
    incremental=True,
)


def test_a_transplant_adds_the_update_to_the_new_release() -> None:
    old = {"w": torch.tensor([1.0, 2.0]), "bn.running_var": torch.tensor([1.0]), "n": torch.tensor(3)}
    tuned = {"w": torch.tensor([1.5, 1.0]), "bn.running_var": torch.tensor([0.2]), "n": torch.tensor(8)}
    new = {"w": torch.tensor([0.0, 0.0]), "bn.running_var": torch.tensor([0.5]), "n": torch.tensor(4)}
    moved = transplant(tuned, old, new)
    assert moved["w"].tolist() == [0.5, -1.0]
    assert moved["bn.running_var"].tolist() == [0.0]  # 0.5 - 0.8 is no variance
    assert moved["n"].item() == 8


def test_moved_to_its_own_release_a_fine_tune_stays_as_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    old = {"w": torch.randn(50, generator=generator)}
    tuned = {"w": old["w"] + 0.01 * torch.randn(50, generator=generator)}
    torch.testing.assert_close(transplant(tuned, old, old), tuned)


def test_distance_leaves_statistics_and_counters_out() -> None:
    one = {"w": torch.zeros(2), "bn.running_mean": torch.zeros(1), "n": torch.tensor(0)}
    other = {"w": torch.tensor([3.0, 4.0]), "bn.running_mean": torch.ones(1), "n": torch.tensor(9)}
    assert distance(one, other) == 5.0


@pytest.fixture(scope="module")
def old(bench, tmp_path_factory: pytest.TempPathFactory) -> FittingJob:  # type: ignore[no-untyped-def]
    """The job of a release whose guard stands and has kept its fine-tunes."""
    job = fitting_job(bench, tmp_path_factory.mktemp("old"), OPTIONS)
    fit(job, progress=False)
    return job


@pytest.fixture
def merged(bench) -> Weights:  # type: ignore[no-untyped-def]
    """The release after one honest submission."""
    base = bench.weights
    return merge("average", base, base, bench.honest(learning_rate=0.01).state_dict(), 0.5)


@pytest.fixture
def job(old: FittingJob, merged: Weights, tmp_path: Path) -> FittingJob:
    """The job of the release after it."""
    save(tmp_path / "new.safetensors", merged)
    return dataclasses.replace(
        old,
        weights=tmp_path / "new.safetensors",
        directory=tmp_path / "guard",
        parent_guard=old.directory,
        parent_weights=old.weights,
        options=dataclasses.replace(OPTIONS, incremental_news=100.0),
    )


def test_the_guard_of_a_release_that_is_small_news_trains_nothing(
    job: FittingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a fine-tune was trained")

    monkeypatch.setattr("owner.gatekeeper.fine_tunes.train", never)
    guard = fit(job, progress=False)
    assert guard.provenance["generation"] == 1
    assert guard.provenance["news"] > 0
    assert len(guard.references) == 5
    assert Guard.load(job.directory).provenance == guard.provenance


def test_transplanted_references_are_scored_against_the_new_release(old: FittingJob, job: FittingJob) -> None:
    before, after = Guard.load(old.directory), fit(job, progress=False)
    assert after.release_sha256 != before.release_sha256
    assert [r.scores for r in after.references] != [r.scores for r in before.references]
    kept, fresh = load(old.weights), load(job.weights)
    moved = transplant(KeptReferences(old.directory / KEPT).read("calibrating", 0)[0], kept, fresh)
    again, _ = KeptReferences(job.directory / KEPT).read("calibrating", 0)
    torch.testing.assert_close(again, moved)


def test_a_transplanted_guard_vets(bench, job: FittingJob, merged: Weights) -> None:  # type: ignore[no-untyped-def]
    fit(job, progress=False)
    model = bench.honest()
    model.load_state_dict(merged)
    keeper = Gatekeeper.load(job.directory, model)
    assert keeper.vet({name: 10 * tensor for name, tensor in merged.items()}).p_value == pytest.approx(1 / 6)
    assert keeper.vet(merged).p_value is not None


def refusal(job: FittingJob, **options: object) -> str:
    assert job.parent_guard is not None
    assert job.parent_weights is not None
    with pytest.raises(BigNewsError) as raised:
        small_news(
            job.parent_guard,
            job.parent_weights,
            load(job.weights),
            options=dataclasses.replace(job.options, **options),  # type: ignore[arg-type]
            spec=job.spec,
            finetuning=job.finetuning,
            compute=job.compute,
            usefulness=job.usefulness,
        )
    return raised.value.message


def test_big_news_more_references_or_another_seed_are_no_case_for_it(job: FittingJob) -> None:
    assert "limit is 0.001" in refusal(job, incremental_news=0.001)
    assert "did not keep" in refusal(job, references=9)
    assert "differ from" in refusal(job, seed=1)


def test_transplants_of_transplants_end_and_their_news_adds_up(
    old: FittingJob, job: FittingJob, tmp_path: Path
) -> None:
    first = fit(job, progress=False).provenance
    back = dataclasses.replace(
        job, parent_guard=job.directory, parent_weights=job.weights, weights=old.weights, directory=tmp_path / "third"
    )
    assert "limit is 1" in refusal(back, incremental_generations=1)
    assert "since they were trained" in refusal(back, incremental_news=1.9 * first["news"])
    second = fit(back, progress=False).provenance
    assert (second["generation"], second["transplanted_from"]) == (2, Guard.load(job.directory).release_sha256)
    assert second["trained_on"] == first["trained_on"] == Guard.load(old.directory).release_sha256
    assert second["total_news"] == pytest.approx(2 * first["news"], rel=1e-3)


def test_big_news_is_trained_and_says_why(job: FittingJob) -> None:
    guard = fit(dataclasses.replace(job, options=dataclasses.replace(OPTIONS, incremental_news=0.001)), progress=False)
    assert "median fine-tune" in guard.provenance["trained"]
    assert KeptReferences(job.directory / KEPT).holds("calibrating", 4)


def test_fresh_replaces_a_transplanted_guard_by_a_trained_one(job: FittingJob) -> None:
    moved = fit(job, progress=False)
    trained = fit(dataclasses.replace(job, fresh=True), progress=False)
    assert moved.provenance
    assert not trained.provenance
    assert moved.key != trained.key


@pytest.mark.parametrize("name", ["owner", "0002"])
def test_a_damaged_fine_tune_is_not_transplanted(old: FittingJob, job: FittingJob, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(old.directory, copy)
    path = copy / KEPT / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert "was not kept" in refusal(dataclasses.replace(job, parent_guard=copy))


def test_without_the_option_nothing_is_kept(old: FittingJob, tmp_path: Path) -> None:
    plain = dataclasses.replace(
        old, directory=tmp_path / "plain", options=dataclasses.replace(OPTIONS, incremental=False)
    )
    fit(plain, progress=False)
    assert not (plain.directory / KEPT).exists()


def test_a_fine_tune_that_does_not_score_finitely_on_the_new_release_is_trained_on_it(
    old: FittingJob, job: FittingJob, tmp_path: Path
) -> None:
    parent = Path(shutil.copytree(old.directory, tmp_path / "parent"))
    kept = KeptReferences(parent / KEPT)
    weights, plan = kept.read("calibrating", 2)
    kept.write("calibrating", 2, {name: 1e30 * tensor for name, tensor in weights.items()}, plan)
    job = dataclasses.replace(job, parent_guard=parent)
    guard = fit(job, progress=False)

    assert guard.provenance["trained_afresh"] == 1
    assert [r.plan.get("generation") for r in guard.references] == [1, 1, None, 1, 1]
    trained = fit(dataclasses.replace(job, fresh=True, directory=tmp_path / "trained"), progress=False)
    assert guard.references[2].scores == trained.references[2].scores
    assert Guard.load(job.directory).provenance == guard.provenance

    # The guard after it: the news of all counts for it too, and its plan tells how often it was moved itself.
    back = dataclasses.replace(
        job, parent_guard=job.directory, parent_weights=job.weights, weights=old.weights, directory=tmp_path / "third"
    )
    third = fit(back, progress=False)
    assert [r.plan["generation"] for r in third.references] == [2, 2, 1, 2, 2]
    assert third.provenance["total_news"] > guard.provenance["total_news"]
    assert "trained_afresh" not in third.provenance


def test_a_fine_tune_that_would_fail_utility_on_the_new_release_is_trained_on_it(
    old: FittingJob, job: FittingJob, tmp_path: Path
) -> None:
    limits = UtilityLimits(accuracy_drop=0.1, recall_drop=0.2)
    parent = dataclasses.replace(old, utility=limits, directory=tmp_path / "parent")
    fit(parent, progress=False)
    kept = KeptReferences(parent.directory / KEPT)
    weights, plan = kept.read("calibrating", 2)
    kept.write("calibrating", 2, {name: -tensor for name, tensor in weights.items()}, plan)
    options = dataclasses.replace(job.options, incremental_news=1e6)
    job = dataclasses.replace(job, parent_guard=parent.directory, utility=limits, options=options)
    guard = fit(job, progress=False)
    assert guard.provenance["trained_afresh"] == 1
    assert [one.plan.get("generation") for one in guard.references] == [1, 1, None, 1, 1]


def test_fine_tunes_that_passed_another_utility_check_are_not_transplanted(job: FittingJob) -> None:
    assert "utility check" in refusal(dataclasses.replace(job, utility=UtilityLimits()))
