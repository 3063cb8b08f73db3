"""Commands that make a workspace, its first release and its guard: init, train, protect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from owner.cli.options import HERE, AsJson, SetOption, WorkspaceOption, our_command
from owner.cli.rendering import console, facts, short, show, table, write_json
from owner.figures import conditions, number, percent, rejection_bounds

PANEL = "Begin"


def register(app: typer.Typer) -> None:
    for command in (init, train, protect):
        app.command(rich_help_panel=PANEL)(command)


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An empty folder, or one to be made.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="A data set by name (digits, cifar10, mnist, fashion-mnist, gtsrb) or the path of an image folder, a folder of "
            "parquet files or a safetensors examples file. Images of several sizes: --set data.size=PIXELS.",
            show_default="digits",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Holds <name>/{train,test}.parquet.", show_default="$PORTIER_DATA")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download the data set where it is not at hand.")
    ] = False,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="cnn, resnet18, resnet152, vgg19, wrn-28-10, badnet-cnn, mlp, logistic, linear-svm, gru (of texts), or "
            "package.module:factory, a function of input shape and class count that returns your own torch.nn.Module "
            "(docs/own-network.md).",
            show_default="cnn",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Of the owner's own training.", show_default="30")] = None,
    detectors: Annotated[
        str | None,
        typer.Option(
            help="standard: the detectors that the benchmark chose, combined into one score. paper: the activation auto-encoder "
            "alone. Or detectors by name, with commas.",
            show_default="standard",
        ),
    ] = None,
    detector_module: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE",
            help="A Python module that registers detectors of your own, which --detectors may then name (docs/from-python.md); may be "
            "repeated.",
            show_default="none",
        ),
    ] = None,
    references: Annotated[
        int | None,
        typer.Option(
            help="K, the honest reference fine-tunes a guard is calibrated with; the finest p-value is 1/(K+1).",
            show_default="19",
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="conformal: a p-value over K references. seed: the paper's Eq. 4, for the detectors paper.",
            show_default="conformal",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="0.0.0.0")] = None,  # noqa: S104
    port: Annotated[int | None, typer.Option(help="Of the mutual-TLS service.", show_default="7443")] = None,
    enrolment_port: Annotated[int | None, typer.Option(help="Of the enrolment listener.", show_default="7444")] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="A host name or address contributors reach this machine by, with host:port/enrolment_port where ports are "
            "forwarded; may be repeated.",
            show_default="localhost, 127.0.0.1",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of split, training, fine-tuning and guard.", show_default="0")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option("--settings", help="A portier.toml to begin from.", show_default=False)
    ] = None,
    set_: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Make a workspace: keys, settings, ledger, and the data divided into disjoint shares.

    The shares are: what your model is trained on, images kept back for honest reference fine-tunes, two trigger sets on
    which returned models are looked at, and an evaluation set. What is left of the training set is used for nothing.

    Every setting, with what it means, stands in DIR/portier.toml afterwards; edit it there, override it by an environment
    variable (PORTIER_GUARD__REFERENCES=39) or for one run by --set guard.references=39.

    DIR/keys holds your private keys. Whoever has them can sign releases in your name; back them up, keep them to yourself.
    """
    from owner.operations.founding import init as make  # noqa: PLC0415
    from owner.operations.opening import parse_overrides  # noqa: PLC0415

    overrides: dict[str, Any] = {
        "data.name": data,
        "data.dir": data_dir,
        "model.architecture": architecture,
        "training.epochs": epochs,
        "guard.detectors": detectors,
        "guard.modules": detector_module or None,
        "guard.references": references,
        "guard.rule": rule,
        "service.host": host,
        "service.port": port,
        "service.enrolment_port": enrolment_port,
        "service.names": name or None,
        **dict.fromkeys(("data.seed", "training.seed", "finetuning.seed", "guard.seed"), seed),
        **parse_overrides(set_),
    }
    founded = make(directory, overrides, settings_file=settings, download=download)
    if as_json:
        write_json(founded.to_json())
        return
    console.print(f"workspace {founded.workspace.root}", markup=False)
    shares = ", ".join(f"{count} {share.replace('_', ' ')}" for share, count in founded.shares.items())
    show(
        facts(
            {
                "data": f"{founded.settings.data.name}: {shares}",
                "model": founded.settings.model.architecture,
                "signing key": founded.signing_key,
                "settings": founded.workspace.settings_file,
                "next": our_command("train", directory),
            }
        )
    )


def train(
    workspace: WorkspaceOption = HERE,
    weights: Annotated[
        Path | None,
        typer.Option(help="Adopt these weights (a safetensors file) instead of training.", show_default=False),
    ] = None,
    set_: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Train your model on its share of the data and publish it as the first release.

    Interrupted, the same command goes on from the last finished epoch. With --weights the model you have already becomes
    the first release; its tensors must fit the architecture of the settings.
    """
    from owner.operations.founding import train_first  # noqa: PLC0415
    from owner.operations.opening import open_office, parse_overrides  # noqa: PLC0415

    with open_office(workspace, parse_overrides(set_)) as office:
        trained = train_first(office, weights=weights)
    if as_json:
        write_json(trained.to_json())
        return
    evaluation = trained.evaluation
    images = int(evaluation.support.sum())
    show(
        facts(
            {
                "release": f"{trained.release.number} ({short(trained.release.id)}), the root",
                "accuracy": f"{percent(evaluation.accuracy, 2)} on {images} evaluation images",
                "next": our_command("protect", workspace),
            }
        )
    )


def protect(
    release: Annotated[
        str | None,
        typer.Argument(metavar="[RELEASE]", help="Release id or its first digits.", show_default="the current one"),
    ] = None,
    workspace: WorkspaceOption = HERE,
    incremental: Annotated[
        bool | None,
        typer.Option(
            "--incremental/--fresh",
            help="Take the fine-tunes of the release before over where this one is small news, and keep this guard's own for the "
            "next; or train them in any case.",
            show_default="guard.incremental in the settings",
        ),
    ] = None,
    set_: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Fit the guard of a release: what returned models will be compared with.

    The model is fine-tuned K times on images it has never seen, as honest contributors would, each time a little
    differently. A returned model's score is then ranked among these K: its p-value says how rare so high a score is among
    honest ones. More references resolve finer (1/(K+1)) and cost K fine-tunes, here and for every later release. Where
    several detectors are combined, guard.fitting_references more give their scores a scale, and calibrate nothing.

    Interrupted, the same command goes on from the last finished fine-tune. `serve` fits the guards of later releases.
    """
    from owner.operations.guarding import plan  # noqa: PLC0415
    from owner.operations.guarding import protect as fit  # noqa: PLC0415
    from owner.operations.opening import open_office, parse_overrides  # noqa: PLC0415

    with open_office(workspace, parse_overrides(set_)) as office:
        if not as_json:
            console.print(plan(office.settings.guard), soft_wrap=True)
        protected = fit(office, release, incremental=incremental)
    found = protected.to_json()
    if as_json:
        write_json(found)
        return
    lines = {
        "release": f"{found['number']} ({short(found['release'])})",
        "accuracy": f"{percent(found['accuracy'], 2)} on {len(protected.guard.evaluation)} evaluation images",
        "head": f"{found['head']}, activations in {found['dtype']} on {found['device']}",
    }
    if found["provenance"]:
        lines["fine-tunes"] = _origin(found["provenance"])
    if found["combination"]:
        lines |= {
            "detectors": f"{len(found['detectors'])}, combined into one score ({found['combination']}), which alone decides",
            "scales": f"fitted on {found['fitting_references']} fine-tunes that calibrate nothing",
        }
    if found["rule"] == "conformal":
        lines |= {
            "references": f"K = {found['references']}, so that p-values are multiples of {number(found['resolution'])}",
            **({"of which": conditions(found["conditioning"])} if found["conditioning"] else {}),
            "levels": f"p <= {number(found['reject_level'])} rejects, p <= {number(found['quarantine_level'])} quarantines",
            "false positives": rejection_bounds(found["fpr_bound_95"], found["escalation"]),
        }
    else:
        lines["rule"] = (
            "seed: mean + one standard deviation of one honest fine-tune (Eq. 4); sets no false-positive rate"
        )
    tier = found["escalation"]
    if tier:
        lines["escalation"] = (
            f"{' and '.join(tier['detectors'])}, calibrated when p alone first quarantines a submission: K = {tier['references']}, "
            f"resolution {number(tier['resolution'])}; p <= {number(tier['reject_level'])} rejects, p > "
            f"{number(tier['quarantine_level'])} accepts"
        )
    show(facts(lines), table(("score", ">rejects above"), [(k, number(v, 4)) for k, v in found["thresholds"].items()]))


def _origin(provenance: dict[str, Any]) -> str:
    if "transplanted_from" in provenance:
        afresh = provenance.get("trained_afresh", 0)
        return (
            f"moved from the release with weights {short(provenance['transplanted_from'])}, generation {provenance['generation']}: it "
            f"is {number(provenance['news'])} median fine-tunes away, {number(provenance['total_news'])} since they were trained"
            + (f"; {afresh} of no use here trained afresh" if afresh else "")
        )
    return f"trained: {provenance['trained']}"
