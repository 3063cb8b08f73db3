"""What a vetting process may use: memory beyond its own start, processor time, no core dumps.

Set from inside the child, after its imports: a limit in absolute numbers would count what Python and PyTorch map before
any submission is looked at, which differs from machine to machine. Where the system has no such limit (Windows; macOS
ignores RLIMIT_DATA) only the supervisor's wall clock holds.
"""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_MIB = 1 << 20
_OUT_OF_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "cannot allocate", "memoryerror")


def forbid_core_dumps() -> None:
    """A core dump would leave a contributor's weights, and the owner's images, on disk."""
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_memory(mebibytes: int) -> None:
    """Allow `mebibytes` of private memory on top of what the process has now.

    RLIMIT_DATA, not RLIMIT_AS: it counts memory that can be written, not address space that allocators and CUDA
    reserve and never touch. Only the soft limit is set, so that a later call may raise it again.
    """
    if resource is None or not sys.platform.startswith("linux"):
        return
    _lower(resource.RLIMIT_DATA, private_bytes() + mebibytes * _MIB)


def limit_processor_seconds(seconds: float) -> None:
    """End the process (SIGXCPU) after `seconds` more of processor time, all threads together: a backstop for the day when
    the supervisor that watches the clock is gone."""
    if resource is not None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _lower(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime + seconds) + 1)


def private_bytes() -> int:
    """Bytes of writable private memory of this process, as RLIMIT_DATA counts them (VmData; Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or one it was raised from, says that memory ran out; PyTorch says so in a RuntimeError."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or reads_out_of_memory(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def reads_out_of_memory(text: str) -> bool:
    """
    >>> reads_out_of_memory("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")
    True
    """
    lowered = text.lower()
    return any(sign in lowered for sign in _OUT_OF_MEMORY)


def _lower(kind: int, wanted: int) -> None:
    _, hard = resource.getrlimit(kind)
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (soft, hard))
