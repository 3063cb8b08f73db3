"""Weights through Portier against a raw TLS socket copy: `transfer_vs_raw_tls`, at least 0.60.

    python -m benchmarks.transfer [--mebibytes 256] [--pairs 5] [--folder DIR] [--out FILE]

Both copy the same file between two processes over loopback with mutual TLS (EC P-256), in pieces of 1 MiB. Both senders
hash the file first, both receivers hash what comes (SHA-256), write it and fsync it before they answer. Portier's way
is `OwnerClient.submit`: digest check, BeginSubmission, Upload, ledger entry, signed receipt. The two take turns, so that
a busy machine or disk slows both; the value is the median over the pairs of raw seconds / Portier's seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import shutil
import socket
import ssl
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.records import Record, emit
from common.files import write_secret
from common.weights import digest_file
from contributor.client import OwnerClient, State
from tests.network import Owner, OwnerProcess, sign, submission

BUDGET = 0.60
PIECE = 1 << 20


def receive_raw(folder: Path, ready: Connection) -> None:
    """Per connection: eight bytes of length, then the file; answers with its SHA-256 once it is on disk."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    buffer = memoryview(bytearray(PIECE))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready.send(listener.getsockname()[1])
        while True:
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as connection, (folder / "raw").open("wb", 0) as file:
                left, digest = int.from_bytes(connection.recv(8), "little"), hashlib.sha256()
                while left:
                    count = connection.recv_into(buffer)
                    digest.update(buffer[:count])
                    file.write(buffer[:count])
                    left -= count
                os.fsync(file.fileno())
                connection.sendall(digest.digest())


def send_raw(folder: Path, port: int, path: Path) -> float:
    """Seconds from the file to the answer that it is on the other side's disk."""
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    context.load_cert_chain(folder / "client.pem")
    start = time.perf_counter()
    digest = digest_file(path)
    plain = socket.create_connection(("127.0.0.1", port))
    with context.wrap_socket(plain, server_hostname="localhost") as connection, path.open("rb", 0) as file:
        connection.sendall(path.stat().st_size.to_bytes(8, "little"))
        while piece := file.read(PIECE):
            connection.sendall(piece)
        if connection.recv(32).hex() != digest:
            raise RuntimeError("the raw copy arrived altered")
    return time.perf_counter() - start


def send_portier(client: OwnerClient, owner: Owner, base: str, path: Path) -> float:
    """Seconds from the file to the verified receipt. The owner's copy is removed afterwards."""
    signed = sign(client, base, path)
    start = time.perf_counter()
    status = client.submit(signed.manifest, signed.signature, path)
    seconds = time.perf_counter() - start
    if status.state is not State.PENDING:
        raise RuntimeError(f"the submission is {status.state}")
    shutil.rmtree(owner.workspace.submission(status.id).directory)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where the receivers write; default: the folder for temporary files"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    size = arguments.mebibytes << 20
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        quotas: dict[str, Any] = {
            "quotas__tries_per_release": 10_000,
            "quotas__upload_bytes": 1 << 50,
            "quotas__open_submissions": 100,
        }
        owner = Owner.found(folder / "owner", weights=size)
        process = OwnerProcess.start(owner.workspace.root, **quotas)
        owner.port, owner.enrolment_port = process.port, process.enrolment_port

        client = owner.contributor("ann", folder / "homes")
        identity, server = client.membership.identity(), owner.authority.issue_server(["localhost"], days=1)
        write_secret(folder / "client.pem", identity.key + identity.certificate)
        write_secret(folder / "server.pem", server.key.pem + server.certificate_chain_pem)
        (folder / "ca.pem").write_bytes(owner.authority.certificate_pem)
        receiving, sending = multiprocessing.Pipe(duplex=False)
        raw = multiprocessing.get_context("forkserver").Process(target=receive_raw, args=(folder, sending), daemon=True)
        raw.start()
        port = receiving.recv()

        path = submission(client, client.release().id, folder / "weights.safetensors", bytes_=size).path
        base = client.release().id
        pairs = []
        for _ in range(arguments.pairs + 1):
            pairs.append((send_raw(folder, port, path), send_portier(client, owner, base, path)))
        # The first pair opens connections and files for the first time.
        pairs = pairs[1:]
        client.close()
        raw.kill()
        process.kill()
        owner.store.close()
    rates = [size / 1e6 / statistics.median(seconds) for seconds in zip(*pairs, strict=True)]
    ratios = sorted(mine / other for mine, other in pairs)
    notes = (
        f"{arguments.mebibytes} MiB; medians {rates[1]:.0f} MB/s through Portier, {rates[0]:.0f} MB/s raw TLS; "
        f"ratios {', '.join(f'{ratio:.2f}' for ratio in ratios)}"
    )
    command = f"python -m benchmarks.transfer --mebibytes {arguments.mebibytes} --pairs {arguments.pairs}"
    value = round(statistics.median(ratios), 3)
    emit([Record("transfer_vs_raw_tls", value, "ratio", BUDGET, command, arguments.pairs, notes=notes)], arguments.out)


if __name__ == "__main__":
    main()
