"""What to contribute, and the mistakes in it that can be seen before the owner is called."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigurationError, DataError
from contributor.classes import parse_classes

if TYPE_CHECKING:
    from common.examples import Examples
    from contributor.settings import ContributorSettings


@dataclass(frozen=True)
class Request:
    """What to contribute.

    data: name or path of a data set; data_dir: folder of data sets known by name. partition: specification of a part of it.
    options: training options that differ from what the release recommends, by field name.
    attack: specification of a simulated attack. release: id to start from, "" for the current one. seed: None draws one.
    held_out: examples file on which the returned model is measured. classes: OWN=RELEASE,..., the release's classes by the data's
    own, where these are called otherwise.
    """

    data: str
    data_dir: str | None = None
    partition: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    attack: str | None = None
    release: str = ""
    seed: int | None = None
    held_out: str | None = None
    classes: str | None = None

    @classmethod
    def of(cls, settings: ContributorSettings, *, release: str = "") -> Request:
        """What `settings` ask for, its paths made absolute: the same request from whatever folder it is repeated.

        Raises ConfigurationError where they name no data.
        """
        mine = settings.contribution
        if mine.data is None:
            raise ConfigurationError(
                "no data were named", hint="give --data, or data in [contribution] of contributor.toml"
            )
        return cls(
            data=_located(mine.data),
            data_dir=str(mine.data_dir.absolute()) if mine.data_dir else None,
            partition=mine.partition,
            options=settings.tuning.options(),
            attack=settings.simulation.attack,
            release=release,
            seed=mine.seed,
            held_out=str(mine.held_out.absolute()) if mine.held_out else None,
            classes=mine.classes,
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def check(self) -> None:
        """Raises UnknownNameError, ConfigurationError for what is wrong with the request itself, whatever the data hold."""
        from common.partitions import parse_partition  # noqa: PLC0415 - torch, which `status` does not need
        from common.training_options import TrainingOptions  # noqa: PLC0415
        from contributor.attacks import parse_attack  # noqa: PLC0415

        if self.release and not re.fullmatch(r"[0-9a-f]{64}", self.release):
            raise ConfigurationError(
                f"a release is named by all of its 64 hex digits, not {self.release!r}",
                hint="leave --release out for the current one",
            )
        TrainingOptions.from_json(self.options)
        if self.attack:
            parse_attack(self.attack)
        if self.partition:
            parse_partition(self.partition)
        if self.classes:
            parse_classes(self.classes)

    def check_data(self) -> None:
        """Raises UnknownNameError, DataError where there are no such data; none are read."""
        from common.datasets import find  # noqa: PLC0415 - as above

        if not self._is_examples_file:
            find(self.data, data_dir=self._data_dir)
        if self.held_out and not Path(self.held_out).is_file():
            raise DataError(f"there is no examples file {self.held_out}", hint="check --held-out")

    def image_sizes(self) -> Counter[tuple[int, int]] | None:
        """How many encoded images there are of each (width, height), without decoding any; None where there are none to decode.

        Raises UnknownNameError, DataError.
        """
        from common.datasets import image_sizes  # noqa: PLC0415 - as above

        return None if self._is_examples_file else image_sizes(self.data, data_dir=self._data_dir)

    def load(self, size: tuple[int, int] | None = None) -> Examples:
        """All of an examples file, the training set of anything else, then the partition's part. Without a partition a path's data are all
        the contributor's own: those that came without a test set are trained on as a whole. A partition is of data that others share
        in, and that an owner may have held a test set out of by the same division.

        size: (height, width) to decode images at; None for their own. Raises UnknownNameError, DataError, ConfigurationError.
        """
        from common.datasets import load, load_examples  # noqa: PLC0415 - as above
        from common.examples import join  # noqa: PLC0415
        from common.partitions import parse_partition  # noqa: PLC0415

        if self._is_examples_file:
            examples = load_examples(Path(self.data))
        else:
            found = load(self.data, data_dir=self._data_dir, size=size)
            own = found.came_whole and not self.partition and _is_path(self.data)
            examples = join(found.train, found.test) if own else found.train
        return parse_partition(self.partition).apply(examples) if self.partition else examples

    def load_held_out(self) -> Examples | None:
        """Raises DataError."""
        from common.datasets import load_examples  # noqa: PLC0415 - as above

        return load_examples(Path(self.held_out)) if self.held_out else None

    @property
    def _is_examples_file(self) -> bool:
        """By its suffix: a file that happens to be called `digits` does not hide the data set."""
        path = Path(self.data)
        return path.suffix == ".safetensors" and path.is_file()

    @property
    def _data_dir(self) -> Path | None:
        return Path(self.data_dir) if self.data_dir else None


def _located(data: str) -> str:
    """`data` as an absolute path where it is one."""
    return str(Path(data).expanduser().absolute()) if _is_path(data) else data


def _is_path(data: str) -> bool:
    """A known name stays a name, even beside a folder called so."""
    from common.datasets import NAMES  # noqa: PLC0415 - as above

    return data.lower().replace("_", "-") not in NAMES and Path(data).expanduser().exists()
