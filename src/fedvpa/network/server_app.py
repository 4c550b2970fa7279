"""The server's side: the rounds of a method over a Flower ``Grid``.

The order of calls is that of `federation.rounds`: sample, train locally, aggregate. Only the middle happens elsewhere:
each node that holds sampled users gets one message, and whoever does not send a sound upload in time is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.evaluation.experiment import clusters_of
from fedvpa.federation import declared, privacy
from fedvpa.federation.aggregate import concatenate
from fedvpa.federation.divergence import Divergence
from fedvpa.federation.moments import rating_scale
from fedvpa.federation.reception import without_outliers
from fedvpa.federation.rounds import (
    Callback,
    ClientData,
    RoundReport,
    TrainingState,
    aggregate,
    mean_metrics,
    sample_clients,
    start,
)
from fedvpa.methods.base import Download, Method, ServerState, Upload
from fedvpa.network import messages
from fedvpa.network.faults import Faults
from fedvpa.network.messages import EVALUATE, TRAIN, Fields, Refusal, Reply
from fedvpa.network.node import check_method
from fedvpa.network.nodes import Nodes
from fedvpa.network.session import FOLDER, Session, new_name
from fedvpa.network.tasks import Task, inferences_of, write_evaluation, write_task

POLL = 0.5
"""Seconds between two looks for nodes."""


def connect(
    grid: Grid,
    config: ExperimentConfig,
    folder: Path,
    round: int = 0,
    users: int | None = None,
    groups: int = 0,
    say: Callable[[str], None] = print,
    known_by: str = "",
) -> Server:
    """The server of a run, with the session of its folder or a new one (round 0). Waits until there are nodes enough.

    Args:
        grid: Flower's way to the nodes.
        config: the experiment; both ends have the same.
        folder: the run folder; its ``network/`` holds the session and the faults.
        round: the round that begins.
        users: the number of users without whom training does not begin; None: whoever the nodes hold.
        groups: the number of true groups where it is known (simulations).
        say: told what a person should know.
        known_by: what the features here are known by (`apps.fingerprints.shared_features`); nodes with others are
            left out.

    Raises:
        UserError: a method that does not train over a network, too few nodes or users within `network.wait`, or a
            damaged session.
    """
    check_method(config)
    limits, place = config.network, folder / FOLDER
    nodes = Nodes(grid, config, Faults(place), say, known_by)
    session = Session.load(place)
    training, end = new_name() if session is None else session.training, time.monotonic() + limits.wait
    say(f"waiting for {limits.min_nodes} nodes; each computes the features of its pairs, and keeps them")
    while True:
        nodes.enroll(training, round, session)
        enough = bool(nodes.enrolled) and len(nodes.held) >= limits.min_nodes
        if enough and (session is not None or users is None or len(nodes.enrolled) >= users):
            break
        if time.monotonic() > end:
            here = f"{len(nodes.held)} nodes with {len(nodes.enrolled)} users within {limits.wait:g} s"
            raise UserError(here, "start the other SuperNodes, or lower network.min_nodes", field="network.wait")
        time.sleep(POLL)
    if session is None:
        session = _new_session(nodes, training, config)
        session.save(place)
        say(f"round 0: {len(session.users)} users at {len(nodes.held)} nodes")
    return Server(nodes, session, config, clusters_of(config, len(session.users), groups))


def _new_session(nodes: Nodes, training: str, config: ExperimentConfig) -> Session:
    """Users in the order of their pseudonyms; their moments are added in that order, as in the other engines."""
    users = sorted(nodes.enrolled)
    pairs, moments = zip(*(nodes.enrolled[u] for u in users), strict=True)
    scale = rating_scale(m.rating_sums for m in moments)
    return Session(training, tuple(users), pairs, privacy.standardizer_of(moments, config), scale)


class Server:
    """A training over a network; `connect` makes it.

    Attributes:
        nodes: the nodes; session: what round 0 has fixed; clusters: M.
    """

    def __init__(self, nodes: Nodes, session: Session, config: ExperimentConfig, clusters: int) -> None:
        self.nodes, self.session, self.config, self.clusters = nodes, session, config, clusters
        self.limits, self.faults, self.say = config.network, nodes.faults, nodes.say

    def train(
        self,
        method: Method,
        config: ExperimentConfig,
        data: ClientData | None = None,
        state: TrainingState | None = None,
        callback: Callback | None = None,
    ) -> TrainingState:
        """Runs the rounds that are left, as `federation.rounds.train` does; private state stays at the nodes.

        Args:
            data: not used: the data is at the nodes.

        Raises:
            UserError: a round has too few sound uploads, however often it is asked again, privacy is on and the
                method sends what the account does not cover, or the training diverges.
        """
        privacy.check(method, config)
        state = replace(state or start(method, config, len(self.session.users)), private={})
        divergence = Divergence(config)
        while state.server.round < config.federation.rounds:
            began = time.perf_counter()
            upload = self._round(method, state)
            down = method.download_bytes(method.broadcast(state.server))
            with divergence.within(state.server.round):
                state = aggregate(method, config, state, upload)
            divergence.check(state.server, mean_metrics(upload))
            if callback is not None:
                seconds = time.perf_counter() - began
                up = upload.bytes_per_client()
                now = state.server.round
                epsilon = privacy.epsilon_after(method, config, len(self.session.users), now)
                callback(RoundReport(now, mean_metrics(upload), up, down, seconds, epsilon=epsilon), state)
        return state

    def _round(self, method: Method, state: TrainingState) -> Upload:
        """A round's sound uploads. Clients that have sent one are not asked again when too few have."""
        round, download = state.server.round, method.broadcast(state.server)
        latent, sums = state.server.means.shape[-1], declared.sums_of(method, download)
        fields = declared.upload_fields(download.theta, latent, method.metric_names, self.config, sums)
        sound: list[Upload] = []
        for attempt in range(self.limits.retries + 1):
            if attempt:
                self.faults.add(round, "repeated")
            self._wait_for_clients(round)
            ids = self._sample(round)
            done = {int(i) for upload in sound for i in upload.ids}
            missing = torch.tensor([i for i in ids.tolist() if i not in done], dtype=torch.int64)
            sound += self._ask(missing, download, fields)
            upload = self._without_outliers(state.server, sound)
            sound = [] if upload is None else [upload]
            have = 0 if upload is None else len(upload.ids)
            if upload is not None and have >= self._least(round):
                return upload
            self.say(f"round {round + 1}: {have} sound uploads; asking again")
        raise UserError(
            f"round {round + 1} has {have} sound uploads after {self.limits.retries + 1} attempts",
            "see network/faults.jsonl in the run folder; run again to go on from the last checkpoint",
            field="network.min_clients",
        )

    def _wait_for_clients(self, round: int) -> None:
        """Looks for nodes that came or went, for as long as `network.wait` where too few are left."""
        end = time.monotonic() + self.limits.wait
        self.nodes.enroll(self.session.training, round, self.session)
        while int(self._available()[self._eligible(round)].sum()) < self._least(round):
            if time.monotonic() > end:
                return
            time.sleep(POLL)
            self.nodes.enroll(self.session.training, round, self.session)

    def _eligible(self, round: int) -> Tensor:
        """The clients that may take part in a round. Nobody stands in for a sampled one where privacy is on.

        The account counts on a client's chance of being sampled, which must not depend on who is away.
        """
        users = len(self.session.users)
        every = sample_clients(self.config, users, round) if self.config.privacy.on else torch.arange(users)
        return every[self.session.takes_part[every]]

    def _least(self, round: int) -> int:
        """Sound uploads that a round must have."""
        return min(self.limits.min_clients, len(self._eligible(round)))

    def _available(self) -> Tensor:
        """(clients,) bool, whose node is there."""
        here = {u for held in self.nodes.held.values() for u in held}
        return torch.tensor([u in here for u in self.session.users])

    def _sample(self, round: int) -> Tensor:
        """The round's clients among those that can be reached; those that would have been sampled are counted."""
        users, available = self.session.users, self._available()
        wanted = sample_clients(self.config, len(users), round)
        missing = ~available[wanted] & self.session.takes_part[wanted]
        away = tuple(users[i] for i in wanted[missing].tolist())
        if away:
            self.faults.add(round, "unreachable", users=away)
        if self.config.privacy.on:
            return wanted[available[wanted]]
        return sample_clients(self.config, len(users), round, available)

    def _without_outliers(self, server: ServerState, sound: list[Upload]) -> Upload | None:
        """The round's uploads so far, without those that `defence.update_outlier` and `posterior_outlier` reject."""
        if not sound:
            return None
        rejected: dict[int, str] = {}
        upload = without_outliers(server, concatenate(sound), self.config.defence, rejected)
        for i, why in rejected.items():
            user = self.session.users[i]
            node = next((n for n, held in self.nodes.held.items() if user in held), None)
            self._reject(server.round, node, (user,), why)
        return upload

    def _ask(self, ids: Tensor, download: Download, fields: Fields) -> list[Upload]:
        """Sound uploads of the clients `ids`, one per node."""
        round, tasks = download.round, self._tasks(ids, download)
        contents = {node: write_task(task) for node, task in tasks.items()}
        about = {node: task.users for node, task in tasks.items()}
        announced, sound = torch.tensor(self.session.pairs), []
        for node, content in self.nodes.exchange(TRAIN, contents, round, about).items():
            task = tasks[node]
            reply = self._read(content, fields, task, node)
            if reply is None:
                continue
            position = dict(zip(task.users, task.ids.tolist(), strict=True))
            mine = torch.tensor([position[user] for user in reply.users], dtype=torch.int64)
            said = announced[mine]
            bad = declared.upload_problems(reply.arrays, fields, download.theta, self.config, said)
            for i, why in bad.items():
                self._reject(round, node, (reply.users[i],), why)
            keep = [i for i in range(len(reply.users)) if i not in bad]
            if keep:
                sound.append(messages.as_upload({k: v[keep] for k, v in reply.arrays.items()}, mine[keep]))
        return sound

    def _tasks(self, ids: Tensor, download: Download) -> dict[int, Task]:
        """Per node the task of those of its users that are among the clients `ids`."""
        users, every = self.session.users, self.config.output.checkpoint_every
        wanted = {users[i]: i for i in ids.tolist()}
        # Two checkpoints are kept, so a restart may begin one before the last.
        keep_from = max(0, (download.round // every - 1) * every)
        tasks = {}
        for node, held in self.nodes.held.items():
            mine = sorted(wanted[u] for u in held if u in wanted)
            if mine:
                tasks[node] = Task(
                    self.session.training,
                    keep_from,
                    len(users),
                    self.clusters,
                    tuple(users[i] for i in mine),
                    torch.tensor(mine),
                    download,
                    self.session.standardizer,
                    self.session.rating_scale,
                    self.nodes.known_by,
                )
        return tasks

    def _read(self, content: RecordDict, fields: Fields, task: Task, node: int) -> Reply | None:
        """A reply of the declared form; None (and a fault) where it is not. What a client held back is counted."""
        round = task.download.round
        try:
            reply = messages.read_reply(content, fields, task.users, task.stamp)
        except Refusal as e:
            self._reject(round, node, task.users, str(e))
            return None
        for user, why in reply.refused.items():
            self.faults.add(round, "refused", why, (user,), node)
        return reply

    def _reject(self, round: int, node: int | None, users: tuple[str, ...], why: str) -> None:
        self.faults.add(round, "rejected", why, users, node)
        self.say(f"round {round + 1}: rejected from node {node} ({', '.join(users)}): {why}")

    def evaluate(self, method: Method, state: TrainingState) -> dict[str, float]:
        """Per inference the accuracy on the users' own held-out pairs, a mean over users; empty: nobody answered.

        This is the only evaluation where the server has no data. With privacy on nobody is asked: the account covers
        no such figure.
        """
        if self.config.privacy.on:
            return {}
        session, round = self.session, state.server.round
        download = replace(method.broadcast(state.server), prior_active=False)
        inferences = inferences_of(method)
        fields = messages.evaluate_fields(inferences, self.config)
        tasks = self._tasks(torch.arange(len(session.users)), download)
        contents = {node: write_evaluation(task, state.server) for node, task in tasks.items()}
        about = {node: task.users for node, task in tasks.items()}
        rows = []
        for node, content in self.nodes.exchange(EVALUATE, contents, round, about).items():
            reply = self._read(content, fields, tasks[node], node)
            if reply is None:
                continue
            bad = declared.problems(reply.arrays, fields)
            for i, why in bad.items():
                self._reject(round, node, (reply.users[i],), why)
            rows += [reply.arrays["accuracy"][i] for i in range(len(reply.users)) if i not in bad]
        if not rows:
            return {}
        return dict(zip(inferences, torch.stack(rows).mean(0).tolist(), strict=True))
