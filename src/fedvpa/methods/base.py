"""The interface of a method, and the data that flows through it.

A method is a handful of functions over explicit state, so that the same functions run in the vectorised engine, in the
one-client-at-a-time loop and in a unit test. All tensors of a round carry a leading *client* dimension: K clients train
as one stack, and K = 1 is the case of a single client. One round is::

    state = method.init_server(generator)
    private = method.init_client(count)                              # (clients, ...) rows that never leave a client
    download = method.broadcast(state)                               # what every client receives
    upload, rows = method.client_update(download, rows, batch, noise)  # what the sampled clients send back
    theta = average(upload)                                          # the engine's: weighting, server optimiser
    state = method.server_update(state, upload, theta, generator)
    predictor = method.predictor(state, pool)                        # evaluation

After FedJAX's ``FederatedAlgorithm`` in spirit: server and client state are data, never hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from fedvpa.backbone.pairs import PairTexts
from fedvpa.config import ExperimentConfig
from fedvpa.methods.components import Own
from fedvpa.preferences.schema import NO_RATINGS, RATING, Client, Judgements
from fedvpa.preferences.seeding import generator
from fedvpa.variational.inference import Particles
from fedvpa.variational.selector import Theta

USERS_AT_ONCE = 128
"""Users whose queries are scored together; more would waste work where users share few pairs."""
SUBSETS = 16
"""R, the random contexts over which a client's posterior statistics are taken (method.md, section 6)."""


@dataclass(frozen=True)
class Pool:
    """All items of a run as standardised features, and the pairs of them that somebody compares.

    Attributes:
        items: (items, D) features.
        pairs: (pairs, 2) int64 rows of `items`, of a and of b.
        base_logit: (pairs,) l0, or None.
        texts: the pairs as tokens, for methods that train the language model itself; None for all others.
        rating_scale: mean and deviation that ratings are standardised by (`federation.moments.rating_scale`).
    """

    items: Tensor
    pairs: Tensor
    base_logit: Tensor | None = None
    texts: PairTexts | None = None
    rating_scale: tuple[float, float] = NO_RATINGS

    @staticmethod
    def of_pairs(x: Tensor, base_logit: Tensor | None = None) -> Pool:
        """The pool of pairs with the features x (pairs, 2, D), whose items nobody shares."""
        return Pool(x.flatten(0, 1), torch.arange(2 * len(x), device=x.device).view(-1, 2), base_logit)

    @property
    def x(self) -> Tensor:
        """(pairs, 2, D): features of a and of b."""
        return self.items[self.pairs]

    @property
    def features(self) -> int:
        """D"""
        return self.items.shape[-1]

    def differences(self, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """embed(a) - embed(b) of every pair, (pairs, h); each item is embedded once. embed: (items, D) -> (items, h)"""
        e = embed(self.items)
        return e[self.pairs[:, 0]] - e[self.pairs[:, 1]]

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (..., 2 * n, D), responses a first, and l0 (..., n) of the pairs `index` (..., n)."""
        x = self.items[self.pairs[index]].transpose(-3, -2).flatten(-3, -2)
        return x, None if self.base_logit is None else self.base_logit[index]

    def choices(self, context: Context) -> Judged:
        """Labelled pairs as judgements."""
        a, b = self.pairs[context.index].unbind(-1)
        return Judged(a, b, context.y, torch.zeros_like(context.mask), context.mask.to(context.y.dtype))


class Context(NamedTuple):
    """Labelled pairs from which users are inferred, padded.

    Attributes:
        index: (users, c) rows of the pool; y: (users, c) labels +1/-1; mask: (users, c) True where real.
    """

    index: Tensor  # type: ignore[assignment]  # shadows tuple.index, which nobody needs here
    y: Tensor
    mask: Tensor


class Judged(NamedTuple):
    """Judgements of several people, padded: what they are inferred from, or what a client trains on.

    Attributes:
        first: (users, n) rows of the pool's items; second: the same of a choice's other item, -1 where there is none.
        y: (users, n) +1 or -1, or a rating; rated: (users, n) True where it is one.
        weight: (users, n) how much a judgement counts; 0 in the padding.
    """

    first: Tensor
    second: Tensor
    y: Tensor
    rated: Tensor
    weight: Tensor


class ClientBatch(NamedTuple):
    """The training pairs of K clients, padded to the longest.

    Attributes:
        ids: (K,) int64 positions among the training clients.
        x: (K, 2 * pairs, D) features, responses a first.
        base_logit: (K, pairs) or None.
        y: (K, pairs) labels, 0 in the padding.
        mask: (K, pairs) True where real.
        rows: (K, pairs) their rows in `texts`; both None where the pool has no texts.
    """

    ids: Tensor
    x: Tensor
    base_logit: Tensor | None
    y: Tensor
    mask: Tensor
    rows: Tensor | None = None
    texts: PairTexts | None = None

    @property
    def counts(self) -> Tensor:
        """(K,) numbers of examples."""
        return self.mask.sum(-1)

    def take(self, pairs: Tensor) -> ClientBatch:
        """The pairs at positions `pairs` (K, n) of each client."""
        n, width = self.y.shape[1], self.x.shape[-1]
        both = torch.cat([pairs, pairs + n], 1)
        return ClientBatch(
            self.ids,
            self.x.gather(1, both.unsqueeze(-1).expand(-1, -1, width)),
            None if self.base_logit is None else self.base_logit.gather(1, pairs),
            self.y.gather(1, pairs),
            self.mask.gather(1, pairs),
            None if self.rows is None else self.rows.gather(1, pairs),
            self.texts,
        )


class JudgementBatch(NamedTuple):
    """The judgements of K clients as they were given, padded to the longest.

    Attributes:
        ids: (K,) int64 positions among the training clients.
        items: (n, D) features of the items that any of them judged.
        first: (K, judgements) rows of `items`; second: the same of a choice's other item, -1 for a vote or a rating.
        y: (K, judgements) +1 or -1, or a rating; rated: True where it is one.
        weight: (K, judgements) 0 in the padding.
        counts: (K,) numbers of judgements.
    """

    ids: Tensor
    items: Tensor
    first: Tensor
    second: Tensor
    y: Tensor
    rated: Tensor
    weight: Tensor
    counts: Tensor

    def client(self, i: int) -> JudgementBatch:
        """The i-th client alone, with its own items only."""
        n = int(self.counts[i])
        first, second, y, rated, weight = (t[i : i + 1, :n] for t in self[2:7])
        used, place = torch.cat([first, second.clamp(min=0)], 1).unique(return_inverse=True)
        first, other = place.chunk(2, 1)
        second = torch.where(second < 0, -1, other)
        one = slice(i, i + 1)
        return JudgementBatch(self.ids[one], self.items[used], first, second, y, rated, weight, self.counts[one])


class LocalNoise(NamedTuple):
    """Everything random that K clients use in one round, drawn per client from (seed, round, client).

    Attributes:
        rank: (K, steps, pairs) int64 random order of each client's pairs per step; padding comes last.
        context_size: (K, steps) int64 number of context pairs per step.
        normal: (K, steps, samples, dim) for the reparameterised samples.
        gumbel: (K, steps, components) for the prior's weights.
        subset: (K, R, pairs) bool random contexts for the posterior statistics.
        keep: (K, steps, D) bool input features that are kept; (K, steps, 0) without dropout.
    """

    rank: Tensor
    context_size: Tensor
    normal: Tensor
    gumbel: Tensor
    subset: Tensor
    keep: Tensor


def kept_features(config: ExperimentConfig, round: int, share: float, items: Tensor) -> Tensor:
    """Factors (D,) of the input features in a round: 0 for a random `share` of them, the others scaled up to the same
    mean; the same for all of the round's clients (dropout)."""
    keep = torch.rand(items.shape[-1], generator=generator(config.seed, "dropout", round)) >= share
    scale = keep.to(items.dtype)
    return scale * (len(scale) / scale.sum().clamp(min=1))


def judgements_of(client: Client, pairs: Tensor) -> Judgements:
    """What a client judged, in the order in which contexts take it: votes and ratings, or its pairs as choices.

    Args:
        pairs: (pairs, 2) items of all pairs.
    """
    if client.judgements is not None:
        return client.judgements
    return Judgements.choices(pairs[client.train.index].cpu(), client.train.y)


def padded_judgements(people: Sequence[Judgements], dtype: torch.dtype, rating_scale: tuple[float, float]) -> Judged:
    """Several people's judgements as one batch, their ratings standardised.

    Args:
        dtype: of labels and weights.
        rating_scale: mean and standard deviation of the training people's ratings.
    """

    def pad(name: str, kind: torch.dtype) -> Tensor:
        rows = [getattr(p, name).to(kind) for p in people]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    rated = torch.nn.utils.rnn.pad_sequence([p.kind == RATING for p in people], batch_first=True)
    first, second = pad("first", torch.int64), pad("second", torch.int64)
    value, (mean, deviation) = pad("value", torch.float64), rating_scale
    y = torch.where(rated, (value - mean) / deviation, value).to(dtype)
    return Judged(first, second, y, rated, pad("weight", dtype))


@dataclass(frozen=True)
class NoiseSpec:
    """Which noise a method needs: sizes for `draw_noise`."""

    steps: int
    context_pairs: int
    vary_context: bool
    samples: int
    dim: int
    peers: int
    features: int
    dropout: float
    subsets: int = SUBSETS


def examples(client: Client) -> int:
    """How many training examples a client holds, as pairs or as judgements, whichever are more."""
    return max(len(client.train), 0 if client.judgements is None else len(client.judgements))


def draw_noise(spec: NoiseSpec, pairs: int, padded: int, generator: torch.Generator) -> LocalNoise:
    """The noise of one client (K = 1) that holds `pairs` pairs, padded to `padded`."""

    def ranks(rows: int) -> Tensor:
        keys = torch.rand(rows, pairs, generator=generator).argsort(-1)
        rest = torch.arange(pairs, padded).expand(rows, -1)
        return torch.cat([keys, rest], -1).unsqueeze(0)

    def sizes(rows: int) -> Tensor:
        most = max(1, min(spec.context_pairs, pairs - 1))
        if not spec.vary_context:
            return torch.full((1, rows), most)
        return torch.randint(1, most + 1, (1, rows), generator=generator)

    rank, size = ranks(spec.steps), sizes(spec.steps)
    normal = torch.randn(1, spec.steps, spec.samples, spec.dim, generator=generator)
    uniform = torch.rand(1, spec.steps, spec.peers, generator=generator)
    gumbel = -(-uniform.clamp(min=1e-10).log()).log()
    subset = ranks(spec.subsets) < sizes(spec.subsets).unsqueeze(-1)
    width = spec.features if spec.dropout > 0 else 0
    keep = torch.rand(1, spec.steps, width, generator=generator) >= spec.dropout
    return LocalNoise(rank, size, normal, gumbel, subset, keep)


def drop_features(batch: ClientBatch, keep: Tensor) -> ClientBatch:
    """The batch without the input features outside `keep` (K, D), the others scaled up to the same mean (dropout).

    A client's pairs lose the same features, so a difference embedding stays antisymmetric.
    """
    if not keep.shape[-1]:
        return batch
    scale = keep.to(batch.x.dtype)
    scale = scale * (keep.shape[-1] / scale.sum(-1, keepdim=True).clamp(min=1))
    return batch._replace(x=batch.x * scale.unsqueeze(1))


@dataclass(frozen=True)
class ServerState:
    """All that the server knows; tensors and plain values only.

    Attributes:
        round: rounds completed.
        theta: global parameters.
        means, variances: (clients, dim) the posteriors that clients uploaded last; counts: (clients,) their numbers
            of examples, 0 where nothing was uploaded yet.
        labels: (clients,) int64 cluster of each client, -1 where unknown.
        centroids, spread: (M, dim) mean of each cluster's posterior means, and the variance of its equal mixture.
        shares: (M,) share of the clients in each cluster.
        clustered: whether clusters (and prototypes, where the method has them) are in use.
        extra: further tensors of a method.
    """

    round: int
    theta: Theta
    means: Tensor
    variances: Tensor
    counts: Tensor
    labels: Tensor
    centroids: Tensor
    spread: Tensor
    shares: Tensor
    clustered: bool = False
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def in_use(self) -> int:
        """Clusters with a share: M, or what was chosen of it."""
        return int((self.shares > 0).sum())

    def advance(self, **changes: Any) -> ServerState:
        return replace(self, round=self.round + 1, **changes)


@dataclass(frozen=True)
class Download:
    """What a client receives in a round.

    Attributes:
        round: the round that begins, from 0.
        theta: global parameters, without a client dimension.
        means, variances: (clients, dim) and counts (clients,): the prior's components; counts 0 where absent.
        labels: (clients,) int64; a client reads its own entry only.
        shares: (M,) of the clusters.
        prior_active, ortho_active: whether the mixture prior and the clusters' losses are switched on.
        own: with a compressed prior, whose K components then are `means`, `variances` and `counts`: each client's
            component without itself; a client reads its own row only.
    """

    round: int
    theta: Theta
    means: Tensor
    variances: Tensor
    counts: Tensor
    labels: Tensor
    shares: Tensor
    prior_active: bool
    ortho_active: bool
    own: Own | None = None


@dataclass(frozen=True)
class Upload:
    """What K clients send back, and nothing else.

    Attributes:
        ids: (K,) clients.
        theta: trained parameters, (K, ...) each.
        means, variances: (K, dim) posterior statistics mubar, sbar^2 under the *received* theta; (K, 0) without z.
        counts: (K,) numbers of examples.
        metrics: a fixed set of scalars per client, (K,) each.
        model: (K,) which of the server's models each client trained; None where the server has one. Model k's
            parameters are the server's ``k/NAME``, a client's are ``NAME``.
        sums: further statistics, (K, ...) each, of which the server uses the sum over clients only.
    """

    ids: Tensor
    theta: Theta
    means: Tensor
    variances: Tensor
    counts: Tensor
    metrics: Mapping[str, Tensor]
    model: Tensor | None = None
    sums: Mapping[str, Tensor] = field(default_factory=dict)

    def bytes_per_client(self) -> int:
        """Bytes that one client sends: parameters, posterior, sums, example count (8) and metrics (4 each)."""
        tensors = [*self.theta.values(), self.means, self.variances, *self.sums.values()]
        return sum(t[0].numel() * t.element_size() for t in tensors) + 8 + 4 * len(self.metrics)


Private = dict[str, Tensor]
"""State that never leaves a client, (K, ...) per entry."""


class Predictor(Protocol):
    """A trained model seen from the evaluation. Inferred users are opaque to the caller, but for `rows`."""

    inferences: tuple[str, ...]

    def infer(self, context: Context, inference: str, groups: Tensor) -> Any:
        """Users from their contexts; `groups` (users,) is for oracles only."""
        ...

    def predict(self, users: Any, index: Tensor) -> Tensor:
        """p(a > b) (users, n) of the pairs `index` (users, n)."""
        ...

    def rows(self, users: Any, order: Tensor) -> Any:
        """The inferred users at positions `order`, for prediction with somebody else's latent."""
        ...


@runtime_checkable
class JudgementPredictor(Protocol):
    """What a predictor adds that infers people from judgements as they were given (`Judged`)."""

    def choices(self, context: Context) -> Judged:
        """Labelled pairs as judgements."""
        ...


def takes_judgements(predictor: Predictor) -> TypeGuard[JudgementPredictor]:
    """Whether a predictor infers people from `Judged` instead of a `Context` of pairs."""
    return isinstance(predictor, JudgementPredictor)


@runtime_checkable
class Owning(Protocol):
    """What a predictor adds whose training clients keep private state by which they are predicted (`fedpdpo`)."""

    def own(self, private: Private, ids: Tensor) -> Predictor:
        """The same for the training clients `ids` (users,), each with what it trained."""
        ...


class Method(Protocol):
    """See the module's docstring for how the functions follow one another.

    A class may say two things more: ``portable = False`` where no single selector can be saved, and
    ``contextual = True`` where a user is inferred from a context without a latent (with one it always is).
    """

    name: ClassVar[str]
    federated: ClassVar[bool]
    latent: ClassVar[bool]
    metric_names: ClassVar[tuple[str, ...]]

    def init_server(self, generator: torch.Generator) -> ServerState: ...

    def init_client(self, count: int) -> Private: ...

    def noise_spec(self) -> NoiseSpec: ...

    def broadcast(self, state: ServerState) -> Download: ...

    def client_update(
        self, download: Download, private: Private, batch: ClientBatch, noise: LocalNoise
    ) -> tuple[Upload, Private]: ...

    def server_update(
        self, state: ServerState, upload: Upload, theta: Theta, generator: torch.Generator
    ) -> ServerState: ...

    def download_bytes(self, download: Download) -> int: ...

    def predictor(self, state: ServerState, pool: Pool) -> Predictor: ...


@runtime_checkable
class Judging(Protocol):
    """What a method adds that takes people's judgements as they were given, not pairs made from them.

    Its `client_update` gets a `JudgementBatch`, its predictor infers from `Judged` contexts. Where nothing has to be
    done to a single client's upload, the engine calls `cohort_update` instead: the same sums over a round's clients,
    computed once for all.
    """

    def sums_shapes(self, download: Download) -> Mapping[str, tuple[int, ...]]: ...

    def cohort_update(self, download: Download, batch: JudgementBatch, noise: LocalNoise) -> Upload: ...

    def pace(self, state: ServerState) -> float: ...


@runtime_checkable
class Surveying(Protocol):
    """What a method adds that asks *every* client for a report before some rounds (`fedbiscuit`)."""

    def surveys(self, round: int) -> bool: ...

    def client_report(self, download: Download, batch: ClientBatch) -> Tensor: ...

    def regroup(self, state: ServerState, reports: Tensor) -> ServerState: ...


@dataclass(frozen=True)
class Setup:
    """What a method is built from: the configuration and the sizes that the data determine.

    Attributes:
        validation: users on whom a method may make its own choices, without their groups; they never train.
        groups: (clients,) true groups; there for `methods.oracle_labels` only, None for every other method.
    """

    config: ExperimentConfig
    features: int
    clients: int
    clusters: int
    dtype: torch.dtype = torch.float32
    validation: tuple[Client, ...] = ()
    groups: Tensor | None = None


def torch_dtype(config: ExperimentConfig) -> torch.dtype:
    """The precision of training."""
    return torch.float32 if config.federation.dtype == "float32" else torch.float64


def by_row(index: Tensor, values: Callable[[slice, Tensor], Tensor]) -> Tensor:
    """Values (users, n) of the pairs `index` (users, n): each distinct pair is computed once for a block of users.

    Users are mostly asked about the same pairs. One product of latents and distinct pairs then takes the place of a
    copy of every pair for every user.

    Args:
        values: of the users in a slice for distinct rows (rows,) of the pool, (users in the slice, rows).
    """
    found = []
    for start in range(0, len(index), USERS_AT_ONCE):
        users = slice(start, start + USERS_AT_ONCE)
        rows, place = index[users].unique(return_inverse=True)
        found.append(values(users, rows).gather(-1, place))
    return torch.cat(found)


def select(users: Particles, order: Tensor) -> Particles:
    """Particles of the users at positions `order`."""
    return Particles(users.z[order], users.log_weights[order])


def log_counts(counts: Tensor, dtype: torch.dtype) -> Tensor:
    """log n_j, 0 for absent peers (which a mask excludes)."""
    return counts.clamp(min=1).to(dtype).log()


def local_optimizer(
    theta: Theta, config: ExperimentConfig, private: Private | None = None, private_rate: float = 0.0
) -> torch.optim.Optimizer:
    """Fused SGD or AdamW on stacked parameters: decay on matrices only, none on biases, prototypes, private state.

    Args:
        private_rate: SGD's learning rate for the private state, which is on another scale than the parameters.
    """
    f = config.federation
    decay = {name: f.weight_decay if name.endswith("weight") else 0.0 for name in theta}
    # One group per decay: a group is one call of the fused kernel, with a fixed cost per step.
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in theta.items() if decay[name] == d], "weight_decay": d}
        for d in sorted(set(decay.values()))
    ]
    own = list((private or {}).values())
    if f.local_optimizer == "sgd":
        groups.append({"params": own, "weight_decay": 0.0, "lr": private_rate})
        return torch.optim.SGD(groups, lr=f.learning_rate, fused=True)
    groups[0]["params"] += own
    return torch.optim.AdamW(groups, lr=f.learning_rate, fused=True)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step of every client on its own loss, (K,) or a scalar: no parameter is shared between two of them."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = None
    loss.backward(torch.ones_like(loss))
    optimizer.step()


def stack_theta(theta: Theta, clients: int) -> Theta:
    """A trainable copy of the global parameters for each of `clients` clients."""
    return {k: v.expand(clients, *v.shape).clone().requires_grad_(True) for k, v in theta.items()}
