"""FedVPA-Laplace (ours): the federated mixture is the real prior of every person, and no encoder is needed.

The score is linear in the latent, so a person's posterior is Bayesian logistic regression under the downloaded mixture
(`variational.laplace`), from judgements as they were given: choices, votes, ratings. One round is a step of generative
EM (Dempster et al. 1977), with sums over people only:

1. The server sends theta and the prior, of a size that does not depend on the number of people.
2. Each client infers q from all its judgements and sends the gradient of its expected log likelihood under samples of
   q, and what it adds to the prior's sums: n_k = r_k, a_k = r_k z_k, b_k = r_k (diag H_k^-1 + z_k^2).
3. The server steps on the mean gradient, and sets the prior from the sums: pi_k = n_k / N, m_k = a_k / n_k,
   v_k = b_k / n_k - m_k^2. Where a round has only some of the clients, older sums fade as newer ones come in (stepwise
   EM, Cappe and Moulines 2009).

The prior is one Gaussian at first, whose variances switch off directions of the latent that the population does not
use; then K components, drawn from it. In the end those that hold less than one person are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedvpa.methods.base import (
    Context,
    Download,
    Judged,
    JudgementBatch,
    LocalNoise,
    NoiseSpec,
    Pool,
    Private,
    ServerState,
    Setup,
    Upload,
    kept_features,
)
from fedvpa.variational import laplace
from fedvpa.variational.calibration import Answered
from fedvpa.variational.laplace import Calibration, Noise, Observations, Posterior, Prior, Sums
from fedvpa.variational.prior import Mixture
from fedvpa.variational.selector import Sizes, Theta, embed, init_theta

ENCODER = ("encoder.", "selector.alpha")
"""Parameters of the other latent methods that this one has no use for."""
NOISE = ("noise.error", "noise.rating")
"""Parameters of the likelihood: set by EM from sums, never by a gradient."""
CALIBRATION = ("calibration.scale", "calibration.doubt")
"""Set once, after training, by validation people."""
FIXED = (*NOISE, *CALIBRATION)
FEW = 1600
"""Judgements of the whole population up to which the learning rate is `laplace.learning_rate`."""
USUAL_SCALE = 0.85
"""Factor of the scores of texts that nobody judged, on average; see `FedVPALaplace.usual_calibration`."""
THRESHOLD_DOUBT = 1.0
"""Added to the variance of a person's threshold when a person is inferred (docs/research.md)."""
TRAINING_STEPS = 5
"""Newton steps in training, where the posterior need not be exact to the last digit."""


class FedVPALaplace:
    """See the module's docstring.

    Args:
        setup: configuration and sizes; the section `laplace` of the configuration is this method's.
    """

    name: ClassVar[str] = "fedvpa-laplace"
    federated: ClassVar[bool] = True
    latent: ClassVar[bool] = True
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "evidence", "mean_norm", "effective_components")

    def __init__(self, setup: Setup) -> None:
        self.setup, self.config, self.l = setup, setup.config, setup.config.laplace
        self.sizes = Sizes(setup.features, setup.config.model.hidden_dim, self.l.latent_dim, 1)

    @property
    def dim(self) -> int:
        """The latent's dimensions: those of the scores' slopes, and the person's own threshold of votes and ratings."""
        return self.sizes.latent + 1

    # Server --------------------------------------------------------------------------------------------------------

    def init_server(self, generator: torch.Generator) -> ServerState:
        n, dtype = self.setup.clients, self.setup.dtype
        theta = {k: v.to(dtype) for k, v in init_theta(self.sizes, generator).items() if not k.startswith(ENCODER)}
        fixed = {"noise.error": self.l.error, "noise.rating": 1.0, "calibration.scale": 1.0, "calibration.doubt": 1.0}
        theta |= {k: torch.tensor(v, dtype=dtype) for k, v in fixed.items()}
        none, one = torch.zeros(n, 0, dtype=dtype), torch.ones(1, self.dim, dtype=dtype)
        return ServerState(
            round=0,
            theta=theta,
            means=none,
            variances=none,
            counts=torch.zeros(n, dtype=torch.int64),
            labels=torch.full((n,), -1),
            centroids=torch.zeros_like(one),
            spread=one,
            shares=torch.ones(1, dtype=dtype),
        )

    def broadcast(self, state: ServerState) -> Download:
        """theta and the prior: `shares` pi_k, `means` m_k, `variances` v_k."""
        return Download(
            round=state.round,
            theta=state.theta,
            means=state.centroids,
            variances=state.spread,
            counts=torch.ones(len(state.shares), dtype=torch.int64),
            labels=state.labels,
            shares=state.shares,
            prior_active=True,
            ortho_active=False,
        )

    def download_bytes(self, download: Download) -> int:
        tensors = [*download.theta.values(), download.means, download.variances, download.shares]
        return sum(t.numel() * t.element_size() for t in tensors)

    def server_update(
        self, state: ServerState, upload: Upload, theta: Theta, generator: torch.Generator
    ) -> ServerState:
        """The prior's and the likelihood's exact M step from the faded sums, and theta as the optimiser left it."""
        fade = 1 - min(1.0, upload.sums["people"].sum().item() / self.setup.clients)
        total = {k: v.sum(0) + fade * state.extra.get(k, 0.0) for k, v in upload.sums.items()}
        theta = {**theta, **self.likelihood(state.theta, total)}
        round = state.round + 1
        if round < self.l.prior_start * self.config.federation.rounds:
            return state.advance(theta=theta, extra=total)
        prior = laplace.maximise(Sums(total["count"], total["first"], total["second"]), self.l.floor)
        if round == self.components_round:
            prior = laplace.split(prior, self.l.components, generator)
            total = {k: v for k, v in total.items() if k not in Sums._fields}
        if round == self.config.federation.rounds:
            prior = laplace.without_unused(prior, 1 / self.setup.clients)
            total = {k: v for k, v in total.items() if k not in Sums._fields}
        return state.advance(
            theta=theta,
            extra=total,
            centroids=prior.means,
            spread=prior.variances,
            shares=prior.log_weights.exp(),
            clustered=len(prior.means) > 1,
        )

    def pace(self, state: ServerState) -> float:
        """Factor of the server's learning rate: the root of the number of judgements per `FEW`, from 1 to 4.

        Few judgements are learnt by heart at a rate that many need; see docs/research.md.
        """
        judged = sum(float(state.extra.get(k, torch.zeros(()))) for k in ("choices", "ratings"))
        return min(4.0, max(1.0, judged / FEW) ** 0.5)

    def usual_calibration(self, state: ServerState) -> Calibration:
        """What holds where there is little to fit a calibration on: what was best for new texts (docs/research.md).

        Where people only rated, a difference of scores is in units of ratings, and the better rated of two texts is
        the one with the higher score up to the noise of two ratings.
        """
        rated = state.extra.get("ratings", torch.zeros(())) > 0 and state.extra["choices"] == 0
        units = math.sqrt(8 / math.pi) / math.sqrt(2 * float(state.theta["noise.rating"])) if rated else 1.0
        return Calibration(torch.tensor(USUAL_SCALE * units), torch.tensor(1.0))

    @property
    def components_round(self) -> int:
        """The round after which the one Gaussian becomes K components; 0 for never."""
        return int(self.l.components_start * self.config.federation.rounds) if self.l.components > 1 else 0

    def likelihood(self, theta: Mapping[str, Tensor], total: Mapping[str, Tensor]) -> Theta:
        """The likelihood's parameters by the same EM: the share of choices and votes given the wrong way round (where
        `laplace.error` is not 0), and the mean squared residual of ratings."""
        new = {k: theta[k] for k in NOISE}
        if self.l.error > 0 and total["choices"] > 0:
            new["noise.error"] = (total["wrong"] / total["choices"]).clamp(1e-4, 0.45)
        if total["ratings"] > 0:
            new["noise.rating"] = (total["residual"] / total["ratings"]).clamp(min=1e-2)
        return new

    # Client --------------------------------------------------------------------------------------------------------

    def init_client(self, count: int) -> Private:
        return {}

    def noise_spec(self) -> NoiseSpec:
        """One step; the dimension has one entry more per sample, the uniform number that chooses its component."""
        return NoiseSpec(1, 1, False, self.l.samples, self.dim + 1, 0, 0, 0.0, subsets=0)

    def sums_shapes(self, download: Download) -> Mapping[str, tuple[int, ...]]:
        """What `Upload.sums` holds, for K components: the prior's sums and the likelihood's."""
        k, dim = download.means.shape
        scalars: dict[str, tuple[int, ...]] = dict.fromkeys(("people", "wrong", "choices", "residual", "ratings"), ())
        return {"count": (k,), "first": (k, dim), "second": (k, dim), **scalars}

    def cohort_update(self, download: Download, batch: JudgementBatch, noise: LocalNoise) -> Upload:
        """The sums of `client_update` over the batch's clients, as the upload of one: each item is embedded once."""
        theta = {k: v.clone().requires_grad_(k not in FIXED) for k, v in download.theta.items()}
        loss, q, seen = self.losses(theta, download, batch, noise)
        share = batch.counts.to(loss.dtype) / batch.counts.sum()
        changed = self.stepped(theta, (share * loss).sum())
        sums = self.sums(download, batch, q, seen)
        metrics = self.metrics(loss.detach(), q, download)
        none = loss.new_zeros(1, 0)
        return Upload(
            batch.ids[:1],
            {k: v.unsqueeze(0) for k, v in changed.items()},
            none,
            none,
            batch.counts.sum().unsqueeze(0),
            {k: v.mean().unsqueeze(0) for k, v in metrics.items()},
            sums={k: v.sum(0, keepdim=True) for k, v in sums.items()},
        )

    def client_update(
        self, download: Download, private: Private, batch: JudgementBatch, noise: LocalNoise
    ) -> tuple[Upload, Private]:
        """Each client's gradient step theta - d loss / d theta, and its sums."""
        each = [self._one(download, batch, noise, i) for i in range(len(batch.ids))]
        none = batch.y.new_zeros(len(each), 0)
        return Upload(
            batch.ids,
            {k: torch.stack([theta[k] for theta, _, _ in each]) for k in download.theta},
            none,
            none,
            batch.counts,
            {k: torch.cat([metrics[k] for _, _, metrics in each]) for k in self.metric_names},
            sums={k: torch.cat([sums[k] for _, sums, _ in each]) for k in self.sums_shapes(download)},
        ), private

    def _one(
        self, download: Download, batch: JudgementBatch, noise: LocalNoise, i: int
    ) -> tuple[Theta, dict[str, Tensor], dict[str, Tensor]]:
        """The i-th client's parameters, sums and metrics, from its own items only."""
        mine = batch.client(i)
        theta = {k: v.clone().requires_grad_(k not in FIXED) for k, v in download.theta.items()}
        loss, q, seen = self.losses(theta, download, mine, LocalNoise(*(t[i : i + 1] for t in noise)))
        sums, metrics = self.sums(download, mine, q, seen), self.metrics(loss.detach(), q, download)
        return self.stepped(theta, loss.sum()), sums, metrics

    def losses(
        self, theta: Theta, download: Download, batch: JudgementBatch, noise: LocalNoise
    ) -> tuple[Tensor, Posterior, Observations]:
        """-(1/S) sum_s mean_i log p(y_i | z_s) of each client, z_s from q under the received theta without gradient.

        Dropout is for the scores alone: people are inferred from all features, as they will be.

        Returns:
            The losses (K,), q, and what it was inferred from.
        """
        likelihood, normal = noise_of(theta), noise.normal[:, 0]
        prior = Prior(download.shares.log(), download.means, download.variances)
        kept = kept_features(self.config, download.round, self.l.dropout, batch.items)
        judged = Judged(*batch[2:7])
        dropped = observations(*project(theta, batch.items * kept), judged)
        with torch.no_grad():
            seen = observations(*project(theta, batch.items), judged)
            q = laplace.infer(seen, prior, likelihood, TRAINING_STEPS)
            z = laplace.sample(q, torch.special.ndtr(normal[..., -1]), normal[..., :-1])
        score = dropped.offset.unsqueeze(-2) + z @ dropped.slope.mT
        fit = laplace.log_likelihood(score, dropped, likelihood).sum(-1).mean(-1)
        return -fit / batch.counts, q, seen

    def stepped(self, theta: Theta, loss: Tensor) -> Theta:
        """theta - d loss / d theta."""
        trained = {k: v for k, v in theta.items() if v.requires_grad}
        gradients = torch.autograd.grad(loss, list(trained.values()))
        changed = {k: (v - g).detach() for (k, v), g in zip(trained.items(), gradients, strict=True)}
        return {k: changed.get(k, v.detach()) for k, v in theta.items()}

    def sums(self, download: Download, batch: JudgementBatch, q: Posterior, seen: Observations) -> dict[str, Tensor]:
        """What each client adds to the sums of the M step, (K, ...) each; see `sums_shapes`."""
        likelihood, rated = noise_of(download.theta), batch.rated & (batch.weight > 0)
        chosen = ~batch.rated & (batch.weight > 0)
        mean, variance = laplace.score_moments(q, seen.slope, seen.offset)
        r = q.log_weights.exp().unsqueeze(-1)
        p = torch.sigmoid(batch.y.unsqueeze(-2) * mean / torch.sqrt(1 + torch.pi / 8 * variance))
        e = likelihood.error
        wrong = e * (1 - p) / (e * (1 - p) + (1 - e) * p).clamp(min=1e-12)
        residual = (batch.y.unsqueeze(-2) - mean) ** 2 + variance
        return {
            **laplace.sums(q)._asdict(),
            "people": torch.ones_like(batch.y[:, 0]),
            "wrong": ((r * wrong).sum(-2) * chosen).sum(-1),
            "choices": chosen.sum(-1).to(batch.y.dtype),
            "residual": ((r * residual).sum(-2) * rated).sum(-1),
            "ratings": rated.sum(-1).to(batch.y.dtype),
        }

    def metrics(self, loss: Tensor, q: Posterior, download: Download) -> dict[str, Tensor]:
        """Scalars (K,) for the curves."""
        return {
            "loss": loss,
            "evidence": (download.shares.log() + q.evidence).logsumexp(-1),
            "mean_norm": q.mean.norm(dim=-1),
            "effective_components": torch.special.entr(q.log_weights.exp()).sum(-1).exp(),
        }

    # Inference -----------------------------------------------------------------------------------------------------

    def predictor(self, state: ServerState, pool: Pool) -> LaplacePredictor:
        return LaplacePredictor(state, pool)


def noise_of(theta: Mapping[str, Tensor]) -> Noise:
    """The likelihood's parameters."""
    return Noise(*(theta[k].detach() for k in NOISE))


def project(theta: Mapping[str, Tensor], items: Tensor) -> tuple[Tensor, Tensor]:
    """Slope W^T g(h) / sqrt(h) (items, d) and offset w0^T g(h) / sqrt(h) (items,) of single items."""
    e = embed(theta, items) / theta["selector.common"].shape[-1] ** 0.5
    return e @ theta["selector.weight"], e @ theta["selector.common"]


def observations(slope: Tensor, offset: Tensor, judged: Judged) -> Observations:
    """Judgements of items with the given slopes (items, d) and offsets (items,) as functions of the latent (d + 1).

    A choice's slope is the difference of its two items'. A vote or a rating also has the person's threshold.
    """
    alone = judged.second < 0
    other = judged.second.clamp(min=0)
    u = slope[judged.first] - torch.where(alone.unsqueeze(-1), 0.0, slope[other])
    o = offset[judged.first] - torch.where(alone, 0.0, offset[other])
    u = torch.cat([u, alone.unsqueeze(-1).to(u.dtype)], -1)
    return Observations(u, o, judged.y, judged.rated, judged.weight)


class LaplacePredictor:
    """Inference and prediction under a server state.

    ``mixture`` infers under the mixture, ``gaussian`` under the one Gaussian with the mixture's moments, which is
    better where there are few people, and ``none`` does without the person's answers, where people do not differ or
    where there are too few of them to tell how; validation people choose.
    """

    inferences: tuple[str, ...] = ("mixture", "gaussian", "none")

    @torch.no_grad()
    def __init__(self, state: ServerState, pool: Pool) -> None:
        self.theta, self.pool, self.likelihood = state.theta, pool, noise_of(state.theta)
        self.calibration = Calibration(*(state.theta[k] for k in CALIBRATION))
        # Answers need not be a random sample of a person's opinions (who is shown as many statements to agree with as
        # to disagree with); a wide threshold takes that up, so that it does not turn other directions of the latent.
        spread = torch.cat([state.spread[:, :-1], state.spread[:, -1:] + THRESHOLD_DOUBT], -1)
        self.population = Prior(state.shares.log(), state.centroids, spread)
        self.slope, self.offset = project(state.theta, pool.items)

    @property
    def centres(self) -> Tensor:
        """(K, dim) means of the prior's components."""
        return self.population.means

    def prior(self) -> Mixture:
        """The prior, for diagnostics."""
        return Mixture(self.population.log_weights.unsqueeze(0), *self.population[1:])

    @torch.no_grad()
    def infer(self, context: Judged, how: str = "mixture", groups: Tensor | None = None) -> Posterior:
        if how == "none":
            return laplace.as_posterior(self.population, len(context.y))
        prior = self.population if how == "mixture" else laplace.moment_matched(self.population)
        return laplace.infer(observations(self.slope, self.offset, context), prior, self.likelihood)

    @torch.no_grad()
    def predict(self, users: Posterior, index: Tensor) -> Tensor:
        """p(a > b) (users, n) of the pairs `index` (users, n)."""
        a, b = self.pool.pairs[index].unbind(-1)
        u = torch.nn.functional.pad(self.slope[a] - self.slope[b], (0, 1))
        return laplace.predict(users, u, self.offset[a] - self.offset[b], self.calibration)

    @torch.no_grad()
    def answers(self, users: Posterior, index: Tensor, y: Tensor, mask: Tensor) -> Answered:
        """Scores of the pairs `index` (users, n), whose labels y are known, for `calibrated`."""
        a, b = self.pool.pairs[index].unbind(-1)
        u = torch.nn.functional.pad(self.slope[a] - self.slope[b], (0, 1))
        mean, variance = laplace.score_moments(users, u, self.offset[a] - self.offset[b])
        weights, mean, variance, y = (t.double() for t in (users.log_weights, mean, variance, y))
        return Answered(weights, mean, variance, y, mask)

    def choices(self, context: Context) -> Judged:
        """Labelled pairs as judgements."""
        return self.pool.choices(context)

    def nobody(self, users: int) -> Posterior:
        """The latent 0 for every user, without doubt."""
        z = self.slope.new_zeros(users, 1, self.population.means.shape[-1])
        root = 1e6 * torch.eye(z.shape[-1], dtype=z.dtype).expand(users, 1, -1, -1)
        return Posterior(z.new_zeros(users, 1), z, root, z.new_zeros(users, 1))

    def rows(self, users: Posterior, order: Tensor) -> Posterior:
        return Posterior(*(t[order] for t in users))

    def posterior(self, context: Judged) -> Any:
        """q(z | C) as one Gaussian per person, for figures: the mixture posterior's mean and variances."""
        return laplace.moments(self.infer(context, self.inferences[0]))
