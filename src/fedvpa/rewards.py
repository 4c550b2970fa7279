"""The selector as a reward for somebody else's trainer (method.md, section 8).

selector = Selector.from_pretrained("runs/synthetic-fedvpa-gp")
trainer = GRPOTrainer(model, reward_funcs=selector.reward_function(user), train_dataset=prompts)

A reward must not depend on which other completions happen to share its batch (TRL divides a prompt's completions among
processes), so a response is compared with one fixed *average response* instead of with its neighbours.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedvpa.errors import UserError
from fedvpa.inputs import kind as kind_of
from fedvpa.inputs import listed, name_of
from fedvpa.latents import Latent
from fedvpa.methods.base import Pool, Predictor
from fedvpa.preferences.arguments import read_prompt
from fedvpa.preferences.schema import Prompt
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
        latent: one user, from `latents.latent_of`.

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


RowScorer = Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], Tensor]
"""As `Scorer`, with the name of each response's user."""


@dataclass(frozen=True)
class RewardFunction:
    """`Selector.rewards` (`bounded`) in the signature of TRL reward functions: for GRPOTrainer, RLOOTrainer and others.

    Prompts and completions are texts (then a prompt is one user turn) or messages. A completion's surrounding white
    space is ignored, as it is in preference data.

    Attributes:
        score: rewards of responses, for one user.
        empty_reward: reward of an empty completion, which has no features; as all, before standardisation.
        name: under which trainers log it.
        score_rows: rewards of responses, each for its own user; None: ``score`` is for all.
        known: the names of the users that ``score_rows`` knows.
        column: of the data set that names a row's user; None: no such column is looked at.
        chosen: whether somebody has said for whom ``score`` is; it is for the average user otherwise.
        scale: mean and standard deviation that rewards are standardised by, see `Selector.reward_function`.
    """

    score: Scorer
    empty_reward: float = EMPTY
    name: str = "selector"
    score_rows: RowScorer | None = None
    known: frozenset[str] = frozenset()
    column: str | None = "user_id"
    chosen: bool = False
    scale: tuple[float, float] = (0.0, 1.0)

    @property
    def __name__(self) -> str:
        """Under which trainers log it."""
        return self.name

    def __repr__(self) -> str:
        return f"RewardFunction({self.name})"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One reward per completion; other columns of the data set than `column` are ignored.

        Raises:
            UserError: a completion that is neither text nor one message of the assistant; a row without a user, or of
                an unknown one; or a column of users, where the function is for the average user.
        """
        prompts, completions = (
            listed(v, k, "give a list of texts") for k, v in (("prompts", prompts), ("completions", completions))
        )
        if len(prompts) != len(completions):
            problem = f"{len(completions)} for {len(prompts)} prompts"
            raise UserError(problem, "give one completion to each prompt", field="completions")
        responses = [_response(completion, i) for i, completion in enumerate(completions)]
        dialogues = [read_prompt(prompt, f"prompts[{i}]") for i, prompt in enumerate(prompts)]
        score = self._scorer(columns, len(completions))
        given = [i for i, response in enumerate(responses) if response]
        found = torch.full((len(responses),), float(self.empty_reward), dtype=torch.float64)
        if given:
            found[given] = bounded(score([dialogues[i] for i in given], [responses[i] for i in given], given).cpu())
        mean, deviation = self.scale
        return ((found - mean) / deviation).tolist()

    def _scorer(self, columns: Mapping[str, Any], n: int) -> Callable[[list[Prompt], list[str], list[int]], Tensor]:
        """What scores some of a batch's n rows, which are given by number."""
        if self.score_rows is None:
            self._check_column(columns)
            return lambda prompts, responses, _: self.score(prompts, responses)
        assert self.column is not None
        if columns.get(self.column) is None:
            remedy = "keep that column in the trainer's data set, or name another with column="
            raise UserError("missing column; rewards are for each row's own user", remedy, field=self.column)
        values = listed(columns[self.column], self.column, "give one id for each completion")
        if len(values) != n:
            raise UserError(f"{len(values)} for {n} completions", "give one id for each completion", field=self.column)
        names = [name_of(value, f"{self.column}[{i}]") for i, value in enumerate(values)]
        for i, name in enumerate(names):
            if name not in self.known:
                near = difflib.get_close_matches(name, self.known, n=1)
                remedy = f"did you mean {near[0]!r}?" if near else "give such a user in users="
                raise UserError(f"no user {name!r} among the {len(self.known)}", remedy, field=f"{self.column}[{i}]")
        score_rows = self.score_rows
        return lambda prompts, responses, rows: score_rows(prompts, responses, [names[i] for i in rows])

    def _check_column(self, columns: Mapping[str, Any]) -> None:
        """Says that rows name their users, where their rewards are one user's."""
        if self.column is None or columns.get(self.column) is None:
            return
        remedy = "give users=, or column=None if one user is meant for all rows"
        if not self.chosen:
            problem = "the rows name their users, and this function is for the average user"
            raise UserError(problem, remedy, field=self.column)
        text = f"{self.column}: the rows name their users, and all get the rewards of one ({self.name}); {remedy}"
        warnings.warn(text, stacklevel=3)


def reward_name(kind: str, whose: str, content: Any) -> str:
    """A reward function's name: whose rewards they are, and six digits of everything that they depend on.

    Args:
        kind: the first word; whose: as `inputs.whose`; content: as JSON has it.
    """
    digits = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return f"{kind}_{whose}_{digits}"


def _response(completion: Any, i: int) -> str:
    """The text of a completion; it may be empty."""
    if isinstance(completion, str):
        return completion.strip()
    match completion:
        case [{"role": "assistant", "content": str(content)}]:
            return content.strip()
    problem = f"neither text nor one message of the assistant, but {kind_of(completion)}"
    raise UserError(problem, "score text only", field=f"completions[{i}]")
