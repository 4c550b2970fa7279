"""From the clients' parameters to the next global parameters: weighted average and server optimiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedvpa.federation import robust
from fedvpa.methods.base import Upload
from fedvpa.variational.selector import Theta

Kind = Literal["average", "momentum", "adam"]
Mean = Callable[[Theta, Upload], Theta]
"""From the global parameters and a round's uploads to the mean change of the clients."""


class ServerOptimizer(NamedTuple):
    """A step on the pseudo-gradient -(mean of clients' changes) (Reddi et al. 2021, 2003.00295).

    ``average`` with learning rate 1 is FedAvg; below 1 it moves the server only part of the way (ours: needed where
    few of many clients are sampled). `aggregation` says how the clients' changes become one, `byzantine` what share of
    them may lie (`federation.robust`).
    """

    kind: Kind
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    second: float = 0.999
    epsilon: float = 1e-8
    aggregation: robust.Aggregation = "mean"
    byzantine: float = 0.2

    def init(self, theta: Theta) -> Theta:
        """The optimiser's state, named tensors."""
        names = {"average": (), "momentum": ("m",), "adam": ("m", "v")}[self.kind]
        moments = {f"{n}.{k}": torch.zeros_like(v) for n in names for k, v in theta.items()}
        return moments | ({"steps": torch.zeros(())} if self.kind == "adam" else {})

    def step(self, theta: Theta, change: Theta, state: Theta) -> tuple[Theta, Theta]:
        """New parameters and state from the mean change of the round's clients."""
        new, kept = {}, dict(state)
        if self.kind == "adam":
            kept["steps"] = state["steps"] + 1
            first, second = (1 - b ** float(kept["steps"]) for b in (self.momentum, self.second))
        for k, v in theta.items():
            move = change[k]
            if self.kind != "average":
                kept[f"m.{k}"] = self.momentum * state[f"m.{k}"] + (1 - self.momentum) * move
                move = kept[f"m.{k}"]
            if self.kind == "adam":
                kept[f"v.{k}"] = self.second * state[f"v.{k}"] + (1 - self.second) * change[k] ** 2
                move = (move / first) / ((kept[f"v.{k}"] / second).sqrt() + self.epsilon)
            decay = self.weight_decay if k.endswith("weight") else 0.0
            new[k] = (1 - self.learning_rate * decay) * v + self.learning_rate * move
        return new, kept


def initial_moments(optimizer: ServerOptimizer, theta: Theta, models: int) -> Theta:
    """The server optimiser's state; one of its own for each of several models (parameters ``k/NAME``)."""
    if models == 1:
        return optimizer.init(theta)
    return {f"{k}/{n}": v for k in range(models) for n, v in optimizer.init(of_model(theta, k)).items()}


def server_step(
    optimizer: ServerOptimizer, theta: Theta, upload: Upload, state: Theta, mean: Mean | None = None
) -> tuple[Theta, Theta]:
    """The next global parameters and optimiser state from a round's uploads.

    Where the server keeps several models, each steps on the mean change of the clients that trained it, with an
    optimiser state of its own; a model that nobody trained stays as it is.

    Args:
        mean: how the clients' changes become one, where noise is composed (`federation.privacy`); None: as the
            optimiser's `aggregation` says.
    """
    mean = mean or partial(combined_change, optimizer)
    if upload.model is None:
        return optimizer.step(theta, mean(theta, upload), state)
    theta, state = dict(theta), dict(state)
    for k in upload.model.unique().tolist():
        mine, own = upload.model == k, of_model(theta, k)
        trained = {n: v[mine] for n, v in upload.theta.items()}
        part = replace(upload, ids=upload.ids[mine], theta=trained, counts=upload.counts[mine])
        new, moments = optimizer.step(own, mean(own, part), of_model(state, k))
        theta |= {f"{k}/{n}": v for n, v in new.items()}
        state |= {f"{k}/{n}": v for n, v in moments.items()}
    return theta, state


def of_model(named: Theta, k: int) -> Theta:
    """What belongs to model k, ``k/NAME``, as ``NAME``."""
    return {n.removeprefix(f"{k}/"): v for n, v in named.items() if n.startswith(f"{k}/")}


def combined_change(optimizer: ServerOptimizer, theta: Theta, upload: Upload) -> Theta:
    """The one change that the server steps on, by the optimiser's `aggregation`."""
    if optimizer.aggregation == "mean":
        return weighted_change(theta, upload)
    changes = {k: upload.theta[k] - v for k, v in theta.items()}
    if optimizer.aggregation == "median":
        return robust.median(changes)
    if optimizer.aggregation == "trimmed-mean":
        return robust.trimmed_mean(changes, optimizer.byzantine)
    return robust.krum(changes, upload.counts.to(next(iter(theta.values())).dtype), optimizer.byzantine)


def weighted_change(theta: Theta, upload: Upload) -> Theta:
    """Mean over the clients of theta_i - theta, weighted by their numbers of examples.

    `upload` is in the order of the clients' ids (`concatenate`), so the sums do not depend on who finished first or on
    how clients were grouped into stacks.
    """
    weight = upload.counts.to(next(iter(theta.values())).dtype)
    weight = weight / weight.sum()
    return {k: torch.tensordot(weight, upload.theta[k], dims=1) - v for k, v in theta.items()}


def concatenate(uploads: list[Upload]) -> Upload:
    """One upload of all clients, in the order of their ids."""
    ids = torch.cat([u.ids for u in uploads])
    if len(uploads) == 1 and bool((ids.diff() > 0).all()):
        return uploads[0]
    order = ids.argsort()
    places = order.argsort().split([len(u.ids) for u in uploads])

    def cat(parts: list[Tensor]) -> Tensor:
        out = parts[0].new_empty(len(ids), *parts[0].shape[1:])
        for place, part in zip(places, parts, strict=True):
            out.index_copy_(0, place, part)
        return out

    return Upload(
        ids[order],
        {k: cat([u.theta[k] for u in uploads]) for k in uploads[0].theta},
        cat([u.means for u in uploads]),
        cat([u.variances for u in uploads]),
        cat([u.counts for u in uploads]),
        {k: cat([u.metrics[k] for u in uploads]) for k in uploads[0].metrics},
        None if uploads[0].model is None else cat([u.model for u in uploads if u.model is not None]),
        {k: cat([u.sums[k] for u in uploads]) for k in uploads[0].sums},
    )
