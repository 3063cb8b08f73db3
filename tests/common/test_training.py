from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch
from sklearn.metrics import confusion_matrix, recall_score
from torch import Tensor, nn

from common.devices import Compute, choose_compute
from common.errors import ConfigurationError, DataError, ModelError, StorageError
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.training import Evaluation, TrainingReport, evaluate, learning_rate, train
from common.training_hooks import TrainingHooks
from common.training_options import TrainingOptions

CPU = choose_compute("cpu", "float32")
BF16 = choose_compute("cpu", "bfloat16")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stripes(count: int = 96, side: int = 8) -> Examples:
    """Two classes: horizontal and vertical stripes in noise."""
    labels = torch.arange(count) % 2
    wave = (torch.arange(side) % 2 * 120).to(torch.uint8)
    pictures = torch.stack([wave[:, None].expand(side, side), wave[None, :].expand(side, side)])[labels][:, None]
    noise = torch.randint(0, 100, pictures.shape, generator=seeded(), dtype=torch.uint8)
    return Examples((pictures + noise,), labels, ("horizontal", "vertical"))


class Tiny(nn.Module):
    """Convolution, BatchNorm, dropout and a head: everything whose state training must keep."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)
        self.middle = nn.Linear(4 * 36, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        return self.head(self.drop(torch.relu(self.middle(x))))


def tiny(seed: int = 0) -> Tiny:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tiny()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def trained(options: TrainingOptions, compute: Compute = CPU, examples: Examples | None = None) -> dict[str, Tensor]:
    model = tiny()
    train(model, examples or stripes(), options, compute=compute)
    return state(model)


OPTIONS = TrainingOptions(epochs=3, batch_size=16, learning_rate=0.02, augmentation="crop-flip")


@pytest.mark.parametrize("compute", [CPU, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_training_learns(compute: Compute, optimiser: str) -> None:
    model = tiny()
    options = TrainingOptions(epochs=10, batch_size=16, learning_rate=0.02, optimiser=optimiser)  # type: ignore[arg-type]
    report = train(model, stripes(), options, compute=compute)
    assert report.loss_per_epoch[-1] < report.loss_per_epoch[0]
    assert evaluate(model, stripes(), compute=compute).accuracy > 0.95


@pytest.mark.parametrize("compute", [CPU, BF16], ids=["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_weights_whatever_the_global_random_state(compute: Compute) -> None:
    torch.manual_seed(1)
    first = trained(OPTIONS, compute)
    torch.manual_seed(2)
    assert same(first, trained(OPTIONS, compute))


def test_training_leaves_the_global_random_state_as_it_was() -> None:
    before = torch.get_rng_state()
    trained(OPTIONS)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_other_weights() -> None:
    assert not same(trained(OPTIONS), trained(TrainingOptions.from_json(OPTIONS.to_json() | {"seed": 1})))


class Interrupted(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("compute", [CPU, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, compute: Compute, optimiser: str
) -> None:
    options = TrainingOptions.from_json(OPTIONS.to_json() | {"optimiser": optimiser, "reinitialise_head": True})
    whole = tiny()
    report = train(whole, stripes(), options, compute=compute)

    def interrupt(epoch: int, _loss: float) -> None:
        if epoch < 3:
            raise Interrupted

    for _ in range(2):
        with pytest.raises(Interrupted):
            train(tiny(), stripes(), options, compute=compute, checkpoint=tmp_path / "c", on_epoch=interrupt)
    resumed = tiny()
    second = train(resumed, stripes(), options, compute=compute, checkpoint=tmp_path / "c")
    assert same(state(whole), state(resumed))
    assert second.loss_per_epoch == report.loss_per_epoch


def test_a_killed_training_is_resumed_to_the_same_weights(tmp_path: Path) -> None:
    script, checkpoint = Path(__file__).with_name("killed_training.py"), tmp_path / "c"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, str(script), str(checkpoint)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert checkpoint.exists()
    weights_after_training = runpy.run_path(str(script))["weights_after_training"]
    assert same(weights_after_training(None), weights_after_training(checkpoint))


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    first, second = tiny(), tiny()
    train(first, stripes(), OPTIONS, compute=CPU, checkpoint=tmp_path)
    epochs: list[int] = []
    report = train(
        second, stripes(), OPTIONS, compute=CPU, checkpoint=tmp_path, on_epoch=lambda epoch, _: epochs.append(epoch)
    )
    assert epochs == []
    assert report.images_per_second == 0
    assert len(report.loss_per_epoch) == 3
    assert same(state(first), state(second))


@pytest.mark.parametrize("other", ["options", "examples", "weights", "precision"])
def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path, other: str) -> None:
    train(tiny(), stripes(), OPTIONS, compute=CPU, checkpoint=tmp_path / "c")
    options = TrainingOptions.from_json(OPTIONS.to_json() | {"learning_rate": 0.03}) if other == "options" else OPTIONS
    examples = stripes().take(torch.arange(95)) if other == "examples" else stripes()
    model = tiny(1) if other == "weights" else tiny()
    with pytest.raises(ModelError, match="another training"):
        train(model, examples, options, compute=BF16 if other == "precision" else CPU, checkpoint=tmp_path / "c")


@pytest.mark.parametrize("content", [b"", b"no safetensors", b'\x10\x00\x00\x00\x00\x00\x00\x00{"a": 1}        '])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(StorageError, match="cannot be read") as caught:
        train(tiny(), stripes(), OPTIONS, compute=CPU, checkpoint=tmp_path / "c")
    assert "delete it" in caught.value.hint


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="absent"):
        train(tiny(), stripes(), OPTIONS, compute=CPU, checkpoint=tmp_path / "absent" / "c")


def test_a_checkpoint_in_a_directory_is_one_safetensors_file(tmp_path: Path) -> None:
    train(tiny(), stripes(), OPTIONS, compute=CPU, checkpoint=tmp_path)
    (file,) = tmp_path.iterdir()
    with safetensors.safe_open(file, framework="pt") as content:
        assert "model.head.weight" in content.keys()  # noqa: SIM118 - no mapping


@pytest.mark.parametrize("count", [1, 2, 16, 17, 33])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_every_example_is_trained_on_whatever_is_left_for_the_last_batch(count: int, batch_size: int) -> None:
    seen: list[float] = []

    class Spy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            seen.extend(x[:, 0].tolist())
            return super().forward(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Spy(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    examples = Examples((torch.arange(float(count))[:, None],), torch.arange(count) % 2, ("even", "odd"))
    options = TrainingOptions(epochs=1, batch_size=batch_size, learning_rate=1e-4)
    train(model, examples, options, compute=CPU)
    assert sorted(seen) == [float(i) for i in range(count)]
    assert model.training


def test_frozen_layers_keep_weights_and_statistics_and_the_others_do_not() -> None:
    model = tiny()
    before = state(model)
    train(model, stripes(), TrainingOptions(epochs=1, frozen_layers=1), compute=CPU)
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == {"middle.weight", "middle.bias", "head.weight", "head.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_freezing_every_layer_is_refused_with_their_number() -> None:
    with pytest.raises(ConfigurationError, match="3 layers"):
        train(tiny(), stripes(), TrainingOptions(frozen_layers=3), compute=CPU)


def test_a_reinitialised_head_starts_anew_by_seed_and_the_rest_does_not() -> None:
    options = TrainingOptions(epochs=0, reinitialise_head=True)
    first, second = tiny(), tiny()
    before = state(first)
    train(first, stripes(), options, compute=CPU)
    train(second, stripes(), options, compute=CPU)
    changed = {key for key, tensor in first.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {"head.weight", "head.bias"}
    assert same(state(first), state(second))


def test_the_head_to_reinitialise_can_be_named() -> None:
    model = tiny()
    before = state(model)
    train(model, stripes(), TrainingOptions(epochs=0, reinitialise_head=True), compute=CPU, head="middle")
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {"middle.weight", "middle.bias"}


def test_training_leaves_modes_layout_and_gradients_as_they_were() -> None:
    model = tiny().eval()
    model.drop.train()
    train(model, stripes(), OPTIONS, compute=BF16)
    assert [m.training for m in (model, model.conv, model.drop)] == [False, False, True]
    assert model.conv.weight.is_contiguous()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_stale_gradients_are_not_trained_on() -> None:
    fresh, stale = tiny(), tiny()
    for parameter in stale.parameters():
        parameter.grad = torch.ones_like(parameter)
    train(fresh, stripes(), OPTIONS, compute=CPU)
    train(stale, stripes(), OPTIONS, compute=CPU)
    assert same(state(fresh), state(stale))


def test_parameters_the_caller_fixed_stay_fixed() -> None:
    model = tiny()
    model.conv.requires_grad_(False)
    before = model.conv.weight.clone()
    train(model, stripes(), OPTIONS, compute=CPU)
    assert torch.equal(model.conv.weight, before)
    assert not model.conv.weight.requires_grad


def test_texts_and_pictures_train_together() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 3)
            self.head = nn.Linear(67, 2)

        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            return self.head(torch.cat([image.flatten(1), self.words(text).mean(1)], 1))

    pictures = stripes()
    examples = Examples(
        (*pictures.inputs, torch.arange(len(pictures) * 4).view(-1, 4) % 5), pictures.labels, pictures.class_names
    )
    torch.manual_seed(0)
    report = train(Both(), examples, TrainingOptions(epochs=5, augmentation="crop"), compute=CPU)
    assert report.loss_per_epoch[-1] < report.loss_per_epoch[0]


def test_training_on_a_table_with_image_augmentation_is_refused() -> None:
    table = Examples((torch.rand(4, 3),), torch.tensor([0, 1, 0, 1]), ("a", "b"))
    with pytest.raises(ConfigurationError, match="is for images"):
        train(nn.Linear(3, 2), table, TrainingOptions(augmentation="crop"), compute=CPU)


def test_training_that_diverges_is_reported_and_leaves_no_checkpoint_of_it(tmp_path: Path) -> None:
    options = TrainingOptions(epochs=5, learning_rate=1e3, momentum=1.0, schedule="constant", weight_decay=1e3)
    with pytest.raises(ModelError, match="diverged in epoch") as caught:
        train(tiny(), stripes(), options, compute=CPU, checkpoint=tmp_path / "c")
    assert "learning rate" in caught.value.hint
    if (tmp_path / "c").exists():
        with safetensors.safe_open(tmp_path / "c", framework="pt") as content:
            assert all(torch.isfinite(content.get_tensor(name)).all() for name in content.keys())  # noqa: SIM118


def test_a_model_of_another_class_count_is_refused() -> None:
    model = build(ModelSpec("cnn", (1, 8, 8), 3), seed=0)
    with pytest.raises(ModelError, match="must give logits of shape"):
        train(model, stripes(), OPTIONS, compute=CPU)
    with pytest.raises(ModelError, match="2 classes"):
        evaluate(model, stripes(), compute=CPU)


def test_no_examples_are_refused() -> None:
    none = stripes().take(torch.arange(0))
    with pytest.raises(DataError):
        train(tiny(), none, OPTIONS, compute=CPU)
    with pytest.raises(DataError):
        evaluate(tiny(), none, compute=CPU)


def test_a_model_without_parameters_cannot_be_trained() -> None:
    with pytest.raises(ModelError, match="no parameters"):
        train(nn.Flatten(), stripes(), TrainingOptions(), compute=CPU)


def test_each_epoch_is_announced_with_its_loss() -> None:
    told: list[tuple[int, float]] = []
    report = train(tiny(), stripes(), OPTIONS, compute=CPU, on_epoch=lambda epoch, loss: told.append((epoch, loss)))
    assert isinstance(report, TrainingReport)
    assert told == list(enumerate(report.loss_per_epoch, start=1))
    assert report.images_per_second > 0


def test_a_bar_is_drawn_where_it_is_asked_for_and_nowhere_else(capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny(), stripes(), OPTIONS, compute=CPU, label="a label")
    assert capsys.readouterr() == ("", "")
    train(tiny(), stripes(), OPTIONS, compute=CPU, label="a label", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "a label" in err


def test_the_one_cycle_rate_rises_to_its_peak_and_falls_and_the_constant_one_stays() -> None:
    cycle = TrainingOptions(learning_rate=0.4)
    rates = [learning_rate(step, 1001, cycle) for step in range(1001)]
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(0.4)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0.004)
    assert {learning_rate(step, 7, TrainingOptions(learning_rate=0.4, schedule="constant")) for step in range(7)} == {
        0.4
    }


def test_the_step_is_that_of_torchs_own_sgd() -> None:
    """One batch of everything: the loop against the plain formula, weight decay on the matrix alone."""
    examples = Examples((torch.rand(12, 5, generator=seeded()),), torch.arange(12) % 3, ("a", "b", "c"))
    options = TrainingOptions(
        epochs=4, batch_size=12, learning_rate=0.1, weight_decay=0.1, schedule="constant", label_smoothing=0.2
    )
    torch.manual_seed(0)
    ours = nn.Linear(5, 3)
    plain = nn.Linear(5, 3)
    plain.load_state_dict(ours.state_dict())
    train(ours, examples, options, compute=CPU)
    optimiser = torch.optim.SGD(
        [{"params": [plain.weight], "weight_decay": 0.1}, {"params": [plain.bias]}], lr=0.1, momentum=0.9, nesterov=True
    )
    for _ in range(4):
        optimiser.zero_grad()
        nn.functional.cross_entropy(plain(examples.inputs[0]), examples.labels, label_smoothing=0.2).backward()
        optimiser.step()
    torch.testing.assert_close(ours.weight, plain.weight)
    torch.testing.assert_close(ours.bias, plain.bias)


def test_an_evaluation_agrees_with_scikit_learn() -> None:
    logits = torch.randn(500, 7, generator=seeded())
    labels = torch.randint(0, 7, (500,), generator=seeded(1))
    result = Evaluation.from_logits(logits, labels, 7)
    predicted = logits.argmax(1)
    assert result.accuracy == pytest.approx((predicted == labels).double().mean().item())
    assert result.confusion.tolist() == confusion_matrix(labels, predicted, labels=range(7)).tolist()
    assert result.recall.tolist() == pytest.approx(recall_score(labels, predicted, average=None).tolist())
    assert result.support.tolist() == torch.bincount(labels, minlength=7).tolist()


def test_a_class_without_examples_has_no_recall() -> None:
    result = Evaluation.from_logits(torch.eye(3)[:2], torch.tensor([0, 1]), 3)
    assert result.recall[:2].tolist() == [1, 1]
    assert result.recall[2].isnan()
    assert result.support.tolist() == [1, 1, 0]


def test_evaluating_does_not_move_batch_norm() -> None:
    model = tiny().train()
    before = state(model)
    first = evaluate(model, stripes(), compute=CPU, batch_size=7)
    assert first.confusion.equal(evaluate(model, stripes(), compute=CPU).confusion)
    assert same(before, state(model))
    assert model.training


class Recorder(TrainingHooks):
    """Changes nothing and notes when it was called, and with what."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def epoch(self, number: int) -> None:
        self.calls.append(f"epoch {number}")

    def loss(
        self, model: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor, logits: Tensor, loss: Tensor
    ) -> Tensor:
        assert inputs[0].dtype == torch.float32
        assert len(inputs[0]) == len(labels) == len(logits)
        assert float(loss.detach()) == pytest.approx(
            float(nn.functional.cross_entropy(logits.detach().float(), labels))
        )
        self.calls.append("loss")
        return super().loss(model, inputs, labels, logits, loss)

    def gradients(self, model: nn.Module) -> None:
        assert all(parameter.grad is not None for parameter in model.parameters())
        self.before = state(model)
        self.calls.append("gradients")

    def stepped(self, model: nn.Module) -> None:
        assert not same(self.before, state(model))
        self.calls.append("stepped")


@pytest.mark.parametrize("compute", [CPU, BF16])
def test_hooks_that_do_nothing_change_no_bit(compute: Compute) -> None:
    options = TrainingOptions(epochs=2, batch_size=32, augmentation="crop-flip")
    plain, hooked, watched = tiny(), tiny(), tiny()
    train(plain, stripes(), options, compute=compute, progress=False)
    train(hooked, stripes(), options, compute=compute, progress=False, hooks=TrainingHooks())
    train(watched, stripes(), options, compute=compute, progress=False, hooks=Recorder())
    assert same(state(plain), state(hooked))
    assert same(state(plain), state(watched))


def test_hooks_are_called_in_order_in_every_step() -> None:
    hooks = Recorder()
    train(tiny(), stripes(64), TrainingOptions(epochs=2, batch_size=32), compute=CPU, progress=False, hooks=hooks)
    step = ["loss", "gradients", "stepped"]
    assert hooks.calls == ["epoch 0", *step, *step, "epoch 1", *step, *step]


def test_a_hook_can_change_the_loss_the_gradients_and_the_weights() -> None:
    class Bent(TrainingHooks):
        def loss(self, model: Tiny, inputs: tuple[Tensor, ...], labels: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
            return loss + 1000 * model.conv.weight.square().mean()

        def gradients(self, model: Tiny) -> None:
            model.middle.weight.grad = None

        @torch.no_grad()
        def stepped(self, model: Tiny) -> None:
            model.head.weight.fill_(0.25)

    model = tiny()
    before = state(model)
    options = TrainingOptions(epochs=2, batch_size=32, learning_rate=1e-4)
    report = train(model, stripes(), options, compute=CPU, progress=False, hooks=Bent())
    assert report.loss_per_epoch[0] > 10
    assert model.conv.weight.norm() < before["conv.weight"].norm()
    assert torch.equal(model.middle.weight, before["middle.weight"])
    assert (model.head.weight == 0.25).all()


def test_a_hooked_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    class Shaken(TrainingHooks):
        """Random, from the number of the epoch alone."""

        def epoch(self, number: int) -> None:
            self.draws = seeded(number)

        def gradients(self, model: nn.Module) -> None:
            for parameter in model.parameters():
                parameter.grad += 0.01 * torch.randn(parameter.shape, generator=self.draws)

    def interrupt(epoch: int, _loss: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    options = TrainingOptions(epochs=4, batch_size=32)
    whole, part, rest = tiny(), tiny(), tiny()
    train(whole, stripes(), options, compute=CPU, progress=False, hooks=Shaken())
    with pytest.raises(KeyboardInterrupt):
        train(
            part,
            stripes(),
            options,
            compute=CPU,
            progress=False,
            hooks=Shaken(),
            checkpoint=tmp_path / "state",
            on_epoch=interrupt,
        )
    train(rest, stripes(), options, compute=CPU, progress=False, hooks=Shaken(), checkpoint=tmp_path / "state")
    assert same(state(whole), state(rest))
