"""The HTML report: complete, self-contained, and safe whatever a scenario calls its contributors."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest
import torch

from owner.gatekeeper.pictures import as_png
from owner.simulate.charts import Histogram, error_chart
from owner.simulate.outcome import Result, rates
from owner.simulate.report import render

EDGES = [-4.0, -3.0, -2.0, -1.0]


def _document(results: list[Result], **changes: Any) -> dict[str, Any]:
    rows = [Histogram("release", "genuine", [5, 4, 0], 0.001), Histogram("eve", "attack", [0, 2, 7], 0.05)]
    return {
        "scenario": {"title": "two <b>people</b>"},
        "seed": 7,
        "command": "portier-owner simulate demo",
        "started": "2026-01-02T03:04:05+00:00",
        "hardware": "a machine",
        "versions": {"python": "3.11"},
        "seconds": {"train": 1.0},
        "release": {"before": {"accuracy": 0.9, "number": 0}, "after": {"accuracy": 0.95, "number": 1}},
        "contributors": [one.to_json() for one in results],
        "rates": rates(results).to_json(),
        "errors": {"log10_edges": EDGES, "threshold": 0.01, "histograms": [vars(row) for row in rows]},
        **changes,
    }


@pytest.fixture
def page() -> str:
    return render(
        _document(
            [
                Result("ada", None, "accepted", accuracy=0.91, p_value=0.5, samples=60),
                Result(
                    "eve", "flip:source=7,target=1", "rejected", attack_success=0.8, effective=True, codes=("DRIFT",)
                ),
                Result("<script>alert(1)</script>", None, None),
            ]
        )
    )


def test_the_page_asks_nothing_of_any_other_place(page: str) -> None:
    assert re.findall(r"(?:src|href|url|@import|https?:)", page) == []


def test_text_from_outside_stays_text(page: str) -> None:
    found: set[str] = set()

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            found.add(tag)

    Tags().feed(page)
    assert "table" in found
    assert not found & {"script", "b"}
    assert "&lt;script&gt;" in page


def test_every_contributor_stands_in_the_table_with_its_verdict(page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", page)
    for expected in (
        "ada",
        "91.0 %",
        "accepted",
        "eve",
        "flip:source=7,target=1",
        "80.0 %",
        "rejected",
        "right",
        "DRIFT",
    ):
        assert expected in text


def test_the_rates_stand_with_their_counts(page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", page)
    assert re.search(r"attackers rejected\s+1 of 1\s+100\.0 %", text)
    assert re.search(r"honest contributors rejected\s+0 of 1\s+0\.0 %", text)


def test_without_histograms_there_is_no_chart() -> None:
    assert "<svg" not in render(_document([], errors=None))


def test_the_chart_is_well_formed_and_draws_each_row_once() -> None:
    rows = [Histogram(name, "honest", [1, 2, 3], 0.01) for name in ("a", "b & c")]
    drawing = ET.fromstring(error_chart(rows, EDGES, 0.02))
    assert len(drawing.findall("path[@class='fill honest']")) == 2
    assert [node.text for node in drawing.findall("text[@class='label']")] == ["a", "b & c"]


@pytest.mark.parametrize(("threshold", "at"), [(1e-4, 190), (1e-1, 860), (1e-9, 190), (1e9, 860)])
def test_the_threshold_stands_where_the_axis_says_and_never_beside_it(threshold: float, at: float) -> None:
    drawing = ET.fromstring(error_chart([Histogram("a", "honest", [1, 2, 3])], EDGES, threshold))
    [line] = drawing.findall("line[@class='threshold']")
    assert float(line.attrib["x1"]) == at


def test_an_empty_histogram_is_a_flat_line() -> None:
    drawing = ET.fromstring(error_chart([Histogram("a", "honest", [0, 0, 0])], EDGES, None))
    heights = set(re.findall(r"V([0-9.]+)", drawing.find("path").attrib["d"]))  # type: ignore[union-attr]
    assert len({float(height) for height in heights}) == 1


GATE = {
    "p_value": 0.05,
    "families": {"probes": 0.05, "weights": 0.7},
    "suspected": {"source": None, "target": "<b>1", "moved_class": None, "probe": "dots", "kind": "pixel"},
    "picture": as_png(torch.zeros(3, 8, 8, dtype=torch.uint8)),
}


def test_of_a_combined_score_the_page_tells_families_suspicion_and_mark() -> None:
    eve = Result("eve", "flip", "rejected", fpr_bound_95=0.146, gate=GATE)
    page = render(_document([eve, Result("ada", None, "accepted")]))
    text = re.sub(r"<[^>]+>", " ", page)
    assert "probes 0.05, weights 0.7" in text
    assert "target class &lt;b&gt;1, probe dots (pixel)" in text
    assert "the check on p rejects at most 14.6 % (95 % confidence)" in text
    assert "Escalation tier" not in text
    assert page.count("data:image/png;base64,") == 1


def test_the_page_tells_what_the_escalation_tier_found_and_adds_its_bound() -> None:
    tier = {"p_value": 0.4, "references": 19, "resolution": 0.05, "fpr_bound_95": 0.146}
    results = [
        Result(
            "ada", None, "accepted", fpr_bound_95=0.03, escalation=tier | {"state": "decided", "decision": "accepted"}
        ),
        Result("bo", None, "held", escalation={"state": "not-run", "decision": "quarantined"}),
        Result("eve", "flip", "rejected"),
    ]
    text = " ".join(re.sub(r"<[^>]+>", " ", render(_document(results))).split())
    assert "ada 0.4 19 0.05 accepted bo - - - did not look" in text
    assert "the escalation tier at most 14.6 % of all more (95 %): together at most 17.6 % (90 %)" in text


def test_of_a_tier_without_a_bound_the_page_makes_up_none() -> None:
    held = Result("bo", None, "held", fpr_bound_95=0.03, escalation={"state": "not-run", "decision": "quarantined"})
    page = render(_document([held]))
    assert "0.0 % of all more" not in page
    assert "what an escalation tier rejects comes on top" in page


def test_with_one_detector_the_page_says_nothing_of_a_combined_score(page: str) -> None:
    assert "Combined score" not in page


def test_what_is_no_picture_is_not_drawn() -> None:
    broken = GATE | {"picture": {"png": 'aGVsbG8="><script>'}}
    assert "<script" not in render(_document([Result("eve", "flip", "rejected", gate=broken)]))
