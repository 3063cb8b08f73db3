"""The page about many seeds of a scenario: which of the attackers it says the gate itself found."""

from __future__ import annotations

from typing import Any

from benchmarks.seeds import table


def contributor(name: str, attack: str | None, *codes: str) -> dict[str, Any]:
    return {
        "name": name,
        "attack": attack,
        "fate": "rejected" if codes else "accepted",
        "attack_success": None,
        "effective": None,
        "accuracy": 0.9,
        "ae_error": 0.1,
        "p_value": 0.05,
        "codes": list(codes),
        "samples": 100,
    }


def test_attackers_that_the_gate_found_are_told_from_those_that_utility_did() -> None:
    contributors = [
        contributor("ada", None),
        contributor("ben", "flip", "GATE"),
        contributor("chloe", "pattern", "ACTIVATION_AUTOENCODER", "HISTORY"),
        contributor("dan", "sign-flip", "UTILITY_RECALL"),
    ]
    result = {
        "seed": 0,
        "hardware": "a machine",
        "versions": {},
        "release": {"before": {"accuracy": 0.9}, "after": {"accuracy": 0.9}},
        "contributors": contributors,
    }
    assert "the gate itself rejected or held: 2 of 3" in table("demo", [result], "a command")
