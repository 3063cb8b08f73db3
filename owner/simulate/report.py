"""The report of a simulation as one HTML file that asks nothing of any other place: styles and drawings are inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

from owner.figures import number, percent, rejection_bounds
from owner.simulate.charts import Histogram, error_chart, legend
from owner.suspicions import png_bytes, suspicion

_KINDS = {
    "genuine": "release vetted against",
    "references": "honest reference fine-tunes, pooled",
    "honest": "honest contributor",
    "attack": "attacker",
}
_LOOKED = {"awaiting": "not calibrated yet", "not-run": "did not look", "undecided": "left to a person"}
_RATES = (
    ("tpr_rejected", "attackers rejected"),
    ("tpr_stopped", "attackers rejected or held"),
    ("effective_stopped", "of these, attacks that took: rejected or held"),
    ("failed_stopped", "of these, attacks that did not take: rejected or held"),
    ("fpr_rejected", "honest contributors rejected"),
    ("fpr_stopped", "honest contributors rejected or held"),
)


def render(document: Mapping[str, Any]) -> str:
    """The HTML page of a simulation's result document (what `--json` writes)."""
    title = f"Portier simulation: {document['scenario']['title']}"
    style = (resources.files("owner.simulate") / "report.css").read_text("utf-8")
    body = "\n".join(
        (
            f"<h1>{escape(title)}</h1>",
            f'<p class="facts">{_facts(document)}</p>',
            _rates(document),
            _table(document),
            _gates(document),
            _escalations(document),
            _chart(document),
            _provenance(document),
        )
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>\n'
        f"<style>\n{style}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _facts(document: Mapping[str, Any]) -> str:
    before, after = document["release"]["before"], document["release"]["after"]
    honest = sum(one["attack"] is None for one in document["contributors"])
    return escape(
        f"{honest} honest contributors and {len(document['contributors']) - honest} attackers, seed {document['seed']}. "
        f"Accuracy of the release before {percent(before['accuracy'])} (number {before['number']}), "
        f"after {percent(after['accuracy'])} (number {after['number']})."
    )


def _rates(document: Mapping[str, Any]) -> str:
    rows = []
    for key, text in _RATES:
        rate = document["rates"][key]
        interval = rate["interval_95"]
        span = f"{percent(interval[0])} to {percent(interval[1])}" if interval else "-"
        rows.append(
            f"<tr><td>{escape(text)}</td><td class=n>{rate['hits']} of {rate['n']}</td>"
            f"<td class=n>{percent(rate['value'])}</td><td class=n>{span}</td></tr>"
        )
    return (
        "<h2>Who was caught</h2><table><thead><tr><th></th><th class=n>count</th><th class=n>share</th>"
        "<th class=n>95 % interval (Wilson)</th></tr></thead><tbody>" + "".join(rows) + "</tbody></table>"
        "<p class=small>Held is quarantined: it does not touch the model until a person promotes it. An attack took when, on "
        "held-out images, its success is at least 50 % of what the release's own errors leave (pattern), the source class loses at least 20 points of recall "
        "(flip), or accuracy falls by at least 20 points (attacks on the whole model). "
        f"{escape(_bounds(document))}</p>"
    )


def _table(document: Mapping[str, Any]) -> str:
    head = (
        "contributor",
        "attack (ground truth)",
        "attack success, held out",
        "accuracy",
        "AE error",
        "p-value",
        "verdict",
        "",
        "reasons",
    )
    rows = []
    for one in document["contributors"]:
        right = {True: "right", False: "wrong", None: ""}[one["right"]]
        rows.append(
            f"<tr><td>{escape(one['name'])}<br><small>{escape(one['partition'])}, {one['samples'] or '?'} images</small></td>"
            f"<td>{escape(one['attack'] or 'none')}</td><td class=n>{percent(one['attack_success'])}</td>"
            f"<td class=n>{percent(one['accuracy'])}</td><td class=n>{number(one['ae_error'])}</td>"
            f"<td class=n>{number(one['p_value'])}</td><td>{escape(one['fate'] or 'none')}</td>"
            f'<td class="{right}">{right}</td><td><small>{escape(", ".join(one["codes"]))}</small></td></tr>'
        )
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    return (
        f"<h2>Contributors</h2><div class=wide><table><thead><tr>{cells}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _gates(document: Mapping[str, Any]) -> str:
    """Nothing where one detector decides, as the paper's does."""
    rows = []
    for one in document["contributors"]:
        gate = one.get("gate")
        if not gate:
            continue
        families = ", ".join(f"{name} {number(p)}" for name, p in gate["families"].items())
        suspected = suspicion(gate["suspected"]) if gate.get("suspected") else ""
        rows.append(
            f"<tr><td>{escape(one['name'])}</td><td class=n>{number(gate['p_value'])}</td><td>{escape(families)}</td>"
            f"<td>{escape(suspected)}</td><td>{_picture(gate.get('picture'))}</td></tr>"
        )
    if not rows:
        return ""
    cells = "".join(
        f"<th>{escape(text)}</th>" for text in ("contributor", "p", "p by family", "what stands out", "mark")
    )
    return (
        "<h2>Combined score</h2><p class=small>The one p in the second column decides. The others are shown for people: "
        "among several, a small one turns up by chance. A pass means consistent with honest fine-tuning, no more.</p>"
        f"<div class=wide><table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _escalations(document: Mapping[str, Any]) -> str:
    """What the escalation tier made of those that p alone had put into quarantine; nothing where there were none."""
    looked = [(one["name"], one["escalation"]) for one in document["contributors"] if one.get("escalation")]
    if not looked:
        return ""
    rows = (
        f"<tr><td>{escape(name)}</td><td class=n>{number(tier.get('p_value'))}</td><td class=n>{tier.get('references', '-')}</td>"
        f"<td class=n>{number(tier.get('resolution'))}</td><td>{escape(_LOOKED.get(tier['state'], tier['decision']))}</td></tr>"
        for name, tier in looked
    )
    cells = "".join(f"<th>{text}</th>" for text in ("contributor", "p", "K", "resolution", "decision"))
    return (
        "<h2>Escalation tier</h2><p class=small>It looks again at what p alone put into quarantine, by a K of its own, and then "
        "decides alone, or leaves it to a person.</p>"
        f"<div class=wide><table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _bounds(document: Mapping[str, Any]) -> str:
    """The largest of the bounds that the verdicts state, for each base has a calibration of its own."""
    gates = [one["fpr_bound_95"] for one in document["contributors"] if one.get("fpr_bound_95") is not None]
    tiers = [(one.get("escalation") or {}).get("fpr_bound_95") for one in document["contributors"]]
    known = [bound for bound in tiers if bound is not None]
    return rejection_bounds(max(gates, default=None), {"fpr_bound_95": max(known, default=None)})


def _picture(picture: object) -> str:
    content = png_bytes(picture)
    if content is None:
        return ""
    return f'<img class=mark alt="suspected mark" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def _chart(document: Mapping[str, Any]) -> str:
    errors = document.get("errors")
    if not errors:
        return ""
    rows = [Histogram(**row) for row in errors["histograms"]]
    combined = any(one.get("gate") for one in document["contributors"])
    decides = " The threshold is this score's own and decides nothing: the combined score does." if combined else ""
    return (
        "<h2>Auto-encoder error per trigger image</h2>"
        "<p class=small>In the manner of Fig. 5 of El Moadine, Coatrieux and Bellafqira (ICDF2C 2022). Each row is one model; "
        f"its height is scaled to its own largest bin; the grey outline repeats the first row.{decides}</p>"
        + legend(_KINDS)
        + error_chart(rows, errors["log10_edges"], errors["threshold"])
    )


def _provenance(document: Mapping[str, Any]) -> str:
    facts = {
        "command": document["command"],
        "seed": document["seed"],
        "hardware": document["hardware"],
        "versions": ", ".join(f"{name} {version}" for name, version in document["versions"].items()),
        "started": document["started"],
        "seconds": ", ".join(f"{name} {seconds:.1f}" for name, seconds in document["seconds"].items()),
    }
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in facts.items())
    return f"<h2>How this was made</h2><table class=facts><tbody>{rows}</tbody></table>"
