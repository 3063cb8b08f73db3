"""Code that would mix devices on a GPU fails on the pretended one; what Portier does there, it does as on the CPU."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.detection.config import Config
from benchmarks.detection.plans import plans
from benchmarks.detection.scores import score
from benchmarks.detection.zoo import Zoo
from common.activations import find_head, observe
from common.datasets import load
from common.devices import Compute, choose_compute
from common.evaluation import evaluate
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.randomness import random_state
from common.splits import owner_shares
from common.training import train
from common.training_options import TrainingOptions
from common.weights import Weights, weights_of
from common.weights import save as save_weights
from contributor.attacks import KINDS, parse_attack
from contributor.finetuning import finetune
from owner.detectors import DETECTORS, ESCALATION, Evidence, measures_of
from owner.detectors.base import forward_of
from owner.detectors.variational import Variational
from owner.federated import FederationConfig, run_federation, shared_work
from owner.federated.config import ALONE
from owner.federated.learning import made
from owner.federated.running import run_submissions
from owner.gatekeeper import Gatekeeper, GuardOptions, MergePolicy, Triggers, Verdict
from owner.gatekeeper.incremental import small_news
from owner.gatekeeper.protection import Protection
from owner.reproduce.images import Images
from owner.reproduce.records import Work
from owner.reproduce.runner import Runner
from owner.reproduce.steps import EXPERIMENTS, all_steps
from tests.benchmarks.detection.conftest import SMALL
from tests.owner.detectors.material import fine_tuned, network, pictures
from tests.owner.reproduce.conftest import SMOKE
from tests.pretend_cuda import PretendedDevice, pretend_cuda

ON_CPU = Compute(torch.device("cpu"), torch.float32)
ON_CUDA = Compute(torch.device("cuda"), torch.float32)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedDevice]:
    """The pretended device. What CUDA would have refused fails the test, even where somebody has caught it."""
    # A CPU rounds otherwise in the memory order it likes best in float32, which a GPU does not; it is results that are compared.
    monkeypatch.setattr(Compute, "channels_last", property(lambda compute: compute.dtype == torch.bfloat16))
    with pretend_cuda() as device:
        yield device
        assert device.faults == []


MIXED: dict[str, Callable[[Tensor], Any]] = {
    "a sum": lambda x: x + torch.ones(2, 2),
    "a product": lambda x: x @ torch.ones(2, 2),
    "a tensor put together": lambda x: torch.cat([x, x.cpu()]),
    "a comparison": lambda x: torch.equal(x, x.cpu()),
    "a loss of labels elsewhere": lambda x: nn.functional.cross_entropy(x, torch.tensor([0, 1])),
    "a mask elsewhere": lambda x: torch.zeros(2, 2)[x > 0],
    "a running total elsewhere": lambda x: torch.zeros(()).add_(x.sum()),
    "a layer elsewhere": lambda x: nn.Linear(2, 2)(x),
    "a generator of the CPU": lambda x: torch.rand(2, device=x.device, generator=torch.Generator()),
    "integers multiplied": lambda x: x.long() @ x.long(),
}


@pytest.mark.parametrize("case", MIXED)
def test_what_a_gpu_refuses_is_refused_and_noted(case: str) -> None:
    with pretend_cuda() as device:
        x = torch.eye(2).to("cuda")
        with pytest.raises(RuntimeError):
            MIXED[case](x)
        assert len(device.faults) == 1


def test_what_a_gpu_allows_is_allowed(cuda: PretendedDevice) -> None:
    x = torch.eye(2).to("cuda")
    assert (x * torch.tensor(2.0))[torch.tensor([0])].tolist() == [[2.0, 0.0]]
    assert torch.zeros(2, 2).copy_(x).equal(torch.eye(2))
    assert x.to("cuda") is x
    assert (x.cpu().device.type, torch.zeros(1).to(x).device.type) == ("cpu", "cuda")


def test_numpy_has_no_view_of_the_device(cuda: PretendedDevice) -> None:
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        torch.ones(2).to("cuda").numpy()


def test_a_parameter_stays_the_object_it_was_on_its_way_there_and_back(cuda: PretendedDevice) -> None:
    layer = nn.Linear(2, 2)
    parameter = layer.weight
    assert layer.to("cuda").weight is parameter
    assert parameter.is_cuda
    assert layer.cpu().weight is parameter
    assert not parameter.is_cuda


def test_what_the_host_waits_for_is_counted(cuda: PretendedDevice) -> None:
    x = torch.ones(4).to("cuda")
    cuda.waits.clear()
    torch.arange(2).pin_memory().to("cuda", non_blocking=True)
    x.sum() * 2
    assert not cuda.waits
    float(x.sum())
    x[x > 0].cpu()
    assert cuda.waits == {"_local_scalar_dense": 1, "index": 1, "copy from the device": 1}


def test_torch_is_as_it_was_afterwards() -> None:
    before = torch.cuda.is_available, torch.backends.cudnn.enabled, nn.Module._apply
    with pretend_cuda():
        assert choose_compute() == Compute(torch.device("cuda"), torch.bfloat16)
    assert (torch.cuda.is_available, torch.backends.cudnn.enabled, nn.Module._apply) == before


class Small(nn.Module):
    """Convolution, BatchNorm, dropout, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2)
        self.head = nn.Linear(4 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(torch.relu(self.norm(self.conv(x))).flatten(1)))
        return logits


def small() -> Small:
    with random_state(0):
        return Small()


IMAGES, LABELS = pictures(40)
EXAMPLES = Examples((IMAGES,), LABELS, ("a", "b", "c", "d"))
OPTIONS = TrainingOptions(epochs=2, batch_size=16, learning_rate=0.02, augmentation="crop-flip")


def assert_close(found: Weights, expected: Weights) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3, msg=lambda text: f"{name}: {text}")  # noqa: B023


@pytest.mark.parametrize("changes", [{"optimiser": "adamw"}, {"optimiser": "adam", "frozen_layers": 1}, {}], ids=str)
def test_training_gives_the_weights_it_gives_on_the_cpu(cuda: PretendedDevice, changes: dict[str, Any]) -> None:
    options = dataclasses.replace(OPTIONS, reinitialise_head=True, label_smoothing=0.1, **changes)
    models = [small(), small()]
    for model, compute in zip(models, (ON_CUDA, ON_CPU), strict=True):
        train(model, EXAMPLES, options, compute=compute, progress=False)
    assert models[0].head.weight.is_cuda
    assert_close(weights_of(models[0]), weights_of(models[1]))


def test_training_waits_for_the_device_once_an_epoch_and_not_once_a_batch(cuda: PretendedDevice) -> None:
    waits = []
    for batch_size in (20, 5):
        cuda.waits.clear()
        options = dataclasses.replace(OPTIONS, batch_size=batch_size)
        train(small(), EXAMPLES, options, compute=ON_CUDA, progress=False)
        waits.append(dict(cuda.waits))
    assert waits[0] == waits[1]


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_interrupted_training_ends_in_the_same_weights(
    cuda: PretendedDevice, tmp_path: Path, optimiser: str, precision: str
) -> None:
    compute, options = choose_compute("cuda", precision), dataclasses.replace(OPTIONS, optimiser=optimiser)
    whole, interrupted = small(), small()
    train(whole, EXAMPLES, options, compute=compute, progress=False)

    def stop(_number: int, _loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(interrupted, EXAMPLES, options, compute=compute, checkpoint=tmp_path / "c", on_epoch=stop, progress=False)
    again = small()
    train(again, EXAMPLES, options, compute=compute, checkpoint=tmp_path / "c", progress=False)
    assert all(tensor.equal(weights_of(whole)[name]) for name, tensor in weights_of(again).items())


def test_training_leaves_the_random_state_of_the_device_as_it_was(cuda: PretendedDevice) -> None:
    before = cuda.generator.get_state()
    train(small(), EXAMPLES, OPTIONS, compute=ON_CUDA, progress=False)
    assert cuda.generator.get_state().equal(before)


def test_a_network_made_on_the_cpu_leaves_it_as_it_was_too(cuda: PretendedDevice) -> None:
    before = cuda.generator.get_state()
    made(lambda: Variational(4, 0, (3,), 2, nn.ReLU, sigmoid=True), 0)
    assert cuda.generator.get_state().equal(before)


def test_examples_may_lie_on_the_device(cuda: PretendedDevice) -> None:
    model, there = small(), EXAMPLES.to("cuda")
    train(model, there, OPTIONS, compute=ON_CUDA, progress=False)
    found, expected = (evaluate(model, examples, compute=ON_CUDA) for examples in (there, EXAMPLES))
    assert found.confusion.equal(expected.confusion)


TEXTS = Examples((torch.arange(240).view(40, 6) % 80,), torch.arange(40) % 2, ("0", "1"))
DIGITS = load("digits")
ATTACKS = {kind: {"flip": "flip:source=7,target=6"}.get(kind, kind) for kind in KINDS}
ATTACKS["subnet-replacement"] = "subnet-replacement:epochs=60"
TELLING = ["pattern", "wanet", "anchored", "neurotoxin", "norm-bounded", "model-replacement", "add-noise"]


def check_attack(spec: ModelSpec, text: str, mine: Examples, held_out: Examples) -> None:
    base, options = weights_of(build(spec, seed=0)), dataclasses.replace(OPTIONS, augmentation="none", epochs=1)
    found, expected = (
        finetune(
            base,
            spec,
            mine.to(c.device),
            options,
            attack=parse_attack(text),
            held_out=held_out,
            compute=c,
            progress=False,
        )
        for c in (ON_CUDA, ON_CPU)
    )
    assert_close(found.weights, expected.weights)
    assert found.report["attack_success"] == expected.report["attack_success"]


@pytest.mark.parametrize("kind", TELLING)
def test_an_attack_does_on_the_device_what_it_does_on_the_cpu(cuda: PretendedDevice, kind: str) -> None:
    mine, held_out = DIGITS.train.take(torch.arange(40)), DIGITS.test.take(torch.arange(30))
    check_attack(ModelSpec("mlp", (1, 8, 8), 10), ATTACKS[kind], mine, held_out)


@pytest.mark.parametrize("kind", ["anchored", "neurotoxin", "norm-bounded"])
def test_what_an_attack_does_in_every_step_waits_for_nothing(cuda: PretendedDevice, kind: str) -> None:
    spec, mine = ModelSpec("mlp", (1, 8, 8), 10), DIGITS.train.take(torch.arange(40))
    waits = []
    for batch_size in (20, 5):
        options = TrainingOptions(epochs=1, batch_size=batch_size)
        base = weights_of(build(spec, seed=0))
        cuda.waits.clear()
        finetune(base, spec, mine, options, attack=parse_attack(kind), compute=ON_CUDA, progress=False)
        waits.append(dict(cuda.waits))
    assert waits[0] == waits[1]


@pytest.mark.parametrize("attack", ["anchored", "neurotoxin"])
def test_gradients_in_evaluation_mode_get_through_recurrent_layers(cuda: PretendedDevice, attack: str) -> None:
    check_attack(ModelSpec("gru", (6,), 2), f"{attack}:backdoor=flip,source=0,target=1", TEXTS, TEXTS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_attack_does_so_with_convolutions(cuda: PretendedDevice, kind: str) -> None:
    def enlarged(examples: Examples) -> Examples:
        return examples.with_images(examples.images.repeat_interleave(4, 2).repeat_interleave(4, 3))

    mine, held_out = (enlarged(e.take(torch.arange(40))) for e in (DIGITS.train, DIGITS.test))
    check_attack(ModelSpec("badnet-cnn", (1, 32, 32), 10), ATTACKS[kind], mine, held_out)


def evidence(model: nn.Module, compute: Compute, release: Evidence | None = None) -> Evidence:
    model = copy.deepcopy(model)
    head = find_head(model, (IMAGES[:1],))
    seen = observe(model, (IMAGES,), head=head, compute=compute)
    forward = forward_of(model, head=head, compute=compute)
    return Evidence(
        seen.features,
        seen.logits,
        LABELS,
        weights_of(model),
        release,
        forward,
        (IMAGES,),
        network=model,
        compute=compute,
    )


@pytest.mark.parametrize("name", [*DETECTORS, *ESCALATION])
def test_a_detector_scores_as_on_the_cpu(cuda: PretendedDevice, name: str) -> None:
    released = network(batch_norm=True)
    candidate = fine_tuned(released, IMAGES, LABELS, steps=3)
    found = []
    for compute in (ON_CUDA, ON_CPU):
        release = evidence(released, compute)
        detector = ESCALATION[name](steps=3) if name in ESCALATION else DETECTORS[name]()
        shown = evidence(candidate, compute, release)
        found.append(measures_of(detector.fit(release), shown))
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-6)


SPEC = ModelSpec("mlp", (1, 8, 8), 10)
SHARES = owner_shares(DIGITS, seed=0, train=0.5, references=0.3, trigger_fit=0.35, trigger_calibration=0.3)
FINETUNING = TrainingOptions(epochs=1, learning_rate=0.005, batch_size=32, schedule="constant")
FEW = GuardOptions(
    detectors=("input-gradient-drift",),
    references=4,
    reject_level=0.2,
    quarantine_level=0.2,
    hidden=16,
    latent=8,
    epochs=2,
)


def guarded(
    compute: Compute, options: GuardOptions, *, model: nn.Module | None = None, **more: Any
) -> tuple[Gatekeeper, nn.Module]:
    """A guard, and the release: everything that can lie on the device does."""
    if model is None:
        model = build(SPEC, seed=0)
        train(model, SHARES.train, TrainingOptions(epochs=3, batch_size=64), compute=compute, progress=False)
    triggers = Triggers(SHARES.trigger_fit, SHARES.trigger_calibration, SHARES.evaluation)
    gatekeeper = Gatekeeper.protect(
        model,
        triggers.to(compute.device),
        references_pool=SHARES.references.to(compute.device),
        spec=SPEC,
        finetuning=FINETUNING,
        options=options,
        compute=compute,
        progress=False,
        **more,
    )
    return gatekeeper, model


def vetted(compute: Compute, options: GuardOptions, folder: Path) -> list[Verdict]:
    gatekeeper, model = guarded(compute, options)
    tuned = copy.deepcopy(model)
    train(tuned, SHARES.unclaimed, FINETUNING, compute=compute, progress=False)
    gatekeeper.save(folder / compute.device.type)
    loaded = Gatekeeper.load(folder / compute.device.type, model)
    inverted = {name: -tensor for name, tensor in model.state_dict().items()}
    return [
        gatekeeper.vet(tuned),
        gatekeeper.vet(tuned, current=tuned.state_dict(), root=gatekeeper.guard),
        gatekeeper.vet(tuned, current=model.state_dict(), merge=MergePolicy("replace")),
        loaded.vet(inverted),
    ]


def check_vetting(options: GuardOptions, folder: Path) -> None:
    for found, expected in zip(*(vetted(c, options, folder) for c in (ON_CUDA, ON_CPU)), strict=True):
        assert found.decision == expected.decision
        assert [check.code for check in found.checks] == [check.code for check in expected.checks]
        for mine, theirs in zip(found.checks, expected.checks, strict=True):
            assert mine.p_value == theirs.p_value
            if theirs.score is not None:
                assert mine.score == pytest.approx(theirs.score, rel=1e-3, abs=1e-6)


def test_a_guard_of_the_device_judges_as_one_of_the_cpu(cuda: PretendedDevice, tmp_path: Path) -> None:
    check_vetting(FEW, tmp_path)


@pytest.mark.slow
def test_a_guard_of_every_detector_judges_as_one_of_the_cpu(cuda: PretendedDevice, tmp_path: Path) -> None:
    check_vetting(dataclasses.replace(FEW, detectors=tuple(DETECTORS), fitting_references=2), tmp_path)


@pytest.mark.slow
def test_the_escalation_tier_scores_as_on_the_cpu(cuda: PretendedDevice) -> None:
    levels = {"escalation_reject_level": 0.25, "escalation_quarantine_level": 0.8}
    options = dataclasses.replace(FEW, escalation="both", escalation_references=3, **levels)
    found = []
    for compute in (ON_CUDA, ON_CPU):
        gatekeeper, model = guarded(compute, options)
        train(model, SHARES.unclaimed, FINETUNING, compute=compute, progress=False)
        tier, weights = gatekeeper.calibrated(progress=False), weights_of(model)
        assert tier is not None
        seen = gatekeeper.observe(weights, gatekeeper.guard.calibration.inputs)
        found.append(tier.look(gatekeeper.with_gradients(weights, seen), gatekeeper.guard)[0])
    assert found[0].score == pytest.approx(found[1].score, rel=1e-2, abs=1e-3)


@pytest.mark.slow
def test_fine_tunes_move_to_a_release_on_the_device(cuda: PretendedDevice, tmp_path: Path) -> None:
    options = dataclasses.replace(FEW, incremental=True, incremental_news=1000.0)
    before, model = guarded(ON_CUDA, options, directory=tmp_path / "work")
    before.guard.save(tmp_path / "guard", kept=[Protection.kept_in(tmp_path / "work", before.guard)])
    save_weights(tmp_path / "old.safetensors", before.release)
    train(model, SHARES.unclaimed, FINETUNING, compute=ON_CUDA, progress=False)
    moved = small_news(
        tmp_path / "guard",
        tmp_path / "old.safetensors",
        model.state_dict(),
        options=options,
        spec=SPEC,
        finetuning=FINETUNING,
        compute=ON_CUDA,
        usefulness=before.guard.usefulness,
    )
    after, _ = guarded(ON_CUDA, options, model=model, directory=tmp_path / "again", transplants=moved)
    assert after.guard.provenance["generation"] == 1


@pytest.mark.slow
def test_the_paper_is_reproduced_as_on_the_cpu(
    cuda: PretendedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owner.reproduce.speed.training_flops", lambda _spec: 1_000_000)  # counted on "meta"
    steps = all_steps(["cnn"], [0], EXPERIMENTS, SMOKE)
    found = []
    for compute in (ON_CUDA, ON_CPU):
        work = Work(tmp_path / compute.device.type)
        work.open(SMOKE)
        assert Runner(SMOKE, Images(SMOKE), work, compute, progress=False, compile="off").run(steps)
        found.append(work.records())
    assert found[0].keys() == found[1].keys() == set(steps)
    for step, record in found[1].items():
        if "models" in record and step.kind:
            for name, reached in record["models"].items():
                assert found[0][step]["models"][name]["accuracy"] == pytest.approx(reached["accuracy"], abs=0.01)


@pytest.mark.slow
def test_the_detection_benchmark_scores_as_on_the_cpu(cuda: PretendedDevice, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    config = Config.load(str(tmp_path / "small.toml"))
    every = plans(config, 5)
    some = [next(p for p in every if p.role == role) for role in ("owner", "calibration", "honest", "attacked")]
    found = []
    for compute in (ON_CUDA, ON_CPU):
        zoo = Zoo(config, tmp_path / compute.device.type, compute)
        zoo.settle()
        for plan in some:
            zoo.make(plan)
        found.append({plan.name: score(zoo, plan) for plan in some})
    for name, columns in found[1].items():
        for key, column in columns.items():
            assert found[0][name][key]["measures"] == pytest.approx(column["measures"], rel=1e-3, abs=1e-6), key


BASE: dict[str, Any] = {
    "model": "mlp",
    "clients": 6,
    "attackers": 2,
    "attack": "sign-flip",
    "rounds": 1,
    "learning-rate": 0.1,
    "release-epochs": 1,
    "guard-references": 4,
    "precision": "float32",
    "engine": "inline",
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["federated", "incremental"])
@pytest.mark.parametrize("strategy", ALONE)
def test_a_federation_decides_as_on_the_cpu(cuda: PretendedDevice, strategy: str, setting: str) -> None:
    learns = strategy in {"fedcvae", "spectral-vae", "fedclean"}
    given = BASE | {"strategy": strategy, "setting": setting, "detector-epochs": 2 if learns else 0}
    given["level"] = 0.2 if setting == "incremental" or strategy == "gated" else 0.0
    run: Any = run_federation if setting == "federated" else run_submissions
    tables = []
    for device in ("cuda", "cpu"):
        for kept in (shared_work._release, shared_work._honest, shared_work._detector):
            kept.cache_clear()
        tables.append(run(FederationConfig.from_flat({**given, "device": device})).table())
    assert repr(tables[0]) == repr(tables[1])
