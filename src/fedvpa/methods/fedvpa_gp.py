"""FedVPA-GP: federated variational preference alignment with a Gumbel-Softmax prior (Koo et al. 2026, 2605.30873).

What leaves a client is in `Upload`. The numbers of sections and equations refer to method.md and the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from fedvpa.methods import components
from fedvpa.methods.base import (
    ClientBatch,
    Context,
    Download,
    LocalNoise,
    NoiseSpec,
    Pool,
    Private,
    ServerState,
    Setup,
    Upload,
    by_row,
    descend,
    drop_features,
    local_optimizer,
    log_counts,
    select,
    stack_theta,
)
from fedvpa.methods.clustering import Clusters, balanced_kmeans, choose_clusters, relabel
from fedvpa.methods.components import Components
from fedvpa.preferences.seeding import derive_seed
from fedvpa.variational import encoder, gaussian, inference, objective, prior, prototypes
from fedvpa.variational.gaussian import Gaussian
from fedvpa.variational.inference import INFERENCES, Particles
from fedvpa.variational.objective import Terms
from fedvpa.variational.selector import Sizes, Theta, difference, embed, init_theta, score


class FedVPAGP:
    """The full method; `fedvpl` and the two halves are this class with parts switched off.

    Args:
        setup: configuration and sizes; `setup.clusters` is M.
    """

    name: ClassVar[str] = "fedvpa-gp"
    federated: ClassVar[bool] = True
    latent: ClassVar[bool] = True
    use_prior: ClassVar[bool] = True
    use_ortho: ClassVar[bool] = True
    metric_names: ClassVar[tuple[str, ...]] = ("loss", *Terms._fields, "mean_norm", "effective_components")

    def __init__(self, setup: Setup) -> None:
        self.setup, self.config = setup, setup.config
        self.m, self.f = setup.config.method, setup.config.federation
        model = setup.config.model
        self.sizes = Sizes(
            features=setup.features,
            hidden=model.hidden_dim,
            latent=model.latent_dim,
            encoder=model.encoder_dim,
            prototypes=setup.clusters if self.use_ortho else 0,
            residual=model.residual,
            attention=model.pooling == "attention",
            kappa=self.m.kappa,
        )

    # Server --------------------------------------------------------------------------------------------------------

    def init_server(self, generator: torch.Generator) -> ServerState:
        n, d, m, dtype = self.setup.clients, self.sizes.latent, self.setup.clusters, self.setup.dtype
        theta = {k: v.to(dtype) for k, v in init_theta(self.sizes, generator).items()}
        extra = components.empty(self.components, n, d, dtype).named() if self.compressed else {}
        if self.m.posterior_age:
            extra["uploaded"] = torch.full((n,), -1)
        return ServerState(
            round=0,
            theta=theta,
            means=torch.zeros(n, d, dtype=dtype),
            variances=torch.ones(n, d, dtype=dtype),
            counts=torch.zeros(n, dtype=torch.int64),
            labels=torch.full((n,), -1),
            centroids=torch.zeros(m, d, dtype=dtype),
            spread=torch.ones(m, d, dtype=dtype),
            shares=torch.full((m,), 1 / m, dtype=dtype),
            extra=extra,
        )

    @property
    def components(self) -> int:
        """K, the prior's components: the clients, or `prior_components` if that is less."""
        return min(self.m.prior_components or self.setup.clients, self.setup.clients)

    @property
    def compressed(self) -> bool:
        return self.use_prior and self.components < self.setup.clients

    def prior_active(self, round: int) -> bool:
        return self.use_prior and round >= self.m.prior_start * self.f.rounds

    def broadcast(self, state: ServerState) -> Download:
        means, variances, counts, own = state.means, state.variances, state.counts, None
        if self.compressed:
            now = Components.of(state.extra)
            own = components.without_own(means, variances, self.weights(counts), now)
            means, variances, counts = now.means, now.variances, now.counts
        return Download(
            round=state.round,
            theta=state.theta,
            means=means,
            variances=variances,
            counts=counts,
            labels=state.labels,
            shares=state.shares,
            prior_active=self.prior_active(state.round),
            ortho_active=self.use_ortho and state.clustered,
            own=own,
        )

    def weights(self, counts: Tensor) -> Tensor:
        """What a posterior weighs inside its component: its examples, or 1 where the prior's weights are uniform."""
        return components.weights(counts, self.m.prior_weights)

    def download_bytes(self, download: Download) -> int:
        """Bytes that one client receives: parameters, and the parts of the download that the method uses."""
        size = sum(t.numel() * t.element_size() for t in download.theta.values())
        if download.prior_active:
            known = int((download.counts > 0).sum())
            own = 1 if download.own is not None else 0  # and the number of the client's own component
            size += (known + own) * (2 * self.sizes.latent * download.means.element_size() + 8) + 8 * own
        return size + (8 + 4 * len(download.shares) if self.use_ortho else 0)

    def server_update(
        self, state: ServerState, upload: Upload, theta: Theta, generator: torch.Generator
    ) -> ServerState:
        """Stores the posteriors, takes the averaged theta, clusters the users and matches clusters to prototypes."""
        state = self.store(state, upload)
        means, variances, counts = state.means, state.variances, state.counts
        known, m = counts > 0, self.setup.clusters
        if self.compressed and self.prior_active(state.round + 1):
            seed = derive_seed(self.config.seed, "components", state.round) % 2**31
            last = Components.of(state.extra)
            compressed = components.compress(means, variances, self.weights(counts), last, seed)
            state = replace(state, extra={**state.extra, **compressed.named()})
        begin = state.round + 1 >= self.m.ortho_start * self.f.rounds
        found = self.find_clusters(state, theta, means[known], known, generator) if begin else None
        if found is None:
            # Posteriors that were forgotten leave their clusters.
            return state.advance(theta=theta, labels=torch.where(known, state.labels, -1))
        # Clusters out of use (`prototypes: auto`) have share 0 and stay at the origin, where no loss and no inference
        # moves them.
        used = len(found.centroids)
        centroids = torch.zeros_like(state.centroids)
        centroids[:used] = found.centroids
        if not state.clustered and self.use_ortho:
            theta = {**theta, "prototypes": self.first_prototypes(theta["prototypes"], found.centroids)}
        labels = torch.full_like(state.labels, -1)
        labels[known] = found.labels
        member = torch.nn.functional.one_hot(found.labels, m).to(means.dtype)
        sizes = member.sum(0)
        within = variances[known] + (means[known] - centroids[found.labels]) ** 2
        # An empty cluster keeps the weight of half a user: it stays possible, but improbable.
        weight = torch.where(torch.arange(m) < used, sizes.clamp(min=0.5), 0.0)
        return state.advance(
            theta=theta,
            labels=labels,
            centroids=centroids,
            spread=(member.T @ within) / sizes.clamp(min=1).unsqueeze(-1),
            shares=weight / weight.sum(),
            clustered=True,
        )

    def store(self, state: ServerState, upload: Upload) -> ServerState:
        """The state with the uploaded posteriors, and without those that are older than `posterior_age` rounds."""
        means, variances, counts = state.means.clone(), state.variances.clone(), state.counts.clone()
        means[upload.ids], variances[upload.ids] = upload.means, upload.variances
        counts[upload.ids] = upload.counts
        if not self.m.posterior_age:
            return replace(state, means=means, variances=variances, counts=counts)
        uploaded = state.extra["uploaded"].clone()
        uploaded[upload.ids] = state.round
        old = state.round - uploaded >= self.m.posterior_age
        means[old], variances[old], counts[old], uploaded[old] = 0.0, 1.0, 0, -1
        extra = {**state.extra, "uploaded": uploaded}
        return replace(state, means=means, variances=variances, counts=counts, extra=extra)

    def find_clusters(
        self, state: ServerState, theta: Theta, means: Tensor, known: Tensor, generator: torch.Generator
    ) -> Clusters | None:
        """Clusters of the users whose posteriors are known, numbered like their prototypes; None: too few users.

        All M are in use, or with `prototypes: auto` as many as the first clustering chose.

        Args:
            means: (users, dim) of the users that `known` (clients,) marks.
        """
        m, first = self.setup.clusters, not state.clustered
        if len(means) < m:
            return None
        if self.m.prototypes == "auto":
            m = choose_clusters(means, self.m.cluster_balance, generator, m) if first else state.in_use
        start = None if first else state.centroids[:m]
        found = balanced_kmeans(means, m, self.m.cluster_balance, generator, start, 10 if first else 1)
        if self.use_ortho and not (first and self.m.ortho == "ours"):
            return relabel(found, theta["prototypes"][:m])
        return found if first else relabel(found, state.centroids[:m])

    def first_prototypes(self, given: Tensor, centroids: Tensor) -> Tensor:
        """The prototypes when clustering begins: the centroids scaled (ours) or as they are; zero where out of use.

        Args:
            given: (M, dim); centroids: (M in use, dim).
        """
        begun = given[: len(centroids)]
        if self.m.ortho == "ours":
            begun = prototypes.prototypes_from_centroids(centroids, self.m.kappa)
        return torch.cat([begun, torch.zeros_like(given[len(centroids) :])])

    # Client --------------------------------------------------------------------------------------------------------

    def init_client(self, count: int) -> Private:
        """log pi, zero at the start (Eq. 8)."""
        return {"log_pi": torch.zeros(count, self.components, dtype=self.setup.dtype)} if self.use_prior else {}

    def noise_spec(self) -> NoiseSpec:
        f = self.f
        return NoiseSpec(
            steps=f.local_steps,
            context_pairs=f.context_pairs,
            vary_context=f.vary_context,
            samples=self.m.samples,
            dim=self.sizes.latent,
            peers=self.components,
            features=self.sizes.features,
            dropout=self.config.model.feature_dropout,
        )

    def posterior(self, theta: Mapping[str, Tensor], d: Tensor, y: Tensor, context: Tensor) -> Gaussian:
        """q(z | C) from difference embeddings d (..., n, h), labels y (..., n) and the context's mask (..., n)."""
        return self.pool(self.experts(theta, d, y), context)

    def pool(self, x: encoder.Experts, context: Tensor) -> Gaussian:
        """The experts' posterior, with the configured pooling."""
        model = self.config.model
        return encoder.pool(x, context, model.pooling, model.max_log_var)

    def experts(self, theta: Mapping[str, Tensor], d: Tensor, y: Tensor) -> encoder.Experts:
        """One Gaussian expert per labelled pair. d: (..., n, h); y: (..., n)"""
        return encoder.experts(theta, y.unsqueeze(-1) * d, self.config.model.odd_encoder)

    def statistics(self, theta: Theta, batch: ClientBatch, subset: Tensor) -> tuple[Tensor, Tensor]:
        """mubar and sbar^2 (K, dim) over random contexts, under the received theta (section 6)."""
        model = self.config.model
        x = self.experts(theta, difference(theta, batch.x), batch.y)
        q = encoder.pool(x, subset & batch.mask.unsqueeze(1), model.pooling, model.max_log_var)
        return gaussian.total_variance(q)

    def terms(
        self,
        theta: Theta,
        private: Private,
        batch: ClientBatch,
        context: Tensor,
        normal: Tensor,
        gumbel: Tensor | None,
        download: Download,
    ) -> tuple[Terms, dict[str, Tensor]]:
        """The parts of Eq. 10 for a stack of clients.

        Args:
            theta: (K, ...) each; private: ``log_pi`` (K, components).
            context: (K, pairs) True for context pairs; every other real pair is a query.
            normal: (K, samples, dim); gumbel: (K, components) or None.

        Returns:
            The terms (K,) each, and diagnostics (K,) each.
        """
        m = self.m
        query = batch.mask & ~context
        d = difference(theta, batch.x)
        if self.config.evaluation.protocol == "pair-leak":
            return self._leaking_terms(theta, d, batch, normal)
        x = self.experts(theta, d, batch.y)
        q = self.pool(x, context)
        z = gaussian.sample(q, normal)
        # One product scores the pairs under the samples and, where in use, under the prototypes.
        latents = torch.cat([z, theta["prototypes"]], -2) if download.ortho_active else z
        scores = score(theta, d, latents, batch.base_logit)
        fit = objective.reconstruction(scores[..., : z.shape[-2], :], batch.y, query)
        zero = torch.zeros_like(fit)
        notes = {"mean_norm": q.mean.detach().norm(dim=-1), "effective_components": zero}

        if download.prior_active:
            mixture, log_w = self.prior(private["log_pi"], batch.ids, gumbel, download)
            divergence = prior.kl_to_mixture(q, z, mixture, m.kl)
            w = log_w.detach().exp()
            notes["effective_components"] = torch.special.entr(w).sum(-1).exp()
        else:
            divergence = gaussian.kl(q, gaussian.standard(q.mean))

        ortho, predictive, cluster = zero, zero, zero
        if download.ortho_active:
            label = download.labels[batch.ids]
            apart = prototypes.separation(theta["prototypes"], m.kappa, m.ortho)
            to_own = prototypes.pull(q.mean, z, theta["prototypes"], label.clamp(min=0), m.kappa, m.ortho)
            ortho = torch.where(label >= 0, to_own, 0.0) + m.gamma * apart
            logits = scores[..., z.shape[-2] :, :]
            log_r = objective.responsibilities(logits, batch.y, context, download.shares.log())
            if m.expert_evidence > 0:
                evidence = inference.expert_evidence(x, theta["prototypes"], context)
                log_r = (log_r + m.expert_evidence * evidence).log_softmax(-1)
            predictive = objective.mixture_predictive(logits, batch.y, query, log_r)
            cluster = objective.cluster_fit(logits, batch.y, batch.mask, label)
            cluster = cluster + m.identification * objective.identification(log_r, label)
        return Terms(fit, divergence, ortho, predictive, cluster), notes

    def _leaking_terms(
        self, theta: Theta, d: Tensor, batch: ClientBatch, normal: Tensor
    ) -> tuple[Terms, dict[str, Tensor]]:
        """The leaking protocol of section 4, to show what it does: each pair's latent comes from that very pair."""
        pairs, samples = d.shape[-2], normal.shape[-2]
        alone = torch.eye(pairs, dtype=torch.bool, device=d.device) & batch.mask.unsqueeze(-1)
        q = self.posterior(theta, d, batch.y, alone)
        z = gaussian.sample(q, normal.unsqueeze(-3)).flatten(-3, -2)
        logits = score(theta, d, z, batch.base_logit).unflatten(-2, (pairs, samples))
        own = logits.diagonal(dim1=-3, dim2=-1)
        fit = objective.reconstruction(own, batch.y, batch.mask)
        divergence = objective.query_mean(gaussian.kl(q, gaussian.standard(q.mean)), batch.mask)
        zero = torch.zeros_like(fit)
        notes = {"mean_norm": q.mean.detach().norm(dim=-1).mean(-1), "effective_components": zero}
        return Terms(fit, divergence, zero, zero, zero), notes

    def beta(self, download: Download) -> float:
        """The KL's weight in a round: capped until the warm-up ends (ours), so that z is there before it costs much."""
        warm = download.round < self.m.prior_start * self.f.rounds
        return min(self.m.beta, self.m.beta_warmup) if warm else self.m.beta

    def tau(self, download: Download) -> float:
        """The temperature of Eq. 8 in a round, linear from `tau` in the first to `tau_final` in the last."""
        final = self.m.tau if self.m.tau_final is None else self.m.tau_final
        return self.m.tau + (final - self.m.tau) * min(1.0, download.round / max(1, self.f.rounds - 1))

    def prior(
        self, log_pi: Tensor, ids: Tensor, gumbel: Tensor | None, download: Download
    ) -> tuple[prior.Mixture, Tensor]:
        """The clients' mixture priors (Eq. 6) and log w (K, components); a client's own posterior is left out."""
        m, means, variances, counts = self.m, download.means, download.variances, download.counts
        peers = torch.arange(len(counts), device=ids.device)
        how = m.prior_weights
        if download.own is None:
            present = (counts > 0) & (peers != ids.unsqueeze(-1))
        else:  # the client's own component is what is left of it without the client
            own = download.own
            mine = peers == own.component[ids].unsqueeze(-1)
            counts = torch.where(mine, own.counts[ids].unsqueeze(-1), counts)
            means = torch.where(mine.unsqueeze(-1), own.means[ids].unsqueeze(1), means)
            variances = torch.where(mine.unsqueeze(-1), own.variances[ids].unsqueeze(1), variances)
            present = counts > 0
            how = "samples" if how == "uniform" else how  # a component's count is the number of its users then
        log_w = prior.log_weights(log_pi, log_counts(counts, log_pi.dtype), present, self.tau(download), gumbel, how)
        return prior.with_standard(log_w, means, variances, m.prior_floor, m.prior_defensive), log_w

    def client_update(
        self, download: Download, private: Private, batch: ClientBatch, noise: LocalNoise
    ) -> tuple[Upload, Private]:
        """Posterior statistics under the received theta, then `local_steps` AdamW steps on Eq. 10."""
        m, clients = self.m, len(batch.ids)
        with torch.no_grad():
            means, variances = self.statistics(download.theta, batch, noise.subset)
        theta = stack_theta(download.theta, clients)
        private = {k: v.clone().requires_grad_(True) for k, v in private.items()}
        # log pi learns from the KL itself, not from beta times it: how small beta is must not freeze the weights.
        beta = self.beta(download)
        rate = m.pi_learning_rate / beta if beta > 0 else 0.0
        optimizer = local_optimizer(theta, self.config, private, rate)
        # At least one pair stays a query: a client with a single pair predicts it from an empty context.
        size = torch.minimum(noise.context_size, (batch.counts - 1).clamp(min=0).unsqueeze(-1))
        width = min(batch.y.shape[1], self.f.batch_pairs)
        for step in range(self.f.local_steps):
            rank = noise.rank[:, step]
            if width < rank.shape[1]:
                chosen = rank.argsort(-1)[:, :width]
                part, rank = batch.take(chosen), torch.arange(width).expand(clients, -1)
            else:
                part = batch
            part = drop_features(part, noise.keep[:, step])
            context = (rank < size[:, step].clamp(max=width - 1).unsqueeze(-1)) & part.mask
            terms, notes = self.terms(
                theta, private, part, context, noise.normal[:, step], noise.gumbel[:, step], download
            )
            loss = terms.total(beta, m.lambda_, m.mixture_loss, m.cluster_loss)
            descend(loss, optimizer)
        metrics = {"loss": loss, **terms._asdict(), **notes}
        upload = Upload(
            batch.ids,
            {k: v.detach() for k, v in theta.items()},
            means,
            variances,
            batch.counts,
            {k: v.detach() for k, v in metrics.items()},
        )
        return upload, {k: v.detach() for k, v in private.items()}

    # Inference -----------------------------------------------------------------------------------------------------

    def predictor(self, state: ServerState, pool: Pool) -> LatentPredictor:
        return LatentPredictor(self, state, pool)


class LatentPredictor:
    """Inference and prediction for users under a server state (section 7).

    Attributes:
        d: (pairs, h) difference embeddings of the whole pool, computed once.
    """

    inferences: tuple[str, ...] = INFERENCES

    def __init__(self, method: FedVPAGP, state: ServerState, pool: Pool) -> None:
        self.method, self.state, self.theta = method, state, state.theta
        with torch.no_grad():
            self.d = pool.differences(partial(embed, state.theta))
        self.base_logit = pool.base_logit
        self.centres = self.theta.get("prototypes", state.centroids)
        self.log_shares = state.shares.log()

    def _rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.d[index], None if self.base_logit is None else self.base_logit[index]

    def posterior(self, context: Context) -> Gaussian:
        """q(z | C) (users, dim)."""
        with torch.no_grad():
            return self.method.posterior(self.theta, self.d[context.index], context.y, context.mask)

    def prior(self) -> prior.Mixture:
        """p_mix for a new user: one moment-matched Gaussian per cluster, weighted by its share."""
        m = self.method.m
        log_w = self.log_shares.unsqueeze(0)
        return prior.with_standard(log_w, self.state.centroids, self.state.spread, m.prior_floor, m.prior_defensive)

    @torch.no_grad()
    def infer(self, context: Context, how: str = "mixture", groups: Tensor | None = None) -> Particles:
        if how == "amortised":
            return Particles.point(self.posterior(context).mean)
        d, base = self._rows(context.index)
        evidence = None
        if self.method.m.expert_evidence > 0:
            x = self.method.experts(self.theta, d, context.y)
            evidence = self.method.m.expert_evidence * inference.expert_evidence(x, self.centres, context.mask)
        particles = inference.mixture_particles(
            self.theta, self.centres, self.log_shares, d, base, context.y, context.mask, evidence
        )
        if how == "mixture":
            return particles
        starts = torch.cat([self.posterior(context).mean.unsqueeze(1), particles.z], 1)
        return Particles.point(inference.refine(self.theta, starts, self.prior(), d, base, context.y, context.mask))

    @torch.no_grad()
    def predict(self, users: Particles, index: Tensor) -> Tensor:
        def values(some: slice, rows: Tensor) -> Tensor:
            d, base = self._rows(rows)
            return inference.predictive(self.theta, Particles(users.z[some], users.log_weights[some]), d, base)

        return by_row(index, values)

    def rows(self, users: Particles, order: Tensor) -> Particles:
        return select(users, order)

    def nobody(self, users: int) -> Particles:
        """The latent 0 for every user."""
        return Particles.point(self.d.new_zeros(users, self.centres.shape[-1]))
