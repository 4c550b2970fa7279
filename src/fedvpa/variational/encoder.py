"""The variational encoder: labelled pairs -> Gaussian experts -> the posterior of a user (method.md, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedvpa.variational.gaussian import Gaussian
from fedvpa.variational.kernels import affine, mirrored_gelu

Pooling = Literal["poe", "mean", "attention"]
LOG_PRECISION_LIMIT = 4.0


class Experts(NamedTuple):
    """One Gaussian expert per labelled pair.

    Attributes:
        mean: (..., pairs, dim), m_j
        log_precision: (..., pairs, dim), log t_j, clamped to +-4
        score: (..., pairs) attention score of each pair, zeros unless attention pooling is used
    """

    mean: Tensor
    log_precision: Tensor
    score: Tensor


def linear(x: Tensor, theta: Mapping[str, Tensor], name: str) -> Tensor:
    """Affine map with parameters that may carry the same leading (client) dimension as `x`.

    Args:
        x: (..., rows, inputs)
        theta: holds ``name.weight`` (..., outputs, inputs) and, optionally, ``name.bias`` (..., outputs).
    """
    return affine(x, theta[f"{name}.weight"], theta.get(f"{name}.bias"))


def experts(theta: Mapping[str, Tensor], e: Tensor, odd: bool = True) -> Experts:
    """Gaussian experts of labelled pairs.

    With `odd` (ours) the network's outputs are antisymmetrised and symmetrised: m(-e) = -m(e), t(-e) = t(e), so
    exchanging every label of a context mirrors the posterior's mean exactly.

    Args:
        theta: ``encoder.0``, ``encoder.1`` and, for attention pooling, ``attention``.
        e: (..., pairs, hidden) signed difference embeddings y * d.
        odd: False gives the plain network (VPL).
    """
    weight, bias = theta["encoder.1.weight"], theta["encoder.1.bias"]
    if odd:
        # -e only changes the sign of the linear part u of the first layer, and the last layer is linear: its odd and
        # even outputs are those of the odd and even hidden units. The odd part of a constant, the bias, is zero.
        odd_part, even = mirrored_gelu(affine(e, theta["encoder.0.weight"]), theta["encoder.0.bias"])
        (to_mean, to_precision), (_, offset) = weight.chunk(2, -2), bias.chunk(2, -1)
        mean, log_precision = affine(odd_part, to_mean), affine(even, to_precision, offset)
    else:
        even = F.gelu(linear(e, theta, "encoder.0"))
        mean, log_precision = affine(even, weight, bias).chunk(2, -1)
    score = e.new_zeros(e.shape[:-1])
    if "attention.weight" in theta:
        score = linear(affine(even, weight, bias), theta, "attention").squeeze(-1)
    limit = LOG_PRECISION_LIMIT
    return Experts(mean, log_precision.clamp(-limit, limit), score)


def pool(x: Experts, mask: Tensor, how: Pooling = "poe", max_log_var: float = 0.0) -> Gaussian:
    """The posterior q(z | C) of a context.

    ``poe`` (ours) is the product of the experts with N(0, I): sigma^-2 = 1 + sum_j t_j, mu = sigma^2 sum_j t_j m_j.
    ``mean`` averages means and log variances; ``attention`` (VPL) weights them by a softmax of learned scores.
    An empty context gives N(0, I) for each.

    Args:
        x: (..., pairs, dim)
        mask: (..., pairs) True for the pairs of the context, or (..., contexts, pairs) for several contexts.
        max_log_var: cap of log sigma^2, log sigma_max^2 in the paper.

    Returns:
        Posterior (..., dim), or (..., contexts, dim).
    """
    if mask.dim() < x.mean.dim():
        mean, log_var = pool(x, mask.unsqueeze(-2), how, max_log_var)
        return Gaussian(mean.squeeze(-2), log_var.squeeze(-2))
    w = mask.to(x.mean.dtype)
    if how == "poe":
        t = x.log_precision.exp()
        both = torch.cat([t, t * x.mean], -1)
        total, weighted = (w @ both).chunk(2, -1)
        precision = 1 + total
        return Gaussian(weighted / precision, (-precision.log()).clamp(max=max_log_var))
    if how == "mean":
        a = w / w.sum(-1, keepdim=True).clamp(min=1)
    else:
        score = x.score.unsqueeze(-2).expand(mask.shape).masked_fill(~mask, float("-inf"))
        a = score.softmax(-1).nan_to_num(0.0)
    both = torch.cat([x.mean, -x.log_precision], -1)
    mean, log_var = (a @ both).chunk(2, -1)
    return Gaussian(mean, log_var.clamp(max=max_log_var))
