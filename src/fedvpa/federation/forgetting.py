"""What a server and a simulation keep about one client, put back to what it was before the client was known."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedvpa.config import ExperimentConfig
from fedvpa.federation.rounds import TrainingState
from fedvpa.methods import components
from fedvpa.methods.base import ServerState
from fedvpa.methods.components import Components


def forget_posterior(server: ServerState, client: int, config: ExperimentConfig) -> ServerState:
    """The server's state without the posterior, the count and the cluster of the client at position `client`.

    The components of a compressed prior and the clusters' centroids and spread are made again from the posteriors that
    are left: one that stands for few clients is close to each of them. theta, prototypes and the clusters' shares were
    fitted together with the client, and stay.
    """
    if not server.means.shape[0]:
        return server
    server = replace(
        server,
        means=_with_row(server.means, client, 0.0),
        variances=_with_row(server.variances, client, 1.0),
        counts=_with_row(server.counts, client, 0),
        labels=_with_row(server.labels, client, -1),
    )
    centroids, spread = _moments_of_clusters(server) if server.clustered else (server.centroids, server.spread)
    extra = dict(server.extra)
    if "uploaded" in extra:
        extra["uploaded"] = _with_row(extra["uploaded"], client, -1)
    if Components.are_in(extra):
        weights = components.weights(server.counts, config.method.prior_weights)
        extra |= components.remaining(server.means, server.variances, weights, Components.of(extra)).named()
    return replace(server, centroids=centroids, spread=spread, extra=extra)


def _moments_of_clusters(server: ServerState) -> tuple[Tensor, Tensor]:
    """Mean and variance of each cluster's equal mixture (M, dim) each; N(0, I) where nobody is left."""
    members = [(server.labels == k) & (server.counts > 0) for k in range(len(server.centroids))]
    centroids, spread = torch.zeros_like(server.centroids), torch.ones_like(server.spread)
    for k, member in enumerate(members):
        if member.any():
            means = server.means[member]
            centroids[k] = means.mean(0)
            spread[k] = (server.variances[member] + (means - centroids[k]) ** 2).mean(0)
    return centroids, spread


def forget_client(training: TrainingState, client: int, config: ExperimentConfig) -> TrainingState:
    """A training's whole state without the client: its posterior, its private rows, and its place in others' priors.

    Over a network the private rows are at the nodes, and the state here holds none.

    Args:
        client: position among the training clients.
    """
    private = {k: _with_row(v, client, 0.0) for k, v in training.private.items()}
    if "log_pi" in private and not Components.are_in(training.server.extra):
        private["log_pi"][:, client] = 0.0
    return replace(training, server=forget_posterior(training.server, client, config), private=private)


def _with_row(t: Tensor, row: int, value: float) -> Tensor:
    t = t.clone()
    t[row] = value
    return t
