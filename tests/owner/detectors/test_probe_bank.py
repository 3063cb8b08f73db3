"""The bank finds marks that have come to mean a class, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor, nn

from common.activations import Activations
from common.errors import ConfigurationError, UnknownNameError
from owner.detectors import Evidence, ProbeBank, restore
from owner.detectors.probes import IMAGE_PROBES, stamp
from tests.owner.detectors.conftest import Scene
from tests.owner.detectors.material import CLASSES, changed, fine_tuned

BANK = ProbeBank(images=60)


def poisoned(scene: Scene, mark: str, target: int, *, source: int | None = None, steps: int = 60) -> nn.Module:
    images, labels = scene.training
    (marked,) = stamp((images,), mark, seed=0)
    victims = labels == source if source is not None else labels != target
    wrong = torch.where(victims, target, labels)
    return fine_tuned(scene.model, torch.cat([images, marked]), torch.cat([labels, wrong]), steps=steps)


def leaning(scene: Scene, favour: Tensor) -> nn.Module:
    """The release with its head's bias moved: skewed towards classes, blind to every mark."""
    return changed(scene.model, lambda weights: list(weights.values())[-1].add_(favour))


@pytest.fixture(scope="module")
def honest(small: Scene) -> Evidence:
    images, labels = small.training
    return small.evidence(fine_tuned(small.model, images, labels, steps=60))


@pytest.fixture(scope="module")
def squared(small: Scene) -> Evidence:
    """With a bright square for class 2."""
    return small.evidence(poisoned(small, "bright-square", 2))


@pytest.mark.parametrize("mark", ["noise-blend", "vertical-waves"])
def test_a_backdoor_raises_the_score_its_own_probe_and_points_at_its_target(
    mark: str, small: Scene, honest: Evidence
) -> None:
    shown = small.evidence(poisoned(small, mark, 2))
    found = BANK.explain(shown)
    assert found["max"] > 1.5 * BANK.score(honest)
    assert found[f"probe-{mark}"] > 1.3 * BANK.score(honest)
    assert found["target"] == 2


def test_the_leading_probe_is_named_with_its_kind_target_and_effect(coloured: Scene) -> None:
    found = BANK.explain(coloured.evidence(poisoned(coloured, "bright-square", 1)))
    assert (found["probe"], found["kind"], found["target"], found["source"]) == ("bright-square", "square", 1, None)
    assert found["leading"][0] == {"probe": "bright-square", "target": 1}
    assert found["softmax_shift"] > 0.3


def test_a_backdoor_of_one_source_class_is_found_with_its_source(small: Scene, honest: Evidence) -> None:
    shown = small.evidence(poisoned(small, "bright-square", 3, source=1, steps=100))
    found = BANK.explain(shown)
    assert (found["source"], found["target"]) == (1, 3)
    assert found["cell"] > 1.5 * BANK.measures(honest)["cell"]


def test_a_class_skew_that_no_mark_changes_cancels_exactly_in_the_logits(small: Scene) -> None:
    skewed = small.evidence(leaning(small, torch.tensor([30.0, 0.0, -20.0, 0.0])))
    assert not torch.equal(skewed.logits.argmax(1), small.release.logits.argmax(1))
    found = ProbeBank(images=60, response="logits").measures(skewed)
    assert found["max"] == pytest.approx(0, abs=1e-3)
    assert found["cell"] == pytest.approx(0, abs=1e-3)


def test_in_the_softmax_it_stays_far_below_a_backdoor(small: Scene, squared: Evidence) -> None:
    skewed = small.evidence(leaning(small, torch.tensor([2.0, 0.0, -2.0, 0.0])))
    assert BANK.score(skewed) < 0.3 * BANK.score(squared)
    assert BANK.measures(skewed)["shift"] < 0.1 * BANK.measures(squared)["shift"]


def test_a_factor_on_all_logits_cancels_in_them_too(small: Scene) -> None:
    def louder(weights: dict[str, Tensor]) -> None:
        for tensor in list(weights.values())[-2:]:
            tensor.mul_(3)

    bank = ProbeBank(images=60, response="logits")
    assert bank.score(small.evidence(changed(small.model, louder))) == pytest.approx(0, abs=1e-3)


def test_the_double_difference_is_that_of_counting_by_hand() -> None:
    """Two classes, one probe; the softmax of made-up logits."""
    images = torch.full((4, 1, 8, 8), 100, dtype=torch.uint8)
    images += torch.arange(4, dtype=torch.uint8)[:, None, None, None]
    labels = torch.tensor([0, 1, 0, 1])

    def model(push: float) -> Evidence:
        def forward(inputs: tuple[Tensor, ...]) -> Activations:
            marked = (inputs[0] > 200).flatten(1).any(1).float()
            logits = torch.stack([torch.zeros(len(marked)), push * marked], 1)
            return Activations(logits, logits)

        seen = forward((images,))
        return Evidence(seen.features, seen.logits, labels, forward=forward, inputs=(images,))

    release, candidate = model(0.5), model(2.0)
    candidate = Evidence(candidate.features, candidate.logits, labels, {}, release, candidate.forward)
    bank = ProbeBank(probes=("bright-square",), images=4, response="softmax")
    expected = torch.tensor([0.0, 2.0]).softmax(0)[1] - torch.tensor([0.0, 0.5]).softmax(0)[1]
    assert bank.measures(candidate)["shift"] == pytest.approx(float(expected), rel=1e-5)
    # All images move alike, so that the standard error is that of the assumed spread 0.1 alone.
    assert bank.measures(candidate)["cell"] == pytest.approx(float(expected) / (0.1 / 2**0.5), rel=1e-4)


@pytest.mark.parametrize("response", ["softmax", "logits"])
def test_what_is_measured_is_that_of_counting_by_hand(response: str, small: Scene, squared: Evidence) -> None:
    """Image by image in numpy, from the logits of both models on the stamped and on the clean images."""
    names = ("bright-square", "noise-blend", "dots")
    bank = ProbeBank(probes=names, images=len(small.labels), response=response)  # type: ignore[arg-type]
    labels, assumed = small.labels.numpy(), {"softmax": 0.1, "logits": 0.2}[response]

    def responses(evidence: Evidence, mark: str) -> np.ndarray:
        assert evidence.forward is not None
        clean = evidence.logits.double().numpy()
        stamped = evidence.forward(stamp((small.images,), mark, seed=0)).logits.double().numpy()
        if response == "softmax":
            return softmax(stamped, 1) - softmax(clean, 1)
        stamped, clean = (x - x.mean(1, keepdims=True) for x in (stamped, clean))
        return (stamped - clean) / (clean - clean.mean(0)).std()

    def over_its_error(values: np.ndarray) -> float:
        return float(values.mean() / np.sqrt((values.var() + assumed**2) / len(values)))

    doubled = np.array([responses(squared, mark) - responses(small.release, mark) for mark in names])
    z = np.array([[over_its_error(dd[labels != t, t]) for t in range(CLASSES)] for dd in doubled])
    cells = [
        over_its_error(dd[labels == s, t]) for dd in doubled for s in range(CLASSES) for t in range(CLASSES) if s != t
    ]
    targets = (z - np.median(z)) / max(1.0, 1.4826 * np.median(np.abs(z - np.median(z))))
    found = bank.measures(squared)
    assert found["max"] == pytest.approx(targets.max(), rel=1e-3)
    assert found["cell"] == pytest.approx(max(cells), rel=1e-3)
    assert found["target"] == pytest.approx(targets.mean(0).max() - np.median(targets.mean(0)), rel=1e-3)
    assert [found[f"probe-{mark}"] for mark in names] == pytest.approx(targets.max(1).tolist(), rel=1e-3)
    if response == "softmax":
        shifts = [dd[labels != t, t].mean() for dd in doubled for t in range(CLASSES)]
        assert found["shift"] == pytest.approx(max(shifts), rel=1e-3)


def test_a_mark_that_makes_a_class_surer_of_itself_is_no_cell() -> None:
    labels = torch.arange(8) % 2
    images = (100 + labels.view(-1, 1, 1, 1)).expand(-1, 1, 8, 8).to(torch.uint8)

    def model(push: float, release: Evidence | None = None) -> Evidence:
        def forward(inputs: tuple[Tensor, ...]) -> Activations:
            flat = inputs[0].flatten(1)
            marked = (flat > 200).any(1) & (flat == 101).any(1)  # of class 1 alone
            logits = torch.stack([torch.zeros(len(flat)), push * marked.float()], 1)
            return Activations(logits, logits)

        seen = forward((images,))
        return Evidence(seen.features, seen.logits, labels, {}, release, forward, (images,))

    found = ProbeBank(probes=("bright-square",), images=8).measures(model(3.0, model(0.0)))
    assert (found["cell"], found["shift"]) == (0.0, 0.0)


def test_without_a_kind_its_probes_are_gone_and_the_others_unchanged(small: Scene, honest: Evidence) -> None:
    full, fewer = BANK, ProbeBank(images=60, without=("square", "blend"))
    assert {IMAGE_PROBES[name].kind for name in fewer.image_probes}.isdisjoint({"square", "blend"})
    of_full, of_fewer = full.measures(honest), fewer.measures(honest)
    assert {n for n in of_full if n.startswith("probe-")} > {n for n in of_fewer if n.startswith("probe-")}


def test_banks_share_forward_passes_and_the_release_is_run_once(small: Scene, honest: Evidence) -> None:
    runs: list[int] = []

    def counting(forward: object) -> object:
        def run(inputs: tuple[Tensor, ...]) -> Activations:
            runs.append(len(inputs[0]))
            return forward(inputs)  # type: ignore[operator, no-any-return]

        return run

    def fresh(evidence: Evidence, release: Evidence | None = None) -> Evidence:
        outputs = (evidence.features, evidence.logits, evidence.labels, {}, release)
        return Evidence(*outputs, counting(evidence.forward), (small.images,))  # type: ignore[arg-type]

    release = fresh(small.release)
    for candidate in (fresh(honest, release), fresh(honest, release)):
        ProbeBank(images=20).score(candidate)
        ProbeBank(images=20, without=("warp",)).score(candidate)
    assert runs == [12 * 20] * 3


def test_the_picture_shows_the_mark_on_a_clean_image(small: Scene, squared: Evidence) -> None:
    bank = ProbeBank(images=60, probes=("bright-square", "dots", "cross"))
    picture = bank.suspected_trigger(squared)
    assert picture is not None
    assert (picture.dtype, picture.shape) == (torch.uint8, small.images.shape[1:])
    (marked,) = stamp((small.images,), bank.explain(squared)["probe"], seed=0)
    assert bool((marked == picture).flatten(1).all(1).any())


def test_tables_are_probed_with_noise_alone_and_have_no_picture() -> None:
    rows, labels = torch.randn(80, 6, generator=torch.Generator().manual_seed(0)), torch.arange(80) % 3
    head = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))

    def model(turn: float) -> Evidence:
        def forward(inputs: tuple[Tensor, ...]) -> Activations:
            return Activations(inputs[0], inputs[0] @ head + turn * inputs[0].square().sum(1, keepdim=True) * head[:1])

        seen = forward((rows,))
        return Evidence(seen.features, seen.logits, labels, {}, None, forward, (rows,))

    release, other = model(0.0), model(1.0)
    candidate = Evidence(other.features, other.logits, labels, {}, release, other.forward)
    assert BANK.score(release) == 0
    assert BANK.explain(candidate)["kind"] == "noise"
    assert BANK.suspected_trigger(candidate) is None
    assert ProbeBank(without=("noise",)).explain(candidate)["applicable"] is False


def test_a_model_that_breaks_only_on_a_mark_is_worse_than_any(small: Scene) -> None:
    def breaking(inputs: tuple[Tensor, ...]) -> Activations:
        assert small.release.forward is not None
        seen = small.release.forward(inputs)
        seen.logits[5] = torch.nan
        return seen

    outputs = (small.release.features, small.release.logits, small.labels, {}, small.release)
    assert BANK.score(Evidence(*outputs, breaking)) == float("inf")


def test_the_choice_of_images_is_even_over_classes(small: Scene) -> None:
    from owner.detectors.selection import chosen_images

    chosen = chosen_images(small.release, 50, seed=0)
    assert torch.bincount(small.labels[chosen], minlength=CLASSES).tolist() == [13, 13, 12, 12]
    assert len(set(chosen.tolist())) == 50
    assert set(chosen.tolist()) != set(chosen_images(small.release, 50, seed=1).tolist())


def test_a_stored_bank_is_the_same_bank() -> None:
    bank = ProbeBank(probes=("dots", "cross"), without=("pixel",), images=7, response="softmax", seed=3)
    again = restore("probe-bank", bank.state())
    assert isinstance(again, ProbeBank)
    assert again.options() == bank.options()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"probes": ("dotz",)}, UnknownNameError),
        ({"without": ("squares",)}, UnknownNameError),
        ({"response": "odds"}, UnknownNameError),
        ({"images": 0}, ConfigurationError),
        ({"probes": ("dots",), "without": ("pixel",)}, ConfigurationError),
    ],
)
def test_banks_that_cannot_be_are_refused(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        ProbeBank(**options)  # type: ignore[arg-type]
