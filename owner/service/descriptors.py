"""Open files and connections: how many this process may have, and how many of them strangers may take.

Every connection costs the owner one descriptor, and a process that has none left can neither vet nor write. So the soft limit is raised
to what the system allows, and gRPC is told how many connections each listener may hold beyond what the owner needs himself.
"""

from __future__ import annotations

import logging
import resource
from contextlib import suppress
from typing import Final

MOST: Final = 1 << 16
"""Descriptors: no more is asked for, where the system sets no limit at all."""
OWN: Final = 256
"""Of them for the owner's own files, pipes and processes."""
ENROLMENT: Final = 128
"""Connections of the enrolment listener, whose callers show no certificate: four times the enrolments that are worked on at a time."""
_FEWEST: Final = 16
_TIGHT: Final = 100
"""Contributors: where fewer can be connected at a time, the owner is told."""
_WORTH_TRYING: Final = (10240, 4096, 1024)
"""Where the system refuses its own hard limit, as macOS does beyond one of each process."""
_log = logging.getLogger(__name__)


def raise_limit() -> int:
    """Raise the soft limit on open files to the hard one; returns the limit then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY:
        return MOST
    for wanted in (most, *_WORTH_TRYING):
        if not soft < wanted <= most:
            continue
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return soft


def connections(limit: int, addresses: int = 1) -> tuple[int, int]:
    """Connections that the service listener and the enrolment listener may hold at each of their addresses, of a process with `limit`
    descriptors.

    >>> connections(1024), connections(1024, addresses=2), connections(128)
    ((640, 128), (320, 64), (16, 16))
    """
    left = limit - OWN
    enrolment = min(ENROLMENT, left // 4)
    found = max(_FEWEST, (left - enrolment) // addresses), max(_FEWEST, enrolment // addresses)
    if found[0] < _TIGHT:
        _log.warning(
            "with %d open files allowed (ulimit -n), only %d contributors can be connected at a time", limit, found[0]
        )
    return found
