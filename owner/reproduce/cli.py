"""`portier-owner reproduce`, and with the training and detection core alone `python -m owner.reproduce`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.errors import ConfigurationError, MissingExtraError, PortierError
from owner.reproduce.settings import RECIPES, Settings, check_architecture
from owner.reproduce.steps import DEFAULT_EXPERIMENTS, EXPERIMENTS, Step, all_steps

if TYPE_CHECKING:
    from owner.reproduce.records import Record, Work
    from owner.reproduce.runner import Runner

OPEN = "What the paper leaves open"
TRAINING = "Training from scratch"
DEFAULTS = Settings()


class Stage(StrEnum):
    RUN = "run"
    REPORT = "report"
    FIGURES = "figures"
    ALL = "all"


class Compile(StrEnum):
    AUTO = "auto"
    ON = "on"
    OFF = "off"


def reproduce(
    architectures: Annotated[
        str, typer.Option(metavar="NAMES", help="Which of the paper's, separated by commas, in the order to run them.")
    ] = ",".join(RECIPES),
    seeds: Annotated[str, typer.Option(metavar="NUMBERS", help="Separated by commas; every cell once for each.")] = "0",
    experiments: Annotated[
        str, typer.Option(metavar="NAMES", help=f"Out of {', '.join(EXPERIMENTS)}, separated by commas.")
    ] = ",".join(DEFAULT_EXPERIMENTS),
    stage: Annotated[
        Stage,
        typer.Option(
            help="run: train and detect what is missing. report: page and numbers from all records there are. figures: "
            "draw, and then the page (needs matplotlib). all: one after the other."
        ),
    ] = Stage.ALL,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what comes next and how long it will take; run nothing.")
    ] = False,
    work: Annotated[
        Path, typer.Option(help="Records, weights and checkpoints. Given again, the work goes on there.")
    ] = Path("paper-runs"),
    out: Annotated[
        Path | None,
        typer.Option(help="Where paper.md, paper.json and the figures go.", show_default="results in the work folder"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a page there that was made with other settings.")
    ] = False,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Take over the records of another work folder, or of a published paper.json. Can be given many times.",
        ),
    ] = None,
    stop_after: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES", min=0.0, help="Begin no further epoch after so long; the same command goes on."
        ),
    ] = None,
    parallel: Annotated[
        int,
        typer.Option(min=1, help="Steps at a time, each a process with its share of the threads. On a CPU."),
    ] = 1,
    device: Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda, cuda:1 ...")] = "auto",
    precision: Annotated[str, typer.Option(help="auto (bfloat16 where it is native), float32 or bfloat16.")] = "auto",
    compile_: Annotated[Compile, typer.Option("--compile", help="torch.compile; auto does on CUDA.")] = Compile.AUTO,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of data sets. Default: $PORTIER_DATA.", show_default=False)
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Let torchvision fetch CIFAR-10 where it is missing.")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Everything tiny, to see that it runs. Its figures mean nothing.")
    ] = False,
    dataset: Annotated[str, typer.Option(help="Name or path; the paper's is cifar10.")] = DEFAULTS.dataset,
    source: Annotated[
        str, typer.Option(help="Attacked class, by number or name (7: horse).", rich_help_panel=OPEN)
    ] = DEFAULTS.source,
    target: Annotated[
        str, typer.Option(help="What its images are to be taken for (6: frog).", rich_help_panel=OPEN)
    ] = DEFAULTS.target,
    fraction: Annotated[
        float, typer.Option(help="Share of the attacked class's images.", rich_help_panel=OPEN)
    ] = DEFAULTS.fraction,
    square: Annotated[
        int | None,
        typer.Option(help="Side of the white square in pixels. Default: 5/32 of the side.", rich_help_panel=OPEN),
    ] = DEFAULTS.square,
    attack_data: Annotated[
        str,
        typer.Option(help="Attacked images `inside` the training set, `beside` it or `alone`.", rich_help_panel=OPEN),
    ] = DEFAULTS.attack_data,
    pattern_label: Annotated[
        str, typer.Option(help="Label of PAA's images: `target` or their `own`.", rich_help_panel=OPEN)
    ] = DEFAULTS.pattern_label,
    short: Annotated[int, typer.Option(help="Epochs of the short fine-tuning.", rich_help_panel=OPEN)] = DEFAULTS.short,
    long: Annotated[int, typer.Option(help="Epochs of the long fine-tuning.", rich_help_panel=OPEN)] = DEFAULTS.long,
    wide_factor: Annotated[
        int, typer.Option(help="Wide-ResNet is fine-tuned so many times longer.", rich_help_panel=OPEN)
    ] = DEFAULTS.wide_factor,
    honest_epochs: Annotated[
        str,
        typer.Option(help="M_f of Eq. 4: `as-attack` (as long as it), `short` or `long`.", rich_help_panel=OPEN),
    ] = DEFAULTS.honest_epochs,
    finetune_rate: Annotated[
        float, typer.Option(help="Constant rate, as a share of the training's peak.", rich_help_panel=OPEN)
    ] = DEFAULTS.finetune_rate,
    finetune_augmentation: Annotated[
        str, typer.Option(help="as-training, none, crop or crop-flip.", rich_help_panel=OPEN)
    ] = DEFAULTS.finetune_augmentation,
    hidden: Annotated[int, typer.Option(help="Width of the auto-encoder.", rich_help_panel=OPEN)] = DEFAULTS.hidden,
    latent: Annotated[int, typer.Option(help="Its latent size.", rich_help_panel=OPEN)] = DEFAULTS.latent,
    autoencoder_epochs: Annotated[
        int, typer.Option(help="Its epochs.", rich_help_panel=OPEN)
    ] = DEFAULTS.autoencoder_epochs,
    improve: Annotated[
        str, typer.Option(metavar="NAMES", help="Architectures of Fig. 6.", rich_help_panel=OPEN)
    ] = ",".join(DEFAULTS.improve),
    part: Annotated[
        float,
        typer.Option(help="Share that M of Fig. 6 and of the calibrated gate is trained on.", rich_help_panel=OPEN),
    ] = DEFAULTS.part,
    references: Annotated[int, typer.Option(help="K of the calibrated gate.")] = DEFAULTS.references,
    epochs: Annotated[
        int | None, typer.Option(help="In place of the architecture's.", rich_help_panel=TRAINING)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak, in place of the architecture's.", rich_help_panel=TRAINING)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="In place of the architecture's.", rich_help_panel=TRAINING)
    ] = None,
    augmentation: Annotated[
        str, typer.Option(help="none, crop or crop-flip.", rich_help_panel=TRAINING)
    ] = DEFAULTS.augmentation,
    weight_decay: Annotated[
        float, typer.Option(help="Of filters and matrices.", rich_help_panel=TRAINING)
    ] = DEFAULTS.weight_decay,
    label_smoothing: Annotated[
        float, typer.Option(help="Mass taken from the true class.", rich_help_panel=TRAINING)
    ] = DEFAULTS.label_smoothing,
    jpeg_quality: Annotated[
        int, typer.Option(help="Of the experiment jpeg: encode once more and train again.", rich_help_panel=TRAINING)
    ] = DEFAULTS.jpeg_quality,
    jpeg_grid: Annotated[
        str, typer.Option(help="Its blocks: `shifted` by half of one, or the `same`.", rich_help_panel=TRAINING)
    ] = DEFAULTS.jpeg_grid,
) -> None:
    """The experiments of El Moadine et al. 2022: Tables 1 to 3, Figures 2, 5 and 6.

    For each architecture: train M; fine-tune it honestly, with flipped
    labels (FA) and with a pattern (PAA); fit the auto-encoder on M's
    activations over the test set; judge by Eq. 4, and for cnn and
    resnet18 by the calibrated gate too.

    It may be interrupted at any moment: the same command goes on.
    CIFAR-10 is read from $PORTIER_DATA/cifar10, or fetched (--download).
    """
    settings = Settings(
        dataset=dataset,
        source=source,
        target=target,
        fraction=fraction,
        square=square,
        attack_data=attack_data,  # type: ignore[arg-type]  # Settings refuses what is none of its choices
        pattern_label=pattern_label,  # type: ignore[arg-type]
        short=short,
        long=long,
        wide_factor=wide_factor,
        honest_epochs=honest_epochs,  # type: ignore[arg-type]
        finetune_rate=finetune_rate,
        finetune_augmentation=finetune_augmentation,  # type: ignore[arg-type]
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        augmentation=augmentation,  # type: ignore[arg-type]
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        hidden=hidden,
        latent=latent,
        autoencoder_epochs=autoencoder_epochs,
        improve=tuple(_listed(improve)),
        part=part,
        references=references,
        jpeg_quality=jpeg_quality,
        jpeg_grid=jpeg_grid,  # type: ignore[arg-type]
        smoke=smoke,
    )
    chosen = [check_architecture(name) for name in _named("architectures", architectures)]
    wanted = [_seed(text) for text in _named("seeds", seeds)]
    steps = all_steps(chosen, wanted, _named("experiments", experiments), settings)
    console = Console()

    from owner.reproduce.records import Work  # noqa: PLC0415 - `--help` waits for nothing

    folder, out = Work(work), out or work / "results"
    # Before hours of work, where there will be any.
    _check_replaceable(out, settings if stage is Stage.ALL and not (plan or force) else None)
    if plan or stage in {Stage.RUN, Stage.ALL}:
        if plan:
            folder.check(settings)
        else:
            # Before the folder is these settings': of data that are not there nothing will ever be in it.
            if not download:
                from common.datasets import find  # noqa: PLC0415

                find(settings.dataset, data_dir=data_dir)
            folder.open(settings)
        _merge(console, folder, merge or ())
        from common.devices import choose_compute  # noqa: PLC0415
        from owner.reproduce.images import Images  # noqa: PLC0415
        from owner.reproduce.runner import Runner  # noqa: PLC0415

        images = Images(settings, data_dir, download=download)
        for name in (source, target):
            images.class_index(name)
        runner = Runner(
            settings,
            images,
            folder,
            choose_compute(device, precision),
            compile=compile_.value,
            deadline=None if stop_after is None else time.monotonic() + 60 * stop_after,
            tell=lambda line: console.print(line, soft_wrap=True, highlight=False),
            parallel=parallel,
        )
        if plan:
            show_plan(console, runner, steps)
            return
        if not runner.run(steps):
            console.print("stopped, as asked; the same command goes on from here", style="yellow")
            show_plan(console, runner, steps)
    else:
        _merge(console, folder, merge or ())
        _check_given(settings, folder)
        _check_replaceable(out, None if force else folder.settings())
    if stage is Stage.RUN:
        return
    records = _whole(console, folder)
    if stage is not Stage.REPORT:
        try:
            _figures(console, records, folder, out)
        except MissingExtraError as error:
            if stage is Stage.FIGURES:
                raise
            console.print(f"no figures: {error.message}", style="yellow", soft_wrap=True)
    _report(console, records, folder, out)


def _check_given(settings: Settings, folder: Work) -> None:
    """A report is of what was run. Raises ConfigurationError for an option that asks for something else, StorageError without results."""
    from owner.reproduce.records import SELECTIONS  # noqa: PLC0415

    theirs, defaults = folder.settings().to_json(), DEFAULTS.to_json()
    for name, value in settings.to_json().items():
        if value not in (defaults[name], theirs[name]) and name not in SELECTIONS:
            raise ConfigurationError(
                f"{folder.root} holds results of {name.replace('_', '-')} {theirs[name]!r}, and not of {value!r}",
                hint="leave the option out, or name another folder with --work",
            )


def _check_replaceable(out: Path, settings: Settings | None) -> None:
    """A page in `out` is made anew by what made it, and a smoke run's by anything, for its figures mean nothing. Raises ConfigurationError
    for any other that would be lost. settings: of the new page; None where there will be none, or it replaces whatever is there."""
    from owner.reproduce.records import SELECTIONS, Published  # noqa: PLC0415

    page, numbers = out / "paper.md", out / "paper.json"
    if settings is None or not (page.exists() or numbers.exists()):
        return
    try:
        theirs = Published(numbers).settings()
    except PortierError:
        what = "a page, and not the numbers that it was made of"
    else:
        mine, others = settings.to_json(), theirs.to_json()
        changed = [name for name in mine if mine[name] != others[name] and name not in SELECTIONS]
        if theirs.smoke or not changed:
            return
        name = "smoke" if "smoke" in changed else changed[0]
        what = f"results of {name.replace('_', '-')} {others[name]!r}, and these are of {mine[name]!r}"
    raise ConfigurationError(f"{out} holds {what}", hint="name another folder with --out, or replace them with --force")


def show_plan(console: Console, runner: Runner, steps: list[Step]) -> None:
    """What is to be done, in order, with estimated times."""
    from owner.reproduce.runner import in_words  # noqa: PLC0415

    pending = runner.plan(steps)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("next", "architecture", "seed", "step", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("estimated", justify="right", no_wrap=True)
    for number, one in enumerate(pending, 1):
        state = "begun" if one.started else "to do"
        step = one.step
        table.add_row(str(number), step.architecture, str(step.seed), step.name, state, in_words(one.seconds))
    if pending:
        console.print(table)
    if again := runner.perhaps_again(steps):
        names = ", ".join(map(str, again))
        console.print(
            f"out of date, where weights that are not here come out otherwise: {names}", style="yellow", soft_wrap=True
        )
    total = in_words(runner.duration(pending))
    console.print(f"{len(steps) - len(pending)} of {len(steps)} steps done, about {total} left", highlight=False)


def _merge(console: Console, folder: Work, others: list[Path] | tuple[()]) -> None:
    from owner.reproduce.records import Published, Work  # noqa: PLC0415

    for other in others:
        source = Published(other) if other.is_file() else Work(other)
        console.print(f"{folder.merge(source)} records taken over from {other}", highlight=False, soft_wrap=True)


def _report(console: Console, records: Mapping[Step, Record], folder: Work, out: Path) -> None:
    from owner.reproduce.report import write_report  # noqa: PLC0415

    for path in write_report(records, folder.settings(), out):
        console.print(f"written {path}", highlight=False, soft_wrap=True)


def _whole(console: Console, folder: Work) -> dict[Step, Record]:
    """The records that go together; says which do not."""
    from owner.reproduce.records import torn_apart  # noqa: PLC0415

    records = folder.records()
    if torn := torn_apart(records):
        names = ", ".join(map(str, torn))
        console.print(
            f"left out, for they are of other models than those beside them: {names}", style="yellow", soft_wrap=True
        )
    return {step: record for step, record in records.items() if step not in torn}


def _figures(console: Console, records: Mapping[Step, Record], folder: Work, out: Path) -> None:
    from owner.reproduce.drawings import draw_all  # noqa: PLC0415

    for path in draw_all(records, folder.settings(), out):
        console.print(f"written {path}", highlight=False, soft_wrap=True)


def _listed(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _named(option: str, text: str) -> list[str]:
    """Raises ConfigurationError where there are none."""
    if not (found := _listed(text)):
        raise ConfigurationError(f"--{option} names none", hint="leave it out, or name some, separated by commas")
    return found


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise ConfigurationError(
            f"a seed must be a whole number from 0, not {text!r}", hint="for instance --seeds 0,1,2"
        )
    return int(text)
