"""The local objective (Eq. 10): reconstruction + beta * KL + lambda * orthogonal loss (+ mixture predictive, ours)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedvpa.variational.selector import score


class Terms(NamedTuple):
    """The objective's parts per client, unweighted; each (...). Reconstruction and mixture are means over queries in
    nats, the KL is a sum over the latent's dimensions."""

    reconstruction: Tensor
    kl: Tensor
    ortho: Tensor
    mixture: Tensor
    cluster: Tensor

    def total(self, beta: float, lambda_: float, mixture: float, cluster: float) -> Tensor:
        """L_i = reconstruction + beta KL + lambda L_ortho + weighted mixture and cluster losses (ours). (...)"""
        paper = self.reconstruction + beta * self.kl + lambda_ * self.ortho
        return paper + mixture * self.mixture + cluster * self.cluster


def query_mean(values: Tensor, query: Tensor) -> Tensor:
    """Mean over the query pairs; 0 where a client has none.

    Args:
        values: (..., pairs)
        query: (..., pairs) True for query pairs.
    """
    return (values * query).sum(-1) / query.sum(-1).clamp(min=1)


def reconstruction(logits: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """Mean over query pairs and samples of -log p(y | x, a, b, z).

    Args:
        logits: (..., samples, pairs) scores s.
        y: (..., pairs) labels +1 or -1.
        query: (..., pairs) True for query pairs.

    Returns:
        (...)
    """
    return query_mean(-F.logsigmoid(y.unsqueeze(-2) * logits).mean(-2), query)


def responsibilities(logits: Tensor, y: Tensor, context: Tensor, log_shares: Tensor) -> Tensor:
    """log r_k, with r_k proportional to w_k * prod_{(x,a,b,y) in C} p(y | x, a, b, p_k) (method.md, section 7).

    Args:
        logits: (..., M, pairs) scores under each prototype.
        y: (..., pairs); context: (..., pairs) True for context pairs.
        log_shares: (M,) log w_k, the clusters' shares.

    Returns:
        (..., M), normalised.
    """
    evidence = (F.logsigmoid(y.unsqueeze(-2) * logits) * context.unsqueeze(-2)).sum(-1)
    return (log_shares + evidence).log_softmax(-1)


def identification(log_r: Tensor, label: Tensor) -> Tensor:
    """-log r_c, c the client's cluster (ours): a short context must tell whose it is. log_r: (..., M), label: (...)."""
    own = log_r.gather(-1, label.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(label >= 0, -own, 0.0)


def mixture_predictive(logits: Tensor, y: Tensor, query: Tensor, log_r: Tensor) -> Tensor:
    """Mean over query pairs of -log sum_k r_k p(y | p_k) (ours): trains prototypes and decoder for mixture inference.

    Args:
        logits: (..., M, pairs); y, query: (..., pairs); log_r: (..., M) log responsibilities from the context.
    """
    log_p = F.logsigmoid(y.unsqueeze(-2) * logits)
    return query_mean(-torch.logsumexp(log_r.unsqueeze(-1) + log_p, -2), query)


def cluster_fit(logits: Tensor, y: Tensor, mask: Tensor, label: Tensor) -> Tensor:
    """Mean over all pairs of -log p(y | p_c), c the client's cluster (ours): the decoder learns from every pair under
    a latent that no short context can get wrong.

    Args:
        logits: (..., M, pairs) scores under each prototype; y, mask: (..., pairs); label: (...), -1 gives 0.
    """
    index = label.clamp(min=0)[..., None, None].expand(*label.shape, 1, logits.shape[-1])
    own = logits.gather(-2, index).squeeze(-2)
    return torch.where(label >= 0, query_mean(-F.logsigmoid(y * own), mask), 0.0)


def bradley_terry(theta: Mapping[str, Tensor], d: Tensor, base_logit: Tensor | None, y: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-likelihood of the selector without z. d (..., pairs, h); returns (...)."""
    return query_mean(-F.logsigmoid(y * score(theta, d, None, base_logit)), mask)
