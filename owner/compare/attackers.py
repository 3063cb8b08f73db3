"""What a reader must know of the attackers and of whom the strategies are told: what the attackers weigh, how many there really are, and
what those who are told their number can come to at best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from owner.compare.configuration import Block, Comparison
from owner.compare.scenes import DEFAULTS, Record
from owner.federated.config import NEEDED, FederationConfig
from owner.federated.grids import SHARE

Lines = list[str]


def about_attackers(block: Block, records: Mapping[str, Record]) -> Lines:
    """Markdown: of each data set, partition and share of attackers what part of the clients' images the attackers hold, over seeds, and how
    many of those who were wanted can attack; nothing of records that do not tell."""
    found: dict[tuple[str, str, str], list[Record]] = {}
    for cell in block.cells:
        record = records.get(cell.name)
        if record is not None and record["status"] == "done" and record["result"].get("attackers_wanted"):
            values = {**DEFAULTS, **record["values"]}
            share = f"{100 * values[SHARE]:g} %" if SHARE in values else str(values.get("attackers"))
            found.setdefault((str(values["data"]), str(values["partition"]), share), []).append(record)
    if not found:
        return []
    lines = [
        "Attackers, by the part of all clients' images that they hold: it is their weight in FedAvg's mean, whatever their number.",
        "",
    ]
    for (data, partition, share), cells in found.items():
        weights = [100 * record["result"]["attackers_weight"] for record in cells]
        lines.append(f"- {data}, {partition}, {share} attackers: {_range(weights, 0)} % of the images{_fewer(cells)}.")
    return [*lines, ""]


def about_told(comparison: Comparison) -> Lines:
    """Markdown: who is told f, what that allows at best, and what the gate goes without."""
    configs = [cell.config for cell in comparison.cells if cell.config is not None]
    lines = [*_of_number(configs), *_of_gate(configs)]
    return ["## What the strategies are told", "", *lines] if lines else []


def best_f1(dropped: int, attackers: int) -> float:
    """Of a strategy that drops so many whatever the scores, were it to drop attackers before all others.

    >>> best_f1(9, 3), best_f1(3, 3), best_f1(3, 5)
    (0.5, 1.0, 0.75)
    """
    return 2 * min(dropped, attackers) / (dropped + attackers) if dropped + attackers else 0.0


def dropped_by(strategy: str, clients: int, told: int) -> int | None:
    """How many it leaves out of a round of so many replies by construction; None where it selects nobody."""
    return {"krum": clients - 1, "multikrum": told, "bulyan": 2 * told}.get(strategy)


def _of_number(configs: Sequence[FederationConfig]) -> Lines:
    told = [config for config in configs if config.strategy in NEEDED and config.assumed_malicious < 0]
    if not told:
        return []
    most = sorted(
        {
            (one.strategy, one.clients, one.attackers, best_f1(drops, one.attackers))
            for one in told
            if one.attackers and (drops := _drops(one)) is not None
        }
    )
    lines = [
        "Krum, MultiKrum, Bulyan and FedTrimmedAvg are told f, which no other strategy is: the number of attackers or, where that is less, the "
        "most that their theory allows for n clients (2f + 2 < n of Krum and MultiKrum, 4f + 3 <= n of Bulyan, 2f < n of FedTrimmedAvg). "
        "Krum keeps one client by construction, so that with a attackers its F1 is at most 2a / (n - 1 + a). MultiKrum keeps n - f and "
        "drops exactly f, attackers or not: it is an oracle of the number. Bulyan drops 2f. So F1 is at most",
        "",
    ]
    for strategy in dict.fromkeys(name for name, *_ in most):
        bounds = [f"{best:.2f} ({a} of {n})" for name, n, a, best in most if name == strategy]
        lines.append(f"- {strategy}: {', '.join(bounds)}")
    return [*lines, ""] if most else [lines[0].removesuffix(" So F1 is at most"), ""]


def _drops(config: FederationConfig) -> int | None:
    return dropped_by(config.strategy, config.clients, min(config.attackers, config.most_malicious or 0))


def _of_gate(configs: Sequence[FederationConfig]) -> Lines:
    gates = {config.utility_drop for config in configs if config.strategy == "gated"}
    if not gates:
        return []
    if gates == {1.0}:
        return [
            "The gate runs here without the gatekeeper's check of utility (`utility-drop = 1`): its detectors alone decide, as those of the "
            "other strategies do. A gatekeeper in use would drop whoever ruins accuracy by that check, too.",
            "",
        ]
    limits = ", ".join(f"{drop:g}" for drop in sorted(gates))
    return [f"The gate drops, too, who costs more accuracy than `utility-drop` allows: {limits} here.", ""]


def _fewer(records: Iterable[Record]) -> str:
    """Where not as many as were wanted could attack."""
    counts: dict[tuple[str, int], list[int]] = {}
    for record in records:
        wanted, attack = int(record["result"]["attackers_wanted"]), str(record["values"].get("attack", ""))
        counts.setdefault((attack, wanted), []).append(len(record["result"]["attackers"]))
    few = [
        f"{_range(found, 0)} of the {wanted} that were wanted for `{attack}`"
        for (attack, wanted), found in counts.items()
        if min(found) < wanted
    ]
    return f"; no more can attack than {', '.join(few)}" if few else ""


def _range(values: Sequence[float], digits: int) -> str:
    """
    >>> _range([24.2, 76], 0), _range([30, 30.1], 0)
    ('24 to 76', '30')
    """
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"
