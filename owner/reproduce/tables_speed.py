"""How fast it ran: what one training reached of its device, and how long a seed of the paper's tables takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from owner.figures import percent
from owner.reproduce.paper import ROWS, TITLES
from owner.reproduce.records import Record
from owner.reproduce.results import NOT_RUN, Results
from owner.reproduce.steps import KINDS, Step
from owner.reproduce.tables import Lines, table


def table_speed(results: Results) -> Lines:
    """Images a second and share of the peak, minutes of single steps and of the paper's row of one seed; medians over trainings."""
    rows = []
    for name in ROWS:
        mine = {step: record for step, record in results.records.items() if step.architecture == name}
        devices = dict.fromkeys(map(_device, (r for r in mine.values() if "speed" in r)))
        for device in devices:
            here = {step: record for step, record in mine.items() if _device(record) == device}
            scratch, tuned = (
                [r for step, r in here.items() if step.name in names and r["speed"]["images_per_second"]]
                for names in ({"genuine", "part"}, {"honest"})
            )
            compiled = any(r["environment"]["compiled"] for r in [*scratch, *tuned])
            rows.append(
                [
                    TITLES[name],
                    device + (", compiled" if compiled else ""),
                    _rate_and_share(scratch),
                    _rate_and_share(tuned),
                    _minutes([_seconds(r) for step, r in here.items() if step.name == "genuine"]),
                    _minutes([_seconds(r) for step, r in here.items() if step.name == "honest"]),
                    _minutes(_rows_of_tables(here)),
                ]
            )
        if not devices:
            rows.append([TITLES[name], NOT_RUN, *["-"] * 5])
    head = ["images/s, share of peak: M", "a fine-tune", "minutes: M", "a fine-tune", "Tables 1 to 3 of a seed"]
    return table(["architecture", "device", *head], rows)


def _device(record: Record) -> str:
    """With what shared it: a rate is one process's. Not told by records that are older than several at a time."""
    environment = record["environment"]
    beside = environment.get("processes", 1)
    return str(environment["device"]) + (f", one of {beside} processes" if beside > 1 else "")


def _rows_of_tables(here: Mapping[Step, Record]) -> list[float]:
    """Seconds of the steps of `tables`, added up, of every seed that has them all."""
    names = ("genuine", *KINDS, "detect")
    seeds = {step.seed for step in here}
    found = [[r for step, r in here.items() if step.seed == seed and step.name in names] for seed in seeds]
    return [sum(map(_seconds, records)) for records in found if len(records) == len(names)]


def _rate_and_share(records: Sequence[Record]) -> str:
    """Median and range. A measured peak is no constant: a share of it is told in tens of percent, as `about`."""
    if not records:
        return "-"
    speeds = [record["speed"] for record in records]
    rates = [speed["images_per_second"] for speed in speeds]
    rate = f"{median(rates):.0f}" + (f" [{min(rates):.0f} to {max(rates):.0f}]" if len(rates) > 1 else "")
    shares = [speed["share_of_peak"] for speed in speeds if speed["share_of_peak"] is not None]
    if not shares:
        return f"{rate}, unknown"
    share = median(shares)
    if any(speed.get("peak_measured") for speed in speeds):
        return f"{rate}, about {percent(round(share, 1), 0)} of a measured one"
    return f"{rate}, {percent(share)}"


def _minutes(seconds: Sequence[float]) -> str:
    return f"{median(seconds) / 60:.1f}" if seconds else "-"


def _seconds(record: Record) -> float:
    """Of a training that was interrupted, at least what the whole of it takes at the speed of its last part: seconds may have
    been lost with a process that was killed."""
    rate = record.get("speed", {}).get("images_per_second")
    whole = record["image_steps"] / rate if record["resumed"] and rate else 0.0
    return float(max(record["seconds"], whole))
