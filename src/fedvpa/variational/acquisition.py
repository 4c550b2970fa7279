"""Questions worth asking: which answer is expected to tell most about a user (method.md, section 7; laplace.md).

The expected information gain of an answer, also known as BALD (Houlsby et al. 2011, arXiv 1112.5745), as VPL asks its
active questions (Poddar et al. 2024, arXiv 2408.10075).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedvpa.variational import gaussian, laplace
from fedvpa.variational.gaussian import Gaussian
from fedvpa.variational.laplace import Noise, Observations, Posterior, Prior
from fedvpa.variational.selector import score

SAMPLES = 512
"""Samples of the belief about z; of the questions' gains, which differ by tenths of a bit, they show the order."""
RESPONDENTS = 64
"""Imagined people over whose answers the gain of a later question is averaged."""


def information_gain(p: Tensor) -> Tensor:
    """I(y; z) = H(E p(y | z)) - E H(p(y | z)): entropy of the mean prediction minus mean entropy, in nats.

    Args:
        p: (samples, pairs) p(a > b | x, z) under samples of the current belief about z.

    Returns:
        (pairs,), between 0 and log 2.
    """

    return (_entropy(p.mean(0)) - _entropy(p).mean(0)).clamp(min=0)


def _entropy(p: Tensor) -> Tensor:
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))


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


def answers_under(belief: Posterior, asked: Observations, noise: Noise, generator: torch.Generator) -> Tensor:
    """p(yes | z), or p(first | z), of questions under `SAMPLES` samples of z without the threshold.

    The person's threshold, the last dimension of z, says nothing about preferences between items; what an answer would
    tell about it is not worth asking for. It is integrated out by its marginal N(c, v): a vote's score is
    (s + c) / sqrt(1 + pi/8 v).

    Args:
        belief: one person's, (1, K).
        asked: votes and choices (1, n); of it only slope and offset matter.

    Returns:
        (samples, n)
    """
    uniform = torch.rand(1, SAMPLES, generator=generator)
    normal = torch.randn(1, SAMPLES, belief.means.shape[-1], generator=generator).to(belief.means)
    z = laplace.sample(belief, uniform.to(belief.means), normal)
    threshold = laplace.moments(belief)
    c, v = threshold.mean[0, -1], threshold.var[0, -1]
    slope, alone = asked.slope[0, :, :-1], asked.slope[0, :, -1]
    s = (z[0, :, :-1] @ slope.T + asked.offset[0] + c * alone) / torch.sqrt(1 + math.pi / 8 * v * alone**2)
    return noise.error + (1 - 2 * noise.error) * torch.sigmoid(s)


def best_questions(p: Tensor, n: int, generator: torch.Generator) -> list[tuple[int, float]]:
    """A list of n questions that together tell much, chosen greedily.

    The first has the largest `information_gain`. Each next one has the largest expected gain given the answers to those
    before it, which are not known: `RESPONDENTS` imagined people, each a sample of z, answer them at random; the
    samples are weighted by how well they explain an imagined person's answers (importance sampling), and the gain under
    those weights is averaged over the people. So a question that repeats an earlier one gains little.

    Args:
        p: (samples, questions) p(yes | z) under samples of the belief about z.
        n: how many; no more than there are.

    Returns:
        Each question's position and its gain in nats given the earlier ones, in the order in which to ask.
    """
    people = torch.randperm(len(p), generator=generator)[:RESPONDENTS]
    weight = torch.full((len(people), len(p)), 1 / len(p), dtype=p.dtype)
    free, entropy = torch.ones(p.shape[1], dtype=torch.bool), _entropy(p)
    found = []
    for _ in range(min(n, p.shape[1])):
        gain = (_entropy((weight @ p).clamp(0, 1)) - weight @ entropy).mean(0).clamp(min=0)
        best = int(gain.masked_fill(~free, -1.0).argmax())
        free[best] = False
        found.append((best, float(gain[best])))
        yes = torch.rand(len(people), generator=generator).to(p) < p[people, best]
        weight = weight * torch.where(yes.unsqueeze(-1), p[:, best], 1 - p[:, best])
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    return found


def first_questions(
    prior: Prior, asked: Observations, noise: Noise, n: int, generator: torch.Generator
) -> list[tuple[int, float]]:
    """A questionnaire of n questions for somebody of whom nothing is known: `best_questions` under the prior.

    It is the same for everybody, so it costs nothing when it is used, and carries most of what choosing each question
    after the answer before can gain (laplace.md). Arguments as of `answers_under`.
    """
    return best_questions(answers_under(laplace.as_posterior(prior, 1), asked, noise, generator), n, generator)
