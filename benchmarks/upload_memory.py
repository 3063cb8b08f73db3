"""The owner's memory growth per concurrent upload: `upload_memory_mib`, at most 8, whatever the model's size.

    python -m benchmarks.upload_memory [--uploads 8] [--mebibytes 32 128] [--folder DIR] [--out FILE]

An owner's process to which all contributors are connected, and which has taken one upload of 2 MiB, is the baseline: what the
first upload ever makes the process load is not what one more upload costs. Then all contributors upload at once, each over
its own connection, and the process's resident memory is sampled every 5 ms; growth is the highest sample minus the baseline,
divided by the uploads. Every size gets a fresh owner; the value is the worst of them.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.records import Record, emit
from contributor.client import OwnerClient, State
from tests.network import Owner, OwnerProcess, Signed, submission

BUDGET = 8.0
SAMPLE_SECONDS = 0.005


def highest(process: OwnerProcess, stop: threading.Event) -> int:
    """The owner's highest resident memory until `stop`, in KiB."""
    peak = 0
    while not stop.wait(SAMPLE_SECONDS):
        peak = max(peak, process.resident_kib())
    return peak


def hand_in(client: OwnerClient, signed: Signed) -> None:
    status = client.submit(signed.manifest, signed.signature, signed.path)
    if status.state is not State.PENDING:
        raise RuntimeError(f"the submission is {status.state}")


def growth_per_upload(folder: Path, uploads: int, size: int) -> float:
    """MiB."""
    owner = Owner.found(folder / "owner", weights=size)
    process = OwnerProcess.start(owner.workspace.root, quotas__tries_per_release=10_000)
    owner.port, owner.enrolment_port = process.port, process.enrolment_port
    clients = [owner.contributor(f"c{number}", folder / "homes", patience=60.0) for number in range(uploads)]
    base = clients[0].release().id
    for client in clients:
        client.submissions()
    hand_in(clients[0], submission(clients[0], base, folder / "first.safetensors", bytes_=2 << 20))
    signed = [submission(client, base, folder / f"{client.name}.safetensors", bytes_=size) for client in clients]
    stop = threading.Event()
    with ThreadPoolExecutor(uploads + 1) as pool:
        baseline = process.resident_kib()
        sampling = pool.submit(highest, process, stop)
        list(pool.map(hand_in, clients, signed))
        stop.set()
        peak = sampling.result()
    for client in clients:
        client.close()
    process.kill()
    owner.store.close()
    return (peak - baseline) / 1024 / uploads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uploads", type=int, default=8)
    parser.add_argument("--mebibytes", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--folder", type=Path, help="where everything is written; default: the one for temporary files")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    growths = {}
    for mebibytes in arguments.mebibytes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            growths[mebibytes] = growth_per_upload(Path(folder), arguments.uploads, mebibytes << 20)
    sizes = " ".join(map(str, arguments.mebibytes))
    record = Record(
        "upload_memory_mib",
        round(max(growths.values()), 2),
        "MiB",
        BUDGET,
        f"python -m benchmarks.upload_memory --uploads {arguments.uploads} --mebibytes {sizes}",
        arguments.uploads,
        notes="; ".join(f"{size} MiB each: {growth:.2f} MiB an upload" for size, growth in growths.items()),
    )
    emit([record], arguments.out)


if __name__ == "__main__":
    main()
