"""A scenario: who takes part in a simulation, with which share of the data, and who attacks how.

```toml
title = "..."
threads = 1                      # that each process computes with; left out, the cores are shared out
[settings.data]                  # any setting of portier.toml, section by section
name = "digits"
[[contributors]]
name = "ada"                          # no attack: an honest contributor
partition = "dirichlet:alpha=0.5"     # or "iid" (default), "pathological:classes=2", "natural"
[[contributors]]
name = "bo"
partition = "dirichlet:alpha=0.5"     # a skew is one between several, so one contributor alone cannot have it
[[contributors]]
name = "mallory"
attack = "flip:source=7,target=1"
epochs = 3                            # left out: as the release recommends; likewise learning_rate, batch_size, ...
```

Contributors of one partition rule share one part of the data that belongs to nobody, sized by their number, and each
takes one part of it; so no image goes to two contributors.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from common import config
from common.errors import ConfigurationError, IdentityError, UnknownNameError
from common.identity.names import check_contributor_name
from common.specs import split_spec
from owner.settings import OwnerSettings

PARTITIONS = {"iid": (), "dirichlet": ("alpha", "min_size"), "pathological": ("classes",), "natural": ()}
BY_FLAGS = "flags"
HONEST = 4
SEEDS_APART = 1000
MOST_THREADS = 1024
RUNNER_OWNS = ("service.host", "service.port", "service.enrolment_port", "service.names", "data.dir")


@dataclass(frozen=True)
class Participant:
    """One contributor of a scenario.

    name: also the name it enrols under.
    partition: rule by which it and others of the same rule share their part of the data, without index and count.
    attack: as `contribute --attack` takes it, None for an honest contributor.
    epochs ... reinitialise_head: what it trains otherwise than the release recommends.
    """

    name: str
    partition: str = "iid"
    attack: str | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    optimiser: str | None = None
    frozen_layers: int | None = None
    reinitialise_head: bool | None = None
    seed: int | None = None
    """Of its training and attack; left out, the data seed times 1000 plus its place in the file."""

    def __post_init__(self) -> None:
        try:
            check_contributor_name(self.name)
        except IdentityError as error:
            raise ConfigurationError(error.message, hint=error.hint) from None
        kind, options = split_spec(self.partition, f"partition of contributor {self.name}")
        if kind not in PARTITIONS:
            raise UnknownNameError(f"partition of contributor {self.name}:", kind, PARTITIONS)
        for key in options:
            if key not in PARTITIONS[kind]:
                raise ConfigurationError(
                    f"partition {self.partition!r} of contributor {self.name}: a scenario's {kind} takes "
                    f"{', '.join(PARTITIONS[kind]) or 'nothing'}, not {key!r}",
                    hint="index, count and seed are the simulation's to fill in",
                )

    def partition_at(self, index: int, count: int, seed: int) -> str:
        """The whole specification, as common.partitions reads it.

        >>> Participant("ada", "dirichlet:alpha=0.5").partition_at(1, 4, seed=7)
        'dirichlet:alpha=0.5,index=1,count=4,seed=7'
        """
        colon = "," if ":" in self.partition else ":"
        return f"{self.partition}{colon}index={index},count={count},seed={seed}"

    @property
    def honest(self) -> bool:
        return self.attack is None


@dataclass(frozen=True)
class Scenario:
    """A whole scenario.

    settings: the owner's, complete; given: the part of them that the file states, by dotted name.
    threads: each process computes with; None shares the cores out: all for the owner before anybody contributes, then
        cores / parallel each.
    """

    name: str
    title: str
    contributors: tuple[Participant, ...]
    settings: OwnerSettings
    given: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.contributors:
            raise ConfigurationError(f"scenario {self.name}: at least one [[contributors]] is needed")
        names = [contributor.name for contributor in self.contributors]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"scenario {self.name}: two contributors are called {name!r}")
        for rule, group in self.partition_groups.items():
            if len(group) == 1 and not rule.startswith("iid"):
                raise ConfigurationError(
                    f"scenario {self.name}: {group[0].name} alone has partition {rule!r} and would get all there is to "
                    "divide, with no skew",
                    hint="give at least two contributors the same partition",
                )

    def to_json(self) -> dict[str, Any]:
        """What a later run compares to tell whether it continues the same scenario."""
        return {
            "name": self.name,
            "title": self.title,
            "threads": self.threads,
            "settings": dict(self.given),
            "contributors": [
                {key: value for key, value in dataclasses.asdict(one).items() if value is not None}
                for one in self.contributors
            ],
        }

    @property
    def partition_groups(self) -> dict[str, list[Participant]]:
        """Contributors by partition rule, in the file's order."""
        groups: dict[str, list[Participant]] = {}
        for one in self.contributors:
            groups.setdefault(one.partition, []).append(one)
        return groups


def shipped() -> tuple[str, ...]:
    """Names of the scenarios that come with Portier.

    >>> shipped()
    ('cifar10', 'demo')
    """
    folder = resources.files("owner.simulate") / "scenarios"
    return tuple(sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load(name_or_file: str, *, seed: int | None = None, settings: Sequence[str] = ()) -> Scenario:
    """A shipped scenario by name, or the one in a TOML file.

    seed: overrides every seed in it, contributors' too. settings: `section.key=value`, above those of the file.

    Raises UnknownNameError for an unknown name, key, partition or setting; ConfigurationError for any other mistake,
    naming file and field.
    """
    if name_or_file in shipped():
        text = (resources.files("owner.simulate") / "scenarios" / f"{name_or_file}.toml").read_text("utf-8")
        return parse(text, name=name_or_file, seed=seed, settings=settings)
    path = Path(name_or_file)
    if path.suffix != ".toml" and not path.exists():
        raise UnknownNameError("scenario", name_or_file, shipped())
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the scenario {path} cannot be read: {error}") from None
    return parse(text, name=path.stem, seed=seed, settings=settings)


def compose(
    *,
    data: str | None = None,
    architecture: str | None = None,
    honest: int = HONEST,
    attacks: Sequence[str] = (),
    partition: str | None = None,
    settings: Sequence[str] = (),
    seed: int | None = None,
) -> Scenario:
    """A scenario without a file: honest-1, honest-2, ... and one attacker-1, attacker-2, ... for each of `attacks`.

    partition: of the honest contributors; attackers have iid parts, so that each has images of the classes it attacks.
    settings: `section.key=value`; what neither they nor `data` and `architecture` say is as in a portier.toml without it.

    Raises as `load` does.

    >>> [one.name for one in compose(data="digits", honest=1, attacks=["sign-flip"]).contributors]
    ['honest-1', 'attacker-1']
    """
    given: dict[str, dict[str, Any]] = {}
    for section, key, value in (("data", "name", data), ("model", "architecture", architecture)):
        if value is not None:
            given.setdefault(section, {})[key] = value
    shared = {} if partition is None else {"partition": partition}
    people = [{"name": f"honest-{number}", **shared} for number in range(1, honest + 1)]
    people += [{"name": f"attacker-{number}", "attack": attack} for number, attack in enumerate(attacks, 1)]
    if not people:
        raise ConfigurationError("a simulation needs at least one contributor", hint="add --honest 4 or an --attack")
    scenario = _build({"settings": given, "contributors": people}, name=BY_FLAGS, seed=seed, settings=settings)
    chosen = scenario.settings
    title = f"{chosen.data.name}, {chosen.model.architecture}: {honest} honest, {len(attacks)} attacking"
    return replace(scenario, title=title)


def parse(text: str, *, name: str, seed: int | None = None, settings: Sequence[str] = ()) -> Scenario:
    """A scenario from TOML text; raises as `load` does.

    >>> parse('[[contributors]]\\nname = "ada"', name="one").contributors[0].honest
    True
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"scenario {name} is not TOML: {error}") from None
    return _build(document, name=name, seed=seed, settings=settings)


def _build(document: Mapping[str, Any], *, name: str, seed: int | None, settings: Sequence[str]) -> Scenario:
    _known("scenario field", document, ("title", "threads", "settings", "contributors"))
    given = _flat(_table(name, "settings", document.get("settings", {})))
    given |= dict(_assignment(text) for text in settings)
    if seed is not None:
        given |= dict.fromkeys(("data.seed", "training.seed", "finetuning.seed", "guard.seed"), seed)
    for leaf in RUNNER_OWNS:
        if leaf in given:
            raise ConfigurationError(f"scenario {name}: settings.{leaf} is the simulation's to choose, leave it out")
    # A scenario means the same on every machine, so PORTIER_... variables must not reach into it: `load` puts
    # overrides above the environment, and what is not overridden is given its default here.
    defaults = _defaults()
    for leaf in given:
        if leaf not in defaults:
            raise config.unknown_setting(f"setting of scenario {name}:", leaf, defaults)
    complete = {key: value for key, value in (defaults | given).items() if value is not None}
    try:
        loaded = config.load(OwnerSettings, None, complete)
    except ConfigurationError as error:
        raise ConfigurationError(f"scenario {name}, settings: {error.message}", hint=error.hint) from None
    rows = document.get("contributors", [])
    if not isinstance(rows, list):
        raise ConfigurationError(f"scenario {name}: contributors is a list of tables, each headed [[contributors]]")
    base = loaded.data.seed
    contributors = tuple(
        replace(one, seed=base * SEEDS_APART + number) if seed is not None or one.seed is None else one
        for number, one in ((number, _participant(name, number, row)) for number, row in enumerate(rows, 1))
    )
    threads = document.get("threads")
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
        raise ConfigurationError(f"scenario {name}: threads must be from 1 to {MOST_THREADS}, not {threads!r}")
    return Scenario(name, str(document.get("title", name)), contributors, loaded, given, threads)


def _assignment(text: str) -> tuple[str, Any]:
    """
    >>> _assignment("guard.references=39"), _assignment("model.architecture=cnn")
    (('guard.references', 39), ('model.architecture', 'cnn'))
    """
    name, equals, value = (piece.strip() for piece in text.partition("="))
    if not (name and equals and value):
        raise ConfigurationError(
            f"{text!r} sets nothing", hint="write --set section.key=value, for example --set guard.references=39"
        )
    try:
        found = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return name, value  # a word without quotes
    return name, found["value"]


def _defaults() -> dict[str, Any]:
    return _flat({name: info.default for name, info in OwnerSettings.model_fields.items()})


def _participant(scenario: str, number: int, row: Any) -> Participant:
    fields = {one.name: one for one in dataclasses.fields(Participant)}
    where = f"scenario {scenario}, contributor {number}"
    _known(f"field of {where}:", _table(scenario, "contributors", row), fields)
    if "name" not in row:
        raise ConfigurationError(f"{where} has no name")
    for key, value in row.items():
        expected = str(fields[key].type).removesuffix(" | None")
        accepted: tuple[type, ...] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}[expected]
        if not isinstance(value, accepted) or (isinstance(value, bool) and expected != "bool"):
            raise ConfigurationError(f"{where}: {key} must be of type {expected}, not {value!r}")
    return Participant(**row)


def _known(kind: str, table: Mapping[str, Any], names: Any) -> None:
    for key in table:
        if key not in names:
            raise UnknownNameError(kind, key, names)


def _table(scenario: str, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"scenario {scenario}: {name} must be a table, not {value!r}")
    return value


def _flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of `[settings.guard] references = 19` by dotted name: {"guard.references": 19}."""
    leaves: dict[str, Any] = {}
    for section, content in sections.items():
        values = content
        if hasattr(content, "model_dump"):
            values = content.model_dump()
        elif dataclasses.is_dataclass(content) and not isinstance(content, type):
            values = dataclasses.asdict(content)
        if not isinstance(values, dict):
            raise UnknownNameError("settings section", section, OwnerSettings.model_fields)
        leaves |= {f"{section}.{key}": value for key, value in values.items()}
    return leaves
