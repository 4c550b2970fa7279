"""The honest protocol: who is inferred from what, and which predictions are scored (method.md, sections 4 and 10).

A user's context is the first c judgements of one fixed random order, so contexts of growing size are nested and the
same for every method. Where people gave votes or ratings, a method that takes pairs gets the first c / 2 pairs, which
are made from these c judgements. What queries have in common with contexts, `evaluation.queries` says; their labels
never reach a latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedvpa.evaluation import metrics
from fedvpa.evaluation.compare import PairScores
from fedvpa.methods.base import Context, Judged, Pool, Predictor, judgements_of, padded_judgements, takes_judgements
from fedvpa.preferences.schema import CHOICE, Client, FederatedPreferences, LabelledPairs
from fedvpa.preferences.seeding import generator


@dataclass(frozen=True)
class Panel:
    """A population as padded tensors, drawn once per seed and used for every method.

    Attributes:
        order: (users, longest) rows of the pool, each user's training pairs in context order; y: their labels.
        counts: (users,) training pairs of each user.
        query: (users, q) rows of the pool; query_y: labels +1/-1; query_mask: True where real.
        conflict: (users, q) True where groups disagree on the query pair.
        groups: (users,) true group or -1; opposite: (users,) position of a user of the opposite group, the user's own
            where groups are unknown; shuffled: (users,) position of another user.
        group_names: names of the groups.
        pool_size: number of pairs in the pool.
        judged: the users' context as judgements, in context order; pairs_per_judgement: 0.5 where these are votes or
            ratings, 1 where they are the pairs.
        matched: (users, q) True where a query's two items are about equally popular; None where that is not known.
    """

    order: Tensor
    y: Tensor
    counts: Tensor
    query: Tensor
    query_y: Tensor
    query_mask: Tensor
    conflict: Tensor
    groups: Tensor
    opposite: Tensor
    shuffled: Tensor
    group_names: tuple[str, ...]
    pool_size: int
    judged: Judged
    pairs_per_judgement: float = 1.0
    matched: Tensor | None = None

    @property
    def grouped(self) -> bool:
        return bool((self.groups >= 0).all()) and len(self.group_names) > 1

    def context(self, size: int, exchanged: bool = False) -> Context:
        """The pairs of the first `size` judgements of each user; `exchanged` turns every label over."""
        width = min(int(size * self.pairs_per_judgement), self.order.shape[1])
        mask = torch.arange(width) < self.counts.unsqueeze(-1)
        y = self.y[:, :width]
        return Context(self.order[:, :width], -y if exchanged else y, mask)

    def judgements(self, size: int, exchanged: bool = False) -> Judged:
        """The first `size` judgements of each user as they were given."""
        first = Judged(*(t[:, :size] for t in self.judged))
        return first._replace(y=-first.y) if exchanged else first

    def context_for(self, predictor: Any, size: int, exchanged: bool = False) -> Any:
        """What `predictor` infers users from: their judgements as given, or pairs."""
        return (self.judgements if takes_judgements(predictor) else self.context)(size, exchanged)


def context_order(client: Client, seed: int) -> Tensor:
    """The fixed order of a user's training pairs, of which contexts are the beginning: random, or the judgements'."""
    if client.judgements is not None:
        return torch.arange(len(client.train))
    return torch.randperm(len(client.train), generator=generator(seed, "context", client.client_id))


def make_panel(data: FederatedPreferences, clients: Sequence[Client], seed: int, pool: Pool) -> Panel:
    """The panel of a population; users without a query are left out.

    Args:
        seed: of the contexts' order.
        pool: whose dtype and rating scale count.
    """
    dtype = pool.items.dtype
    clients = [c for c in clients if len(c.test)]
    orders = [context_order(c, seed) for c in clients]

    def pad(rows: Sequence[Tensor], kind: torch.dtype) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(kind)

    query = pad([c.test.index for c in clients], torch.int64)
    counts = torch.tensor([len(c.test) for c in clients])
    mask = torch.arange(query.shape[1]) < counts.unsqueeze(-1)
    groups = torch.tensor([-1 if c.group is None else c.group for c in clients])
    ordered = [
        replace(c, train=LabelledPairs(c.train.index[o], c.train.y[o])) for c, o in zip(clients, orders, strict=True)
    ]
    given = [judgements_of(c, data.item_rows[1]) for c in ordered]
    single = any(bool((j.kind != CHOICE).any()) for j in given)
    return Panel(
        order=pad([c.train.index[o] for c, o in zip(clients, orders, strict=True)], torch.int64),
        y=pad([c.train.y[o] for c, o in zip(clients, orders, strict=True)], dtype),
        counts=torch.tensor([len(c.train) for c in clients]),
        query=query,
        query_y=pad([c.test.y for c in clients], dtype),
        query_mask=mask,
        conflict=data.conflicting()[query] & mask,
        groups=groups,
        opposite=opposite_users(groups, data.opposite),
        shuffled=torch.arange(len(clients)).roll(1),
        group_names=data.groups,
        pool_size=len(data.pairs),
        judged=padded_judgements(given, dtype, pool.rating_scale),
        pairs_per_judgement=0.5 if single else 1.0,
        matched=None if data.matched is None else data.matched[query] & mask,
    )


def opposite_users(groups: Tensor, opposite: Sequence[int]) -> Tensor:
    """For each user the position of one of the opposite group, in turn; the user's own where there is none."""
    result = torch.arange(len(groups))
    for g in groups.unique().tolist():
        if g < 0:
            continue
        others = torch.nonzero(groups == opposite[g]).flatten()
        mine = torch.nonzero(groups == g).flatten()
        if len(others):
            result[mine] = others[torch.arange(len(mine)) % len(others)]
    return result


@dataclass(frozen=True)
class Measured:
    """Metrics of one (population, inference, context size), and what each test pair adds to the accuracy."""

    values: dict[str, Any]
    scores: PairScores


def score_predictions(panel: Panel, p: Tensor) -> Measured:
    """Accuracy (mean over users), per group, worst group, on conflicting pairs; log-loss and calibration.

    Args:
        p: (users, q) p(a > b).
    """
    p, mask = p.double(), panel.query_mask.double()
    hit = metrics.correct(p, panel.query_y)
    accuracy = metrics.per_user(hit, mask)
    share = mask / mask.sum(-1, keepdim=True) / len(mask)
    per_group = metrics.group_means(accuracy, panel.groups, len(panel.group_names))
    known = [g for g in per_group if g is not None]
    conflict = metrics.per_user(hit, panel.conflict.double())
    conflict = conflict[~conflict.isnan()]
    matched = metrics.per_user(hit, mask if panel.matched is None else panel.matched.double())
    matched = matched[~matched.isnan()]
    real = panel.query_mask
    values = {
        "accuracy": float(accuracy.mean()),
        "worst_group_accuracy": min(known) if known else None,
        "group_accuracy": dict(zip(panel.group_names, per_group, strict=True)) if known else None,
        "conflict_accuracy": float(conflict.mean()) if len(conflict) else None,
        "matched_accuracy": float(matched.mean()) if panel.matched is not None and len(matched) else None,
        "log_loss": float(metrics.per_user(metrics.log_loss(p, panel.query_y), mask).mean()),
        "ece": metrics.expected_calibration_error(p[real], panel.query_y[real], share[real]),
    }

    def spread(v: Tensor) -> Tensor:
        return torch.zeros(panel.pool_size, dtype=torch.float64).index_add(0, panel.query.flatten(), v.flatten())

    return Measured(values, PairScores(spread(share).numpy(), spread(share * hit).numpy(), accuracy.numpy()))


def measure_leaking(predictor: Predictor, panel: Panel, inference: str) -> Measured:
    """The leaking protocol, for comparison only: each query's latent is inferred from that very pair and its label."""
    shape = panel.query.shape
    index, y = panel.query.reshape(-1, 1), panel.query_y.reshape(-1, 1)
    context: Any = Context(index, y, panel.query_mask.reshape(-1, 1))
    if takes_judgements(predictor):
        context = predictor.choices(context)
    users = predictor.infer(context, inference, panel.groups.repeat_interleave(shape[1]))
    return score_predictions(panel, predictor.predict(users, index).reshape(shape))


def measure(predictor: Predictor, panel: Panel, size: int, inference: str, personal: bool) -> Measured:
    """All metrics of one inference at one context size.

    Args:
        personal: whether predictions depend on the user; else the metrics of latent use stay null.
    """
    users = predictor.infer(panel.context_for(predictor, size), inference, panel.groups)
    own = predictor.predict(users, panel.query)
    result = score_predictions(panel, own)
    if not personal:
        return result

    def accuracy(order: Tensor) -> float:
        p = predictor.predict(predictor.rows(users, order), panel.query)
        return score_predictions(panel, p).values["accuracy"]

    extra: dict[str, Any] = {"shuffled_accuracy": accuracy(panel.shuffled)}
    if panel.grouped:
        extra["switch_gap"] = result.values["accuracy"] - accuracy(panel.opposite)
    if size > 0:
        mirrored = predictor.infer(panel.context_for(predictor, size, exchanged=True), inference, panel.groups)
        extra["flip_rate"] = flip_rate(panel, own, predictor.predict(mirrored, panel.query))
    return Measured(result.values | extra, result.scores)


def flip_rate(panel: Panel, own: Tensor, mirrored: Tensor) -> float | None:
    """Share of the correct predictions that flip when the context's labels are exchanged."""
    right = (metrics.correct(own, panel.query_y) == 1) & panel.query_mask
    if not right.any():
        return None
    flipped = (own > 0.5) != (mirrored > 0.5)
    return float((flipped & right).sum() / right.sum())
