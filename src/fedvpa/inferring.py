"""From one person's judgements to a `User` under a selector, and which judgement to ask for next.

A method that takes judgements as they are (`methods.base.Judging`) gets them all, mixed, and its users can be updated.
Any other gets the pairs that they make (`preferences.examples.as_pairs`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fedvpa.errors import UserError
from fedvpa.latents import as_user, judged_user, latent_of, posterior_of
from fedvpa.methods.base import Context, Judged, Pool, padded_judgements
from fedvpa.methods.fedvpa_gp import LatentPredictor
from fedvpa.methods.fedvpa_laplace import LaplacePredictor, observations
from fedvpa.preferences.examples import Example, Question, as_judgements, as_pairs
from fedvpa.preferences.schema import CHOICE, NO_RATINGS, Item, Pair
from fedvpa.preferences.seeding import generator
from fedvpa.user import User
from fedvpa.variational import gaussian, laplace
from fedvpa.variational.acquisition import SAMPLES, answers_under, best_questions
from fedvpa.variational.gaussian import Gaussian
from fedvpa.variational.laplace import Posterior
from fedvpa.variational.selector import score

if TYPE_CHECKING:
    from fedvpa.selector_core import SelectorCore


class Ask(NamedTuple):
    """A question that is worth its answer.

    Attributes:
        row: its position in the pool, from 0; question: itself.
        bits: the information about the person that is expected from the answer, given those to the questions before.
    """

    row: int
    question: Question
    bits: float


def infer(selector: SelectorCore, examples: Sequence[Example], inference: str | None) -> User:
    """A user from judgements; see `Selector.infer_user`."""
    if not selector.judges:
        return infer_pairs(selector, as_pairs(examples), inference)
    predictor, judged = _judged(selector, examples)
    how = _inference(selector, predictor.inferences, _worth(examples), inference)
    return judged_user(predictor.infer(judged, how), _count(judged), how, selector.info.model_hash)


def infer_pairs(selector: SelectorCore, examples: Sequence[tuple[Pair, int]], inference: str | None) -> User:
    """A user from pairs with labels; see `Selector.infer_pairs`."""
    if selector.judges:
        return infer(selector, [Example.choice(pair, y) for pair, y in examples], inference)
    predictor, n = selector.predictor_of([pair for pair, _ in examples]), len(examples)
    how = _inference(selector, predictor.inferences, n, inference)
    y = torch.tensor([[float(y) for _, y in examples]], dtype=selector.dtype).reshape(1, n)
    context = Context(torch.arange(n).unsqueeze(0), y, torch.ones(1, n, dtype=torch.bool))
    found = predictor.infer(context, how, torch.full((1,), -1))
    posterior = predictor.posterior(context) if selector.method.latent else None
    return as_user(found, posterior, n, how, selector.info.model_hash)


def update(selector: SelectorCore, user: User, examples: Sequence[Example]) -> User:
    """The user after further judgements; see `Selector.update_user`."""
    user = selector.known(user)
    if user.posterior is None:
        problem = f"a user of {selector.info.method} cannot be updated"
        raise UserError(problem, "infer the user again, from all answers together", field="user")
    predictor, judged = _judged(selector, examples)
    seen = observations(predictor.slope, predictor.offset, judged)
    try:
        q = laplace.update(posterior_of(user.posterior, selector.dtype), seen, predictor.likelihood)
    except torch.linalg.LinAlgError:  # only a posterior that nobody inferred is so far from regular
        problem = "its posterior cannot be updated: a precision is no matrix with an inverse"
        raise UserError(problem, "infer the user again, from all answers together", field="user") from None
    how = user.inference or predictor.inferences[0]
    return judged_user(q, user.pairs + _count(judged), how, selector.info.model_hash)


def ask(selector: SelectorCore, user: User | None, pool: Sequence[Question], n: int) -> list[Ask]:
    """The questions of a pool that tell most about a user; see `Selector.ask`."""
    if not pool:
        return []
    p = _answers(selector, selector.known(user), pool)
    found = best_questions(p, n, generator(selector.info.config.seed, "respondents"))
    return [Ask(i, pool[i], gain / math.log(2)) for i, gain in found]


def pair_answers(predictor: LatentPredictor | LaplacePredictor, user: User, random: torch.Generator) -> Tensor:
    """p(a > b | z) of all pairs of a predictor's pool under samples of what is known of a user, (samples, pairs)."""
    if isinstance(predictor, LaplacePredictor):
        a, b = predictor.pool.pairs.unbind(-1)
        return _judged_answers(predictor, user, a, b, random)
    d = predictor.d
    q = Gaussian(*(torch.tensor(v, dtype=d.dtype) for v in (user.mean, user.log_var)))
    noise = torch.randn(SAMPLES, len(q.mean), generator=random, dtype=d.dtype)
    return torch.sigmoid(score(predictor.theta, d, gaussian.sample(q, noise), predictor.base_logit))


def _answers(selector: SelectorCore, user: User, pool: Sequence[Question]) -> Tensor:
    """(samples, questions) probabilities of yes, or of the first response."""
    random = generator(selector.info.config.seed, "questions")
    if selector.judges:
        place: dict[Item, int] = {}
        first = [place.setdefault(q.first, len(place)) for q in pool]
        second = [-1 if q.second is None else place.setdefault(q.second, len(place)) for q in pool]
        predictor = _predictor(selector, tuple(place))
        return _judged_answers(predictor, user, torch.tensor(first), torch.tensor(second), random)
    if not selector.method.latent:
        problem = f"{selector.info.method} has no latent, so no answer tells it anything"
        raise UserError(problem, "train fedvpa-laplace, fedvpa-gp or fedvpl", field="method.name")
    pairs = [Pair(q.first.prompt, q.first.text, q.second.text) for q in pool if q.second]
    if len(pairs) < len(pool):
        problem = f"{selector.info.method} learns from pairs, and the pool has single responses"
        raise UserError(problem, "give questions with a and b", field="pool")
    predictor = selector.predictor_of(pairs)
    assert isinstance(predictor, LatentPredictor)
    return pair_answers(predictor, user, random)


def _judged_answers(
    predictor: LaplacePredictor, user: User, first: Tensor, second: Tensor, random: torch.Generator
) -> Tensor:
    """(samples, n) probabilities of the answers to questions about rows (n,) of the predictor's items."""
    q = latent_of(user, predictor.slope.dtype)
    assert isinstance(q, Posterior)
    one = torch.ones(1, len(first), dtype=predictor.slope.dtype)
    asked = Judged(first.unsqueeze(0), second.unsqueeze(0), one, one < 0, one)
    return answers_under(q, observations(predictor.slope, predictor.offset, asked), predictor.likelihood, random)


def _judged(selector: SelectorCore, examples: Sequence[Example]) -> tuple[LaplacePredictor, Judged]:
    scale = selector.info.rating_scale
    items, own = as_judgements(examples, scale != NO_RATINGS)
    return _predictor(selector, items), padded_judgements([own], selector.dtype, scale)


def _predictor(selector: SelectorCore, items: Sequence[Item]) -> LaplacePredictor:
    """Over items that nobody compares."""
    if items:
        x = selector.backbone.encode_items(items, progress=len(items) > 100).x
        x = selector.parameters.standardizer(x).to(selector.dtype)
    else:
        x = torch.zeros(0, selector.info.features, dtype=selector.dtype)
    predictor = selector.predictor(Pool(x, torch.zeros(0, 2, dtype=torch.int64)))
    assert isinstance(predictor, LaplacePredictor)
    return predictor


def _inference(selector: SelectorCore, known: tuple[str, ...], pairs: int, wanted: str | None) -> str:
    how = selector.inference_for(pairs) if wanted is None else wanted
    if how not in known:
        raise UserError(f"unknown value {how!r}", f"choose from {', '.join(known)}", field="inference")
    return how


def _worth(examples: Sequence[Example]) -> int:
    """How many pairs examples are worth, as context sizes count: two votes or ratings make a pair."""
    choices = sum(e.kind == CHOICE for e in examples)
    return choices + (len(examples) - choices) // 2


def _count(judged: Judged) -> int:
    return judged.first.shape[1]
