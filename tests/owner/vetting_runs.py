"""The vetting loop as the service runs it, with the vetting worker in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from common import timestamps
from common.config import load as load_settings
from owner.ledger.records import Submission, SubmissionState
from owner.operations.opening import Office
from owner.settings import OwnerSettings
from owner.vetting import VettingLoop
from tests.owner.people import QUICK, InProcess


def settings(office: Office, **changes: Any) -> OwnerSettings:
    overrides = {**QUICK, **{name.replace("__", "."): value for name, value in changes.items()}}
    return load_settings(OwnerSettings, None, overrides, environment={})


def run(
    office: Office,
    *,
    worker: InProcess | None = None,
    until: Callable[[], bool] | None = None,
    clock: Callable[[], Any] = timestamps.now,
    seconds: float = 240.0,
    **changes: Any,
) -> None:
    """Run the loop until nothing is left to decide, or until `until`."""
    undecided = {SubmissionState.RECEIVED, SubmissionState.AWAITING_GUARD, SubmissionState.VETTING}

    def settled() -> bool:
        return not any(one.state in undecided for one in office.store.submissions())

    async def main() -> None:
        stop = asyncio.Event()
        loop = VettingLoop(
            office.workspace,
            settings(office, **{"guard__fit": "on-demand", **changes}),
            office.store,
            worker=worker or InProcess(),  # type: ignore[arg-type]
            clock=clock,
        )
        running = asyncio.create_task(loop.run(stop))
        async with asyncio.timeout(seconds):
            while not (until or settled)():
                assert not running.done(), running.exception()
                await asyncio.sleep(0.02)
        stop.set()
        await running

    asyncio.run(main())


def decided(office: Office, submission: Submission) -> tuple[SubmissionState, tuple[str, ...]]:
    found = office.store.submission(submission.id)
    return found.state, tuple((found.verdict or {}).get("codes", ()))
