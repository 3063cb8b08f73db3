"""The development bases as they were scored: what may be looked at as often as one likes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.detection.config import Config
from benchmarks.detection.judge import Base
from benchmarks.detection.sheets import Sheet, path_of
from common.errors import ConfigurationError, PortierError


def development(config: Config, results: Path) -> Sequence[Base]:
    """From their sheets in this folder of results. Raises ConfigurationError where there is none."""
    read = (Sheet.read(path_of(results, config, base), config, base) for base in config.development)
    sheets = [sheet for sheet in read if sheet is not None]
    if not sheets:
        raise ConfigurationError(
            f"no development base of {config.name} has been scored",
            hint=f"python -m benchmarks.detection {config.name} --bases development --stage score",
        )
    return [sheet.judged() for sheet in sheets]


def arguments(description: str | None) -> argparse.Namespace:
    """config, out: the command line of who looks at these bases alone."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="one of benchmarks/detection/configs, by name or path")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/results"),
        help="folder of the scores, and of the page (default: %(default)s)",
    )
    return parser.parse_args()


def told(main: Callable[[], None]) -> None:
    """Run it; an error that names its cause ends the process with that, and its own exit code."""
    try:
        main()
    except PortierError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
