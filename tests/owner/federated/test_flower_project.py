"""The how-to of docs/flower.md, tried: a project laid out as Flower's PyTorch quickstart, with the five lines added and no other."""

from __future__ import annotations

import difflib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.supercore.object_ref import load_app

from owner.federated.inline import InlineGrid

ROOT = Path(__file__).parents[3]

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "pytorchexample"
version = "1.0.0"
dependencies = ["flwr[simulation]>=1.41.0", "torch"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "flwrlabs"

[tool.flwr.app.components]
serverapp = "pytorchexample.server_app:app"
clientapp = "pytorchexample.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 2
fraction-evaluate = 0.5
local-epochs = 1
learning-rate = 0.05
batch-size = 32
"""

TASK = '''
"""Model, data and training, as a quickstart has them; scikit-learn's digits stand in for a download."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(8 * 4 * 4, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x):
        x = self.pool(torch.relu(self.norm(self.conv(x))))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


class Digits(Dataset):
    def __init__(self, rows):
        digits = load_digits()
        self.images = torch.tensor(digits.images[rows], dtype=torch.float32).unsqueeze(1) / 8 - 1
        self.labels = torch.tensor(digits.target[rows])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"img": self.images[i], "label": self.labels[i]}


def load_data(partition_id, num_partitions, batch_size):
    rows = torch.arange(600, 1797)[partition_id::num_partitions].numpy()
    cut = int(0.8 * len(rows))
    train = DataLoader(Digits(rows[:cut]), batch_size=batch_size, shuffle=True)
    return train, DataLoader(Digits(rows[cut:]), batch_size=batch_size)


def load_centralized_dataset():
    return DataLoader(Digits(torch.arange(600).numpy()), batch_size=128)


def train(net, trainloader, epochs, lr, device):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for batch in trainloader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(batch["img"].to(device)), batch["label"].to(device))
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


def test(net, testloader, device):
    net.eval()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for batch in testloader:
            outputs = net(batch["img"].to(device))
            loss += nn.functional.cross_entropy(outputs, batch["label"].to(device)).item()
            correct += (outputs.argmax(1) == batch["label"].to(device)).sum().item()
    return loss / len(testloader), correct / len(testloader.dataset)
'''

CLIENT = """
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from pytorchexample.task import Net, load_data
from pytorchexample.task import test as test_fn
from pytorchexample.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    partition_id = context.node_config["partition-id"]
    trainloader, _ = load_data(partition_id, context.node_config["num-partitions"], context.run_config["batch-size"])
    loss = train_fn(model, trainloader, context.run_config["local-epochs"], msg.content["config"]["lr"], "cpu")
    metrics = {"train_loss": loss, "num-examples": len(trainloader.dataset)}
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    partition_id = context.node_config["partition-id"]
    _, valloader = load_data(partition_id, context.node_config["num-partitions"], context.run_config["batch-size"])
    loss, accuracy = test_fn(model, valloader, "cpu")
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(valloader.dataset)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
"""

SERVER = """
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from pytorchexample.task import Net, load_centralized_dataset, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    fraction_evaluate = context.run_config["fraction-evaluate"]
    num_rounds = context.run_config["num-server-rounds"]
    lr = context.run_config["learning-rate"]

    global_model = Net()
    arrays = ArrayRecord(global_model.state_dict())

    strategy = FedAvg(fraction_evaluate=fraction_evaluate)

    result = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        train_config=ConfigRecord({"lr": lr}),
        num_rounds=num_rounds,
        evaluate_fn=global_evaluate,
    )

    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")


def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    model = Net()
    model.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test(model, load_centralized_dataset(), "cpu")
    return MetricRecord({"accuracy": accuracy, "loss": loss})
"""

STRATEGY_LINE = "    strategy = FedAvg(fraction_evaluate=fraction_evaluate)\n"


def five_lines() -> list[str]:
    """The lines as docs/flower.md shows them."""
    page = (ROOT / "docs" / "flower.md").read_text("utf-8")
    return [line.rstrip() for line in re.findall(r"^(.*?)\s+# \d$", page, re.MULTILINE)]


def with_the_gatekeeper(server: str) -> str:
    first, *rest = five_lines()
    imported = server.replace("from flwr.serverapp import Grid", f"{first}\nfrom flwr.serverapp import Grid")
    return imported.replace(STRATEGY_LINE, STRATEGY_LINE + "\n".join(rest) + "\n")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    package = tmp_path / "pytorchexample"
    package.mkdir()
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    for name, text in {"__init__": "", "task": TASK, "client_app": CLIENT, "server_app": SERVER}.items():
        (package / f"{name}.py").write_text(text.lstrip("\n"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "pytorchexample"]:
        del sys.modules[name]


def run(project: Path, *, nodes: int) -> None:
    """As Flower starts a project: both apps by the references in its pyproject.toml, with the configuration that stands there."""
    described = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]
    references, config = described["components"], UserConfig(described["config"])
    server = load_app(references["serverapp"], RuntimeError, str(project))
    client = load_app(references["clientapp"], RuntimeError, str(project))
    assert isinstance(server, ServerApp)
    assert isinstance(client, ClientApp)
    grid = InlineGrid(client, nodes, dict(config))
    server(grid=grid, context=Context(1, 1, UserConfig(), RecordDict(), config))


def test_the_page_adds_five_lines() -> None:
    lines = five_lines()
    assert len(lines) == 5
    difference = list(difflib.ndiff(SERVER.splitlines(), with_the_gatekeeper(SERVER).splitlines()))
    assert [line[2:] for line in difference if line.startswith("+ ")] == lines
    assert not [line for line in difference if line.startswith("- ")]


def test_the_project_runs_without_the_gatekeeper(project: Path) -> None:
    run(project, nodes=3)
    assert (project / "final_model.pt").exists()


def test_with_five_lines_more_every_reply_is_vetted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from owner.federated import gated

    made: list[gated.GatedStrategy] = []
    original = gated.GatedStrategy.__init__

    def noted(self: gated.GatedStrategy, *arguments: object, **options: object) -> None:
        original(self, *arguments, **options)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(gated.GatedStrategy, "__init__", noted)
    server = project / "pytorchexample" / "server_app.py"
    server.write_text(with_the_gatekeeper(server.read_text()))
    run(project, nodes=3)
    assert (project / "final_model.pt").exists()
    (strategy,) = made
    assert [record.number for record in strategy.records] == [1, 2]
    assert all(len(record.clients) == 3 for record in strategy.records)
    assert all(client.score is not None for record in strategy.records for client in record.clients)
    assert strategy.records[0].guard_seconds > 0
