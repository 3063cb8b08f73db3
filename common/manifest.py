"""Manifests: what an owner signs about a release and a contributor about a submission, format version 1.

A manifest is canonical JSON (`common.canonical`) of at most 64 KiB with exactly the fields below; its id is the
SHA-256 of these bytes. Parsing a manifest and encoding it again gives the same bytes, so an id names one meaning. A
new field is a new format version; parsers of the old one stay.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from common import canonical, timestamps
from common.errors import IdentityError, ManifestError, PortierError, WireError
from common.identity.names import check_contributor_name
from common.model_spec import ModelSpec
from common.training_options import TrainingOptions

FORMAT: Final = 1
LIMIT: Final = 64 * 1024

_ID = re.compile(r"[0-9a-f]{64}")
_NONCE = re.compile(r"[0-9a-f]{32}")
_SPEC_FIELDS = ("architecture", "classes", "head", "input_shape")
_TRAINING_FIELDS: Final[Mapping[str, tuple[type, ...]]] = {
    "epochs": (int,),
    "learning_rate": (int, float),
    "batch_size": (int,),
    "optimiser": (str,),
    "momentum": (int, float),
    "weight_decay": (int, float),
    "schedule": (str,),
    "label_smoothing": (int, float),
    "augmentation": (str,),
    "frozen_layers": (int,),
    "reinitialise_head": (bool,),
    "seed": (int,),
}
"""The options of format 1 and their JSON types. An option added to TrainingOptions reaches manifests with the next
format."""


@dataclass(frozen=True)
class _Manifest:
    """What both kinds share: canonical bytes, and the id they give."""

    def to_bytes(self) -> bytes:
        """Canonical JSON; what is signed."""
        return self._bytes

    @property
    def id(self) -> str:
        """64 hex digits, the SHA-256 of `to_bytes()`."""
        return hashlib.sha256(self._bytes).hexdigest()

    @cached_property
    def _bytes(self) -> bytes:
        fields = {field.name: _as_json(getattr(self, field.name)) for field in dataclasses.fields(self)}
        data = canonical.encode(fields)
        if len(data) > LIMIT:
            raise ManifestError("MANIFEST_TOO_LONG", f"the manifest has {len(data)} bytes, the limit is {LIMIT}")
        return data


@dataclass(frozen=True, kw_only=True)
class ReleaseManifest(_Manifest):
    """A version of the owner's model.

    number: of the release, from 0.
    parent: id of the release it came from, None for the first.
    spec: the model. class_names: one per class, in label order.
    weights_sha256, weights_bytes: of the safetensors file.
    finetuning: how contributors are asked to fine-tune.
    created: RFC 3339, UTC. note: free text of the owner, up to 2,000 characters.

    Raises ManifestError FIELD_INVALID, which names the field; MANIFEST_TOO_LONG.
    """

    format: int = FORMAT
    kind: Literal["release"] = "release"
    number: int
    parent: str | None
    spec: ModelSpec
    class_names: tuple[str, ...]
    weights_sha256: str
    weights_bytes: int
    finetuning: TrainingOptions
    created: str
    note: str = ""

    def __post_init__(self) -> None:
        _check_head(self.format, self.kind, "release")
        _integer("number", self.number, 0, (1 << 31) - 1)
        if self.parent is not None:
            _text("parent", self.parent, _ID, "64 hex digits or null")
        _check_spec(self.spec)
        names = self.class_names
        if not isinstance(names, tuple) or not all(_printable(name, 1, 200) for name in names):
            raise _invalid("class_names", "must be strings of 1 to 200 printable characters")
        if len(set(names)) != len(names):
            raise _invalid("class_names", "must be different ones: contributors' classes are told by them")
        if len(names) != self.spec.classes:
            raise _invalid("class_names", f"must be {self.spec.classes}, as many as spec.classes, not {len(names)}")
        _check_weights(self.weights_sha256, self.weights_bytes)
        _check_training("finetuning", self.finetuning)
        _check_created(self.created)
        if not isinstance(self.note, str) or not _printable(self.note.replace("\n", ""), 0, 2000):
            raise _invalid("note", "must be at most 2000 printable characters and line ends")
        self.to_bytes()


@dataclass(frozen=True, kw_only=True)
class SubmissionManifest(_Manifest):
    """A contributor's returned weights.

    contributor: its enrolled name. base_release: id of the release it started from.
    spec: the model, equal to the release's. weights_sha256, weights_bytes: of the safetensors file.
    samples: how many examples it trained on, from 1. training: the options it declares to have used.
    nonce: 32 hex digits, fresh for every submission (`new_nonce`). created: RFC 3339, UTC.

    Raises ManifestError FIELD_INVALID, which names the field.
    """

    format: int = FORMAT
    kind: Literal["submission"] = "submission"
    contributor: str
    base_release: str
    spec: ModelSpec
    weights_sha256: str
    weights_bytes: int
    samples: int
    training: TrainingOptions
    nonce: str
    created: str

    def __post_init__(self) -> None:
        _check_head(self.format, self.kind, "submission")
        try:
            check_contributor_name(self.contributor)
        except IdentityError as error:
            raise _invalid("contributor", f"must be a contributor name: {error.message}") from None
        _text("base_release", self.base_release, _ID, "64 hex digits")
        _check_spec(self.spec)
        _check_weights(self.weights_sha256, self.weights_bytes)
        _integer("samples", self.samples, 1, 1 << 40)
        _check_training("training", self.training)
        _text("nonce", self.nonce, _NONCE, "32 hex digits")
        _check_created(self.created)
        self.to_bytes()


def parse_release(data: bytes) -> ReleaseManifest:
    """The release manifest that `data` is the canonical encoding of. Says nothing about its signature.

    Raises ManifestError MANIFEST_TOO_LONG, MANIFEST_MALFORMED, MANIFEST_NOT_CANONICAL, FORMAT_UNSUPPORTED,
    KIND_MISMATCH, FIELD_MISSING, FIELD_UNKNOWN, FIELD_INVALID.
    """
    fields = _fields(data, ReleaseManifest, "release")
    fields["spec"] = _parse_spec(fields["spec"])
    fields["finetuning"] = _parse_training("finetuning", fields["finetuning"])
    names = fields["class_names"]
    fields["class_names"] = tuple(names) if isinstance(names, list) else names
    return ReleaseManifest(**fields)


def parse_submission(data: bytes) -> SubmissionManifest:
    """The submission manifest that `data` is the canonical encoding of. Raises as `parse_release` does."""
    fields = _fields(data, SubmissionManifest, "submission")
    fields["spec"] = _parse_spec(fields["spec"])
    fields["training"] = _parse_training("training", fields["training"])
    return SubmissionManifest(**fields)


def new_nonce() -> str:
    """32 random hex digits."""
    return secrets.token_hex(16)


def _fields(data: bytes, kind: type, name: str) -> dict[str, Any]:
    """The top level: JSON, version and kind first, then exactly the fields of `kind`."""
    if len(data) > LIMIT:
        raise ManifestError("MANIFEST_TOO_LONG", f"the manifest has {len(data)} bytes, the limit is {LIMIT}")
    try:
        fields = canonical.decode(data, limit=LIMIT, depth=4)
    except WireError as error:
        code = "MANIFEST_NOT_CANONICAL" if error.code == "JSON_NOT_CANONICAL" else "MANIFEST_MALFORMED"
        raise ManifestError(code, f"the manifest: {error.message}") from None
    if not isinstance(fields, dict):
        raise ManifestError("MANIFEST_MALFORMED", "the manifest is not a JSON object")
    _check_head(fields.get("format"), fields.get("kind"), name)
    _exactly("", fields, [field.name for field in dataclasses.fields(kind)])
    return fields


def _parse_spec(value: Any) -> ModelSpec:
    spec = _object("spec", value, _SPEC_FIELDS)
    shape = spec["input_shape"]
    if not isinstance(shape, list) or not 1 <= len(shape) <= 8:
        raise _invalid("spec.input_shape", "must be a list of 1 to 8 sizes")
    for size in shape:
        _integer("spec.input_shape", size, 1, 1 << 26)
    _check_spec_types(spec["architecture"], spec["classes"], spec["head"])
    try:
        return ModelSpec(spec["architecture"], tuple(shape), spec["classes"], spec["head"])
    except PortierError as error:
        raise ManifestError("FIELD_INVALID", f"manifest field 'spec': {error.message}", hint=error.hint) from None


def _parse_training(field: str, value: Any) -> TrainingOptions:
    options = _object(field, value, tuple(_TRAINING_FIELDS))
    for name, types in _TRAINING_FIELDS.items():
        if type(options[name]) not in types:
            raise _invalid(f"{field}.{name}", f"must be of JSON type {types[-1].__name__}")
    try:
        return TrainingOptions(**options)
    except PortierError as error:
        raise ManifestError("FIELD_INVALID", f"manifest field {field!r}: {error.message}", hint=error.hint) from None


def _as_json(value: Any) -> Any:
    if isinstance(value, ModelSpec):
        return {name: getattr(value, name) for name in _SPEC_FIELDS}
    if isinstance(value, TrainingOptions):
        return {name: getattr(value, name) for name in _TRAINING_FIELDS}
    return value


def _object(field: str, value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(field, "must be an object")
    _exactly(f"{field}.", value, names)
    return value


def _exactly(prefix: str, value: dict[str, Any], names: list[str] | tuple[str, ...]) -> None:
    for name in names:
        if name not in value:
            raise ManifestError("FIELD_MISSING", f"manifest field {prefix + name!r} is missing")
    for name in value:
        if name not in names:
            raise ManifestError(
                "FIELD_UNKNOWN", f"manifest field {(prefix + name)[:80]!a} is not one of format {FORMAT}"
            )


def _check_head(version: Any, kind: Any, expected: str) -> None:
    if type(version) is not int or version != FORMAT:
        raise ManifestError(
            "FORMAT_UNSUPPORTED",
            f"manifest format {str(version)[:20]!a} is not known, this version reads format {FORMAT}",
            hint="a newer manifest needs a newer portier",
        )
    if kind != expected:
        raise ManifestError("KIND_MISMATCH", f"this is not a {expected} manifest: manifest field 'kind' is another")


def _check_spec(spec: ModelSpec) -> None:
    if not isinstance(spec, ModelSpec):
        raise _invalid("spec", "must be a ModelSpec")
    _check_spec_types(spec.architecture, spec.classes, spec.head)
    if not 1 <= len(spec.input_shape) <= 8:
        raise _invalid("spec.input_shape", "must be a list of 1 to 8 sizes")


def _check_spec_types(architecture: Any, classes: Any, head: Any) -> None:
    if not _printable(architecture, 1, 200):
        raise _invalid("spec.architecture", "must be 1 to 200 printable characters")
    _integer("spec.classes", classes, 2, 1 << 20)
    if head is not None and not _printable(head, 1, 200):
        raise _invalid("spec.head", "must be 1 to 200 printable characters or null")


def _check_training(field: str, options: TrainingOptions) -> None:
    if not isinstance(options, TrainingOptions):
        raise _invalid(field, "must be TrainingOptions")
    for name, types in _TRAINING_FIELDS.items():
        if type(getattr(options, name)) not in types:
            raise _invalid(f"{field}.{name}", f"must be of type {types[-1].__name__}")


def _check_weights(sha256: Any, size: Any) -> None:
    _text("weights_sha256", sha256, _ID, "64 hex digits")
    _integer("weights_bytes", size, 8, 1 << 42)


def _check_created(created: Any) -> None:
    try:
        timestamps.from_text(created)
    except ValueError as error:
        raise _invalid("created", f"is {error}") from None


def _text(field: str, value: Any, pattern: re.Pattern[str], rule: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _invalid(field, f"must be {rule}")


def _integer(field: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise _invalid(field, f"must be an integer from {low} to {high}")


def _printable(value: Any, shortest: int, longest: int) -> bool:
    return isinstance(value, str) and shortest <= len(value) <= longest and value.isprintable()


def _invalid(field: str, rule: str) -> ManifestError:
    return ManifestError("FIELD_INVALID", f"manifest field {field!r} {rule}")
