"""What a comparison's file says: blocks, what they share, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import ConfigurationError, UnknownNameError
from owner.compare.configuration import load, parse, shipped
from owner.federated.grids import name_of

TWO_BLOCKS = """
title = "Two"
[federation]
clients = 6
seed = 4
[grid]
strategy = ["fedavg", "krum"]
partition = ["iid", "dirichlet:alpha=0.5"]
[marks]
sentiment140 = "a part"
[[blocks]]
name = "one"
row = "Li et al. 2020"
own = "spectral-vae"
[blocks.federation]
partition = "iid"
model = "logistic"
[[blocks]]
name = "two"
[blocks.grid]
strategy = ["gated"]
clients = [4, 8]
[[missing]]
row = "Li et al. 2020"
data = "femnist"
reason = "not at hand"
[[missing]]
row = "Gu & Yang 2021"
data = "femnist"
reason = "not at hand"
"""


def test_a_blocks_own_values_and_lists_stand_above_the_shared_ones() -> None:
    one, two = parse(TWO_BLOCKS, "two").blocks
    assert [(c.values["strategy"], c.values["partition"]) for c in one.cells] == [("fedavg", "iid"), ("krum", "iid")]
    assert {(c.values["clients"], c.values["partition"]) for c in two.cells} == {
        (n, p) for n in (4, 8) for p in ("iid", "dirichlet:alpha=0.5")
    }
    assert {c.values["strategy"] for c in two.cells} == {"gated"}


def test_missing_rows_are_those_of_the_blocks_that_are_there() -> None:
    assert [one.row for one in parse(TWO_BLOCKS, "two").missing] == ["Li et al. 2020"]
    assert parse(TWO_BLOCKS, "two", blocks=["two"]).missing == ()


def test_blocks_and_seeds_can_be_chosen() -> None:
    chosen = parse(TWO_BLOCKS, "two", blocks=["two"], seeds=[7, 8])
    assert [block.name for block in chosen.blocks] == ["two"]
    assert chosen.seeds == [7, 8]
    assert parse(TWO_BLOCKS, "two").seeds == [4]


def test_a_cell_of_two_blocks_is_one_cell() -> None:
    text = '[grid]\nstrategy = ["krum"]\nseed = [0]\n[[blocks]]\nname = "a"\n[[blocks]]\nname = "b"\n'
    comparison = parse(text, "same")
    assert len(comparison.cells) == 1
    assert comparison.blocks[0].cells[0].name == comparison.blocks[1].cells[0].name


@pytest.mark.parametrize("name", ["digits", "sweep"])
def test_what_ships_can_be_read(name: str) -> None:
    assert name in shipped()
    assert load(name).cells


@pytest.mark.parametrize("name", ["digits", "sweep", "table4"])
def test_what_ships_runs_in_one_precision_on_every_processor(name: str) -> None:
    """`auto` would be bfloat16 on some, with other figures."""
    comparison = load(name, seeds=[0])
    assert {cell.config.precision for cell in comparison.cells if cell.config} == {"float32"}


def test_published_records_stand_under_the_names_of_their_cells() -> None:
    """Precision was not written when the first of them were made."""
    page = Path(__file__).parents[3] / "docs" / "results" / "federated.json"
    published = json.loads(page.read_text())
    assert published["records"]
    assert all(name_of(record["values"]) == record["cell"] for record in published["records"])


def test_every_block_of_the_real_grid_has_one_scene_without_attackers_for_all_its_strategies() -> None:
    for block in load("table4", seeds=[0]).blocks:
        quiet = [cell.values for cell in block.cells if cell.values["attacker-share"] == 0]
        places = {(v["data"], v["model"], v["partition"]) for v in (cell.values for cell in block.cells)}
        strategies = {cell.values["strategy"] for cell in block.cells}
        assert {v["strategy"] for v in quiet} == strategies
        assert len(quiet) == len(places) * len(strategies)
        assert {v["attack"].partition(":")[0] for v in quiet} == {"flip"}


@pytest.mark.parametrize("name", ["table4", "sweep"])
def test_what_ships_trains_with_momentum_where_it_trains_by_sgd(name: str) -> None:
    """Without it, one epoch a round leaves flipped labels without effect."""
    found = {(c.optimiser, c.momentum) for cell in load(name, seeds=[0]).cells if (c := cell.config) is not None}
    assert found <= {("sgd", 0.9), ("adam", 0.0)}


def test_blocks_that_differ_in_precision_alone_are_refused() -> None:
    block = '[[blocks]]\nname = "{0}"\n[blocks.federation]\nprecision = "{0}"\n'
    with pytest.raises(ConfigurationError, match="differ from another block's in precision alone"):
        parse("[grid]\nseed = [0]\n" + block.format("float32") + block.format("bfloat16"), "two")


def test_the_real_grid_has_both_settings_and_every_attack_of_the_comparison() -> None:
    blocks = ["Ours: CNN on CIFAR-10", "One submission at a time: CNN on CIFAR-10"]
    comparison = load("table4", blocks=blocks)
    assert comparison.seeds == [0, 1, 2]
    for block in comparison.blocks:
        attacks = {cell.values["attack"].split(":")[0] for cell in block.cells}
        assert attacks == {
            "flip",
            "pattern",
            "sign-flip",
            "add-noise",
            "same-value",
            "model-replacement",
            "badnets",
        }
    assert {cell.values["attacker-share"] for cell in comparison.blocks[0].cells} == {0, 0.3, 0.5}
    assert len({cell.values["partition"] for cell in comparison.blocks[0].cells}) == 2


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("[blocks]\nname = 'a'", ConfigurationError, r"\[\[blocks\]\]"),
        ("[[blocks]]\nnam = 'a'", UnknownNameError, "nam"),
        ("[[blocks]]\nname = 'a'\n[[blocks]]\nname = 'a'", ConfigurationError, "same name"),
        ("[[blocks]]\nname = 3", ConfigurationError, "name must be text"),
        ("[[blocks]]\nown = 'gate'", UnknownNameError, "unknown strategy"),
        ("[federations]\nclients = 3", UnknownNameError, "unknown section"),
        ("federation = 3", ConfigurationError, "federation must be a table"),
        ("[[missing]]\nwhy = 'x'", UnknownNameError, "why"),
        ("[grid]\nstrategy = ['krumm']", UnknownNameError, "krumm"),
        ("[federation]\nclients = 3\nattackers = 4\nattack = 'sign-flip'", ConfigurationError, "4 attackers among 3"),
        ("[grid", ConfigurationError, "cannot be read"),
    ],
)
def test_a_comparison_that_is_none_is_refused(text: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        parse(text, "bad")


def test_an_unknown_comparison_or_block_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load("table5")
    assert "did you mean table4?" in caught.value.hint
    with pytest.raises(UnknownNameError) as caught:
        parse(TWO_BLOCKS, "two", blocks=["on"])
    assert "did you mean one?" in caught.value.hint
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(str(tmp_path / "none.toml"))
