"""The loop over rounds, for any `Method`, with the sampled clients as one stack or one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedvpa.config import ExperimentConfig
from fedvpa.federation import privacy
from fedvpa.federation.aggregate import ServerOptimizer, concatenate, initial_moments, server_step
from fedvpa.methods.base import (
    ClientBatch,
    LocalNoise,
    Method,
    Pool,
    Private,
    ServerState,
    Surveying,
    Upload,
    draw_noise,
)
from fedvpa.preferences.schema import Client
from fedvpa.preferences.seeding import generator
from fedvpa.variational.selector import Theta

STACK_BYTES = 64 * 2**20
"""Clients train in stacks whose parameters, gradients and moments stay about this small: larger ones leave the cache,
smaller ones pay the fixed cost of a step more often."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that a checkpoint holds: the server's state, its optimiser's, and the clients' private rows."""

    server: ServerState
    optimizer: Theta
    private: Private


@dataclass(frozen=True)
class RoundReport:
    """What a round cost and what the clients reported, for callbacks.

    Attributes:
        round: rounds completed, from 1.
        metrics: mean over the round's clients of each uploaded scalar.
        bytes_up, bytes_down: per client; seconds: wall time of the round.
        epsilon: of everything released so far, infinite without noise; None where privacy is off.
    """

    round: int
    metrics: dict[str, float]
    bytes_up: int
    bytes_down: int
    seconds: float
    epsilon: float | None = None


Callback = Callable[[RoundReport, TrainingState], None]


class ClientData:
    """The training clients' pairs as padded index tensors over the pool, sliced per round without touching text."""

    def __init__(self, pool: Pool, clients: Sequence[Client]) -> None:
        self.pool = pool
        self.counts = torch.tensor([len(c.train) for c in clients])
        width = int(self.counts.max())
        self.index = torch.zeros(len(clients), width, dtype=torch.int64)
        self.y = torch.zeros(len(clients), width, dtype=pool.x.dtype)
        for i, c in enumerate(clients):
            self.index[i, : len(c.train)] = c.train.index
            self.y[i, : len(c.train)] = c.train.y.to(self.y.dtype)
        self.device = pool.x.device
        self.index, self.y = self.index.to(self.device), self.y.to(self.device)

    def __len__(self) -> int:
        return len(self.counts)

    def batch(self, ids: Tensor) -> ClientBatch:
        """The pairs of the clients `ids` (K,), padded to the longest among them."""
        width = int(self.counts[ids].max())
        x, base = self.pool.rows(self.index[ids, :width])
        mask = torch.arange(width) < self.counts[ids].unsqueeze(-1)
        return ClientBatch(ids.to(self.device), x, base, self.y[ids, :width], mask.to(self.device))


def sample_clients(config: ExperimentConfig, total: int, round: int) -> Tensor:
    """(sampled,) distinct clients of a round, sorted, from (seed, round); unpredictable with `secret_noise`."""
    order = torch.randperm(total, generator=generator(privacy.root_seed(config), "sample", round))
    return order[: min(config.federation.sampled_clients, total)].sort().values


def round_noise(method: Method, config: ExperimentConfig, data: ClientData, ids: Tensor, round: int) -> LocalNoise:
    """The stacked noise of clients `ids`, each drawn from (seed, round, client)."""
    spec, width = method.noise_spec(), int(data.counts[ids].max())
    each = [draw_noise(spec, int(data.counts[i]), width, generator(config.seed, "local", round, int(i))) for i in ids]
    dtype = data.pool.x.dtype
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
    """Local training of the clients `ids` (K,), in stacks. Returns their uploads and private rows, by id."""
    download = method.broadcast(state.server)
    size = stack_size(state.server.theta, config.federation.engine, getattr(method, "joint", False))
    # Clients of similar size share a stack, so that little is padding; the order of processing has no effect.
    order = ids[data.counts[ids].argsort(stable=True)]
    uploads, private = [], dict(state.private)
    for part in order.tensor_split(-(-len(ids) // size)):  # stacks as equal as possible: each has a cost of its own
        part = part.sort().values
        noise = round_noise(method, config, data, part, state.server.round)
        mine = {k: v[part] for k, v in state.private.items()}
        upload, rows = method.client_update(download, mine, data.batch(part), noise)
        uploads.append(privacy.protect(upload, download.theta, config, state.server.round))
        for k, v in rows.items():
            private[k] = private[k].index_copy(0, part.to(v.device), v)
    return concatenate(uploads), private


def server_optimizer(config: ExperimentConfig, round: int = 0) -> ServerOptimizer:
    """The server's optimiser in a round; its learning rate falls linearly to nothing over the last rounds.

    A joint method (`central-vpl`) takes the same steps on its one change, so that it differs in the data's place only.
    """
    f = config.federation
    left = 1 - round / f.rounds
    rate = f.server_learning_rate * (min(1.0, left / f.server_decay) if f.server_decay > 0 else 1.0)
    return ServerOptimizer(f.server_optimizer, rate, f.server_momentum, f.server_weight_decay)


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
    """Survey where the method asks for one, sample, train locally, aggregate, update the server."""
    began = time.perf_counter()
    round = state.server.round
    state, reported = survey(method, config, data, state)
    joint = getattr(method, "joint", False)
    ids = torch.arange(len(data)) if joint else sample_clients(config, len(data), round)
    upload, private = run_clients(method, config, data, state, ids)
    mean = privacy.mean_of(config, len(data), round)
    theta, moments = server_step(server_optimizer(config, round), state.server.theta, upload, state.optimizer, mean)
    down = method.download_bytes(method.broadcast(state.server))
    server = method.server_update(state.server, upload, theta, generator(config.seed, "server", round))
    report = RoundReport(
        server.round,
        {k: float(v.double().mean()) for k, v in upload.metrics.items()},
        upload.bytes_per_client() + reported if method.federated else 0,
        down if method.federated else 0,
        time.perf_counter() - began,
        privacy.epsilon_after(method, config, len(data), server.round),
    )
    return TrainingState(server, moments, private), report


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
        UserError: privacy is on, and the method sends what the account does not cover.
    """
    privacy.check(method, config)
    state = state or start(method, config, len(data))
    while state.server.round < config.federation.rounds:
        state, report = one_round(method, config, data, state)
        if callback is not None:
            callback(report, state)
    return state
