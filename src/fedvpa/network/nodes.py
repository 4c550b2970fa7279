"""The nodes of a training as the server sees them: who holds which users, and messages to and from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedvpa.config import ExperimentConfig
from fedvpa.federation import declared
from fedvpa.federation.moments import Moments
from fedvpa.network import messages
from fedvpa.network.faults import Faults
from fedvpa.network.messages import ENROLL, PROTOCOL, Refusal, Stamp
from fedvpa.network.session import Session

ATTEMPTS = 3
"""How often a node is asked who its users are, before it counts as one without any."""


def patient(grid: Grid, say: Callable[[str], None] = print) -> Grid:
    """The grid, which survives that the SuperLink cannot look for answers at the moment.

    With ``--database`` it keeps messages in SQLite. Where nodes write at the same time that may be locked; Flower 1.41
    then answers with an error of the server (5xx), which it does not try again, and the whole training would end.
    `Grid.send_and_receive` looks for answers again and again, so a look that fails is one that found nothing.
    """
    look = grid.pull_messages

    def pull_messages(message_ids: Iterable[str]) -> Iterable[Message]:
        try:
            return look(message_ids)
        except httpx.HTTPStatusError as e:
            if not e.response.is_server_error:
                raise
            say(f"the SuperLink could not look for answers ({e.response.status_code}); trying again")
            return []

    grid.pull_messages = pull_messages
    return grid


class Nodes:
    """The nodes that can be reached.

    Args:
        grid: Flower's way to them.
        config: the experiment; both ends have the same.
        faults: where faults are noted; say: told what a person should know.
        known_by: what the features are known by; empty: they are not compared.

    Attributes:
        held: per node the users that it answers for.
        enrolled: per user the number of its training pairs and its moments, as they came.
    """

    def __init__(
        self, grid: Grid, config: ExperimentConfig, faults: Faults, say: Callable[[str], None], known_by: str = ""
    ) -> None:
        self.grid, self.config, self.faults, self.say, self.known_by = grid, config, faults, say, known_by
        self.held: dict[int, tuple[str, ...]] = {}
        self.enrolled: dict[str, tuple[int, Moments]] = {}
        self._asked: dict[int, int] = {}

    def enroll(self, training: str, round: int, session: Session | None) -> None:
        """Asks nodes that are new (a restarted SuperNode is) who their users are; forgets nodes that are gone."""
        present = set(self.grid.get_node_ids())
        self.held = {node: users for node, users in self.held.items() if node in present}
        self._asked = {node: times for node, times in self._asked.items() if node in present}
        new = [n for n in sorted(present) if n not in self.held and self._asked.get(n, 0) < ATTEMPTS]
        stamp = Stamp(training, round)
        head = ConfigRecord({"protocol": PROTOCOL, **stamp._asdict(), "features": self.known_by})
        for node in new:
            self._asked[node] = self._asked.get(node, 0) + 1
        asked = {node: RecordDict({"task": head}) for node in new}
        for node, content in self.exchange(ENROLL, asked, round).items():
            try:
                self._register(node, stamp, content, session)
            except Refusal as e:
                self.faults.add(round, "rejected", f"enroll: {e}", node=node)
                self.say(f"round {round + 1}: node {node} is left out: {e}")

    def _register(self, node: int, stamp: Stamp, content: RecordDict, session: Session | None) -> None:
        fields = messages.enroll_fields(messages.reply_features(content), self.config)
        if session is not None and fields["moments.total"].shape != (session.features,):
            raise Refusal("its features have another dimension; use one backbone everywhere")
        reply = messages.read_reply(content, fields, None, stamp)
        moments, bad = messages.as_moments(reply.arrays), declared.problems(reply.arrays, fields)
        known = {} if session is None else dict(zip(session.users, session.pairs, strict=True))
        elsewhere = {u for users in self.held.values() for u in users}
        for i, user in enumerate(reply.users):
            late = session is not None and user not in known
            if reply.arrays["pairs"][i] > known.get(user, math.inf):
                bad.setdefault(i, "more pairs than in round 0; only a new training can use them")
            kind = "rejected" if i in bad else "claimed" if user in elsewhere else "late" if late else None
            if kind is None:
                self.enrolled[user] = (int(reply.arrays["pairs"][i]), moments[i])
            else:
                self.faults.add(stamp.round, kind, bad.get(i, ""), (user,), node)
        for user, why in reply.refused.items():
            self.faults.add(stamp.round, "refused", why, (user,), node)
        out = {reply.users[i] for i in bad} | elsewhere
        self.held[node] = tuple(u for u in reply.users if u in self.enrolled and u not in out)

    def exchange(
        self, kind: str, contents: dict[int, RecordDict], round: int, users: Mapping[int, tuple[str, ...]] | None = None
    ) -> dict[int, RecordDict]:
        """Sends a message to each node and waits for the answers, `network.timeout` seconds at most.

        Args:
            users: per node the users that the message is about, to be named if no answer comes.
        """
        if not contents:
            return {}
        timeout = self.config.network.timeout
        sent = [Message(c, n, kind, ttl=timeout, group_id=str(round + 1)) for n, c in contents.items()]
        answers: dict[int, RecordDict] = {}
        failed: dict[int, str] = {}
        for reply in self.grid.send_and_receive(sent, timeout=timeout):
            node = reply.metadata.src_node_id
            if node not in contents or node in answers:
                continue
            if reply.has_error():
                failed[node] = reply.error.reason or f"error {reply.error.code}"
            else:
                answers[node] = reply.content
        for node in contents:
            if node not in answers:
                why = failed.get(node, "")
                about = (users or {}).get(node, ())
                self.faults.add(round, "failed" if why else "silent", f"{kind}: {why}", about, node)
                self.say(f"round {round + 1}: node {node}: {why[:200] or 'no answer in time'}")
        return {node: answers[node] for node in sorted(answers)}
