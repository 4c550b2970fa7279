"""What an adversary learns from what leaves a client: membership inference and group inference, run on a training.

Three views: ``server`` sees every client's own messages; ``sum`` is what is left of them under secure aggregation (the
round's mean change, with its noise); ``peer`` sees what every client receives (parameters, and the prior's components
without names). Nothing is recorded in training: a round's uploads follow from the state before it, since every draw
derives from (seed, round, client), so the attacks make them again.

Attack advantage is balanced accuracy above chance, scaled to 1: TPR - FPR for two classes (Yeom et al. 2018,
1709.01604). Thresholds are fitted on one half of the clients and judged on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from fedvpa.evaluation.diagnostics import client_groups
from fedvpa.evaluation.experiment import Prepared
from fedvpa.federation import privacy
from fedvpa.federation.rounds import ClientData, RoundReport, TrainingState, run_clients, sample_clients
from fedvpa.methods.base import Method, ServerState, Upload, draw_noise
from fedvpa.methods.fedvpa_gp import FedVPAGP
from fedvpa.preferences.schema import Client
from fedvpa.preferences.seeding import derive_seed, generator
from fedvpa.variational.selector import Theta, difference, score

ATTACKED = (0.25, 0.5, 0.75, 1.0)
"""The rounds that are attacked, as shares of a training: the last round before each of them."""


class Outcome(NamedTuple):
    """One attack on one training.

    Attributes:
        attack: ``membership`` or ``group``; view: who attacks; signal: what it looks at.
        hits: per class (candidates,) share of right guesses about each candidate, in [0, 1].
    """

    attack: str
    view: str
    signal: str
    hits: tuple[Tensor, ...]

    @property
    def advantage(self) -> float:
        """Balanced accuracy, scaled so that guessing is 0 and certainty 1."""
        classes = len(self.hits)
        balanced = sum(float(h.mean()) for h in self.hits) / classes
        return (classes * balanced - 1) / (classes - 1)


def interval(outcomes: Sequence[Outcome], resamples: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Mean advantage of one attack over trainings, and its 95 % interval by bootstrap over trainings and candidates."""
    rng = np.random.default_rng(derive_seed(seed, "attack-interval"))
    drawn = np.empty(resamples)
    for r in range(resamples):
        again = []
        for one in rng.integers(len(outcomes), size=len(outcomes)):
            hits = outcomes[one].hits
            again.append(outcomes[one]._replace(hits=tuple(h[rng.integers(len(h), size=len(h))] for h in hits)))
        drawn[r] = np.mean([o.advantage for o in again])
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(np.mean([o.advantage for o in outcomes])), float(low), float(high)


def thresholded(members: Sequence[Tensor], others: Sequence[Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """Guesses "member" where the score is above the threshold with the largest TPR - FPR on the *other* half.

    Args:
        members, others: per candidate its scores (n,), higher where membership is likelier.

    Returns:
        Per candidate the share of its scores that were guessed right.
    """
    halves = [
        torch.randperm(len(part), generator=generator(seed, "attack-half", k)) % 2
        for k, part in enumerate((members, others))
    ]
    right = [torch.zeros(len(part), dtype=torch.float64) for part in (members, others)]
    for half in (0, 1):
        fit = [
            torch.cat([s for s, h in zip(part, side.tolist(), strict=True) if h != half]).double()
            for part, side in zip((members, others), halves, strict=True)
        ]
        cut = best_threshold(*fit)
        for k, part in enumerate((members, others)):
            for i in torch.nonzero(halves[k] == half).flatten().tolist():
                above = (part[i].double() > cut).double().mean()
                right[k][i] = above if k == 0 else 1 - above
    return right[0], right[1]


def best_threshold(members: Tensor, others: Tensor) -> float:
    """The cut with the largest TPR - FPR, in the middle between two scores."""
    values, order = torch.cat([members, others]).sort()
    gain = torch.cat([torch.full_like(members, -1 / len(members)), torch.full_like(others, 1 / len(others))])[order]
    best = int(gain.cumsum(0).argmax())
    return float(values[best : best + 2].mean())


def nearest_group(vectors: Tensor, groups: Tensor) -> tuple[Tensor, ...]:
    """Guesses each client's group as the one whose *other* members have the highest mean cosine with it.

    The adversary knows everybody else's group: the most that it can have.

    Args:
        vectors: (clients, n); groups: (clients,) true groups.

    Returns:
        Per group (its clients,) 1 where the guess was right.
    """
    unit = normalize((vectors - vectors.mean(0)).double(), dim=-1)
    cosine = unit @ unit.T
    cosine.fill_diagonal_(0)
    member = torch.nn.functional.one_hot(groups).double()
    member = member[:, member.sum(0) > 1]
    others = member.sum(0) - member
    guess = (cosine @ member / others.clamp(min=1)).argmax(-1)
    right = (guess == member.argmax(-1)).double()
    return tuple(right[member[:, k] == 1] for k in range(member.shape[1]))


@dataclass
class Watch:
    """Keeps the states that are attacked; hand it to `run_method` as `on_round`."""

    rounds: int
    states: list[TrainingState] = field(default_factory=list)

    def __call__(self, report: RoundReport, state: TrainingState, values: dict[str, Any] | None) -> None:
        if state.server.round in {max(1, int(share * self.rounds) - 1) for share in ATTACKED}:
            self.states.append(state)


def run_attacks(method: Method, prepared: Prepared, states: Sequence[TrainingState]) -> list[Outcome]:
    """Every attack that a method's messages allow.

    Args:
        states: states before the attacked rounds (`Watch`), the last one of them also the peer's.

    Returns:
        The outcomes; group inference only where the true groups are known.
    """
    everybody = torch.arange(len(prepared.clients))
    config, groups = prepared.config, client_groups(prepared.data.clients["seen"])
    uploads = [run_clients(method, config, prepared.clients, s, everybody)[0] for s in states]
    found = [_pairs_from_changes(prepared, states, uploads, method.latent)]
    found.append(_pairs_from_sum(method, prepared, states))
    found += _pairs_and_clients_from_moments(prepared)
    found.append(_clients_from_model(method, prepared, states[-1]))
    shown = isinstance(method, FedVPAGP) and method.broadcast(states[-1].server).prior_active
    if isinstance(method, FedVPAGP) and shown:
        found.append(_clients_from_prior(method, prepared, states[-1]))
    if len(prepared.data.groups) < 2 or bool((groups < 0).any()):
        return found
    last = states[-1].server.theta
    change = torch.cat([(uploads[-1].theta[k] - v).reshape(len(everybody), -1) for k, v in last.items()], 1)
    found.append(Outcome("group", "server", "theta", nearest_group(change, groups)))
    messages = _moment_means(prepared, prepared.data.clients["seen"])
    found.append(Outcome("group", "server", "moments", nearest_group(messages, groups)))
    if method.latent:
        found.append(Outcome("group", "server", "posterior", nearest_group(uploads[-1].means, groups)))
    if isinstance(method, FedVPAGP) and shown:
        found.append(_groups_from_prior(method, prepared, states[-1], groups))
    return found


# Membership ----------------------------------------------------------------------------------------------------------


def pair_losses(theta: Theta, prepared: Prepared, index: Tensor, y: Tensor, z: Tensor | None) -> Tensor:
    """-log p of the labels y (n,) of the pairs `index` (n,) under one theta, and the latent z (dim,)."""
    x, base = prepared.pool.rows(index)
    logits = score(theta, difference(theta, x), None if z is None else z.unsqueeze(0), base)
    return softplus(-y.to(logits.dtype) * logits.reshape(-1))


def _other_pairs(prepared: Prepared, client: Client, seed: int) -> tuple[Tensor, Tensor]:
    """As many training pairs that the client does not hold, with the labels that its group gives them.

    Without true groups: the pairs that it is asked about in the evaluation.
    """
    data = prepared.data
    if client.group is None or not len(data.groups):
        return client.test.index, client.test.y
    labels = data.group_labels[client.group].clone()
    labels[torch.tensor([s != "train" for s in data.split])] = 0
    labels[client.train.index] = 0
    free = torch.nonzero(labels).flatten()
    chosen = free[torch.randperm(len(free), generator=generator(seed, "attack", client.client_id))[: len(client.train)]]
    return chosen, labels[chosen]


def _drops(prepared: Prepared, client: Client, before: Theta, after: Theta, z: Tensor | None) -> tuple[Tensor, Tensor]:
    """By how much training lowered the loss of the client's own pairs, and of others."""
    both = ((client.train.index, client.train.y), _other_pairs(prepared, client, prepared.config.seed))
    old, new = ([pair_losses(t, prepared, i, y, z) for i, y in both] for t in (before, after))
    return old[0] - new[0], old[1] - new[1]


def _pairs_from_changes(
    prepared: Prepared, states: Sequence[TrainingState], uploads: Sequence[Upload], latent: bool
) -> Outcome:
    """Was this pair among the client's? From each client's own change of theta; scores are means over the rounds."""
    members, others = [], []
    for i, client in enumerate(prepared.data.clients["seen"]):
        drops = [
            _drops(
                prepared, client, s.server.theta, {k: v[i] for k, v in u.theta.items()}, u.means[i] if latent else None
            )
            for s, u in zip(states, uploads, strict=True)
        ]
        members.append(torch.stack([d[0] for d in drops]).mean(0))
        others.append(torch.stack([d[1] for d in drops]).mean(0))
    return Outcome("membership", "server", "theta", thresholded(members, others, prepared.config.seed))


def _pairs_from_sum(method: Method, prepared: Prepared, states: Sequence[TrainingState]) -> Outcome:
    """The same from the mean change of the clients that a round really sampled."""
    config, members, others = prepared.config, [], []
    for state in states:
        server = state.server
        ids = sample_clients(config, len(prepared.clients), server.round)
        upload, _ = run_clients(method, config, prepared.clients, state, ids)
        change = privacy.mean_of(config, len(prepared.clients), server.round)(server.theta, upload)
        after = {k: v + change[k] for k, v in server.theta.items()}
        for row, i in enumerate(ids.tolist()):
            z = upload.means[row] if method.latent else None
            own, other = _drops(prepared, prepared.data.clients["seen"][i], server.theta, after, z)
            members.append(own)
            others.append(other)
    return Outcome("membership", "sum", "theta", thresholded(members, others, config.seed))


def _moment_means(prepared: Prepared, clients: Sequence[Client]) -> Tensor:
    """(clients, D) mean features as the clients' messages of round 0 show them, in standardised units."""
    s = prepared.standardizer
    rows = []
    for c in clients:
        raw = prepared.pool.x[c.train.index].flatten(0, 1).double() * s.scale.double() + s.mean.double()
        m = privacy.moments_of(raw, prepared.config)
        rows.append((m.total / m.count - s.mean.double()) / s.scale.double())
    return torch.stack(rows)


def _pairs_and_clients_from_moments(prepared: Prepared) -> list[Outcome]:
    """Inner products with a published mean (Dwork et al. 2015, "Robust traceability from trace amounts").

    The server traces a pair in its client's message; from the sum one traces a client among all, with the validation
    clients' features as the reference.
    """
    data, seed, x = prepared.data, prepared.config.seed, prepared.pool.x.double()
    means = _moment_means(prepared, data.clients["seen"])
    pairs: tuple[list[Tensor], list[Tensor]] = ([], [])
    for client, mean in zip(data.clients["seen"], means, strict=True):
        for scores, index in zip(pairs, (client.train.index, _other_pairs(prepared, client, seed)[0]), strict=True):
            scores.append(x[index].sum(1) @ mean)
    found = [Outcome("membership", "server", "moments", thresholded(*pairs, seed))]
    if data.clients["validation"] and data.clients["unseen"]:
        plain = [torch.stack([x[c.train.index].mean((0, 1)) for c in data.clients[p]]) for p in ("seen", "unseen")]
        reference = torch.stack([x[c.train.index].mean((0, 1)) for c in data.clients["validation"]]).mean(0)
        # In standardised units the released mean is the origin.
        traced = [list(((p - reference) @ -reference).unsqueeze(-1)) for p in plain]
        found.append(Outcome("membership", "sum", "moments", thresholded(traced[0], traced[1], seed)))
    return found


def _clients_from_model(method: Method, prepared: Prepared, state: TrainingState) -> Outcome:
    """Did this user take part in training? From how well the model fits the user's pairs, as any peer can see."""
    theta, scores = state.server.theta, []
    for population in ("seen", "unseen"):
        clients = prepared.data.clients[population]
        z = _statistics(method, prepared, state.server, clients)[0] if isinstance(method, FedVPAGP) else None
        losses = [
            pair_losses(theta, prepared, c.train.index, c.train.y, None if z is None else z[i]).mean()
            for i, c in enumerate(clients)
        ]
        scores.append([-v.unsqueeze(0) for v in losses])
    return Outcome("membership", "peer", "theta", thresholded(scores[0], scores[1], prepared.config.seed))


def _statistics(
    method: FedVPAGP, prepared: Prepared, server: ServerState, clients: Sequence[Client]
) -> tuple[Tensor, Tensor]:
    """mubar and sbar^2 (clients, dim) that an adversary computes from users' pairs, with its own contexts."""
    data, seed = ClientData(prepared.pool, clients), prepared.config.seed
    batch, spec = data.batch(torch.arange(len(clients))), method.noise_spec()
    subsets = [
        draw_noise(spec, int(n), batch.y.shape[1], generator(seed, "attack-contexts", c.client_id)).subset
        for n, c in zip(data.counts, clients, strict=True)
    ]
    with torch.no_grad():
        return method.statistics(server.theta, batch, torch.cat(subsets))


def _clients_from_prior(method: FedVPAGP, prepared: Prepared, state: TrainingState) -> Outcome:
    """The same from the prior: is one of its components much closer to the user's statistics than the next one?

    The adversary knows the bound to which clients clip their statistics, and does the same.
    """
    server, clip = state.server, prepared.config.privacy.posterior_clip
    known = server.counts > 0
    shown = torch.cat([server.means, server.variances], -1)[known]
    scores = []
    for population, present in (("seen", known), ("unseen", None)):
        clients = prepared.data.clients[population]
        stats = _statistics(method, prepared, server, clients)
        own = torch.cat(stats if clip is None else privacy.clipped_posteriors(*stats, clip), -1)
        nearest = torch.cdist(own, shown).topk(2, largest=False).values.clamp(min=1e-12).log()
        gap = (nearest[:, 1] - nearest[:, 0]).unsqueeze(-1)
        scores.append(list(gap if present is None else gap[present]))
    return Outcome("membership", "peer", "posterior", thresholded(scores[0], scores[1], prepared.config.seed))


# Group ---------------------------------------------------------------------------------------------------------------


def _groups_from_prior(method: FedVPAGP, prepared: Prepared, state: TrainingState, groups: Tensor) -> Outcome:
    """Is the user behind this component of a peer's own kind? From the cosine with the peer's own posterior mean."""
    server = state.server
    known = torch.nonzero(server.counts > 0).flatten()
    own = _statistics(method, prepared, server, prepared.data.clients["seen"])[0]
    cosine = normalize(own, dim=-1) @ normalize(server.means, dim=-1).T
    same, different = [], []
    for peer in range(len(own)):
        others = known[known != peer]
        alike = groups[others] == groups[peer]
        if bool(alike.any()) and not bool(alike.all()):
            same.append(cosine[peer, others[alike]])
            different.append(cosine[peer, others[~alike]])
    return Outcome("group", "peer", "posterior", thresholded(same, different, prepared.config.seed))
