"""Gumbel-MPNN (2508.17531) over a graph of clients: a prior from two hops of neighbours.

The paper rewires a graph with Gumbel-Softmax so that neighbourhoods become consistent, and passes messages along what
is left. Here the nodes are the clients, a node's message is its posterior N(mubar_j, sbar_j^2) as it was uploaded last,
and the messages of two hops make a client's mixture prior. All else is `fedvpa-gp`, whose weights are one hop.

1. How far two posteriors disagree is D_jk, the sum over dimensions of (mubar_j - mubar_k)^2 / (mean of all sbar^2).
2. An edge is a relaxed Bernoulli variable (Gumbel-Softmax over keep and drop; Maddison et al. 2017, 1611.00712),
   e_jk = sigmoid((c (mean D - D_jk) / deviation of D + l_jk) / tau), where l_jk is logistic noise in training, else 0.
3. The first hop has the weights of Eq. 8 times the edge, w1_ij ~ w_ij e_ij; the second goes on from there,
   w2_ik = sum_j w1_ij a_jk with a_jk ~ n_k e_jk; what would come back to the client itself stays where it was after
   the first hop. The prior's weights are (1 - s) w1 + s w2, with s = `method.second_hop`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedvpa.methods.base import Download
from fedvpa.methods.fedvpa_gp import FedVPAGP
from fedvpa.preferences.seeding import generator
from fedvpa.variational.prior import Mixture


class GumbelMPNN(FedVPAGP):
    """`fedvpa-gp` whose prior has other weights. With `method.second_hop` and `method.edge_sharpness` 0 it is the same
    but for the edges' noise."""

    name: ClassVar[str] = "gumbel-mpnn"

    def prior(self, log_pi: Tensor, ids: Tensor, gumbel: Tensor | None, download: Download) -> tuple[Mixture, Tensor]:
        """The clients' mixture priors and log weights (K, components) after two hops; see `FedVPAGP.prior`."""
        mixture, log_w = super().prior(log_pi, ids, gumbel, download)
        edges = self.edges(download, noisy=gumbel is not None)
        own = ids if download.own is None else download.own.component[ids]
        known = (own >= 0) & (download.counts[own] > 0)  # who is not in the graph yet has no edge to judge by
        first = torch.where(known.unsqueeze(-1), edges[own], 1.0)
        log_w = two_hops(log_w, first, edges, download.counts, self.m.second_hop)
        keep = log_w + torch.log1p(torch.tensor(-self.m.prior_defensive, dtype=log_w.dtype))
        return mixture._replace(log_weights=torch.cat([keep, mixture.log_weights[..., -1:]], -1)), log_w

    def edges(self, download: Download, noisy: bool) -> Tensor:
        """e (components, components), symmetric, the same for all clients of a round; see the module's docstring."""
        logits = self.m.edge_sharpness * agreement(download.means, download.variances, download.counts > 0)
        if noisy:
            uniform = torch.rand(logits.shape, generator=generator(self.config.seed, "edges", download.round))
            logistic = torch.logit(uniform.to(logits), eps=1e-6).triu(1)
            logits = logits + logistic + logistic.T
        return torch.sigmoid(logits / self.tau(download))


def agreement(means: Tensor, variances: Tensor, present: Tensor) -> Tensor:
    """(mean D - D_jk) / deviation of D over the pairs of nodes that are there; 0 for all others.

    Args:
        means, variances: (nodes, dim) of the posteriors; present: (nodes,) bool.

    Returns:
        (nodes, nodes)
    """
    pairs = present & present.unsqueeze(-1)
    pairs.fill_diagonal_(False)
    if not pairs.any():
        return torch.zeros_like(pairs, dtype=means.dtype)
    scaled = means / variances[present].mean(0).sqrt()
    distance = torch.cdist(scaled, scaled).square()
    values = distance[pairs]
    away = (values.mean() - distance) / values.std(correction=0).clamp(min=1e-6)
    return torch.where(pairs, away, 0.0)


def two_hops(log_w: Tensor, first: Tensor, edges: Tensor, counts: Tensor, share: float) -> Tensor:
    """log of (1 - share) w1 + share w2, the weights of one and of two hops.

    Args:
        log_w: (K, nodes) of Eq. 8, normalised, -inf for nodes that a client must not have; all -inf without any.
        first: (K, nodes) edges from the clients to the nodes; edges: (nodes, nodes).
        counts: (nodes,) numbers of examples.

    Returns:
        (K, nodes), -inf where `log_w` is.
    """
    allowed = ~torch.isneginf(log_w)
    w1 = _normalised(log_w.exp() * first)
    onward = edges * counts.to(edges)
    w2 = w1 @ _normalised(onward.fill_diagonal_(0.0)) * allowed
    w2 = w2 + (1 - w2.sum(-1, keepdim=True)) * w1
    return torch.where(allowed, ((1 - share) * w1 + share * w2).clamp(min=1e-12).log(), float("-inf"))


def _normalised(weights: Tensor) -> Tensor:
    """Rows that sum to 1; a row of zeros stays one."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
