"""The selector as a reward for somebody else's trainer (method.md, section 8).

selector = Selector.from_pretrained("runs/synthetic-fedvpa-gp")
trainer = GRPOTrainer(model, reward_funcs=selector.reward_function(user), train_dataset=prompts)

A reward must not depend on which other completions happen to share its batch (TRL divides a prompt's completions among
processes), so a response is compared with one fixed *average response* instead of with its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedvpa.errors import UserError
from fedvpa.methods.base import Pool, Predictor
from fedvpa.preferences.schema import Prompt, as_prompt
from fedvpa.user import Latent
from fedvpa.variational.inference import Particles
from fedvpa.variational.laplace import Posterior

BOUND = 10.0
"""Every reward that a trainer gets lies between -BOUND and BOUND (`bounded`)."""

EMPTY = -BOUND
"""Reward of an empty completion: no other one has less, so that saying nothing is never the better answer."""

Scorer = Callable[[Sequence[Prompt], Sequence[str]], Tensor]
"""Rewards (n,) of n responses to n prompts."""


def bounded(rewards: Tensor) -> Tensor:
    """Log-odds between -`BOUND` and `BOUND`: BOUND tanh(r / BOUND), in double precision.

    It keeps their order. Log-odds within +-3, where almost all responses of people lie, change by less than 3 %;
    those of degenerate texts, far from all that the selector was trained on, no longer outweigh a whole batch.
    """
    return BOUND * torch.tanh(rewards.double() / BOUND)


def probabilities(rewards: Tensor) -> Tensor:
    """The probabilities to be preferred to the average response that bounded rewards stand for."""
    return torch.sigmoid(BOUND * torch.atanh((rewards / BOUND).clamp(-1, 1)))


def log_odds(predictor: Callable[[Pool], Predictor], x: Tensor, latent: Latent) -> Tensor:
    """Log-odds of each response against the average one, the mean over a user's latents or components.

    Both orders of the two are asked: log p(r > average) - log p(average > r). That is the logit of an antisymmetric
    selector, without the rounding of a probability near 1, and cancels the position's part of one that is not.

    Args:
        predictor: makes a predictor over a pool.
        x: (n, D) standardised features; the average response has the features 0.
        latent: one user, from `user.latent_of`.

    Returns:
        (n,)
    """
    n, average = len(x), torch.zeros_like(x)
    pool = Pool.of_pairs(torch.cat([torch.stack([x, average], 1), torch.stack([average, x], 1)]))
    weights, each = _apart(latent, x.dtype)
    p = predictor(pool).predict(each, torch.arange(2 * n).expand(len(weights), -1))
    log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log()
    return weights @ (log_p[:, :n] - log_p[:, n:])


def _apart(latent: Latent, dtype: torch.dtype) -> tuple[Tensor, Latent]:
    """A user's weights (n,), and each of its n particles or components as a user of its own.

    A component keeps its variance, so its log-odds are corrected for what is not known of the user (`laplace.predict`).
    """
    match latent:
        case Particles():
            return latent.log_weights[0].exp(), Particles.point(latent.z[0])
        case Posterior():
            none = torch.zeros_like(latent.log_weights[0].unsqueeze(-1))
            each = Posterior(none, latent.means[0].unsqueeze(1), latent.root[0].unsqueeze(1), none)
            return latent.log_weights[0].exp(), each
    return torch.ones(1, dtype=dtype), latent


@dataclass(frozen=True)
class RewardFunction:
    """`Selector.rewards` (`bounded`) in the signature of TRL reward functions: for GRPOTrainer, RLOOTrainer and others.

    Prompts and completions are texts (then a prompt is one user turn) or messages. A completion's surrounding white
    space is ignored, as it is in preference data. Features of a completion are cached like all others.

    Attributes:
        score: rewards of responses.
        empty_reward: reward of an empty completion, which has no features; as all, before standardisation.
        scale: mean and standard deviation that rewards are standardised by, see `Selector.reward_function`.
    """

    score: Scorer
    empty_reward: float = EMPTY
    scale: tuple[float, float] = (0.0, 1.0)

    @property
    def __name__(self) -> str:
        """Under which trainers log it."""
        return "selector"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One reward per completion; other columns of the data set are ignored.

        Raises:
            UserError: a completion that is neither text nor one message of the assistant.
        """
        if len(prompts) != len(completions):
            raise UserError(f"{len(completions)} for {len(prompts)} prompts", field="completions")
        responses = [_response(completion, i) for i, completion in enumerate(completions)]
        given = [i for i, response in enumerate(responses) if response]
        found = torch.full((len(responses),), float(self.empty_reward), dtype=torch.float64)
        if given:
            dialogues = [_prompt(prompts[i], i) for i in given]
            found[given] = bounded(self.score(dialogues, [responses[i] for i in given]).cpu())
        mean, deviation = self.scale
        return ((found - mean) / deviation).tolist()


def _response(completion: Any, i: int) -> str:
    """The text of a completion."""
    if isinstance(completion, str):
        return completion.strip()
    match completion:
        case [{"role": "assistant", "content": str(content)}]:
            return content.strip()
    raise UserError("neither text nor one message of the assistant", "score text only", field=f"completions[{i}]")


def _prompt(prompt: Any, i: int) -> Prompt:
    """The dialogue before a completion."""
    match prompt:
        case str():
            return as_prompt(prompt)
        case [_, *_] if all(_is_message(m) for m in prompt):
            return as_prompt(prompt)
    raise UserError("neither text nor messages with role and content", "score text only", field=f"prompts[{i}]")


def _is_message(message: Any) -> bool:
    match message:
        case {"role": str(), "content": str()}:
            return True
    return False
