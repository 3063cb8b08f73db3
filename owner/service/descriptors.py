"""Open files and connections: how many this process may have, and how many of them strangers may take.

Every connection costs the owner one descriptor, and a process that has none left can neither vet nor write. So the soft limit is raised
to what the system allows, and gRPC is told how many connections each listener may hold beyond what the owner needs himself.
"""

from __future__ import annotations

import resource
from typing import Final

MOST: Final = 1 << 16
"""Descriptors: no more is asked for, where the system sets no limit at all."""
OWN: Final = 256
"""Of them for the owner's own files, pipes and processes."""
ENROLMENT: Final = 128
"""Connections of the enrolment listener, whose callers show no certificate: four times the enrolments that are worked on at a time."""
_FEWEST: Final = 16


def raise_limit() -> int:
    """Raise the soft limit on open files to the hard one; returns the limit then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MOST if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS has a further limit of its own
        return soft
    return wanted


def connections(limit: int) -> tuple[int, int]:
    """Connections that the service listener and the enrolment listener may hold, of a process with `limit` descriptors.

    >>> connections(1024), connections(128)
    ((640, 128), (16, 16))
    """
    left = limit - OWN
    enrolment = max(_FEWEST, min(ENROLMENT, left // 4))
    return max(_FEWEST, left - enrolment), enrolment
