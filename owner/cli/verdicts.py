"""A verdict as people read it: the decision in one line, then every check with what it found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from owner.cli.rendering import coloured, table
from owner.figures import conditions, number, percent, rejection_bounds
from owner.suspicions import suspicion


def verdict_table(verdict: Mapping[str, Any]) -> tuple[Text | Table, ...]:
    """Headline, checks, with a combined score what it is made of, and what was measured on the way."""
    bounds = rejection_bounds(verdict.get("fpr_bound_95"), _tier(verdict) or {})
    return (
        headline(verdict),
        _checks(verdict),
        *([Text(bounds, style="dim")] if bounds else []),
        *_gate(verdict),
        *_escalation(verdict),
        _measurements(verdict),
    )


def headline(verdict: Mapping[str, Any]) -> Text:
    line = coloured(str(verdict["decision"]))
    line.stylize("bold")
    if verdict.get("codes"):
        overruled = "overruling " if verdict["decision"] == "accepted" else ""
        line.append(f"  {overruled}{', '.join(verdict['codes'])}")
    if verdict.get("p_value") is not None:
        line.append(
            f"  p = {number(verdict['p_value'])} (resolution {number(verdict.get('resolution'))})", style="not bold"
        )
    line.append(f"  {verdict.get('seconds', 0.0):.2f} s", style="dim not bold")
    return line


def _checks(verdict: Mapping[str, Any]) -> Table:
    return table(
        ("check", "decision", ">score", ">threshold", ">p", "code", ">seconds", "~detail"),
        (
            (
                check["name"],
                coloured(check["decision"]),
                number(check.get("score"), 4),
                number(check.get("threshold"), 4),
                number(check.get("p_value")),
                check.get("code") or "",
                f"{check.get('seconds', 0.0):.3f}",
                Text(check.get("detail", ""), style="dim"),
            )
            for check in verdict.get("checks", ())
        ),
    )


def _gate(verdict: Mapping[str, Any]) -> tuple[Text | Table, ...]:
    """Nothing where one detector decides, as the paper's does: its check says it all."""
    measured = verdict.get("measurements", {})
    gate = measured.get("gate")
    if not isinstance(gate, Mapping):
        return ()
    families = table(("family", ">p"), ((name, number(p)) for name, p in gate.get("families", {}).items()))
    detectors = table(
        ("detector", ">score", ">p"),
        (
            (name, number(found.get("score"), 4), number(found.get("p_value")))
            for name, found in measured.get("detectors", {}).items()
        ),
    )
    return Text(), Text("\n").join(gate_lines(gate)), Text(), families, Text(), detectors, Text()


def gate_lines(gate: Mapping[str, Any]) -> Iterator[Text]:
    """What the combined score means, and what stands out where it did not pass."""
    decides = (
        "It alone decides: among the p-values below, which do not, a small one turns up by chance."
        if gate.get("judged", True)
        else "It decides nothing here: the submission fails utility, which these fine-tunes pass."
    )
    yield Text(
        f"p = {number(gate.get('p_value'))} of the combined score ({gate.get('method')}) over {gate.get('references')} honest "
        f"fine-tunes, {gate.get('fitting_references')} others fit its scales. {decides}"
    )
    if isinstance(gate.get("conditioning"), Mapping):
        yield Text(conditions(gate["conditioning"]), style="dim")
    suspected = gate.get("suspected")
    if isinstance(suspected, Mapping):
        yield Text("what stands out, if it was poisoned: " + suspicion(suspected), style="yellow")
    if isinstance(gate.get("picture"), Mapping):
        yield Text("the suspected mark is in the verdict: `show ID --picture FILE.png`", style="dim")


def _escalation(verdict: Mapping[str, Any]) -> tuple[Text | Table, ...]:
    """What the escalation tier found, where it looked."""
    tier = _tier(verdict)
    if tier is None or not isinstance(tier.get("detectors"), Mapping):
        return ()
    detectors = table(
        ("escalation", ">score", ">p"),
        ((n, number(found.get("score"), 4), number(found.get("p_value"))) for n, found in tier["detectors"].items()),
    )
    return Text(), Text("\n").join(escalation_lines(tier)), Text(), detectors, Text()


def _tier(verdict: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = verdict.get("measurements", {}).get("escalation")
    return found if isinstance(found, Mapping) else None


def escalation_lines(tier: Mapping[str, Any]) -> Iterator[Text]:
    """What the tier's p-value means, and what it was searched out to be where it did not pass."""
    outcome = "and left it to a person" if tier.get("state") == "undecided" else "and decided"
    yield Text(
        f"escalation tier: p = {number(tier.get('p_value'))} over {tier.get('references')} honest fine-tunes (resolution "
        f"{number(tier.get('resolution'))}); it looked because p alone had put this one into quarantine, {outcome}"
    )
    suspected = tier.get("suspected")
    if isinstance(suspected, Mapping) and suspected.get("target") is not None:
        kind = f", a mark of the kind {suspected['kind']}" if suspected.get("kind") else ""
        yield Text(f"what it found, if it was poisoned: target class {suspected['target']}{kind}", style="yellow")
    if isinstance(tier.get("picture"), Mapping):
        yield Text(
            "clean image, the same with the inverted mark, and the change: `show ID --picture FILE.png`", style="dim"
        )


def _measurements(verdict: Mapping[str, Any]) -> Text:
    return Text("\n").join(Text(line, style="dim") for line in _lines(verdict.get("measurements", {})))


def _lines(measurements: Mapping[str, Any]) -> Iterator[str]:
    evaluation = measurements.get("evaluation")
    if isinstance(evaluation, Mapping):
        yield (
            f"accuracy on {evaluation.get('images')} evaluation images: {percent(_accuracy(evaluation, 'current'), 2)} now, "
            f"{percent(_accuracy(evaluation, 'would_be'), 2)} merged"
        )
    calibration = measurements.get("calibration")
    if isinstance(calibration, Mapping):
        yield (
            f"accuracy on {calibration.get('images')} calibration triggers: {percent(_accuracy(calibration, 'release'), 2)} "
            f"of its base, {percent(_accuracy(calibration, 'submission'), 2)} of the submission"
        )


def _accuracy(part: Mapping[str, Any], name: str) -> float | None:
    found = part.get(name)
    return found.get("accuracy") if isinstance(found, Mapping) else None
