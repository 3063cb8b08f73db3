"""The commands that hand in work: contribute, and watch for a verdict that was not waited for."""

from __future__ import annotations

from typing import Annotated

import click
import typer

from common.errors import ConfigurationError, DeclinedError
from contributor.cli.options import THIS_RUN, AsJson, Home, SettingsFile
from contributor.cli.rendering import errors, say, trouble
from contributor.workspace import ContributorWorkspace

CONTRIBUTION = r"\[contribution]  what you contribute"
TUNING = r"\[tuning]  how it is fine-tuned; default: as the owner recommends"
MACHINE = r"\[machine]  what it is computed with"
EXCHANGE = r"\[exchange]  how you deal with the owner"
SIMULATION = r"\[simulation]  for research and rehearsals only"


def contribute(
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Your data: an image folder (one sub-folder per class), a folder of parquet files, an examples file, or "
            "a name: digits, cifar10, mnist, fashion-mnist, gtsrb.",
            rich_help_panel=CONTRIBUTION,
        ),
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where data sets are looked for by name: DIR/NAME/train.parquet. Default: $PORTIER_DATA",
            rich_help_panel=CONTRIBUTION,
        ),
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Use a part of the data only: iid:index=0,count=4 or dirichlet:alpha=0.5,index=0,count=4.",
            rich_help_panel=CONTRIBUTION,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="OWN=THEIRS,...",
            help="Which of your classes is which of the release's, where they are called otherwise: eight=8,five=5",
            rich_help_panel=CONTRIBUTION,
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Examples file on which the model is measured before and after, for the report.",
            rich_help_panel=CONTRIBUTION,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Of data order, augmentation and attack. Default: drawn at random.",
            rich_help_panel=CONTRIBUTION,
        ),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Keep this JSON file up to date with how it stands.",
            rich_help_panel=CONTRIBUTION,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Passes over your data.", rich_help_panel=TUNING)
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--lr", metavar="RATE", help="Learning rate (learning_rate).", rich_help_panel=TUNING),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Examples a step.", rich_help_panel=TUNING)
    ] = None,
    optimiser: Annotated[
        str | None, typer.Option(metavar="NAME", help="sgd, adam or adamw.", rich_help_panel=TUNING)
    ] = None,
    momentum: Annotated[float | None, typer.Option(metavar="X", help="Of sgd.", rich_help_panel=TUNING)] = None,
    weight_decay: Annotated[
        float | None, typer.Option(metavar="X", help="Of the optimiser.", rich_help_panel=TUNING)
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="NAME", help="one-cycle or constant.", rich_help_panel=TUNING)
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option(metavar="X", help="Mass taken from the true class, below 1.", rich_help_panel=TUNING),
    ] = None,
    augmentation: Annotated[
        str | None, typer.Option(metavar="NAME", help="none, crop or crop-flip.", rich_help_panel=TUNING)
    ] = None,
    frozen_layers: Annotated[
        int | None,
        typer.Option(metavar="N", help="So many first layers are left as they are.", rich_help_panel=TUNING),
    ] = None,
    reinitialise_head: Annotated[
        bool | None,
        typer.Option(
            "--reinitialise-head/--keep-head",
            help="Start the classification head anew, in the same shape, or not.",
            rich_help_panel=TUNING,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N. Default: auto", rich_help_panel=MACHINE),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="auto, float32 or bfloat16. Default: auto, the fastest that is native.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="CPU threads. Default: all cores, or $OMP_NUM_THREADS", rich_help_panel=MACHINE),
    ] = None,
    training_slots: Annotated[
        str | None,
        typer.Option(
            metavar="DIR:N",
            help="Train only while fewer than N processes that name DIR do.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    wait: Annotated[
        bool | None,
        typer.Option(
            "--wait/--no-wait",
            help="Stay until the verdict (default), or leave once the owner has it all.",
            rich_help_panel=EXCHANGE,
        ),
    ] = None,
    patience: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Go on trying for so long while the owner cannot be reached; inf is for ever. Default: 600",
            rich_help_panel=EXCHANGE,
        ),
    ] = None,
    factory: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Allow a model of your own installation, package.module:factory, where the release names it "
            "(factories). May be repeated.",
            show_default=False,
            rich_help_panel=EXCHANGE,
        ),
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Pretend to be an attacker: flip, pattern, sign-flip ... (a wrong name lists them all), with options: "
            "flip:source=7,target=6,fraction=0.5",
            rich_help_panel=SIMULATION,
        ),
    ] = None,
    release: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="Start from this release, all 64 digits. Default: the current one.",
            show_default=False,
            rich_help_panel=THIS_RUN,
        ),
    ] = "",
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Begin anew even where an interrupted contribution could go on.",
            rich_help_panel=THIS_RUN,
        ),
    ] = False,
    settings_file: SettingsFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Get the model, fine-tune it on your data, hand it in, and wait for the verdict.

    Mistakes in data and options are found before the owner is called; the owner's
    signature and the model's digest are verified before the model is touched. Run
    again after an interruption, with the same options, it goes on where it was,
    with the same submission. Where the owner no longer takes work on the release
    it began with, it ends with an error, and the next run begins anew from the
    current release.

    Exit code 0 says accepted, 53 declined; `portier-contributor --help` has the
    others. A submission that a person has to look at stays pending until that has
    happened; --no-wait does not wait for it, and `watch` does later.

        portier-contributor contribute --data ./my-images --epochs 5 --lr 0.002

    What you would repeat can stand in contributor.toml in your home: the options
    are grouped by its sections, and --batch-size is batch_size there. A variable,
    such as PORTIER_TUNING__BATCH_SIZE, is stronger than the file; a flag is
    stronger than both.
    """
    from contributor.settings import load_settings  # noqa: PLC0415 - as the application says

    workspace = ContributorWorkspace.at(home)
    overrides = {
        "contribution.data": data,
        "contribution.data_dir": data_dir,
        "contribution.partition": partition,
        "contribution.classes": classes,
        "contribution.held_out": held_out,
        "contribution.seed": seed,
        "contribution.report": report,
        "tuning.epochs": epochs,
        "tuning.learning_rate": learning_rate,
        "tuning.batch_size": batch_size,
        "tuning.optimiser": optimiser,
        "tuning.momentum": momentum,
        "tuning.weight_decay": weight_decay,
        "tuning.schedule": schedule,
        "tuning.label_smoothing": label_smoothing,
        "tuning.augmentation": augmentation,
        "tuning.frozen_layers": frozen_layers,
        "tuning.reinitialise_head": reinitialise_head,
        "machine.device": device,
        "machine.precision": precision,
        "machine.threads": threads,
        "machine.training_slots": training_slots,
        "exchange.wait": wait,
        "exchange.patience": patience,
        "exchange.factories": tuple(factory) if factory else None,
        "simulation.attack": attack,
    }
    settings = load_settings(workspace, overrides, file=settings_file)
    workspace.check_joined()
    if settings.contribution.data is None:
        raise click.UsageError(
            f"Which data? Give --data, or set data under [contribution] in {settings_file or workspace.settings_file}.",
            click.get_current_context(),
        )
    from common.slots import TrainingSlots  # noqa: PLC0415 - as the application says
    from contributor import contributing, session  # noqa: PLC0415
    from contributor.reporting import Reporter  # noqa: PLC0415
    from contributor.requests import Request  # noqa: PLC0415

    machine, exchange = settings.machine, settings.exchange
    slots = TrainingSlots.parse(machine.training_slots) if machine.training_slots else None
    if machine.threads is not None:
        import torch  # noqa: PLC0415

        torch.set_num_threads(machine.threads)
    request = Request.of(settings, release=release)
    with session.connect(workspace, patience=exchange.patience, on_trouble=trouble) as owner:
        reporter = Reporter(owner.name, errors, settings.contribution.report)
        done = contributing.contribute(
            workspace,
            owner,
            request,
            signing_key=session.signing_key(workspace),
            fresh=fresh,
            wait=exchange.wait,
            slots=slots,
            factories=exchange.factories,
            device=machine.device,
            precision=machine.precision,
            on_stage=reporter.stage,
            on_note=reporter.note,
            on_change=reporter.change,
        )
    document = reporter.document()
    if not done.verdict:
        say(
            as_json,
            document,
            f"handed in as {done.submission}\nlater: portier-contributor watch {done.submission[:12]}",
        )
        return
    say(as_json, document, f"{done.verdict}: submission {done.submission}" + (f" ({done.code})" if done.code else ""))
    _raise_if_declined(done.verdict, done.code)


def watch(
    submission: Annotated[str, typer.Argument(metavar="SUBMISSION", show_default=False)],
    patience: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Go on trying for so long while the owner cannot be reached. Default: as in the settings, else 600",
        ),
    ] = None,
    settings_file: SettingsFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Wait for the verdict of a submission handed in earlier.

    SUBMISSION is its id, or how it begins; `status` lists yours.

    Exit code 0 says accepted, 53 declined. A submission that a person has to look
    at stays pending until that has happened.

        portier-contributor watch 5f2a
    """
    from contributor import contributing, session  # noqa: PLC0415 - as the application says
    from contributor.settings import load_settings  # noqa: PLC0415

    workspace = ContributorWorkspace.at(home)
    settings = load_settings(workspace, {"exchange.patience": patience}, file=settings_file)
    found = workspace.find(submission)
    if found is None and len(submission) != 64:
        raise ConfigurationError(
            f"no submission of this home begins with {submission!r}",
            hint="`portier-contributor status` lists them; for one made elsewhere give all 64 digits",
        )
    full = found.submission if found else submission
    with session.connect(workspace, patience=settings.exchange.patience, on_trouble=trouble) as owner:
        standing = contributing.watch(
            workspace, owner, full, on_stage=lambda stage, _: errors.print(stage, highlight=False)
        )
    document = {"submission": full, "verdict": standing.state, "code": standing.code}
    say(as_json, document, f"{standing.state}: submission {full}" + (f" ({standing.code})" if standing.code else ""))
    _raise_if_declined(standing.state, standing.code)


def _raise_if_declined(verdict: str, code: str) -> None:
    if verdict == "declined":
        raise DeclinedError(f"the owner declined the submission ({code})")
