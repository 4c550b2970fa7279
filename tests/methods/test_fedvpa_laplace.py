"""FedVPA-Laplace: the cohort's sums are the clients' sums, its gradient is that of its loss, and it finds groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedvpa.errors import UserError
from fedvpa.evaluation.experiment import Prepared, prepare, run_method, upload_bytes
from fedvpa.evaluation.protocol import measure
from fedvpa.federation import checkpoint, rounds
from fedvpa.federation.aggregate import weighted_change
from fedvpa.federation.reception import receive
from fedvpa.federation.rounds import TrainingState
from fedvpa.methods.base import Download, Judged, JudgementBatch, LocalNoise, Upload, kept_features
from fedvpa.methods.fedvpa_laplace import noise_of, observations, project
from fedvpa.variational import laplace
from toy import method_of, world
from toy_people import laplace_settings, people, people_world

KINDS = {
    "plain pairs": None,
    "choices": ("choice",),
    "votes": ("vote",),
    "ratings": ("rating",),
    "mixed": ("choice", "vote", "rating"),
}
IDS = torch.tensor([0, 1, 2, 4, 5])


def prepared_for(kinds: str, **overrides: Any) -> Prepared:
    config = laplace_settings(**overrides)
    given = KINDS[kinds]
    return world(config, ragged=True) if given is None else people_world(config, kinds=given, ragged=True)


class Scene:
    """Five clients under a prior of three components, in a round of their own."""

    def __init__(self, kinds: str, **overrides: Any) -> None:
        self.prepared = prepared_for(kinds, **overrides)
        self.config = self.prepared.config
        self.method = method_of(self.prepared, "fedvpa-laplace")
        self.training = rounds.start(self.method, self.config, len(self.prepared.clients))
        g = torch.Generator().manual_seed(1)
        dim = self.method.dim
        self.state = replace(
            self.training.server,
            centroids=torch.randn(3, dim, generator=g).double(),
            spread=0.2 + torch.rand(3, dim, generator=g).double(),
            shares=torch.tensor([0.5, 0.3, 0.2]).double(),
            clustered=True,
        )
        self.download: Download = self.method.broadcast(self.state)
        self.batch: JudgementBatch = self.prepared.clients.judgements.batch(IDS)
        self.noise: LocalNoise = rounds.round_noise(self.method, self.config, self.prepared.clients, IDS, 0)

    def clients(self) -> Upload:
        return self.method.client_update(self.download, {}, self.batch, self.noise)[0]

    def cohort(self) -> Upload:
        return self.method.cohort_update(self.download, self.batch, self.noise)


def close(one: torch.Tensor, two: torch.Tensor, what: str) -> None:
    torch.testing.assert_close(one, two, atol=1e-10, rtol=1e-10, msg=lambda m: f"{what}: {m}")


# The sums ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [0.0, 0.1])
@pytest.mark.parametrize("kinds", KINDS)
def test_the_cohorts_update_is_the_sum_of_its_clients(kinds: str, error: float) -> None:
    scene = Scene(kinds, laplace__error=error, laplace__dropout=0.3)
    each, at_once = scene.clients(), scene.cohort()
    change, expected = (weighted_change(scene.download.theta, u) for u in (at_once, each))
    assert any(v.abs().max() > 1e-3 for v in expected.values())
    for name, value in expected.items():
        close(change[name], value, name)
    for name, value in each.sums.items():
        close(at_once.sums[name].sum(0), value.sum(0), name)
    for name, value in each.metrics.items():
        close(at_once.metrics[name].mean(), value.mean(), name)
    assert int(at_once.counts) == int(each.counts.sum())


@pytest.mark.parametrize("kinds", ["choices", "mixed"])
def test_a_clients_update_does_not_depend_on_the_others(kinds: str) -> None:
    scene = Scene(kinds)
    together = scene.clients()
    for k, i in enumerate(IDS):
        one = i.unsqueeze(0)
        batch = scene.prepared.clients.judgements.batch(one)
        noise = rounds.round_noise(scene.method, scene.config, scene.prepared.clients, one, 0)
        alone, _ = scene.method.client_update(scene.download, {}, batch, noise)
        for name, value in {**alone.theta, **alone.sums, **alone.metrics}.items():
            close(value[0], {**together.theta, **together.sums, **together.metrics}[name][k], name)


def test_the_sums_are_counts_of_people_and_of_judgements() -> None:
    scene = Scene("mixed")
    sums, batch = scene.clients().sums, scene.batch
    assert sums["people"].tolist() == [1.0] * 5
    torch.testing.assert_close(sums["count"].sum(-1), torch.ones(5).double())
    assert torch.equal(sums["ratings"], (batch.rated & (batch.weight > 0)).sum(-1).double())
    assert torch.equal(sums["choices"] + sums["ratings"], batch.counts.double())
    assert (sums["residual"] > 0).all()
    assert (sums["second"] * sums["count"].unsqueeze(-1) >= sums["first"] ** 2 - 1e-9).all()
    assert {k: tuple(v.shape[1:]) for k, v in sums.items()} == dict(scene.method.sums_shapes(scene.download))


def test_what_a_client_sends_and_receives_does_not_grow_with_the_number_of_people() -> None:
    sizes = []
    for clients in (6, 24):
        scene = Scene("votes", federation__clients=clients, federation__sampled_clients=6)
        up, down = scene.clients(), scene.download
        assert all(v.isfinite().all() for v in up.sums.values())
        sizes.append(
            (up.bytes_per_client(), scene.method.download_bytes(down), {k: v.shape for k, v in up.sums.items()})
        )
    assert sizes[0] == sizes[1]


def test_the_table_counts_the_sums_among_the_bytes() -> None:
    scene = Scene("votes")
    state = replace(scene.training, server=scene.state)
    assert upload_bytes(scene.method, state) == scene.clients().bytes_per_client()


def test_sums_that_nothing_clips_do_not_leave_under_privacy() -> None:
    scene = Scene("votes")
    config = laplace_settings(privacy__clip=1.0, privacy__noise=1.0)
    with pytest.raises(UserError, match="fedvpa-laplace sends more than the privacy account covers"):
        rounds.train(scene.method, config, scene.prepared.clients)


# The gradient ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("error", [0.0, 0.1])
def test_the_step_is_the_gradient_of_the_loss(kinds: str, error: float) -> None:
    """Against central differences, the posterior and its samples held at the received parameters."""
    scene = Scene(kinds, laplace__error=error, laplace__dropout=0.3)
    method, download, batch = scene.method, scene.download, scene.batch
    received = dict(download.theta)
    _, q, seen = method.losses(received, download, batch, scene.noise)
    step = {k: v[0] - received[k] for k, v in scene.cohort().theta.items()}
    share = batch.counts / batch.counts.sum()

    def loss(theta: dict[str, torch.Tensor]) -> float:
        """The likelihood, with dropout, under samples of q, without, under the *received* parameters."""
        judged, kept = Judged(*batch[2:7]), kept_features(scene.config, download.round, 0.3, batch.items)
        prior = laplace.Prior(download.shares.log(), download.means, download.variances)
        under = observations(*project(received, batch.items), judged)
        q = laplace.infer(under, prior, noise_of(received), 5)
        normal = scene.noise.normal[:, 0]
        z = laplace.sample(q, torch.special.ndtr(normal[..., -1]), normal[..., :-1])
        now = observations(*project(theta, batch.items * kept), judged)
        score = now.offset.unsqueeze(-2) + z @ now.slope.mT
        fit = laplace.log_likelihood(score, now, noise_of(received)).sum(-1).mean(-1)
        return float((share * -fit / batch.counts).sum())

    g = torch.Generator().manual_seed(0)
    assert q.means.shape == (5, 3, method.dim)
    assert seen.y.shape == batch.y.shape
    for name, value in received.items():
        if name.startswith(("noise.", "calibration.")):
            assert (step[name] == 0).all()
            continue
        direction = torch.randn(value.shape, generator=g).double()
        h = 1e-5
        high, low = (loss({**received, name: value + s * h * direction}) for s in (1, -1))
        assert (high - low) / (2 * h) == pytest.approx(-float((step[name] * direction).sum()), rel=1e-4, abs=1e-8), name


# The engines -------------------------------------------------------------------------------------------------------


def trained(kinds: str, **overrides: Any) -> tuple[Any, TrainingState, Prepared]:
    prepared = prepared_for(kinds, **overrides)
    method = method_of(prepared, "fedvpa-laplace")
    return method, rounds.train(method, prepared.config, prepared.clients), prepared


def assert_same(one: TrainingState, two: TrainingState, tolerance: float) -> None:
    for left, right in ((one.server.theta, two.server.theta), (one.server.extra, two.server.extra)):
        assert left.keys() == right.keys()
        for name, value in left.items():
            torch.testing.assert_close(value, right[name], atol=tolerance, rtol=tolerance, msg=lambda m: f"{name}: {m}")  # noqa: B023
    for name in ("centroids", "spread", "shares"):
        torch.testing.assert_close(getattr(one.server, name), getattr(two.server, name), atol=tolerance, rtol=tolerance)


SAME = {
    "the loop": {"federation__engine": "loop"},
    "the defence": {"defence__reject": True},
    "faults that never strike": {"faults__kinds": ("drop-out",), "faults__clients": 0.0},
}


@pytest.mark.parametrize("path", SAME)
@pytest.mark.parametrize("kinds", ["choices", "mixed"])
def test_every_path_gives_the_same_numbers(path: str, kinds: str) -> None:
    """They go through `client_update`; the reference through `cohort_update`."""
    common = {"laplace__error": 0.05, "laplace__dropout": 0.3}
    _, expected, _ = trained(kinds, **common)
    _, found, _ = trained(kinds, **common, **SAME[path])
    assert len(expected.server.shares) > 1
    assert_same(found, expected, 1e-8)
    assert not found.faults or not any(found.faults.values())


def test_the_defence_rejects_sums_that_no_honest_client_sends() -> None:
    scene = Scene("mixed", defence__reject=True)
    sent = scene.clients()
    for name, forged, reason in (
        ("people", 5.0, "sums.people is above 1"),
        ("count", -1.0, "sums.count is below 0"),
        ("first", 1e9, "sums.first is above"),
        ("second", float("nan"), "sums.second is not finite"),
        ("residual", -3.0, "sums.residual is below 0"),
    ):
        value = sent.sums[name].clone()
        value[1] = forged
        upload = replace(sent, sums={**sent.sums, name: value})
        found = receive(scene.method, scene.state, [upload], scene.config, scene.prepared.clients.examples)
        assert found.upload is not None
        assert found.upload.ids.tolist() == [0, 2, 4, 5]
        assert reason in found.rejected[1]
        assert len(found.upload.sums["count"]) == 4


@pytest.mark.parametrize("kind", ["nan", "inf", "shape", "huge"])
def test_a_client_that_lies_is_rejected_and_the_round_goes_on(kind: str) -> None:
    _, state, prepared = trained("votes", defence__reject=True, faults__kinds=(kind,), faults__clients=0.3)
    assert state.server.round == prepared.config.federation.rounds
    assert int(state.faults["rejected"]) > 0
    assert all(v.isfinite().all() for v in {**state.server.theta, **state.server.extra}.values())


@pytest.mark.parametrize("stop", [2, 5])
def test_a_training_goes_on_from_a_checkpoint(stop: int, tmp_path: Path) -> None:
    prepared = prepared_for("mixed", laplace__error=0.05)
    method = method_of(prepared, "fedvpa-laplace")

    def keep(report: Any, state: TrainingState) -> None:
        if report.round == stop:
            checkpoint.save(tmp_path, state, {})

    expected = rounds.train(method, prepared.config, prepared.clients, callback=keep)
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert found[0].server.round == stop
    assert_same(rounds.train(method, prepared.config, prepared.clients, found[0]), expected, 0.0)


def test_the_prior_begins_as_one_gaussian_and_becomes_components() -> None:
    prepared, seen = prepared_for("votes"), []
    method = method_of(prepared, "fedvpa-laplace")
    rounds.train(method, prepared.config, prepared.clients, callback=lambda r, s: seen.append(s.server))
    # 8 rounds: N(0, I) in the first quarter, one Gaussian up to the half, then three components; in the end those that
    # hold a person.
    assert [len(s.shares) for s in seen[:-1]] == [1, 1, 1, 3, 3, 3, 3]
    assert 1 <= len(seen[-1].shares) <= 3
    assert (seen[-1].shares * len(prepared.clients) >= 1).all()
    assert (seen[0].centroids == 0).all()
    assert (seen[1].spread != 1).any()
    for state in seen:
        torch.testing.assert_close(state.shares.sum(), torch.tensor(1.0).double())
        assert (state.spread >= prepared.config.laplace.floor).all()
        assert state.clustered == (len(state.shares) > 1)


# What it learns ----------------------------------------------------------------------------------------------------


LEARNING: dict[str, Any] = {
    "federation__clients": 24,
    "federation__unseen_clients": 12,
    "federation__sampled_clients": 24,
    "federation__dtype": "float32",
    "laplace__rounds": 150,
    "laplace__learning_rate": 0.01,
    "laplace__dropout": 0.0,
}


@pytest.mark.parametrize("kinds", ["plain pairs", "votes", "ratings", "mixed"])
def test_groups_with_opposite_wishes_are_recovered_from_eight_judgements(kinds: str) -> None:
    """Common preferences cannot serve both groups: `fedbt` is near chance on unseen people."""
    config = laplace_settings(**LEARNING)
    given = KINDS[kinds]
    prepared = world(config) if given is None else people_world(config, kinds=given)
    accuracy = {}
    for name in ("fedvpa-laplace", "fedbt"):
        method = method_of(prepared, name)
        state = rounds.train(method, config, prepared.clients)
        predictor = method.predictor(state.server, prepared.pool)
        how = "mixture" if name == "fedvpa-laplace" else "none"
        accuracy[name] = measure(predictor, prepared.panels["unseen"], 8, how, True).values["accuracy"]
    assert accuracy["fedbt"] < 0.65
    assert accuracy["fedvpa-laplace"] > accuracy["fedbt"] + 0.2


def test_votes_say_what_pairs_of_the_same_people_say() -> None:
    """A person is inferred from votes, or from pairs made of them, by one model; both beat no judgements."""
    config = laplace_settings(**LEARNING)
    prepared = people_world(config, kinds=("vote",))
    method = method_of(prepared, "fedvpa-laplace")
    predictor = method.predictor(rounds.train(method, config, prepared.clients).server, prepared.pool)
    panel = prepared.panels["unseen"]
    votes, pairs = panel.judgements(16), predictor.choices(panel.context(16))
    assert (votes.second < 0).all()
    assert (pairs.second >= 0).all()
    right = {}
    for name, judged in (("nothing", panel.judgements(0)), ("votes", votes), ("pairs", pairs)):
        p = predictor.predict(predictor.infer(judged), panel.query)
        right[name] = float(((p > 0.5) == (panel.query_y > 0))[panel.query_mask].double().mean())
    assert right["votes"] > right["nothing"] + 0.2
    assert right["pairs"] > right["nothing"] + 0.2


def test_the_noise_of_ratings_is_learnt() -> None:
    """Ratings of the toy follow the scores exactly; with noise of variance 0.25 that variance is found."""
    config, found = laplace_settings(**{**LEARNING, "laplace__rounds": 60}), []
    data, features = people(config, kinds=("rating",))
    g = torch.Generator().manual_seed(0)
    for size in (0.0, 0.5):
        clients = {
            p: tuple(
                replace(c, judgements=replace(j, value=j.value + size * torch.randn(len(j), generator=g)))
                for c in own
                if (j := c.judgements) is not None
            )
            for p, own in data.clients.items()
        }
        prepared = prepare(config, replace(data, clients=clients), features)
        state = rounds.train(method_of(prepared, "fedvpa-laplace"), config, prepared.clients)
        found.append(float(state.server.theta["noise.rating"]))
    assert found[0] < 0.05
    assert 0.15 < found[1] < 0.35


def test_no_error_rate_is_learnt_unless_asked_for() -> None:
    assert float(trained("votes")[1].server.theta["noise.error"]) == 0
    learnt = float(trained("votes", laplace__error=0.1)[1].server.theta["noise.error"])
    assert 0 < learnt < 0.45
    assert learnt != pytest.approx(0.1)


# Inference ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["mixture", "gaussian"])
def test_people_are_inferred_predicted_and_exchanged(how: str) -> None:
    method, state, prepared = trained("mixed")
    predictor, panel = method.predictor(state.server, prepared.pool), prepared.panels["unseen"]
    users = predictor.infer(panel.context_for(predictor, 6), how)
    p = predictor.predict(users, panel.query)
    assert p.shape == panel.query.shape
    assert ((p > 0) & (p < 1)).all()
    order = torch.tensor([1, 0, 3, 2])
    torch.testing.assert_close(predictor.predict(predictor.rows(users, order), panel.query[order]), p[order])
    torch.testing.assert_close(predictor.predict(predictor.infer(panel.judgements(6), how), panel.query), p)
    nothing = predictor.predict(predictor.infer(panel.judgements(0), how), panel.query)
    assert (nothing - p).abs().max() > 1e-3


def test_a_persons_threshold_falls_out_of_a_pair() -> None:
    """Somebody who says yes to everything, whatever it is, prefers nothing; the last dimension is the threshold."""
    method, state, prepared = trained("votes")
    predictor, panel = method.predictor(state.server, prepared.pool), prepared.panels["unseen"]
    users = predictor.infer(panel.judgements(8))
    shifted = users._replace(means=users.means.clone())
    shifted.means[..., -1] += 3.0
    close(predictor.predict(shifted, panel.query), predictor.predict(users, panel.query), "pairs")


def test_an_experiment_measures_votes_and_pairs_of_the_same_people() -> None:
    prepared = people_world(laplace_settings(), kinds=("vote",))
    for name in ("fedvpa-laplace", "fedvpa-gp"):
        run = run_method(prepared, name)
        assert {r["context_size"] for r in run.rows} == set(prepared.config.evaluation.context_sizes)
        assert {r["population"] for r in run.rows} == {"seen", "unseen"}
        assert all(0 <= r["accuracy"] <= 1 for r in run.rows)
