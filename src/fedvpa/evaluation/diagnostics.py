"""Latents, clusters and prior weights: whether z is used, and what it looks like (method.md, section 10)."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.metrics import adjusted_rand_score, silhouette_score
from torch import Tensor

from fedvpa.evaluation import metrics
from fedvpa.evaluation.protocol import Panel, score_predictions
from fedvpa.federation.rounds import TrainingState
from fedvpa.methods.base import ServerState
from fedvpa.methods.fedvpa_gp import FedVPAGP, LatentPredictor
from fedvpa.methods.fedvpa_laplace import LaplacePredictor
from fedvpa.preferences.schema import Client
from fedvpa.preferences.seeding import generator
from fedvpa.variational import gaussian, prior

KL_SAMPLES = 256
MOST_CLIENTS = 2000
"""Up to this many, weights between clients (a square matrix) are computed and drawn."""


def latent_metrics(predictor: LatentPredictor | LaplacePredictor, context: Any, seed: int) -> dict[str, float]:
    """Active units, norms and KLs of the users' posteriors at one context."""
    q = predictor.posterior(context)
    noise = torch.randn(*q.mean.shape[:-1], KL_SAMPLES, q.mean.shape[-1], generator=generator(seed, "kl"))
    samples = gaussian.sample(q, noise.to(q.mean))
    to_standard = gaussian.kl(q, gaussian.standard(q.mean)).mean()
    to_prior = to_standard
    if isinstance(predictor, LaplacePredictor) or predictor.method.use_prior:
        to_prior = prior.kl_to_mixture(q, samples, predictor.prior()).mean()
    return {
        "active_units": metrics.active_units(q.mean),
        "mean_norm": float(q.mean.norm(dim=-1).mean()),
        "kl": float(to_prior),
        "kl_standard": float(to_standard),
    }


def zero_accuracy(predictor: LatentPredictor | LaplacePredictor, panel: Panel) -> float:
    """Accuracy with z = 0 for everybody."""
    users: Any = predictor.nobody(len(panel.groups))
    return float(score_predictions(panel, predictor.predict(users, panel.query)).values["accuracy"])


def structure(state: ServerState, groups: Tensor) -> dict[str, float | None]:
    """Purity, adjusted Rand index and silhouette of the server's clusters of training clients.

    Args:
        groups: (clients,) true groups, -1 where unknown.
    """
    known = state.labels >= 0
    labels, truth, means = state.labels[known], groups[known], state.means[known]
    result: dict[str, float | None] = {
        "cluster_purity": metrics.purity(labels, truth),
        "clusters": float(state.in_use) if known.any() else None,
        "ari": None,
        "silhouette": None,
    }
    if (truth >= 0).any():
        result["ari"] = float(adjusted_rand_score(truth.numpy(), labels.numpy()))
    if 1 < len(labels.unique()) < len(labels):
        result["silhouette"] = float(silhouette_score(means.numpy(), labels.numpy()))
    return result


def prior_weights(method: FedVPAGP, training: TrainingState) -> Tensor | None:
    """w (clients, clients) of every client's prior without noise; of a compressed prior each component's weight is
    shared out among the clients in it.

    None where the method has no mixture prior, for more than `MOST_CLIENTS`, and where log pi stayed at clients in
    other places (`fedvpa.network`).
    """
    download = method.broadcast(training.server)
    clients = len(training.server.counts)
    known = method.use_prior and bool((download.counts > 0).any()) and bool(training.private)
    if not known or clients > MOST_CLIENTS:
        return None
    ids = torch.arange(clients)
    _, log_w = method.prior(training.private["log_pi"], ids, None, download)
    if download.own is None:
        return log_w.exp()
    member, weight = download.own.component, method.weights(training.server.counts)
    inside = (member >= 0) & (ids.unsqueeze(-1) != ids)
    same = member.unsqueeze(-1) == member
    total = torch.where(same, download.own.counts.unsqueeze(-1), download.counts[member])
    return torch.where(inside, log_w.exp()[:, member.clamp(min=0)] * weight / total.clamp(min=1), 0.0)


def weight_metrics(weights: Tensor, groups: Tensor) -> dict[str, float | None]:
    """exp(H(w)), and the weight on peers of the same true group (simulation only). weights: (clients, clients)."""
    rows = weights.sum(-1) > 0
    if not rows.any():
        return {"effective_components": None, "same_group_weight": None}
    effective = torch.special.entr(weights[rows]).sum(-1).exp().mean()
    same = None
    if (groups >= 0).all():
        alike = groups.unsqueeze(-1) == groups
        same = float((weights * alike).sum(-1)[rows].mean())
    return {"effective_components": float(effective), "same_group_weight": same}


def client_groups(clients: tuple[Client, ...]) -> Tensor:
    """(clients,) true groups, -1 where unknown."""
    return torch.tensor([-1 if c.group is None else c.group for c in clients])


def figures(
    predictor: LatentPredictor | LaplacePredictor,
    training: TrainingState,
    panels: dict[str, Panel],
    ids: dict[str, list[str]],
    size: int,
    groups: Tensor,
    names: tuple[str, ...],
) -> dict[str, Any]:
    """What the report draws: users' posteriors at context size `size`, prototypes, prior weights."""
    latents: dict[str, list[Any]] = {"ids": [], "groups": [], "populations": [], "means": [], "log_vars": []}
    for population in ("seen", "unseen"):
        panel = panels.get(population)
        if panel is None:
            continue
        q = predictor.posterior(panel.context_for(predictor, size))
        latents["ids"] += ids[population]
        latents["groups"] += [g if g >= 0 else None for g in panel.groups.tolist()]
        latents["populations"] += [population] * len(panel.groups)
        latents["means"] += q.mean.tolist()
        latents["log_vars"] += q.log_var.tolist()
    result: dict[str, Any] = {"latents": latents, "prototypes": predictor.centres.tolist(), "group_names": list(names)}
    weights = prior_weights(predictor.method, training) if isinstance(predictor, LatentPredictor) else None
    if weights is not None:
        result["prior_weights"] = {
            "ids": ids["clients"],
            "groups": [g if g >= 0 else None for g in groups.tolist()],
            "weights": weights.tolist(),
        }
    return result
