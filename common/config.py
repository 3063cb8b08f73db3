"""Settings from a TOML file, the environment and flags: a flag is stronger than the environment, that than the file.

Every leaf has a dotted name (`guard.references`), which is its place in the TOML file (`[guard] references = 19`), its
environment variable (`PORTIER_GUARD__REFERENCES`) and its key among the overrides that a command's flags become.
A leaf given nowhere keeps its default, whatever else its section is given. A list is written the same way in the
environment and in a flag: as JSON, or with commas. pydantic checks the values; this module merges the sources and turns what
pydantic finds into Portier's errors, which name the source that was wrong.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import os
import re
import tomllib
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomlkit
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from common.errors import ConfigurationError, UnknownNameError

PREFIX = "PORTIER_"
SEPARATOR = "__"
_STRICT = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Section(BaseModel):
    """One `[section]` of a settings file; unknown fields are errors, values are checked on the way in."""

    model_config = _STRICT


class Settings(BaseModel):
    """Root of a settings file. Subclass it with one `Section` (or frozen dataclass) a field, each with a default."""

    model_config = _STRICT


Kind = TypeVar("Kind", bound=Settings)


@dataclasses.dataclass(frozen=True)
class _Given:
    value: Any
    source: str


def load(
    kind: type[Kind],
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
) -> Kind:
    """Build `kind` from defaults, `file`, the environment, then `overrides` (dotted name -> value, or text as the environment has
    it; None is "not given").

    environment: instead of the process's own. Variables of sections that `kind` does not have are left alone, since
        owner and contributor share the prefix; within a section an unknown variable is an error.

    Raises ConfigurationError naming source, field and what is wrong; UnknownNameError for a field that does not exist.
    """
    known = _leaves(kind)
    given: dict[str, _Given] = {}
    for name, value, source in (
        *_from_file(kind, file),
        *_from_environment(kind, os.environ if environment is None else environment),
        *(
            (name, _parsed(kind, name, value), "a flag")
            for name, value in (overrides or {}).items()
            if value is not None
        ),
    ):
        if name not in known:
            raise unknown_setting(f"setting in {source}:", name, known)
        given[name] = _Given(value, source)
    sections: dict[str, Any] = {}
    for section, info in kind.model_fields.items():
        values = _plain(info.get_default(call_default_factory=True))
        values |= {name.partition(".")[2]: g.value for name, g in given.items() if name.startswith(f"{section}.")}
        try:
            sections[section] = _adapter(info.annotation).validate_python(values)
        except ValidationError as error:
            raise _explained(section, error, given) from None
        except UnknownNameError as error:  # a section that checks itself does not know where its values came from
            raise _unknown_value(section, error, given) from None
        except ConfigurationError as error:
            leaf = re.split(r"\W", error.message, maxsplit=1)[0]
            raise ConfigurationError(
                f"[{section}] {error.message}{_sources(section, given, leaf)}", hint=error.hint
            ) from None
    return kind(**sections)


def as_toml(settings: Settings) -> str:
    """The settings as a TOML file in which every field stands under the sentence that documents it."""
    document = tomlkit.document()
    for name, info in type(settings).model_fields.items():
        section = getattr(settings, name)
        table = tomlkit.table()
        for line in (info.description or "").splitlines():
            table.add(tomlkit.comment(line))
        values = _adapter(info.annotation).dump_python(section, mode="json")
        descriptions = _descriptions(type(section))
        for leaf, value in values.items():
            for line in descriptions.get(leaf, "").splitlines():
                table.add(tomlkit.comment(line))
            if value is None:
                table.add(tomlkit.comment(f"{leaf} ="))
            else:
                table.add(leaf, value)
        document.add(name, table)
    return tomlkit.dumps(document)


def variable(name: str) -> str:
    """The environment variable of a setting.

    >>> variable("guard.references")
    'PORTIER_GUARD__REFERENCES'
    """
    return PREFIX + name.upper().replace(".", SEPARATOR)


def _from_file(kind: type[Settings], file: Path | None) -> Iterator[tuple[str, Any, str]]:
    if file is None:
        return
    for section, values in _read(file).items():
        if section in kind.model_fields and not isinstance(values, dict):
            raise ConfigurationError(f"{section} in {file} must be a [{section}] section, not {values!r}")
        if isinstance(values, dict) and section in kind.model_fields:
            for leaf, value in values.items():
                yield f"{section}.{leaf}", value, str(file)
        else:
            raise UnknownNameError(f"section in {file}:", section, kind.model_fields)


def _from_environment(kind: type[Settings], environment: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    for key, text in environment.items():
        section, separator, leaf = key.removeprefix(PREFIX).lower().partition(SEPARATOR)
        if key.startswith(PREFIX) and separator and section in kind.model_fields:
            name = f"{section}.{leaf}"
            yield name, _parsed(kind, name, text), f"the environment variable {key}"


def _parsed(kind: type[Settings], name: str, value: Any) -> Any:
    """What the environment and flags give as text: a list is JSON, or has commas; nothing at all takes back a setting that may be left
    out. The rest is pydantic's to read."""
    if not isinstance(value, str):
        return value
    kinds = _types(kind, name)
    if not value.strip() and type(None) in kinds:
        return None
    if not kinds & {list, tuple}:
        return value
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    return found if isinstance(found, list) else [part.strip() for part in value.split(",") if part.strip()]


def _types(kind: type[Settings], name: str) -> set[Any]:
    """What a leaf can be, generic types without their parameters: {tuple, NoneType} of `tuple[int, int] | None`."""
    section, _, leaf = name.partition(".")
    of_section = kind.model_fields[section].annotation if section in kind.model_fields else None
    annotation = typing.get_type_hints(of_section).get(leaf) if of_section is not None else None
    origin = typing.get_origin(annotation)
    parts = typing.get_args(annotation) if origin in (types.UnionType, typing.Union) else (annotation,)
    return {typing.get_origin(part) or part for part in parts}


def unknown_setting(what: str, name: str, known: Collection[str]) -> UnknownNameError:
    """The error for a setting that does not exist: suggests the nearest of all, and lists those of its section alone.

    >>> unknown_setting("setting", "guard.reference", ["data.name", "guard.fit", "guard.references"]).hint
    'did you mean guard.references? (known: guard.fit, guard.references)'
    """
    sections = {one.partition(".")[0] for one in known}
    section = name.partition(".")[0]
    if section not in sections:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        section = near[0].partition(".")[0] if near else ""
    shown = [one for one in known if one.partition(".")[0] == section]
    return UnknownNameError(what, name, known, shown=shown or [f"[{one}]" for one in sections])


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"there is no settings file {file}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"the settings file {file} cannot be read: {error}") from None


def _explained(section: str, error: ValidationError, given: Mapping[str, _Given]) -> ConfigurationError:
    first = error.errors()[0]
    name = ".".join((section, *(str(part) for part in first["loc"])))
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # a rule over several fields of the section
        return ConfigurationError(f"[{section}] {reason}{_sources(section, given)}")
    leaf = next((key for key in given if name == key or name.startswith(f"{key}.")), None)
    source = f" (from {given[leaf].source})" if leaf else ""
    return ConfigurationError(
        f"{name}: {reason}, got {first['input']!r}{source}", hint=f"see [{section}] in the settings"
    )


def _unknown_value(section: str, error: UnknownNameError, given: Mapping[str, _Given]) -> UnknownNameError:
    for name, one in given.items():
        if name.startswith(f"{section}.") and one.value == error.name:
            return UnknownNameError(f"{name.partition('.')[2]} in {one.source}:", error.name, error.choices)
    return error


def _sources(section: str, given: Mapping[str, _Given], leaf: str = "") -> str:
    """Where the section's values came from, or where `leaf` alone did, for the end of a message."""
    of_leaf = given.get(f"{section}.{leaf}")
    sources = {of_leaf.source} if of_leaf else {g.source for n, g in given.items() if n.startswith(f"{section}.")}
    return f" (set in {', '.join(sorted(sources))})" if sources else ""


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _plain(section: Any) -> dict[str, Any]:
    if isinstance(section, BaseModel):
        return section.model_dump()
    return dataclasses.asdict(section)


def _leaves(kind: type[Settings]) -> list[str]:
    return [
        f"{section}.{leaf}"
        for section, info in kind.model_fields.items()
        for leaf in _plain(info.get_default(call_default_factory=True))
    ]


def _descriptions(section: type[Any]) -> dict[str, str]:
    """Leaf -> sentence; of a dataclass, from the `names: sentence` paragraphs of its docstring."""
    if issubclass(section, BaseModel):
        return {leaf: info.description or "" for leaf, info in section.model_fields.items()}
    found: dict[str, str] = {}
    for names, sentence in re.findall(
        r"^(\w+(?:, \w+)*): (.+(?:\n +.+)*)", inspect.cleandoc(section.__doc__ or ""), re.MULTILINE
    ):
        found |= dict.fromkeys(names.split(", "), re.sub(r"\n +", "\n", sentence))
    return found
