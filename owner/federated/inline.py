"""A grid without machines: every client runs in this process, one after the other. For tests, and for small federations
where starting Ray would cost more than the clients do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo  # the type Flower's own Grid is declared with
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity  # what run_simulation sets, too, before messages can be made

from owner.federated.memory import digest_of_content, memory, size_of_content

_RUN = 1


class InlineGrid(Grid):
    """nodes: how many. Node number i holds partition i. A client that raises answers with an error, as on any grid.

    follows_from: what beside the message decides an answer, given the kind of message and the partition; within
        `remembering` what was answered before is then not asked again. Where it is left out, every message is.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: int,
        run_config: dict[str, Any] | None = None,
        *,
        follows_from: Callable[[str, int], Hashable] | None = None,
    ) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN, 1
        self._app, self._follows_from = client_app, follows_from
        self._sent = 0
        self._replies: dict[str, Message] = {}
        # Ids start at 1000, so that nobody takes one for a partition.
        self._contexts = {
            1000 + partition: Context(
                run_id=_RUN,
                node_id=1000 + partition,
                node_config=UserConfig({"partition-id": partition, "num-partitions": nodes}),
                state=RecordDict(),
                run_config=UserConfig(run_config or {}),
            )
            for partition in range(nodes)
        }

    def set_run(self, run: Run) -> None:
        """There is one run."""

    @property
    def run(self) -> Run:
        return Run.create_empty(run_id=_RUN)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node) for node in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = str(self._sent)  # Flower's in-memory grid does the same
            self._replies[str(self._sent)] = self._answer(message)
            ids.append(str(self._sent))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(number) for number in message_ids if number in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            if self._follows_from is None:
                return self._app(message, context)
            kind = message.metadata.message_type
            key = self._follows_from(kind, int(str(context.node_config["partition-id"])))
            found = memory().get(
                ("answer", kind, key, digest_of_content(message.content)),
                lambda: self._app(message, context).content,
                size=size_of_content,
            )
            return Message(_own(found), reply_to=message)
        except Exception as error:  # noqa: BLE001 - a client may raise anything, and must not end the federation
            logging.getLogger("flwr").error("a client failed: %s: %s", type(error).__name__, error)
            return Message(Error(code=2, reason=f"{type(error).__name__}: {error}"), reply_to=message)


def _own(content: RecordDict) -> RecordDict:
    # Flower's strategies take arrays out of the records they are given.
    records = {
        name: ArrayRecord(dict(record)) if isinstance(record, ArrayRecord) else record
        for name, record in content.items()
    }
    return RecordDict(records)
