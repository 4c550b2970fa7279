"""FedVPA-GP's client and server: who influences what, and who must not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvpa.evaluation.experiment import Prepared
from fedvpa.federation import rounds
from fedvpa.methods.base import SUBSETS, ClientBatch, Download, LocalNoise
from fedvpa.preferences.seeding import generator
from fedvpa.variational.selector import difference
from toy import method_of, settings, world

IDS = torch.arange(4)


class Scene:
    """Four clients with every part of the method switched on, after a round in which they uploaded something."""

    def __init__(self, **overrides: Any) -> None:
        self.config = settings(method__prior_start=0, method__ortho_start=0, **overrides)
        self.prepared: Prepared = world(self.config)
        self.method = method_of(self.prepared)
        state = rounds.start(self.method, self.config, len(self.prepared.clients))
        n, d = state.server.means.shape
        g = generator(0, "scene")
        self.state = replace(
            state.server,
            means=torch.randn(n, d, generator=g).double(),
            variances=torch.rand(n, d, generator=g).double() + 0.1,
            counts=torch.tensor([10, 4, 7, 10, 3, 0]),
            labels=torch.arange(n) % self.method.setup.clusters,
            clustered=True,
        )
        self.download: Download = self.method.broadcast(self.state)
        self.batch: ClientBatch = self.prepared.clients.batch(IDS)
        self.noise: LocalNoise = rounds.round_noise(self.method, self.config, self.prepared.clients, IDS, 0)
        self.private = {k: v[IDS] for k, v in state.private.items()}
        self.theta = {k: v.expand(4, *v.shape) for k, v in self.state.theta.items()}

    def terms(self, batch: ClientBatch | None = None, download: Download | None = None, **changes: Any) -> Any:
        batch = self.batch if batch is None else batch
        given = {"private": self.private, "context": self.context, "gumbel": self.noise.gumbel[:, 0]} | changes
        return self.method.terms(
            self.theta,
            given["private"],
            batch,
            given["context"],
            self.noise.normal[:, 0],
            given["gumbel"],
            self.download if download is None else download,
        )

    @property
    def context(self) -> torch.Tensor:
        return (self.noise.rank[:, 0] < 3) & self.batch.mask

    def update(self, batch: ClientBatch | None = None, download: Download | None = None, method: Any = None) -> Any:
        return (method or self.method).client_update(
            download or self.download, self.private, batch or self.batch, self.noise
        )


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


def test_everything_is_switched_on(scene: Scene) -> None:
    terms, notes = scene.terms()
    assert all((t != 0).all() for t in terms)
    assert (notes["effective_components"] > 1).all()


@pytest.mark.parametrize("kl", ["mc", "bound", "moment"])
def test_no_gradient_reaches_the_peers_but_the_private_weights_get_one(kl: str) -> None:
    scene = Scene(method__kl=kl)
    means, variances = scene.state.means.clone().requires_grad_(), scene.state.variances.clone().requires_grad_()
    log_pi = scene.private["log_pi"].clone().requires_grad_()
    terms, _ = scene.terms(
        download=replace(scene.download, means=means, variances=variances), private={"log_pi": log_pi}
    )
    sum(terms).sum().backward()
    assert means.grad is None
    assert variances.grad is None
    present = scene.download.counts > 0
    for i in range(4):
        peers = present & (torch.arange(6) != i)
        assert (log_pi.grad[i, peers] != 0).all()
        assert (log_pi.grad[i, ~peers] == 0).all()


@pytest.mark.parametrize("weights", ["gumbel", "uniform", "samples"])
def test_own_posterior_and_absent_peers_are_not_in_the_prior(weights: str) -> None:
    scene = Scene(method__prior_weights=weights)
    _, log_w = scene.method.prior(scene.private["log_pi"], IDS, scene.noise.gumbel[:, 0], scene.download)
    assert (log_w[IDS, IDS] == float("-inf")).all()
    assert (log_w[:, 5] == float("-inf")).all()
    torch.testing.assert_close(log_w.exp().sum(-1), torch.ones(4).double())
    before, _ = scene.terms()
    means = scene.state.means.clone()
    means[0], means[5] = 30.0, -30.0
    after, _ = scene.terms(download=replace(scene.download, means=means))
    assert after.kl[0] == before.kl[0]
    assert (after.kl[1:] != before.kl[1:]).all()


def test_before_any_peer_is_known_the_prior_is_standard(scene: Scene) -> None:
    nobody = replace(scene.download, counts=torch.zeros(6, dtype=torch.int64))
    only_me = replace(scene.download, counts=torch.tensor([5, 0, 0, 0, 0, 0]))
    for download in (nobody, only_me):
        mixture, _ = scene.method.prior(scene.private["log_pi"], IDS, None, download)
        assert (mixture.log_weights[0].exp() == torch.tensor([0, 0, 0, 0, 0, 0, 1.0])).all()


@given(st.integers(0, 3), st.integers(0, 9))
@hypothesis_settings(max_examples=15, deadline=None)
def test_a_query_label_moves_neither_the_posterior_nor_the_prior(client: int, pair: int) -> None:
    scene = _shared()
    y = scene.batch.y.clone()
    y[client, pair] *= -1
    before, notes = scene.terms()
    after, moved = scene.terms(scene.batch._replace(y=y))
    if scene.context[client, pair]:
        assert after.reconstruction[client] != before.reconstruction[client]
        return
    assert (after.kl == before.kl).all()
    assert (after.ortho == before.ortho).all()
    assert all((moved[k] == notes[k]).all() for k in notes)
    assert after.reconstruction[client] != before.reconstruction[client]
    d = torch.randn(4, 10, 12, generator=torch.Generator().manual_seed(0)).double()
    one, two = (scene.method.posterior(scene.theta, d, labels, scene.context) for labels in (scene.batch.y, y))
    assert (one.mean == two.mean).all()
    assert (one.log_var == two.log_var).all()


_scenes: list[Scene] = []


def _shared() -> Scene:
    if not _scenes:
        _scenes.append(Scene())
    return _scenes[0]


def test_context_and_query_share_no_pair_and_cover_all(scene: Scene) -> None:
    """Every other real pair is a query: with one query left, exchanging its label flips only the reconstruction."""
    real = scene.batch.mask
    context = real.clone()
    context[:, 0] = False
    y = scene.batch.y.clone()
    terms, _ = scene.terms(context=context)
    y[:, 0] *= -1
    flipped, _ = scene.terms(scene.batch._replace(y=y), context=context)
    assert (flipped.kl == terms.kl).all()
    assert (flipped.reconstruction != terms.reconstruction).all()
    nothing_left, _ = scene.terms(context=real)
    assert (nothing_left.reconstruction == 0).all()


def test_uploaded_statistics_depend_on_the_received_theta_only() -> None:
    scene = _shared()
    reference, _ = scene.update()
    fast = Scene(federation__learning_rate=0.1, method__beta=1.0, method__lambda_=5.0)
    short = Scene(federation__local_steps=1)
    elsewhere = replace(
        scene.download,
        means=-scene.download.means,
        counts=scene.download.counts.flip(0),
        labels=(scene.download.labels + 1) % 2,
        prior_active=False,
    )
    others = [
        scene.update(method=fast.method)[0],
        scene.update(method=short.method)[0],
        scene.update(download=elsewhere)[0],
        scene.update(download=replace(scene.download, ortho_active=False))[0],
    ]
    for upload in others:
        assert (upload.means == reference.means).all()
        assert (upload.variances == reference.variances).all()
        assert any((upload.theta[k] != reference.theta[k]).any() for k in upload.theta)
    moved = {k: v + 0.1 for k, v in scene.download.theta.items()}
    assert (scene.update(download=replace(scene.download, theta=moved))[0].means != reference.means).any()


def test_statistics_are_the_law_of_total_variance_over_the_contexts() -> None:
    scene = _shared()
    mean, variance = scene.method.statistics(scene.download.theta, scene.batch, scene.noise.subset)
    d = difference(scene.download.theta, scene.batch.x)
    each = [
        scene.method.posterior(scene.download.theta, d, scene.batch.y, scene.noise.subset[:, r]) for r in range(SUBSETS)
    ]
    means, variances = torch.stack([q.mean for q in each]), torch.stack([q.var for q in each])
    torch.testing.assert_close(mean, means.mean(0))
    torch.testing.assert_close(variance, variances.mean(0) + means.var(0, correction=0))


def test_what_leaves_a_client_is_fixed_and_log_pi_is_not_in_it() -> None:
    scene = _shared()
    upload, private = scene.update()
    assert set(upload.theta) == set(scene.state.theta)
    assert set(upload.metrics) == set(scene.method.metric_names)
    assert set(private) == {"log_pi"}
    assert (private["log_pi"] != scene.private["log_pi"]).any()
    assert not any(t.requires_grad for t in (*upload.theta.values(), *upload.metrics.values(), *private.values()))
    theta = sum(v.numel() for v in scene.state.theta.values()) * 8
    assert upload.bytes_per_client() == theta + 2 * 4 * 8 + 8 + 4 * len(scene.method.metric_names)


def test_download_bytes_count_what_is_sent() -> None:
    scene = _shared()
    theta = sum(v.numel() for v in scene.state.theta.values()) * 8
    labels = 8 + 4 * 2
    assert scene.method.download_bytes(scene.download) == theta + labels + 5 * (2 * 4 * 8 + 8)
    assert scene.method.download_bytes(replace(scene.download, prior_active=False)) == theta + labels


@pytest.mark.parametrize(("name", "prior", "ortho"), [("fedvpl", 0, 0), ("fedvpl+prior", 1, 0), ("fedvpl+ortho", 0, 1)])
def test_the_halves_of_the_method(name: str, prior: bool, ortho: bool) -> None:
    scene = _shared()
    method = method_of(scene.prepared, name)
    download = method.broadcast(scene.state)
    assert (download.prior_active, download.ortho_active) == (prior, ortho)
    assert ("log_pi" in method.init_client(3)) == prior
    theta = method.init_server(generator(0)).theta
    assert ("prototypes" in theta) == ortho
    terms, _ = method.terms(
        {k: v.expand(4, *v.shape) for k, v in theta.items()},
        scene.private,
        scene.batch,
        scene.context,
        scene.noise.normal[:, 0],
        scene.noise.gumbel[:, 0],
        download,
    )
    assert (terms.ortho != 0).all() == bool(ortho)


@pytest.mark.parametrize("form", ["ours", "paper"])
def test_warm_up_then_clusters_that_keep_their_numbers(form: str) -> None:
    config = settings(
        federation__rounds=8,
        method__ortho_start=0.5,
        method__prior_start=0.5,
        federation__sampled_clients=6,
        method__ortho=form,
    )
    prepared = world(config)
    method = method_of(prepared)
    seen: list[Any] = []
    rounds.train(method, config, prepared.clients, callback=lambda report, state: seen.append(state.server))
    assert [s.clustered for s in seen] == [False] * 3 + [True] * 5
    assert [method.broadcast(s).prior_active for s in seen] == [False] * 3 + [True] * 5
    assert (seen[2].labels == -1).all()
    first = seen[3]
    if form == "ours":
        direction = torch.nn.functional.normalize(first.centroids, dim=-1)
        torch.testing.assert_close(first.theta["prototypes"], config.method.kappa * direction)
    for server in seen[3:]:
        torch.testing.assert_close(server.shares, server.labels.bincount(minlength=2).double() / 6)
        for k in range(2):
            mine = server.labels == k
            torch.testing.assert_close(server.centroids[k], server.means[mine].mean(0))
            second = server.variances[mine] + server.means[mine] ** 2
            torch.testing.assert_close(server.spread[k], second.mean(0) - server.centroids[k] ** 2)


@pytest.mark.parametrize("name", ["fedvpa-gp", "fedvpl", "fedvpl+ortho"])
def test_clusters_out_of_use_stay_at_the_origin(name: str) -> None:
    config = settings(federation__rounds=8, federation__sampled_clients=6, method__prototypes="auto")
    prepared = world(config)
    method = method_of(prepared, name)
    assert method.setup.clusters == 6  # 8, but there are 6 clients
    seen: list[Any] = []
    training = rounds.train(method, config, prepared.clients, callback=lambda report, state: seen.append(state.server))
    used = seen[3].in_use
    assert 2 <= used <= 5
    for server in seen[3:]:
        assert server.in_use == used
        assert (server.shares[used:] == 0).all()
        assert (server.centroids[used:] == 0).all()
        assert server.labels.max() < used
        torch.testing.assert_close(server.shares.sum(), torch.tensor(1.0).double())
        if method.use_ortho:
            assert (server.theta["prototypes"][used:] == 0).all()
            assert (server.theta["prototypes"][:used] != 0).any(-1).all()
    assert all(v.isfinite().all() for v in training.server.theta.values())
    predictor = method.predictor(training.server, prepared.pool)
    panel = prepared.panels["unseen"]
    for how in ("amortised", "mixture", "refined"):
        assert predictor.predict(predictor.infer(panel.context(4), how), panel.query).isfinite().all()
    assert (predictor.infer(panel.context(4), "mixture").log_weights[:, used:] == float("-inf")).all()


def test_a_client_with_one_pair_asks_it_under_an_empty_context() -> None:
    scene = Scene(method__samples=64)
    x, real = scene.batch.x[:, [0, 10]], torch.ones(4, 1, dtype=torch.bool)
    one = scene.batch._replace(x=x, y=scene.batch.y[:, :1], mask=real)
    noise = scene.noise._replace(rank=scene.noise.rank[:, :, :1] * 0, subset=scene.noise.subset[:, :, :1] & False)
    upload, _ = scene.method.client_update(scene.download, scene.private, one, noise)
    assert (upload.means == 0).all()
    assert (upload.variances == 1).all()
    assert (upload.metrics["mean_norm"] == 0).all()
    assert (upload.metrics["reconstruction"] > 0).all()
    assert all(v.isfinite().all() for v in upload.theta.values())


@pytest.mark.parametrize("how", ["amortised", "mixture", "refined"])
def test_inferred_users_predict_and_can_be_exchanged(how: str) -> None:
    scene = _shared()
    panel = scene.prepared.panels["unseen"]
    predictor = scene.method.predictor(scene.state, scene.prepared.pool)
    users = predictor.infer(panel.context(4), how)
    p = predictor.predict(users, panel.query)
    assert p.shape == panel.query.shape
    assert ((p > 0) & (p < 1)).all()
    order = torch.tensor([1, 0, 3, 2])
    exchanged = predictor.predict(predictor.rows(users, order), panel.query[order])
    torch.testing.assert_close(exchanged, p[order])
    blank = predictor.predict(predictor.nobody(len(panel.groups)), panel.query)
    assert (blank != p).any()


def test_amortised_inference_flips_with_its_labels() -> None:
    scene = _shared()
    panel = scene.prepared.panels["unseen"]
    predictor = scene.method.predictor(scene.state, scene.prepared.pool)
    q = predictor.posterior(panel.context(4))
    mirrored = predictor.posterior(panel.context(4, exchanged=True))
    torch.testing.assert_close(mirrored.mean, -q.mean)
    torch.testing.assert_close(mirrored.log_var, q.log_var)
