"""The work folder: one JSON record a step, `<architecture>/seed-<n>/<step>.json`, its weights beside it.

Records alone make the report, so that those of several machines are merged by bringing them together in one folder; and the numbers
that a report leaves are records again, so that work goes on from what was published.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigurationError, StorageError, WorkspaceError
from common.files import ensure_directory, read_bounded, write_atomically
from common.locks import lock_held
from common.weights import digest_file
from owner.reproduce.settings import RECIPES, Settings
from owner.reproduce.steps import Step, step_names

FORMAT = 1
Record = dict[str, Any]
_LIMIT = 64 << 20
SELECTIONS = frozenset({"improve"})
"""Settings that say what is run, and change nothing about what comes out."""


@dataclass(frozen=True)
class Work:
    """A work folder, of one set of settings."""

    root: Path

    def open(self, settings: Settings) -> None:
        """Makes the folder these settings' own. Raises ConfigurationError where it belongs to others, StorageError."""
        self.check(settings)
        if not self._about.exists():
            text = json.dumps({"format": FORMAT, "settings": settings.to_json()}, indent=1)
            ensure_directory(self.root)
            write_atomically(self._about, text.encode())

    def check(self, settings: Settings) -> None:
        """Whether the folder is these settings' own or nobody's yet. Raises as `open`; writes nothing."""
        if not self._about.exists():
            return
        theirs = self.settings().to_json()
        mine = settings.to_json()
        other = [
            f"{name} {theirs[name]!r}, now {value!r}"
            for name, value in mine.items()
            if theirs[name] != value and name not in SELECTIONS
        ]
        if other:
            raise ConfigurationError(
                f"{self.root} holds results of other settings: {'; '.join(other)}",
                hint="name another folder with --work, or the same settings",
            )

    def settings(self) -> Settings:
        """Raises StorageError where there are none, or what is there cannot be read."""
        if not self._about.exists():
            raise StorageError(f"{self.root} holds no results", hint="run `reproduce` first, or check --work")
        return Settings.from_json(_read(self._about)["settings"])

    @property
    def _about(self) -> Path:
        return self.root / "settings.json"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Held by the one command that runs steps here or merges; reading needs nothing, for every file is whole or not there.

        Raises WorkspaceError, naming the process that holds it.
        """

        def in_use(holder: str) -> WorkspaceError:
            return WorkspaceError(
                f"another command (pid {holder}) is at work in {self.root}",
                hint="wait for it or stop it; --parallel runs several steps at a time, --plan and --stage report only read",
            )

        with lock_held(self.root / "lock", in_use=in_use):
            yield

    def folder(self, step: Step) -> Path:
        return self.root / step.architecture / f"seed-{step.seed}"

    def record_path(self, step: Step) -> Path:
        return self.folder(step) / f"{step.name}.json"

    def digests(self, step: Step) -> dict[str, str]:
        """SHA-256 (hex) of the weights that a step left, by model. Raises StorageError where one is not there."""
        return {name: digest_file(self.weights_path(step, name)) for name in step.models}

    def has_weights(self, step: Step) -> bool:
        """Whether all that the step left is there, and is what its record is of: a run that is killed may have left newer ones."""
        if not all(self.weights_path(step, name).exists() for name in step.models):
            return False
        known = (self.record(step) or {}).get("weights")
        return known is None or known == self.digests(step)

    def is_sound(self, step: Step) -> bool:
        """Whether it is done, its weights are there, and they come from the models beside them."""
        return self.record_path(step).exists() and self.has_weights(step) and step not in torn_apart(self.records())

    def weights_path(self, step: Step, name: str) -> Path:
        """Of model `name` (`genuine`, `flip-long` ...) of this step's architecture and seed."""
        return self.folder(step) / f"{name}.safetensors"

    def checkpoint_path(self, step: Step) -> Path:
        return self.folder(step) / f"{step.name}.training"

    def spent(self, step: Step) -> float:
        """Seconds that went into a step that is not done yet."""
        path = self._spent_path(step)
        return float(_read(path)["seconds"]) if path.exists() else 0.0

    def keep_spent(self, step: Step, seconds: float) -> None:
        text = json.dumps({"format": FORMAT, "seconds": round(seconds, 2)})
        write_atomically(self._spent_path(step), text.encode())

    def record(self, step: Step) -> Record | None:
        return self._record(step) if self.record_path(step).exists() else None

    def write(self, step: Step, record: Mapping[str, Any]) -> None:
        about = {"format": FORMAT, "architecture": step.architecture, "seed": step.seed, "step": step.name}
        ensure_directory(self.folder(step))
        text = json.dumps(about | dict(record), indent=1, allow_nan=False)
        write_atomically(self.record_path(step), text.encode())
        self._spent_path(step).unlink(missing_ok=True)

    def records(self) -> dict[Step, Record]:
        """Every record there is."""
        found = {}
        for architecture in RECIPES:
            for path in sorted((self.root / architecture).glob("seed-*/*.json")):
                number = path.parent.name.removeprefix("seed-")
                if number.isdecimal():
                    step = Step(architecture, int(number), path.stem)
                    found[step] = self._record(step)
        return found

    def merge(self, other: Work | Published) -> int:
        """Takes over the records from elsewhere that are not here yet; returns how many those were.

        Raises ConfigurationError where its settings are others, and, after the rest was taken over, where those of an architecture and seed
        would stand beside records of other models than they were made from; StorageError.
        """
        self.check(other.settings())
        found = other.records()
        self.open(other.settings())
        taken, refused = 0, []
        with self.writing():
            mine = self.records()
            for group in sorted({(step.architecture, step.seed) for step in found}):
                new = {s: r for s, r in found.items() if (s.architecture, s.seed) == group and s not in mine}
                if torn := [step for step in torn_apart(mine | new) if step in new]:
                    refused += torn
                    continue
                for step, record in new.items():
                    self.write(step, record)
                taken += len(new)
        if refused:
            raise ConfigurationError(
                f"{taken} records taken over, but none of the seeds of these, which were made from other models than those here: "
                f"{', '.join(map(str, refused))}",
                hint="name another folder with --work, or take over all of one seed from one place",
            )
        return taken

    def _record(self, step: Step) -> Record:
        path = self.record_path(step)
        found = _read(path)
        about = (found.get("architecture"), found.get("seed"), found.get("step"))
        if about != (step.architecture, step.seed, step.name):
            raise StorageError(
                f"{path} is the record of another step: {about[0]} seed {about[1]} {about[2]}",
                hint="delete it to run its step again",
            )
        return found

    def _spent_path(self, step: Step) -> Path:
        return self.folder(step) / f"{step.name}.spent"


@dataclass(frozen=True)
class Published:
    """The records in a `paper.json`: all but weights, and the pictures of attacked images."""

    path: Path

    def settings(self) -> Settings:
        """Raises StorageError for what is no such file."""
        return Settings.from_json(self._part("settings", dict))

    def records(self) -> dict[Step, Record]:
        """Raises StorageError where one is no record of a step that there can be: names become paths."""
        names, found = step_names(), {}
        for record in self._part("records", list):
            try:
                step = Step(record["architecture"], record["seed"], record["step"])
                known = step.architecture in RECIPES and step.name in names and 0 <= step.seed < 2**31
                parts = (record["environment"], *(record.get(name, {}) for name in ("weights", "of", "base")))
                whole = isinstance(record["data"], str) and all(isinstance(part, dict) for part in parts)
            except (KeyError, TypeError) as error:
                raise StorageError(f"{self.path} holds a record without architecture, seed and step") from error
            if not known or not whole or type(step.seed) is not int:
                raise StorageError(f"{self.path} holds a record of no step that there can be: {step}")
            found[step] = record
        return found

    def _part(self, name: str, kind: type) -> Any:
        found = _read(self.path).get(name)
        if not isinstance(found, kind):
            raise StorageError(f"{self.path} has no {name}", hint="name a paper.json or a work folder")
        return found


def torn_apart(records: Mapping[Step, Record]) -> list[Step]:
    """Steps whose record is of other models than those whose records stand beside it, and what was made from those.

    Told by the digests that a record holds of what it was made from (`of`). An older record holds none: a fine-tune is then told by the
    accuracy of the model it started from, and a judgement is of others where what it judged has digests by now.
    """
    found: dict[Step, None] = {}
    while more := [step for step in records if step not in found and _is_torn(step, records, found)]:
        found |= dict.fromkeys(more)
    return list(found)


def _is_torn(step: Step, records: Mapping[Step, Record], others: Container[Step]) -> bool:
    record = records[step]
    of = record.get("of")
    for name in step.needs if of is None else of:
        needed = step.sibling(name)
        if needed not in records:
            continue
        theirs = records[needed].get("weights")
        if of is not None:
            torn = theirs is not None and theirs != of[name]
        elif step.kind is not None:
            torn = record.get("base", {}).get("accuracy") != records[needed].get("accuracy")
        else:
            torn = theirs is not None
        if torn or needed in others:
            return True
    return False


def _read(path: Path) -> Record:
    try:
        found = json.loads(read_bounded(path, _LIMIT), parse_constant=_no_number)
    except ValueError as error:
        raise StorageError(f"{path} is no record: {error}", hint="delete it to run its step again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise StorageError(f"{path} is no record of format {FORMAT}", hint="delete it to run its step again")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")
