"""Questions worth asking: which pair's answer is expected to tell most about a user (method.md, section 7).

The expected information gain of an answer, also known as BALD (Houlsby et al. 2011, arXiv 1112.5745), as VPL asks its
active questions (Poddar et al. 2024, arXiv 2408.10075).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedvpa.variational import gaussian
from fedvpa.variational.gaussian import Gaussian
from fedvpa.variational.selector import score


def information_gain(p: Tensor) -> Tensor:
    """I(y; z) = H(E p(y | z)) - E H(p(y | z)): entropy of the mean prediction minus mean entropy, in nats.

    Args:
        p: (samples, pairs) p(a > b | x, z) under samples of the current belief about z.

    Returns:
        (pairs,), between 0 and log 2.
    """

    def entropy(p: Tensor) -> Tensor:
        return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))

    return (entropy(p.mean(0)) - entropy(p).mean(0)).clamp(min=0)


def expected_information_gain(
    theta: Mapping[str, Tensor], q: Gaussian, d: Tensor, base_logit: Tensor | None, noise: Tensor
) -> Tensor:
    """Expected information that a pair's answer gives about z under q, estimated with samples of q.

    Args:
        q: (dim,); noise: (samples, dim) standard normal.
        d: (pairs, h) difference embeddings; base_logit: (pairs,) or None.

    Returns:
        (pairs,) in nats.
    """
    return information_gain(torch.sigmoid(score(theta, d, gaussian.sample(q, noise), base_logit)))


def next_question(gain: Tensor, asked: Tensor) -> int | None:
    """The pair with the largest gain among those not asked yet; None when all were.

    Args:
        gain: (pairs,); asked: (pairs,) bool.
    """
    if bool(asked.all()):
        return None
    return int(gain.masked_fill(asked, -torch.inf).argmax())
