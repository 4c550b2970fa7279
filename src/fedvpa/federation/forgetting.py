"""What a server and a simulation keep about one client, put back to what it was before the client was known."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fedvpa.federation.rounds import TrainingState
from fedvpa.methods.base import ServerState


def forget_posterior(server: ServerState, client: int) -> ServerState:
    """The server's state without the posterior, the count and the cluster of the client at position `client`.

    theta, prototypes and the clusters' centroids, spread and shares were fitted together with the client, and stay.
    """
    if not server.means.shape[0]:
        return server
    return replace(
        server,
        means=_with_row(server.means, client, 0.0),
        variances=_with_row(server.variances, client, 1.0),
        counts=_with_row(server.counts, client, 0),
        labels=_with_row(server.labels, client, -1),
    )


def forget_client(training: TrainingState, client: int) -> TrainingState:
    """A simulation's whole state without the client: its posterior, its private rows, and its place in others' priors.

    Args:
        client: position among the training clients.
    """
    private = {k: _with_row(v, client, 0.0) for k, v in training.private.items()}
    if "log_pi" in private:
        private["log_pi"][:, client] = 0.0
    return replace(training, server=forget_posterior(training.server, client), private=private)


def _with_row(t: Tensor, row: int, value: float) -> Tensor:
    t = t.clone()
    t[row] = value
    return t
