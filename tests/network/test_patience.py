"""A SuperLink whose database is locked for a moment, with Flower's own `send_and_receive`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid

from fedvpa.network.nodes import patient


class Locked(http_grid.HttpGrid):  # type: ignore[misc]
    """Answers its first look with the given status, and the second with an answer."""

    _is_connected = False

    def __init__(self, status: int) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # a SuperLink would set them
        self.status, self.looks = status, 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self.sent = list(messages)
        self.sent[0].metadata.__dict__["_message_id"] = "m"
        return ["m"]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.looks += 1
        if self.looks == 1:
            response = httpx.Response(self.status, request=httpx.Request("POST", "https://server/pull-messages"))
            response.raise_for_status()
        return [Message(RecordDict(), reply_to=self.sent[0])]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: Any) -> None:
    monkeypatch.setattr(http_grid.time, "sleep", lambda seconds: None)


def test_a_look_that_fails_found_nothing() -> None:
    said: list[str] = []
    grid = Locked(500)
    (answer,) = patient(grid, said.append).send_and_receive([Message(RecordDict(), 7, "train")], timeout=60)
    assert answer.metadata.src_node_id == 7
    assert (grid.looks, len(said)) == (2, 1)


def test_who_is_not_allowed_to_look_is_told_so() -> None:
    with pytest.raises(httpx.HTTPStatusError):
        patient(Locked(401)).send_and_receive([Message(RecordDict(), 7, "train")], timeout=60)
