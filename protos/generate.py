"""Generate the stubs from collaboration.proto: `python -m protos.generate`; with --check, compare and change nothing."""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import resources
from pathlib import Path

HERE = Path(__file__).resolve().parent
STUBS = ("collaboration_pb2.py", "collaboration_pb2.pyi", "collaboration_pb2_grpc.py")


def generate(into: Path) -> None:
    """Write fresh stubs into the folder `into`. Raises RuntimeError where protoc refuses the definition."""
    from grpc_tools import protoc  # noqa: PLC0415 - a development tool; --help works without it

    included = resources.files("grpc_tools") / "_proto"
    arguments = [
        "protoc",
        f"--proto_path={HERE}",
        f"--proto_path={included}",
        f"--python_out={into}",
        f"--pyi_out={into}",
        f"--grpc_python_out={into}",
        "collaboration.proto",
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc refused collaboration.proto; its message stands above")
    # protoc writes a top-level import, which holds only where the stubs' own folder is on the path.
    services = into / "collaboration_pb2_grpc.py"
    text = services.read_text("utf-8")
    found = "import collaboration_pb2 as collaboration__pb2"
    if text.count(found) != 1:
        raise RuntimeError(f"grpc_tools writes its import differently now; adapt {Path(__file__).name}")
    services.write_text(text.replace(found, "from protos import collaboration_pb2 as collaboration__pb2"), "utf-8")


def differing(against: Path = HERE) -> list[str]:
    """Names of the stubs that are missing or differ from a fresh generation."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        return [
            name
            for name in STUBS
            if not (against / name).is_file() or (against / name).read_bytes() != (fresh / name).read_bytes()
        ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m protos.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with a fresh generation, write nothing")
    if parser.parse_args(arguments).check:
        stale = differing()
        if stale:
            sys.stderr.write(f"stale stubs: {', '.join(stale)}\n  -> run `python -m protos.generate` and commit\n")
        return 1 if stale else 0
    generate(HERE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
