"""PluralLLM (Srewa, Zhao, Elmalaki 2025, 2503.09925): an in-context preference transformer, trained federated.

The model is that of Group Preference Optimization (Zhao, Dang, Grover 2023, 2310.11523), a transformer in the manner of
neural processes. A person is a *context*: one token per judgement, made of features and label. A *target* token is an
item without a label; it attends to the context and to itself, never to another target, and its output is the score
s(item | context). There is no positional encoding, so the order of a context has no effect. A vote follows
sigmoid(s), a choice sigmoid(s_a - s_b), a rating N(s, 1). As in GPO the richest form is the judgement of a single item;
the token of a choice has the difference of its items' features.

In each round a client's judgements are split at random into a context, of any size from none to all but one, and
targets; the client sends one gradient step (the papers take several). A new person needs no training: its context goes
in at inference.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedvpa.methods.base import (
    USERS_AT_ONCE,
    Context,
    Judged,
    JudgementBatch,
    Pool,
    ServerState,
    Setup,
    kept_features,
)
from fedvpa.methods.one_step import OneStep
from fedvpa.preferences.seeding import generator
from fedvpa.variational.encoder import linear
from fedvpa.variational.selector import Theta

HEADS = 4
POWER = 2.0
"""A context has the share u^POWER of a client's judgements, u uniform: most contexts are small, and many empty."""
NOWHERE = -1e9
"""Attention score of a token that is not there; finite, so that an empty context gives no NaN."""


class Encoded(NamedTuple):
    """Contexts as targets see them.

    Attributes:
        keys, values: (users, layers, context, width); mask: (users, context) True where real.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


class PluralLLM(OneStep):
    """Inference `none`; the context is all that is known of a person."""

    name: ClassVar[str] = "pluralllm"
    rate: ClassVar[float] = 3.0

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.width, self.layers = setup.config.method.attention_width, setup.config.method.attention_layers

    def initial(self, generator: torch.Generator) -> Theta:
        """Weights uniform in +-1/sqrt(inputs), the scores' 0."""
        w = self.width

        def weight(outputs: int, inputs: int) -> Tensor:
            return (2 * torch.rand(outputs, inputs, generator=generator) - 1) / math.sqrt(inputs)

        theta = {f"{k}.weight": weight(w, self.sizes.features) for k in ("features", "labelled")}
        theta |= {f"token.{k}": torch.zeros(w) for k in ("label", "single", "context", "target")}
        for i in range(self.layers):
            shapes = {"qkv": (3 * w, w), "out": (w, w), "up": (2 * w, w), "down": (w, 2 * w)}
            theta |= {f"{i}.{k}.weight": weight(*shape) for k, shape in shapes.items()}
            theta |= {f"{i}.{k}.bias": torch.zeros(shape[0]) for k, shape in shapes.items()}
        return theta | {"score.weight": torch.zeros(1, w)}

    def losses(self, theta: Theta, batch: JudgementBatch, round: int) -> Tensor:
        """(K,) mean of -log p over the judgements outside a random context, given the context."""
        judged, kept = Judged(*batch[2:7]), kept_features(self.config, round, self.dropout, batch.items)
        share = torch.rand((), generator=generator(self.config.seed, "share", round)) ** POWER
        seen, asked = split(judged, self.order(batch, round), (share * batch.counts).long(), batch.counts)
        return self.loss(theta, batch.items * kept, seen, asked)

    def order(self, batch: JudgementBatch, round: int) -> Tensor:
        """(K, judgements) random order of each client's judgements; padding comes last."""
        width, rows = batch.y.shape[1], []
        for i, n in zip(batch.ids.tolist(), batch.counts.tolist(), strict=True):
            mine = torch.rand(n, generator=generator(self.config.seed, "order", round, i)).argsort(-1)
            rows.append(torch.cat([mine, torch.arange(n, width)]))
        return torch.stack(rows)

    def loss(self, theta: Theta, items: Tensor, seen: Judged, asked: Judged) -> Tensor:
        """Mean of -log p over the targets `asked` of each client, given its context `seen`; (K,). items: (n, D)"""
        projected = Projected.of(theta, items)
        known = encode(theta, tokens(theta, projected, seen), seen.weight > 0)

        def score(rows: Tensor) -> Tensor:
            return scores(theta, projected.plain[rows.clamp(min=0)], known)

        s, alone = score(asked.first), (asked.second < 0) | (asked.weight == 0)
        if not alone.all():
            s = s - torch.where(alone, 0.0, score(asked.second))
        fit = torch.where(asked.rated, -0.5 * (asked.y - s) ** 2, F.logsigmoid(asked.y * s))
        return -(fit * asked.weight).sum(-1) / asked.weight.sum(-1)

    def predictor(  # type: ignore[override]  # people are inferred from judgements
        self, state: ServerState, pool: Pool
    ) -> InContextPredictor:
        return InContextPredictor(state.theta, pool)


def split(judged: Judged, order: Tensor, size: Tensor, counts: Tensor) -> tuple[Judged, Judged]:
    """The first `size` (K,) judgements of each client in its `order` (K, n), and its others, both padded."""
    left = size.unsqueeze(-1) + torch.arange(int((counts - size).max()))
    seen = Judged(*(t.gather(1, order[:, : int(size.max())]) for t in judged))
    asked = Judged(*(t.gather(1, order.gather(1, left.clamp(max=order.shape[1] - 1))) for t in judged))
    mine = torch.arange(seen.y.shape[1]) < size.unsqueeze(-1)
    there = left < counts.unsqueeze(-1)
    return seen._replace(weight=seen.weight * mine), asked._replace(weight=asked.weight * there)


# The transformer -----------------------------------------------------------------------------------------------------


class Projected(NamedTuple):
    """Items in the width of the tokens: F x and V x, (items, width) each."""

    plain: Tensor
    labelled: Tensor

    @classmethod
    def of(cls, theta: Theta, items: Tensor) -> Projected:
        return cls(linear(items, theta, "features"), linear(items, theta, "labelled"))


def tokens(theta: Theta, items: Projected, seen: Judged) -> Tensor:
    """The context's tokens (rows, n, width), F d + y (V d + u), with d = first - second.

    Where there is no second item, d = first, and the token says so.
    """
    alone = (seen.second < 0).unsqueeze(-1)

    def difference(x: Tensor) -> Tensor:
        return x[seen.first] - torch.where(alone, 0.0, x[seen.second.clamp(min=0)])

    y = seen.y.unsqueeze(-1)
    plain = difference(items.plain) + theta["token.context"]
    return plain + y * (difference(items.labelled) + theta["token.label"]) + alone * theta["token.single"]


def encode(theta: Theta, x: Tensor, mask: Tensor) -> Encoded:
    """Contexts of tokens x (rows, n, width), of which mask (rows, n) says which are there."""
    keys, values, hide = [], [], torch.where(mask, 0.0, NOWHERE).to(x)[:, None, None]
    for i in range(_layers(theta)):
        q, k, v = _heads(linear(_norm(x), theta, f"{i}.qkv"))
        weights = (q @ k.mT / math.sqrt(q.shape[-1]) + hide).softmax(-1)
        x = _onward(theta, i, x, weights @ v)
        keys.append(k)
        values.append(v)
    return Encoded(torch.stack(keys, 1), torch.stack(values, 1), mask)


def scores(theta: Theta, x: Tensor, seen: Encoded) -> Tensor:
    """s (rows, targets) of target items x (rows, targets, width), projected features, given the rows' contexts."""
    hide = torch.where(seen.mask, 0.0, NOWHERE).to(x)[:, None, None]
    x = x + theta["token.target"]
    for i in range(_layers(theta)):
        q, k, v = _heads(linear(_norm(x), theta, f"{i}.qkv"))
        to_context = q @ seen.keys[:, i].mT / math.sqrt(q.shape[-1]) + hide
        to_itself = (q * k).sum(-1, keepdim=True) / math.sqrt(q.shape[-1])
        weights = torch.cat([to_context, to_itself], -1).softmax(-1)
        x = _onward(theta, i, x, weights[..., :-1] @ seen.values[:, i] + weights[..., -1:] * v)
    return linear(_norm(x), theta, "score").squeeze(-1)


def _onward(theta: Theta, layer: int, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of a layer: attention's output and the feed-forward network, each added to what came in."""
    x = x + linear(attended.transpose(-3, -2).flatten(-2), theta, f"{layer}.out")
    return x + linear(F.gelu(linear(_norm(x), theta, f"{layer}.up")), theta, f"{layer}.down")


def _heads(qkv: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values (rows, heads, n, width / heads) from (rows, n, 3 * width)."""
    return tuple(t.unflatten(-1, (HEADS, -1)).transpose(-3, -2) for t in qkv.chunk(3, -1))


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _layers(theta: Theta) -> int:
    return sum(k.endswith(".qkv.weight") for k in theta)


class InContextPredictor:
    """A user is an encoded context."""

    inferences: tuple[str, ...] = ("none",)

    @torch.no_grad()
    def __init__(self, theta: Theta, pool: Pool) -> None:
        self.theta, self.pool = theta, pool
        self.items = Projected.of(theta, pool.items)

    def choices(self, context: Context) -> Judged:
        """Labelled pairs as judgements."""
        a, b = self.pool.pairs[context.index].unbind(-1)
        return Judged(a, b, context.y, torch.zeros_like(context.mask), context.mask.to(context.y.dtype))

    @torch.no_grad()
    def infer(self, context: Judged, how: str = "none", groups: Tensor | None = None) -> Encoded:
        parts = [Judged(*part) for part in zip(*(t.split(USERS_AT_ONCE) for t in context), strict=True)]
        return Encoded(*(torch.cat(t) for t in zip(*map(self._encoded, parts), strict=True)))

    def _encoded(self, context: Judged) -> Encoded:
        return encode(self.theta, tokens(self.theta, self.items, context), context.weight > 0)

    @torch.no_grad()
    def predict(self, users: Encoded, index: Tensor) -> Tensor:
        """p(a > b) (users, n) of the pairs `index` (users, n)."""
        found = []
        for start in range(0, len(index), USERS_AT_ONCE):
            some = slice(start, start + USERS_AT_ONCE)
            targets = self.items.plain[self.pool.pairs[index[some]].flatten(1)]
            s = scores(self.theta, targets, Encoded(*(t[some] for t in users)))
            found.append(torch.sigmoid(s[:, ::2] - s[:, 1::2]))
        return torch.cat(found)

    def rows(self, users: Encoded, order: Tensor) -> Encoded:
        return Encoded(*(t[order] for t in users))
