"""The loop over rounds, for any `Method`, with the sampled clients as one stack or one after another."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedvpa.config import ExperimentConfig
from fedvpa.federation import faults, privacy
from fedvpa.federation.aggregate import ServerOptimizer, concatenate, initial_moments, server_step
from fedvpa.federation.divergence import Divergence
from fedvpa.federation.reception import Reception, receive
from fedvpa.methods.base import (
    ClientBatch,
    Download,
    JudgementBatch,
    Judging,
    LocalNoise,
    Method,
    Pool,
    Private,
    ServerState,
    Surveying,
    Upload,
    draw_noise,
    examples,
    judgements_of,
    padded_judgements,
)
from fedvpa.preferences.schema import Client
from fedvpa.preferences.seeding import generator
from fedvpa.variational.selector import Theta

STACK_BYTES = 64 * 2**20
"""Clients train in stacks whose parameters, gradients and moments stay about this small: larger ones leave the cache,
smaller ones pay the fixed cost of a step more often."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that a checkpoint holds: the server's state, its optimiser's, and the clients' private rows.

    `faults` counts what went wrong so far, () int64 by what the server saw (`RoundReport.faults`).
    """

    server: ServerState
    optimizer: Theta
    private: Private
    faults: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundReport:
    """What a round cost and what the clients reported, for callbacks.

    Attributes:
        round: rounds completed, from 1.
        metrics: mean over the round's clients of each uploaded scalar.
        bytes_up, bytes_down: per client; seconds: wall time of the round.
        faults: clients that were ``silent``, ``failed`` or ``rejected``, and ``injected/KIND``; empty without any.
        rejected: client -> why its upload was rejected.
        epsilon: of everything released so far, infinite without noise; None where privacy is off.
    """

    round: int
    metrics: dict[str, float]
    bytes_up: int
    bytes_down: int
    seconds: float
    faults: dict[str, int] = field(default_factory=dict)
    rejected: dict[int, str] = field(default_factory=dict)
    epsilon: float | None = None


Callback = Callable[[RoundReport, TrainingState], None]


class ClientData:
    """The training clients' pairs as padded index tensors over the pool, sliced per round without touching text.

    Args:
        pool: the pairs.
        clients: the clients that are here; all others of the federation are somewhere else.
        ids: (clients,) positions of these among all training clients; empty: they are all there are.
    """

    def __init__(self, pool: Pool, clients: Sequence[Client], ids: Tensor | None = None) -> None:
        self.pool = pool
        self.ids = torch.arange(len(clients)) if ids is None else ids
        self.counts = torch.tensor([len(c.train) for c in clients])
        width = int(self.counts.max())
        self.index = torch.zeros(len(clients), width, dtype=torch.int64)
        self.y = torch.zeros(len(clients), width, dtype=pool.items.dtype)
        self._clients = clients
        self.examples = torch.tensor([examples(c) for c in clients])
        for i, c in enumerate(clients):
            self.index[i, : len(c.train)] = c.train.index
            self.y[i, : len(c.train)] = c.train.y.to(self.y.dtype)
        self.device = pool.items.device
        self.index, self.y = self.index.to(self.device), self.y.to(self.device)

    def __len__(self) -> int:
        return len(self.counts)

    @cached_property
    def judgements(self) -> JudgementData:
        """The same clients' judgements as they were given."""
        return JudgementData(self.pool, self._clients, self.ids)

    def flipped(self, ids: Tensor) -> ClientData:
        """The same clients, the labels of the clients `ids` (n,) exchanged."""
        if not len(ids):
            return self
        other = copy.copy(self)
        other.y = self.y.index_copy(0, ids, -self.y[ids])
        other.__dict__["judgements"] = exchanged = copy.copy(self.judgements)
        judged = exchanged.judged
        exchanged.judged = judged._replace(y=judged.y.index_copy(0, ids, -judged.y[ids]))
        return other

    def batch(self, rows: Tensor) -> ClientBatch:
        """The pairs of the clients at positions `rows` (K,) here, padded to the longest among them."""
        width = int(self.counts[rows].max())
        x, base = self.pool.rows(self.index[rows, :width])
        mask = torch.arange(width) < self.counts[rows].unsqueeze(-1)
        places = None if self.pool.texts is None else self.index[rows, :width]
        ids, y = self.ids[rows].to(self.device), self.y[rows, :width]
        return ClientBatch(ids, x, base, y, mask.to(self.device), places, self.pool.texts)


class JudgementData:
    """The training clients' judgements as padded index tensors over the pool's items.

    Args:
        pool: the items and pairs; clients, ids: as in `ClientData`. A client without judgements of its own kind has its
            pairs as choices.
    """

    def __init__(self, pool: Pool, clients: Sequence[Client], ids: Tensor) -> None:
        self.pool, self.ids = pool, ids
        given = [judgements_of(c, pool.pairs) for c in clients]
        self.judged = padded_judgements(given, pool.items.dtype, pool.rating_scale)
        self.counts = (self.judged.weight > 0).sum(-1)

    def batch(self, rows: Tensor) -> JudgementBatch:
        """The judgements of the clients at positions `rows` (K,), with the items that they are about."""
        width = int(self.counts[rows].max())
        first, second, y, rated, weight = (t[rows, :width] for t in self.judged)
        used, place = torch.cat([first, second.clamp(min=0)], 1).unique(return_inverse=True)
        first, other = place.chunk(2, 1)
        second = torch.where(second < 0, -1, other)
        return JudgementBatch(self.ids[rows], self.pool.items[used], first, second, y, rated, weight, self.counts[rows])


def sample_clients(config: ExperimentConfig, total: int, round: int, available: Tensor | None = None) -> Tensor:
    """(sampled,) distinct clients of a round, sorted, from (seed, round); unpredictable with `privacy.secret_noise`.

    Args:
        available: (total,) bool, clients that can be reached. With all of them it is the sample without it.
    """
    order = torch.randperm(total, generator=generator(privacy.root_seed(config), "sample", round))
    order = order if available is None else order[available[order]]
    return order[: min(config.federation.sampled_clients, len(order))].sort().values


def round_noise(method: Method, config: ExperimentConfig, data: ClientData, rows: Tensor, round: int) -> LocalNoise:
    """The stacked noise of the clients at positions `rows`, each drawn from (seed, round, client)."""
    spec, width = method.noise_spec(), int(data.counts[rows].max())
    drawn = [(int(data.counts[i]), generator(config.seed, "local", round, int(data.ids[i]))) for i in rows]
    each = [draw_noise(spec, pairs, width, g) for pairs, g in drawn]
    dtype = data.pool.items.dtype
    stacked = LocalNoise(*(torch.cat(parts) for parts in zip(*each, strict=True)))
    stacked = stacked._replace(normal=stacked.normal.to(dtype), gumbel=stacked.gumbel.to(dtype))
    return LocalNoise(*(t.to(data.device) for t in stacked))


def stack_size(theta: Theta, engine: str, joint: bool) -> int:
    """Clients in one stack: one in the loop, all for a method that trains jointly, else what fits `STACK_BYTES`."""
    if joint:
        return 2**31
    if engine == "loop":
        return 1
    size = 4 * sum(t.numel() * t.element_size() for t in theta.values())
    return max(1, STACK_BYTES // size)


def run_clients(
    method: Method, config: ExperimentConfig, data: ClientData, state: TrainingState, ids: Tensor
) -> tuple[Upload, Private]:
    """Local training of the clients `ids` (K,) where all clients are here; see `train_clients`.

    Where only the sum over the clients matters, a method that can computes it at once (`Judging.cohort_update`).
    """
    if isinstance(method, Judging) and only_sums_matter(config):
        download = method.broadcast(state.server)
        noise = round_noise(method, config, data, ids, download.round)
        return method.cohort_update(download, data.judgements.batch(ids), noise), state.private
    return train_clients(method, config, data, method.broadcast(state.server), state.private, ids)


def only_sums_matter(config: ExperimentConfig) -> bool:
    """Whether a round uses its clients' uploads as a weighted sum alone: nothing is clipped, checked or faulty."""
    plain = config.federation.aggregation == "mean" and config.federation.engine == "vectorized"
    return plain and not config.privacy.on and not config.faults.kinds and not config.defence.reject


def train_clients(
    method: Method,
    config: ExperimentConfig,
    data: ClientData,
    download: Download,
    private: Private,
    rows: Tensor,
    secret: int | None = None,
) -> tuple[Upload, Private]:
    """Local training of the clients at positions `rows` (K,) of `data`, in stacks.

    Args:
        private: the private state of all clients of `data`, in their order.
        secret: what the clients' own noise derives from; None: `privacy.root_seed`.

    Returns:
        The clients' uploads, by id, and the private state after it.
    """
    size = stack_size(download.theta, config.federation.engine, getattr(method, "joint", False))
    # Clients of similar size share a stack, so that little is padding; the order of processing has no effect.
    order = rows[data.counts[rows].argsort(stable=True)]
    uploads, private = [], dict(private)
    # Stacks as equal as possible: each has a cost of its own.
    for part in order.tensor_split(-(-len(rows) // size)):
        part = part.sort().values
        noise = round_noise(method, config, data, part, download.round)
        mine = {k: v[part] for k, v in private.items()}
        batch: Any = data.judgements.batch(part) if isinstance(method, Judging) else data.batch(part)
        upload, changed = method.client_update(download, mine, batch, noise)
        uploads.append(privacy.protect(upload, download.theta, config, download.round, secret))
        for k, v in changed.items():
            private[k] = private[k].index_copy(0, part.to(v.device), v)
    return concatenate(uploads), private


def server_optimizer(config: ExperimentConfig, round: int = 0, pace: float = 1.0) -> ServerOptimizer:
    """The server's optimiser in a round; its learning rate falls linearly to nothing over the last rounds.

    A joint method (`central-vpl`) takes the same steps on its one change, so that it differs in the data's place only.

    Args:
        pace: factor of the learning rate (`Judging.pace`).
    """
    f = config.federation
    left = 1 - round / f.rounds
    rate = pace * f.server_learning_rate * (min(1.0, left / f.server_decay) if f.server_decay > 0 else 1.0)
    return ServerOptimizer(
        f.server_optimizer,
        rate,
        f.server_momentum,
        f.server_weight_decay,
        aggregation=f.aggregation,
        byzantine=f.byzantine,
    )


def start(method: Method, config: ExperimentConfig, clients: int) -> TrainingState:
    """The state before the first round, from the configuration's seed."""
    server = method.init_server(generator(config.seed, "init"))
    moments = initial_moments(server_optimizer(config), server.theta, getattr(method, "models", 1))
    return TrainingState(server, moments, method.init_client(clients))


def survey(
    method: Method, config: ExperimentConfig, data: ClientData, state: TrainingState
) -> tuple[TrainingState, int]:
    """Before a round in which the method asks for it (`surveys`), *every* client reports and the server regroups them.

    Returns:
        The state, and the bytes that each client sent for it.
    """
    if not isinstance(method, Surveying) or not method.surveys(state.server.round):
        return state, 0
    server = state.server
    download, size = method.broadcast(server), stack_size(server.theta, config.federation.engine, False)
    reports = torch.cat([method.client_report(download, data.batch(i)) for i in torch.arange(len(data)).split(size)])
    return replace(state, server=method.regroup(server, reports)), reports[0].numel() * reports.element_size()


def one_round(
    method: Method, config: ExperimentConfig, data: ClientData, state: TrainingState
) -> tuple[TrainingState, RoundReport]:
    """Survey where the method asks for one, sample, train locally, receive, aggregate, update the server.

    A round without any sound upload changes nothing but its number.
    """
    began = time.perf_counter()
    round = state.server.round
    state, reported = survey(method, config, data, state)
    joint = getattr(method, "joint", False)
    ids = torch.arange(len(data)) if joint else sample_clients(config, len(data), round)
    struck = {} if joint else faults.struck(config, len(data), ids, round)
    honest = data.flipped(faults.unlucky(struck, "label-flip"))
    sent, private = run_clients(method, config, honest, state, ids)
    reception = _receive(method, config, data, state.server, sent, struck) if not joint else Reception(sent, {})
    counts = _tally(struck, reception)
    down = method.download_bytes(method.broadcast(state.server))
    new = replace(state, server=state.server.advance())
    if reception.upload is not None:
        new = aggregate(method, config, state, reception.upload)
    report = RoundReport(
        new.server.round,
        {} if reception.upload is None else mean_metrics(reception.upload),
        sent.bytes_per_client() + reported if method.federated else 0,
        down if method.federated else 0,
        time.perf_counter() - began,
        counts,
        reception.rejected,
        privacy.epsilon_after(method, config, len(data), new.server.round),
    )
    total = {k: state.faults.get(k, torch.tensor(0)) + counts.get(k, 0) for k in sorted({*state.faults, *counts})}
    private = faults.restored(private, state.private, struck)
    return replace(new, private=private, faults=total), report


def _receive(
    method: Method,
    config: ExperimentConfig,
    data: ClientData,
    server: ServerState,
    sent: Upload,
    struck: faults.Struck,
) -> Reception:
    """What the server takes of what the clients sent, through whatever goes wrong on the way."""
    parts = [sent]
    if struck:
        first = method.init_server(generator(config.seed, "init")).theta
        parts = faults.inject(config, server, first, sent, struck)
    return receive(method, server, parts, config, data.examples)


def _tally(struck: faults.Struck, reception: Reception) -> dict[str, int]:
    """How many clients were silent, failed or rejected, and how many faults of each kind were injected."""
    kinds = Counter(struck.values())
    counts = {
        "silent": sum(kinds[k] for k in faults.SILENT),
        "failed": sum(kinds[k] for k in faults.FAILED),
        "rejected": len(reception.rejected),
    }
    return {k: v for k, v in (counts | {f"injected/{k}": v for k, v in kinds.items()}).items() if v}


def aggregate(method: Method, config: ExperimentConfig, state: TrainingState, upload: Upload) -> TrainingState:
    """The server's part of a round: the optimiser's step on the mean change, then the method's own update."""
    round, pace = state.server.round, method.pace(state.server) if isinstance(method, Judging) else 1.0
    optimizer = server_optimizer(config, round, pace)
    private = config.privacy.clip is not None
    mean = privacy.mean_of(config, len(state.server.counts), round) if private else None
    theta, moments = server_step(optimizer, state.server.theta, upload, state.optimizer, mean)
    server = method.server_update(state.server, upload, theta, generator(config.seed, "server", round))
    return replace(state, server=server, optimizer=moments)


def mean_metrics(upload: Upload) -> dict[str, float]:
    """The mean over a round's clients of each scalar that they report."""
    return {k: float(v.double().mean()) for k, v in upload.metrics.items()}


def train(
    method: Method,
    config: ExperimentConfig,
    data: ClientData,
    state: TrainingState | None = None,
    callback: Callback | None = None,
) -> TrainingState:
    """Runs the rounds that are left, calling `callback` after each.

    Args:
        state: where to go on (a checkpoint); None starts afresh.

    Raises:
        UserError: privacy is on, and the method sends what the account does not cover; or the training diverges.
    """
    privacy.check(method, config)
    state, divergence = state or start(method, config, len(data)), Divergence(config)
    while state.server.round < config.federation.rounds:
        with divergence.within(state.server.round):
            state, report = one_round(method, config, data, state)
        divergence.check(state.server, report.metrics)
        if callback is not None:
            callback(report, state)
    return state
