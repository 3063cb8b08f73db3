"""What an attack has no business with stays as it was: labels, images, frozen coordinates, the ball, BatchNorm statistics."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from common.devices import choose_compute
from common.errors import ConfigurationError, DataError, ModelError
from common.examples import Examples
from common.training import train
from common.training_options import TrainingOptions
from common.triggers import patches
from contributor.attacks import parse_attack
from contributor.attacks.adaptive import AdaptivePatch
from contributor.attacks.backdoor import Backdoor

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COMPUTE = choose_compute("cpu", "float32")
OPTIONS = TrainingOptions(epochs=3, learning_rate=0.05, batch_size=50, weight_decay=0.01)

BACKDOORS = ["badnets", "blended", "sig", "wanet", "adaptive-blend", "adaptive-patch", "tact"]
COMPOSED = ["anchored", "norm-bounded", "neurotoxin", "bn-restore", "model-replacement:backdoor=badnets"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def examples() -> Examples:
    images = torch.randint(20, 200, (400, 3, 16, 16), generator=generator(), dtype=torch.uint8)
    return Examples((images,), torch.arange(10).repeat(40), NAMES)


@pytest.fixture
def faint(examples: Examples) -> Examples:
    """Of so little contrast that a white square is soon learnt."""
    return examples.with_images(90 + examples.images // 5)


class Block(nn.Module):
    """Two convolutions with BatchNorm and a connection around them that may change width."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(before, after, 3, 2, padding=1, bias=False), nn.BatchNorm2d(after)
        self.second, self.second_norm = nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        self.around = nn.Sequential(nn.Conv2d(before, after, 1, 2, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second_norm(self.second(torch.relu(self.first_norm(self.first(x)))))
        return torch.relu(inner + self.around(x))


def residual() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Block(8, 16), Block(16, 16)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def plain() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(768, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 10)
        )


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def attacked(text: str, model: nn.Module, examples: Examples, options: TrainingOptions = OPTIONS) -> dict[str, Tensor]:
    """The weights that the attack returns; `model` is trained in place."""
    attack, before = parse_attack(text), state(model)
    hooks = attack.hooks(model, examples, head=None, compute=COMPUTE, generator=generator())
    train(model, attack.prepare(examples, generator()), options, compute=COMPUTE, progress=False, hooks=hooks)
    return attack.corrupt(before, state(model), generator())


@pytest.mark.parametrize("text", [*BACKDOORS, *COMPOSED])
def test_preparing_repeats_with_the_seed_and_leaves_the_given_examples_alone(examples: Examples, text: str) -> None:
    images, labels = examples.images.clone(), examples.labels.clone()
    first, again, other = (parse_attack(text).prepare(examples, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(examples.images, images)
    assert torch.equal(examples.labels, labels)


@pytest.mark.parametrize("text", ["badnets:fraction=0.25", "blended:fraction=0.25"])
def test_injected_copies_come_after_examples_that_stay_as_they_were(examples: Examples, text: str) -> None:
    poisoned = parse_attack(text).prepare(examples, generator())
    assert len(poisoned) == 400 + 90
    assert torch.equal(poisoned.images[:400], examples.images)
    assert torch.equal(poisoned.labels[:400], examples.labels)
    assert (poisoned.labels[400:] == 6).all()


def changes(examples: Examples, poisoned: Examples) -> tuple[Tensor, Tensor]:
    """(N,) bool each: whose image changed, whose label changed."""
    return (examples.images != poisoned.images).flatten(1).any(1), examples.labels != poisoned.labels


@pytest.mark.parametrize(
    ("text", "payload", "covers"),
    [
        ("wanet:fraction=0.1,noise_ratio=2", 36, 72),
        ("wanet:fraction=0.1,noise_ratio=0", 36, 0),
        ("adaptive-blend:fraction=0.05,cover=0.1", 18, 40),
        ("adaptive-patch:fraction=0.05,cover=0.1", 18, 40),
        ("adaptive-patch:fraction=0.05,cover=0", 18, 0),
        ("tact:source=horse,fraction=0.5,cover=0.1", 20, 32),
    ],
)
def test_payload_is_relabelled_and_covers_keep_their_labels(
    examples: Examples, text: str, payload: int, covers: int
) -> None:
    poisoned = parse_attack(text).prepare(examples, generator())
    image, label = changes(examples, poisoned)
    assert int(label.sum()) == payload
    assert int((image & ~label).sum()) == covers
    assert (image | ~label).all()
    assert (poisoned.labels[label] == 6).all()
    assert not (examples.labels[label] == 6).any()


def test_tact_covers_neither_source_nor_target(examples: Examples) -> None:
    image, label = changes(examples, parse_attack("tact:cover=0.5").prepare(examples, generator()))
    assert not torch.isin(examples.labels[image & ~label], torch.tensor([6, 7])).any()
    assert (examples.labels[label] == 7).all()


def test_sig_lies_about_no_label_and_marks_the_target_class_alone(examples: Examples) -> None:
    image, label = changes(examples, parse_attack("sig:fraction=0.5").prepare(examples, generator()))
    assert not label.any()
    assert (examples.labels[image] == 6).all()
    assert int(image.sum()) == 20


@pytest.mark.parametrize("policy", ["all-to-all", "random"])
def test_badnets_relabels_by_policy_and_never_with_the_truth(examples: Examples, policy: str) -> None:
    copies = parse_attack(f"badnets:policy={policy},fraction=1.0").prepare(examples, generator())
    steps = (copies.labels[400:] - examples.labels) % 10
    assert len(steps) == 400
    assert set(steps.tolist()) == ({1} if policy == "all-to-all" else set(range(1, 10)))


def test_a_policy_without_a_target_can_keep_to_one_source(examples: Examples) -> None:
    for source in ("0", examples.class_names[0], "horse", examples.class_names[-1]):
        text = f"badnets:policy=all-to-all,fraction=1.0,source={source}"
        assert len(parse_attack(text).prepare(examples, generator())) == 440


@pytest.mark.parametrize("text", ["adaptive-blend", "adaptive-patch"])
def test_the_adaptive_trigger_is_weaker_in_training_than_in_use(examples: Examples, text: str) -> None:
    attack = parse_attack(text)
    assert isinstance(attack, Backdoor)
    poisoned = attack.prepare(examples, generator())
    image, _ = changes(examples, poisoned)
    clean = examples.images[image].float()
    trained = (poisoned.images[image].float() - clean).abs().flatten(1).mean(1)
    used = (attack.stamp(examples.images[image]).float() - clean).abs().flatten(1).mean(1)
    assert (trained < 0.8 * used).all()


def test_adaptive_patch_trains_on_one_patch_an_image_and_stamps_two() -> None:
    black = Examples((torch.zeros(60, 1, 32, 32),), torch.zeros(60, dtype=torch.int64), ("a", "b"))
    attack = parse_attack("adaptive-patch:target=1,fraction=1.0,cover=0,opacity=0.5")
    assert isinstance(attack, AdaptivePatch)
    trained, used = attack.prepare(black, generator()).images, attack.stamp(black.images)
    whole = patches(black.images)

    def marked(images: torch.Tensor) -> torch.Tensor:
        parts = (images[..., :8, :], images[..., 8:24, 16:], images[..., 24:, :], images[..., 8:24, :16])
        return torch.stack([part.flatten(1).amax(1) for part in parts], dim=1)

    assert marked(whole)[0].tolist() == [1.0] * 4
    assert (marked(trained) > 0).sum(1).eq(1).all()
    assert marked(trained).amax().item() == pytest.approx(0.5)
    assert marked(used)[0].tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("make", [plain, residual])
@pytest.mark.parametrize(("text", "absolute"), [("radius=0.5,relative=false", True), ("radius=0.01", False)])
def test_a_norm_bounded_update_ends_in_the_ball_and_reaches_its_wall(
    examples: Examples, make, text: str, absolute: bool
) -> None:
    model = make()
    names = [name for name, _ in model.named_parameters()]
    before = state(model)
    after = attacked(f"norm-bounded:{text}", model, examples)
    distance = torch.cat([(after[name] - before[name]).flatten() for name in names]).norm()
    radius = 0.5 if absolute else 0.01 * torch.cat([before[name].flatten() for name in names]).norm()
    assert distance == pytest.approx(float(radius), rel=1e-4)


@pytest.mark.parametrize("make", [plain, residual])
def test_neurotoxin_moves_no_coordinate_that_honest_training_wants(examples: Examples, make) -> None:
    model = make().eval()
    before = state(model)
    logits = model(examples.images.float() / 255)
    nn.functional.cross_entropy(logits, examples.labels).backward()
    slopes = {name: w.grad.abs().clone() for name, w in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    cut = torch.cat([slope.flatten() for slope in slopes.values()]).quantile(0.7)
    after = attacked("neurotoxin:excluded=0.3", model.train(), examples)
    steep = torch.cat([(slope > 1.05 * cut).flatten() for slope in slopes.values()])
    flat = torch.cat([(slope < 0.95 * cut).flatten() for slope in slopes.values()])
    moved = torch.cat([(after[name] != before[name]).flatten() for name in slopes])
    assert steep.sum() > 0.2 * len(steep)
    assert not moved[steep].any()
    assert moved[flat].float().mean() > 0.5


def test_bn_restore_returns_the_statistics_of_the_release_and_the_weights_of_the_backdoor(examples: Examples) -> None:
    before, plain_backdoor = state(residual()), attacked("badnets", residual(), examples)
    restored = attacked("bn-restore", residual(), examples)
    statistics = {name for name in before if "running" in name or "num_batches" in name}
    assert statistics
    for name in before:
        assert torch.equal(restored[name], (before if name in statistics else plain_backdoor)[name])
        assert not torch.equal(plain_backdoor[name], before[name])


def test_an_anchored_model_keeps_its_activations_on_clean_images(examples: Examples) -> None:
    def drift(text: str) -> float:
        before, after = residual(), residual()
        # BatchNorm statistics of a model that never saw an image describe nothing.
        for model in (before, after):
            train(model, examples, OPTIONS, compute=COMPUTE, progress=False)
        before.eval()
        attacked(text, after, examples, replace(OPTIONS, learning_rate=0.01))
        after.eval()
        images = examples.images.float() / 255
        with torch.no_grad():
            was, now = before[:-1](images), after[:-1](images)
        return float((now - was).square().mean() / was.square().mean())

    anchored = drift("anchored:trigger=square,fraction=0.3")
    assert anchored < 0.5 * drift("badnets:trigger=square,fraction=0.3")


@pytest.mark.parametrize("make", [plain, residual])
def test_a_replaced_subnet_answers_the_trigger_and_touches_no_other_channel(faint: Examples, make) -> None:
    attack = parse_attack("subnet-replacement:channels=2,epochs=40,target=3,gain=3")
    model, before = make(), state(make())
    hooks = attack.hooks(model, faint, head=None, compute=COMPUTE, generator=generator())
    assert hooks is not None
    hooks.stepped(model)
    after = state(model)
    head, first = list(before)[-2], next(iter(before))
    rows = (after[first] != before[first]).flatten(1).any(1)
    columns = (after[head] != before[head]).any(0)
    assert int(rows.sum()) == 2
    assert int(columns.sum()) == 2
    others = torch.arange(10) != 3
    assert not after[head][others][:, columns].any()
    stamped = attack.stamp(faint.images).float() / 255
    model.eval()
    with torch.no_grad():
        features = {"clean": faint.images.float() / 255, "stamped": stamped}
        loud = {name: model[:-1](images)[:, columns].sum(1) for name, images in features.items()}
        assert (model(stamped).argmax(1) == 3).float().mean() > 0.9
    assert loud["stamped"].mean() > 10 * loud["clean"].mean()


def test_fine_tuning_around_a_subnet_leaves_it_as_it_is(faint: Examples) -> None:
    attack = parse_attack("subnet-replacement")
    model = residual()
    hooks = attack.hooks(model, faint, head=None, compute=COMPUTE, generator=generator())
    before = state(model)
    train(model, faint, OPTIONS, compute=COMPUTE, progress=False, hooks=hooks)
    after = state(model)
    hooks.stepped(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in state(model).items())
    assert any(not torch.equal(after[name], before[name]) for name in before)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, groups=3)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        (Grouped(), "subnet-replacement", "knows no Conv2d such as 'first'"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), "subnet-replacement", "hidden layers"),
        (plain(), "subnet-replacement:channels=12", "channels must be below the 12"),
    ],
)
def test_a_network_without_room_for_a_subnet_is_refused(
    examples: Examples, model: nn.Module, text: str, message: str
) -> None:
    with pytest.raises((ModelError, ConfigurationError), match=message):
        parse_attack(text).hooks(model, examples, head=None, compute=COMPUTE, generator=generator())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("badnets:trigger=sqare", "unknown trigger 'sqare'"),
        ("badnets:policy=each", "unknown policy"),
        ("badnets:strength=2", "strength of trigger pattern"),
        ("badnets:fraction=0", "fraction must be above 0"),
        ("blended:ratio=0", "strength of trigger blend"),
        ("sig:amplitude=300", "amplitude must be above 0 and at most 255"),
        ("sig:test_amplitude=0", "test_amplitude must be above 0"),
        ("sig:frequency=0", "frequency must be above 0"),
        ("wanet:strength=0", "strength must be above 0"),
        ("wanet:cells=1", "cells must be from 2"),
        ("wanet:noise_ratio=-1", "noise_ratio must be from 0"),
        ("adaptive-blend:pieces=2", "pieces must be from 0.0625 to 1"),
        ("adaptive-blend:ratio=0", "ratio must be above 0"),
        ("adaptive-patch:used=5", "used must be from 1 to 4"),
        ("adaptive-patch:opacity=0", "opacity must be above 0"),
        ("model-replacement:factor=0", "factor must be from 1"),
        ("subnet-replacement:gain=0", "gain must be above 0"),
        ("tact:source=any", "source must be one class"),
        ("norm-bounded:radius=0", "radius must be from"),
        ("neurotoxin:excluded=1", "excluded must be from"),
        ("anchored:feature_weight=-1", "feature_weight must be from"),
        ("anchored:backdoor=sign-flip", "unknown backdoor"),
        ("norm-bounded:ratio=0.2", "unknown option of attack norm-bounded"),
        ("subnet-replacement:channels=0", "channels must be from 1"),
    ],
)
def test_an_impossible_option_is_refused_naming_it(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_attack(text)


def test_data_without_the_attacked_class_are_an_error(examples: Examples) -> None:
    without = examples.take(examples.labels != 7)
    with pytest.raises(DataError, match="hold none of the attacked class"):
        parse_attack("tact").prepare(without, generator())
    with pytest.raises(DataError, match="hold none of the attacked class"):
        parse_attack("sig:target=7").prepare(without, generator())
