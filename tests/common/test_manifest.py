"""Manifests of format version 1."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import canonical, manifest
from common.errors import ManifestError
from common.manifest import ReleaseManifest, SubmissionManifest, new_nonce, parse_release, parse_submission
from common.model_spec import ModelSpec
from common.models import architectures
from common.training_options import TrainingOptions

fuzz = settings(max_examples=60, derandomize=True, deadline=None, database=None)

RELEASE = ReleaseManifest(
    number=3,
    parent="a" * 64,
    spec=ModelSpec("cnn", (3, 32, 32), 2, "classifier.2"),
    class_names=("cat", "dog"),
    weights_sha256="b" * 64,
    weights_bytes=1234,
    finetuning=TrainingOptions(epochs=3),
    created="2026-01-02T03:04:05Z",
    note="third\nline two",
)
SUBMISSION = SubmissionManifest(
    contributor="ward-3",
    base_release=RELEASE.id,
    spec=RELEASE.spec,
    weights_sha256="c" * 64,
    weights_bytes=1234,
    samples=600,
    training=TrainingOptions(learning_rate=1e-5, seed=(1 << 63) - 1),
    nonce="d" * 32,
    created="2026-01-02T03:04:05.25Z",
)
BOTH: list[Any] = [(RELEASE, parse_release), (SUBMISSION, parse_submission)]


@pytest.mark.parametrize(("given_", "parse"), BOTH, ids=["release", "submission"])
def test_parsing_gives_back_an_equal_manifest_with_the_same_bytes(given_: Any, parse: Callable[[bytes], Any]) -> None:
    parsed = parse(given_.to_bytes())
    assert parsed == given_
    assert parsed.to_bytes() == given_.to_bytes()
    assert parsed.id == given_.id == hashlib.sha256(given_.to_bytes()).hexdigest()


def test_another_field_gives_another_id() -> None:
    assert dataclasses.replace(RELEASE, number=4).id != RELEASE.id


def test_a_nonce_is_fresh_every_time() -> None:
    assert len({new_nonce() for _ in range(100)}) == 100
    dataclasses.replace(SUBMISSION, nonce=new_nonce())


def test_format_1_carries_every_training_option() -> None:
    """A new option must come with a new format version: old manifests have no place for it, and ids would change."""
    assert set(json.loads(RELEASE.to_bytes())["finetuning"]) == {f.name for f in dataclasses.fields(TrainingOptions)}
    assert set(json.loads(RELEASE.to_bytes())["spec"]) == {f.name for f in dataclasses.fields(ModelSpec)}


options = st.builds(
    TrainingOptions,
    epochs=st.integers(0, 1000),
    learning_rate=st.floats(0, 1e3) | st.integers(0, 1000),
    weight_decay=st.floats(0, 1e3),
    optimiser=st.sampled_from(["sgd", "adam", "adamw"]),
    reinitialise_head=st.booleans(),
    seed=st.integers(0, (1 << 63) - 1),
)
names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=30)


@fuzz
@given(
    options=options,
    shape=st.lists(st.integers(1, 64), min_size=1, max_size=4),
    class_names=st.lists(names, min_size=2, max_size=8, unique=True),
    architecture=st.sampled_from(architectures()),
    note=st.text(max_size=50).filter(lambda text: text.replace("\n", "").isprintable()),
)
def test_any_release_survives_the_wire(
    options: TrainingOptions, shape: list[int], class_names: list[str], architecture: str, note: str
) -> None:
    spec = ModelSpec(architecture, tuple(shape), len(class_names))
    made = dataclasses.replace(RELEASE, spec=spec, class_names=tuple(class_names), finetuning=options, note=note)
    assert parse_release(made.to_bytes()) == made


def changed(base: Any, **changes: Any) -> bytes:
    """The manifest with fields changed, removed (...) or added; a dotted name reaches inside."""
    fields = json.loads(base.to_bytes())
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        place = fields
        for parent in parents:
            place = place[parent]
        if value is ...:
            del place[leaf]
        else:
            place[leaf] = value
    return canonical.encode(fields)


MALFORMED_RELEASES = {
    "empty": (b"", "MANIFEST_MALFORMED", ""),
    "not JSON": (b"release", "MANIFEST_MALFORMED", ""),
    "not UTF-8": (b'{"format":"\xff"}', "MANIFEST_MALFORMED", ""),
    "a list": (b"[]", "MANIFEST_MALFORMED", ""),
    "null": (b"null", "MANIFEST_MALFORMED", ""),
    "nested too deep": (b'{"a":' * 5 + b"1" + b"}" * 5, "MANIFEST_MALFORMED", ""),
    "a key twice": (RELEASE.to_bytes().replace(b'"number":3', b'"number":3,"number":3'), "MANIFEST_MALFORMED", "twice"),
    "NaN": (RELEASE.to_bytes().replace(b'"momentum":0.9', b'"momentum":NaN'), "MANIFEST_MALFORMED", "NaN"),
    "over 64 KiB": (changed(RELEASE, note="n" * 65_536), "MANIFEST_TOO_LONG", "65536"),
    "a space": (RELEASE.to_bytes().replace(b",", b", ", 1), "MANIFEST_NOT_CANONICAL", ""),
    "a line end behind": (RELEASE.to_bytes() + b"\n", "MANIFEST_NOT_CANONICAL", ""),
    "a number in another form": (RELEASE.to_bytes().replace(b"0.9", b"0.90"), "MANIFEST_NOT_CANONICAL", ""),
    "another format": (changed(RELEASE, format=2), "FORMAT_UNSUPPORTED", "format"),
    "another format with other fields": (b'{"format":2,"new":true}', "FORMAT_UNSUPPORTED", "format"),
    "no format": (changed(RELEASE, format=...), "FORMAT_UNSUPPORTED", "format"),
    "format true": (changed(RELEASE, format=True), "FORMAT_UNSUPPORTED", "format"),
    "format 1.0": (changed(RELEASE, format=1.0), "FORMAT_UNSUPPORTED", "format"),
    "a submission": (SUBMISSION.to_bytes(), "KIND_MISMATCH", "kind"),
    "no kind": (changed(RELEASE, kind=...), "KIND_MISMATCH", "kind"),
    "kind a list": (changed(RELEASE, kind=["release"]), "KIND_MISMATCH", "kind"),
    "no note": (changed(RELEASE, note=...), "FIELD_MISSING", "note"),
    "no learning rate": (changed(RELEASE, finetuning__learning_rate=...), "FIELD_MISSING", "finetuning.learning_rate"),
    "no classes": (changed(RELEASE, spec__classes=...), "FIELD_MISSING", "spec.classes"),
    "an unknown field": (changed(RELEASE, extra=1), "FIELD_UNKNOWN", "extra"),
    "an unknown option": (changed(RELEASE, finetuning__extra=1), "FIELD_UNKNOWN", "finetuning.extra"),
    "an unknown spec field": (changed(RELEASE, spec__code="import os"), "FIELD_UNKNOWN", "spec.code"),
    "an unknown field with control characters": (changed(RELEASE, **{"\x1b[2J": 1}), "FIELD_UNKNOWN", ""),
    "number below nought": (changed(RELEASE, number=-1), "FIELD_INVALID", "number"),
    "number true": (changed(RELEASE, number=True), "FIELD_INVALID", "number"),
    "number a float": (changed(RELEASE, number=3.0), "FIELD_INVALID", "number"),
    "number 2^31": (changed(RELEASE, number=1 << 31), "FIELD_INVALID", "number"),
    "parent short": (changed(RELEASE, parent="a" * 63), "FIELD_INVALID", "parent"),
    "parent in upper case": (changed(RELEASE, parent="A" * 64), "FIELD_INVALID", "parent"),
    "parent with a line end": (changed(RELEASE, parent="a" * 64 + "\n"), "FIELD_INVALID", "parent"),
    "parent a path": (changed(RELEASE, parent="../" * 21 + "x"), "FIELD_INVALID", "parent"),
    "spec null": (changed(RELEASE, spec=None), "FIELD_INVALID", "spec"),
    "spec a list": (changed(RELEASE, spec=[]), "FIELD_INVALID", "spec"),
    "an unknown architecture": (changed(RELEASE, spec__architecture="cnm"), "FIELD_INVALID", "spec"),
    "architecture a number": (changed(RELEASE, spec__architecture=1), "FIELD_INVALID", "spec.architecture"),
    "architecture of 201 characters": (
        changed(RELEASE, spec__architecture="a" * 201),
        "FIELD_INVALID",
        "spec.architecture",
    ),
    "one class": (changed(RELEASE, spec__classes=1), "FIELD_INVALID", "spec.classes"),
    "2^40 classes": (changed(RELEASE, spec__classes=1 << 40), "FIELD_INVALID", "spec.classes"),
    "head a number": (changed(RELEASE, spec__head=1), "FIELD_INVALID", "spec.head"),
    "no input shape": (changed(RELEASE, spec__input_shape=[]), "FIELD_INVALID", "spec.input_shape"),
    "nine input sizes": (changed(RELEASE, spec__input_shape=[1] * 9), "FIELD_INVALID", "spec.input_shape"),
    "an input size of nought": (changed(RELEASE, spec__input_shape=[3, 0, 32]), "FIELD_INVALID", "spec.input_shape"),
    "an input size true": (changed(RELEASE, spec__input_shape=[True]), "FIELD_INVALID", "spec.input_shape"),
    "an input of 2^60 numbers": (changed(RELEASE, spec__input_shape=[1 << 20] * 3), "FIELD_INVALID", "spec"),
    "an input shape of text": (changed(RELEASE, spec__input_shape="3,32,32"), "FIELD_INVALID", "spec.input_shape"),
    "fewer class names": (changed(RELEASE, class_names=["cat"]), "FIELD_INVALID", "class_names"),
    "more class names": (changed(RELEASE, class_names=["cat", "dog", "emu"]), "FIELD_INVALID", "class_names"),
    "class names a string": (changed(RELEASE, class_names="ab"), "FIELD_INVALID", "class_names"),
    "a class name twice": (changed(RELEASE, class_names=["cat", "cat"]), "FIELD_INVALID", "class_names"),
    "a class name of nothing": (changed(RELEASE, class_names=["cat", ""]), "FIELD_INVALID", "class_names"),
    "a class name with a terminal escape": (
        changed(RELEASE, class_names=["cat", "\x1b[2J"]),
        "FIELD_INVALID",
        "class_names",
    ),
    "a class name that turns writing round": (
        changed(RELEASE, class_names=["cat", "\u202egod"]),
        "FIELD_INVALID",
        "class_names",
    ),
    "digest short": (changed(RELEASE, weights_sha256="b" * 62), "FIELD_INVALID", "weights_sha256"),
    "digest null": (changed(RELEASE, weights_sha256=None), "FIELD_INVALID", "weights_sha256"),
    "weights without a header": (changed(RELEASE, weights_bytes=7), "FIELD_INVALID", "weights_bytes"),
    "over 2^42 bytes of weights": (changed(RELEASE, weights_bytes=(1 << 42) + 1), "FIELD_INVALID", "weights_bytes"),
    "weights bytes text": (changed(RELEASE, weights_bytes="1234"), "FIELD_INVALID", "weights_bytes"),
    "options null": (changed(RELEASE, finetuning=None), "FIELD_INVALID", "finetuning"),
    "epochs below nought": (changed(RELEASE, finetuning__epochs=-1), "FIELD_INVALID", "finetuning"),
    "epochs a float": (changed(RELEASE, finetuning__epochs=1.5), "FIELD_INVALID", "finetuning.epochs"),
    "epochs true": (changed(RELEASE, finetuning__epochs=True), "FIELD_INVALID", "finetuning.epochs"),
    "learning rate text": (
        changed(RELEASE, finetuning__learning_rate="0.1"),
        "FIELD_INVALID",
        "finetuning.learning_rate",
    ),
    "learning rate 1e300": (changed(RELEASE, finetuning__learning_rate=1e300), "FIELD_INVALID", "finetuning"),
    "an unknown optimiser": (changed(RELEASE, finetuning__optimiser="sgdd"), "FIELD_INVALID", "finetuning"),
    "head re-initialised 1": (
        changed(RELEASE, finetuning__reinitialise_head=1),
        "FIELD_INVALID",
        "finetuning.reinitialise_head",
    ),
    "batch of 2^40": (changed(RELEASE, finetuning__batch_size=1 << 40), "FIELD_INVALID", "finetuning"),
    "created without a zone": (changed(RELEASE, created="2026-01-02T03:04:05"), "FIELD_INVALID", "created"),
    "created with an offset": (changed(RELEASE, created="2026-01-02T03:04:05+00:00"), "FIELD_INVALID", "created"),
    "created on 30 February": (changed(RELEASE, created="2026-02-30T03:04:05Z"), "FIELD_INVALID", "created"),
    "created at 25 o'clock": (changed(RELEASE, created="2026-01-02T25:04:05Z"), "FIELD_INVALID", "created"),
    "created in the year 0": (changed(RELEASE, created="0000-01-02T03:04:05Z"), "FIELD_INVALID", "created"),
    "created in other digits": (changed(RELEASE, created="٢٠٢٦-01-02T03:04:05Z"), "FIELD_INVALID", "created"),
    "created a number": (changed(RELEASE, created=1767323045), "FIELD_INVALID", "created"),
    "note a number": (changed(RELEASE, note=1), "FIELD_INVALID", "note"),
    "note of 2,001 characters": (changed(RELEASE, note="n" * 2001), "FIELD_INVALID", "note"),
    "note with a terminal escape": (changed(RELEASE, note="\x1b]0;title\x07"), "FIELD_INVALID", "note"),
}
MALFORMED_SUBMISSIONS = {
    "a release": (RELEASE.to_bytes(), "KIND_MISMATCH", "kind"),
    "no nonce": (changed(SUBMISSION, nonce=...), "FIELD_MISSING", "nonce"),
    "nonce short": (changed(SUBMISSION, nonce="d" * 31), "FIELD_INVALID", "nonce"),
    "nonce in upper case": (changed(SUBMISSION, nonce="D" * 32), "FIELD_INVALID", "nonce"),
    "nonce null": (changed(SUBMISSION, nonce=None), "FIELD_INVALID", "nonce"),
    "contributor a path": (changed(SUBMISSION, contributor="../../etc"), "FIELD_INVALID", "contributor"),
    "contributor hidden": (changed(SUBMISSION, contributor=".ssh"), "FIELD_INVALID", "contributor"),
    "contributor in upper case": (changed(SUBMISSION, contributor="Ward-3"), "FIELD_INVALID", "contributor"),
    "contributor empty": (changed(SUBMISSION, contributor=""), "FIELD_INVALID", "contributor"),
    "contributor of 64 characters": (changed(SUBMISSION, contributor="a" * 64), "FIELD_INVALID", "contributor"),
    "contributor with a line end": (changed(SUBMISSION, contributor="ward-3\n"), "FIELD_INVALID", "contributor"),
    "contributor a list": (changed(SUBMISSION, contributor=["ward-3"]), "FIELD_INVALID", "contributor"),
    "base null": (changed(SUBMISSION, base_release=None), "FIELD_INVALID", "base_release"),
    "base short": (changed(SUBMISSION, base_release="a" * 12), "FIELD_INVALID", "base_release"),
    "no samples": (changed(SUBMISSION, samples=0), "FIELD_INVALID", "samples"),
    "samples a float": (changed(SUBMISSION, samples=600.0), "FIELD_INVALID", "samples"),
    "2^41 samples": (changed(SUBMISSION, samples=1 << 41), "FIELD_INVALID", "samples"),
    "created in no form of a time": (changed(SUBMISSION, created="\x1b[2J"), "FIELD_INVALID", "created"),
    "training a list": (changed(SUBMISSION, training=[]), "FIELD_INVALID", "training"),
    "training without seed": (changed(SUBMISSION, training__seed=...), "FIELD_MISSING", "training.seed"),
}


@pytest.mark.parametrize(("data", "code", "named"), MALFORMED_RELEASES.values(), ids=MALFORMED_RELEASES.keys())
def test_a_malformed_release_is_refused_with_code_and_field(data: bytes, code: str, named: str) -> None:
    refused(parse_release, data, code, named)


@pytest.mark.parametrize(("data", "code", "named"), MALFORMED_SUBMISSIONS.values(), ids=MALFORMED_SUBMISSIONS.keys())
def test_a_malformed_submission_is_refused_with_code_and_field(data: bytes, code: str, named: str) -> None:
    refused(parse_submission, data, code, named)


def refused(parse: Callable[[bytes], Any], data: bytes, code: str, named: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(data)
    assert caught.value.code == code
    assert named in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("base", "field", "value"),
    [
        (RELEASE, "format", 2),
        (RELEASE, "kind", "submission"),
        (RELEASE, "parent", "short"),
        (RELEASE, "spec", {"architecture": "cnn"}),
        (RELEASE, "class_names", ["cat", "dog"]),
        (RELEASE, "finetuning", {}),
        (RELEASE, "created", "now"),
        (SUBMISSION, "contributor", "Ward 3"),
        (SUBMISSION, "samples", 0),
        (SUBMISSION, "nonce", ""),
    ],
)
def test_a_wrong_manifest_cannot_even_be_made(base: Any, field: str, value: object) -> None:
    with pytest.raises(ManifestError, match=field):
        dataclasses.replace(base, **{field: value})


def test_a_manifest_over_64_kib_cannot_be_made() -> None:
    spec = ModelSpec("cnn", (3, 32, 32), 1000)
    with pytest.raises(ManifestError) as caught:
        dataclasses.replace(RELEASE, spec=spec, class_names=tuple(f"{n:0100}" for n in range(1000)))
    assert caught.value.code == "MANIFEST_TOO_LONG"
    assert (
        len(dataclasses.replace(RELEASE, spec=spec, class_names=tuple(f"{n:060}" for n in range(1000))).to_bytes())
        < manifest.LIMIT
    )
