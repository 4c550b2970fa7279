"""A Flower grid in one process: messages go through Flower's own serialisation, ClientApps answer at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from fedvpa.backbone import Features
from fedvpa.config import ExperimentConfig
from fedvpa.network.client_app import client_app
from fedvpa.network.node import Node
from fedvpa.preferences.schema import FederatedPreferences

Tamper = Callable[[int, Message], Message | None]


def wire(message: Message) -> Message:
    """The message as it arrives at the other end."""
    contents = {name: thing.deflate() for name, thing in get_all_nested_objects(message).items()}
    arrived = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(arrived, Message)
    arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
    return arrived


class FakeGrid(Grid):
    """Nodes 1, 2, ... with their apps. `absent` nodes are not there; `tamper` may change or lose a node's reply."""

    def __init__(self, nodes: Sequence[Node], tamper: Tamper | None = None) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # a SuperLink would set them
        self.apps = {i: client_app(lambda _, n=n: n) for i, n in enumerate(nodes, 1)}  # type: ignore[misc]
        self.tamper, self.absent, self.log = tamper, set[int](), list[tuple[int, str]]()

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [n for n in self.apps if n not in self.absent]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.log.append((node, message.metadata.message_type))
            message.metadata.__dict__["_message_id"] = str(uuid4())
            reply = self._answer(node, wire(message))
            if reply is not None:
                replies.append(reply)
        return replies

    def _answer(self, node: int, message: Message) -> Message | None:
        if node in self.absent:
            return None
        context = Context(0, node, {}, RecordDict(), {})
        try:
            reply: Message | None = self.apps[node](message, context)
        except (RuntimeError, ValueError) as e:  # what a SuperNode does with an app that crashes
            reply = Message(Error(2, str(e)), reply_to=message)
        if self.tamper is not None and reply is not None:
            reply = self.tamper(node, reply)
        return None if reply is None else wire(reply)


def nodes_of(
    config: ExperimentConfig, data: FederatedPreferences, features: Features, folder: Path, count: int
) -> list[Node]:
    """The training clients dealt out to `count` nodes."""
    clients = data.clients["seen"]
    made = []
    for p in range(count):
        mine = range(p, len(clients), count)
        names = tuple(f"{i:08d}" for i in mine)
        made.append(Node(config, names, tuple(clients[i] for i in mine), data, features, folder / f"node-{p}"))
    return made
