"""Laplace's posterior under a mixture prior: against quadrature, exact for ratings, and with the model's symmetries."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from fedvpa.variational import laplace
from fedvpa.variational.gaussian import LOG_2PI
from fedvpa.variational.laplace import Noise, Observations, Posterior, Prior, Sums

KINDS = ("choices", "ratings", "mixed")


def noise(error: float = 0.0, rating: float = 0.5) -> Noise:
    return Noise(torch.tensor(error, dtype=torch.float64), torch.tensor(rating, dtype=torch.float64))


def mixture(components: int, dim: int, seed: int = 0) -> Prior:
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(components, generator=g).double() + 0.2
    means = torch.randn(components, dim, generator=g).double()
    return Prior((weights / weights.sum()).log(), means, 0.3 + torch.rand(components, dim, generator=g).double())


def judged(people: int, n: int, dim: int, kind: str = "choices", seed: int = 0) -> Observations:
    """What people with random latents said of random items."""
    g = torch.Generator().manual_seed(seed)
    slope = torch.randn(people, n, dim, generator=g).double()
    offset = 0.3 * torch.randn(people, n, generator=g).double()
    z = torch.randn(people, 1, dim, generator=g).double()
    score = (slope * z).sum(-1) + offset
    gaussian = torch.full((people, n), kind == "ratings")
    if kind == "mixed":
        gaussian[:, ::2] = True
    choice = torch.where(torch.rand(people, n, generator=g) < torch.sigmoid(score), 1.0, -1.0).double()
    rating = score + 0.5**0.5 * torch.randn(people, n, generator=g).double()
    return Observations(slope, offset, torch.where(gaussian, rating, choice), gaussian, torch.ones(people, n).double())


def log_joint(z: Tensor, seen: Observations, prior: Prior, likelihood: Noise) -> Tensor:
    """log p(judgements, z | component) of one person at the latents z (points, dim), (K, points)."""
    away = z - prior.means.unsqueeze(1)
    inside = -0.5 * (away**2 / prior.variances.unsqueeze(1) + prior.variances.unsqueeze(1).log() + LOG_2PI).sum(-1)
    score = z @ seen.slope[0].T + seen.offset[0]
    return inside + laplace.log_likelihood(score.unsqueeze(0), seen, likelihood)[0].sum(-1)


def integrated(seen: Observations, prior: Prior, likelihood: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """Evidence of each component, and the mean and variances of the whole posterior, on a grid."""
    dim = seen.slope.shape[-1]
    points = torch.linspace(-9, 9, 4001 if dim == 1 else 241, dtype=torch.float64)
    z = torch.cartesian_prod(*[points] * dim).view(-1, dim)
    joint = log_joint(z, seen, prior, likelihood)
    evidence = joint.logsumexp(-1) + dim * (points[1] - points[0]).log()
    p = (prior.log_weights.unsqueeze(-1) + joint).logsumexp(0).softmax(-1).unsqueeze(-1)
    mean = (p * z).sum(0)
    return evidence, mean, (p * (z - mean) ** 2).sum(0)


def person(seen: Observations, i: int) -> Observations:
    return Observations(*(t[i : i + 1] for t in seen))


def assert_same(one: Posterior, two: Posterior, tolerance: float = 1e-9) -> None:
    for name, value in one._asdict().items():
        torch.testing.assert_close(value, getattr(two, name), atol=tolerance, rtol=tolerance, msg=lambda m: name + m)  # noqa: B023


# Against numerical integration -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("components", [1, 3])
def test_ratings_are_exact(dim: int, components: int) -> None:
    prior, likelihood = mixture(components, dim), noise()
    seen = judged(1, 6, dim, "ratings")
    found = laplace.infer(seen, prior, likelihood)
    evidence, mean, variance = integrated(seen, prior, likelihood)
    torch.testing.assert_close(found.evidence[0], evidence, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.log_weights[0], (prior.log_weights + evidence).log_softmax(0), atol=1e-6, rtol=0)
    q = laplace.moments(found)
    torch.testing.assert_close(q.mean[0], mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(q.var[0], variance, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("error", [0.0, 0.1])
def test_choices_are_close(dim: int, components: int, error: float) -> None:
    """Laplace's error with 16 choices: a quarter of a standard deviation in the mean, a third in the variance. In the
    evidence 0.1 nats; 0.3 with an error rate, where the curvature is the expected one."""
    prior, likelihood = mixture(components, dim), noise(error)
    for seed in range(4):
        seen = judged(1, 16, dim, seed=seed)
        found = laplace.infer(seen, prior, likelihood, steps=50)
        evidence, mean, variance = integrated(seen, prior, likelihood)
        assert (found.evidence[0] - evidence).abs().max() < (0.3 if error else 0.1)
        q = laplace.moments(found)
        assert ((q.mean[0] - mean).abs() / variance.sqrt()).max() < 0.25
        assert (q.var[0] / variance).log().abs().max() < 0.3


def test_the_error_falls_with_more_choices() -> None:
    prior, likelihood = mixture(1, 1), noise()
    mean_error = []
    for n in (8, 256):
        apart = []
        for seed in range(8):
            seen = judged(1, n, 1, seed=seed)
            apart.append(
                (laplace.infer(seen, prior, likelihood).evidence[0] - integrated(seen, prior, likelihood)[0]).abs()
            )
        mean_error.append(float(torch.stack(apart).mean()))
    assert mean_error[1] < 0.3 * mean_error[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_mode_has_no_slope_and_the_precision_is_the_curvature(kind: str) -> None:
    prior, seen = mixture(2, 3), judged(1, 10, 3, kind)
    likelihood = noise(1e-30)  # of an error rate of 0 autograd finds no second derivative
    found = laplace.infer(seen, prior, likelihood)
    for k in range(2):

        def objective(z: Tensor, k: int = k) -> Tensor:
            return log_joint(z.unsqueeze(0), seen, prior, likelihood)[k, 0]

        z = found.means[0, k]
        assert torch.autograd.functional.jacobian(objective, z).abs().max() < 1e-5
        curvature = -torch.autograd.functional.hessian(objective, z)
        torch.testing.assert_close(found.root[0, k] @ found.root[0, k].T, curvature, atol=1e-5, rtol=0)


# The likelihood ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [0.0, 0.2, 0.49])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_those_of_the_likelihood(kind: str, error: float) -> None:
    seen, likelihood = judged(3, 8, 2, kind), noise(error)
    seen = seen._replace(weight=torch.rand(3, 8, generator=torch.Generator().manual_seed(1)).double())
    score = torch.linspace(-4, 4, 3 * 2 * 8).view(3, 2, 8).double().requires_grad_()
    first, second = laplace._derivatives(score.detach(), laplace._answers(seen, score), likelihood)
    (slope,) = torch.autograd.grad(laplace.log_likelihood(score, seen, likelihood).sum(), score)
    torch.testing.assert_close(first, slope)
    # Fisher's information: the expected squared slope over both answers; of a rating 1 / variance.
    one, other = (seen._replace(y=seen.y * 0 + y, weight=seen.weight * 0 + 1) for y in (1, -1))
    expected = torch.zeros_like(first)
    for answer in (one, other):
        value = laplace.log_likelihood(score, answer, likelihood)
        (g,) = torch.autograd.grad(value.sum(), score)
        expected += (value.exp() * g**2).detach()
    rated = seen.gaussian.unsqueeze(1).expand_as(first)
    expected = torch.where(rated, 1 / likelihood.rating, expected) * seen.weight.unsqueeze(1)
    torch.testing.assert_close(second, expected)


@given(st.floats(-200, 200), st.floats(0, 0.499))
@hypothesis_settings(max_examples=50, deadline=None)
def test_an_answer_is_given_the_wrong_way_round_with_the_error_rate(score: float, error: float) -> None:
    seen = Observations(
        *(torch.zeros(1, 2, *s).double() for s in ((1,), (), ())), torch.zeros(1, 2).bool(), torch.ones(1, 2)
    )
    seen = seen._replace(y=torch.tensor([[1.0, -1.0]]).double())
    value = laplace.log_likelihood(torch.full((1, 1, 2), score, dtype=torch.float64), seen, noise(error))[0, 0]
    assert value.isfinite().all()
    p = error + (1 - 2 * error) / (1 + math.exp(-score)) if score > -700 else error
    assert float(value[0].exp()) == pytest.approx(p, abs=1e-12)
    assert float(value.exp().sum()) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_answer_against_a_score_of_any_size_has_a_slope(dtype: torch.dtype) -> None:
    """The sigmoid of -1000 is 0 in floating point; its slope in the log is 1."""
    seen = Observations(*(t.to(dtype) if t.is_floating_point() else t for t in judged(1, 2, 1)))
    score = torch.tensor([[[1000.0, -1000.0]]], dtype=dtype)
    for error, size in ((0.0, 1.0), (0.1, 0.0)):
        likelihood = Noise(torch.tensor(error, dtype=dtype), torch.tensor(1.0, dtype=dtype))
        first, second = laplace._derivatives(
            score, laplace._answers(seen._replace(y=-score.sign()[0]), score), likelihood
        )
        torch.testing.assert_close(first[0, 0], torch.tensor([-size, size], dtype=dtype))
        torch.testing.assert_close(second, torch.zeros_like(second))


def test_a_weight_counts_like_a_repetition() -> None:
    prior, likelihood, seen = mixture(2, 3), noise(0.05), judged(2, 5, 3, "mixed")
    twice = Observations(*(torch.cat([t, t], 1) for t in seen))
    double = seen._replace(weight=2 * seen.weight)
    assert_same(laplace.infer(double, prior, likelihood), laplace.infer(twice, prior, likelihood))


def test_a_high_error_rate_makes_an_answer_count_less() -> None:
    prior, seen = mixture(1, 2), judged(1, 20, 2)
    moved = [
        (laplace.infer(seen, prior, noise(e), steps=50).mean - prior.means).norm() for e in (0.0, 0.2, 0.45, 0.4999)
    ]
    assert moved[0] > moved[1] > moved[2] > moved[3]
    assert moved[3] < 0.01 * moved[0]


# Symmetries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_exchanged_labels_under_the_mirrored_prior_give_the_mirrored_posterior(kind: str) -> None:
    prior, likelihood, seen = mixture(3, 2), noise(0.1), judged(4, 7, 2, kind)
    found = laplace.infer(seen, prior, likelihood)
    mirrored = laplace.infer(
        seen._replace(y=-seen.y, offset=-seen.offset), prior._replace(means=-prior.means), likelihood
    )
    assert_same(mirrored, found._replace(means=-found.means))


def test_a_swapped_pair_negates_the_score() -> None:
    prior, likelihood, seen = mixture(3, 2), noise(0.1), judged(4, 7, 2)
    found = laplace.infer(seen, prior, likelihood)
    swapped = seen._replace(slope=-seen.slope, offset=-seen.offset, y=-seen.y)
    assert_same(laplace.infer(swapped, prior, likelihood), found)
    asked = judged(4, 9, 2, seed=5)
    p = laplace.predict(found, asked.slope, asked.offset)
    assert p.shape == (4, 9)
    torch.testing.assert_close(laplace.predict(found, -asked.slope, -asked.offset), 1 - p)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_order_nor_company_nor_padding_matters(kind: str) -> None:
    prior, likelihood, seen = mixture(3, 3), noise(0.02), judged(5, 9, 3, kind)
    # Somebody whose answers contradict a far prior needs more steps than the others.
    seen = seen._replace(slope=torch.cat([seen.slope[:4], 20 * seen.slope[4:]]))
    found = laplace.infer(seen, prior, likelihood)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    assert_same(laplace.infer(Observations(*(t[:, order] for t in seen)), prior, likelihood), found)
    for i in range(5):
        alone = laplace.infer(person(seen, i), prior, likelihood)
        assert_same(alone, Posterior(*(t[i : i + 1] for t in found)))
    other = judged(5, 4, 3, seed=9)
    rest = other._replace(slope=100 * other.slope, weight=torch.zeros_like(other.weight))
    padded = Observations(*(torch.cat([a, b], 1) for a, b in zip(seen, rest, strict=True)))
    assert_same(laplace.infer(padded, prior, likelihood), found)


def test_without_judgements_the_posterior_is_the_prior() -> None:
    prior, seen = mixture(3, 2), judged(4, 5, 2)
    for nothing in (Observations(*(t[:, :0] for t in seen)), seen._replace(weight=0 * seen.weight)):
        found = laplace.infer(nothing, prior, noise())
        torch.testing.assert_close(found.log_weights, prior.log_weights.expand(4, 3))
        torch.testing.assert_close(found.means, prior.means.expand(4, 3, 2))
        torch.testing.assert_close(found.variances(), prior.variances.expand(4, 3, 2))
        torch.testing.assert_close(found.evidence, torch.zeros(4, 3).double())


def test_ratings_in_two_parts_equal_all_at_once() -> None:
    prior, likelihood, seen = mixture(3, 2), noise(), judged(4, 10, 2, "ratings")
    early, late = (Observations(*(t[:, rows] for t in seen)) for rows in (slice(0, 3), slice(3, 10)))
    found = laplace.update(laplace.infer(early, prior, likelihood), late, likelihood)
    assert_same(found, laplace.infer(seen, prior, likelihood))


def test_choices_in_two_parts_are_close_to_all_at_once() -> None:
    prior, likelihood, seen = mixture(2, 2), noise(), judged(8, 24, 2)
    early, late = (Observations(*(t[:, rows] for t in seen)) for rows in (slice(0, 12), slice(12, 24)))
    asked = judged(8, 50, 2, seed=7)
    found, whole = (
        laplace.update(laplace.infer(early, prior, likelihood), late, likelihood),
        laplace.infer(seen, prior, likelihood),
    )
    p, expected = (laplace.predict(q, asked.slope, asked.offset) for q in (found, whole))
    assert (p - expected).abs().mean() < 0.03


# Prediction and samples --------------------------------------------------------------------------------------------


def test_scores_and_probabilities_are_those_of_samples() -> None:
    prior, likelihood, seen = mixture(3, 2), noise(), judged(1, 4, 2)
    found, asked = laplace.infer(seen, prior, likelihood), judged(1, 6, 2, seed=2)
    g = torch.Generator().manual_seed(0)
    count = 200_000
    z = laplace.sample(
        found, torch.rand(1, count, generator=g).double(), torch.randn(1, count, 2, generator=g).double()
    )
    assert z.shape == (1, count, 2)
    q = laplace.moments(found)
    error = 4 * q.var.sqrt() / count**0.5
    assert ((z.mean(1) - q.mean).abs() < error).all()
    torch.testing.assert_close(z.var(1), q.var, rtol=0.02, atol=0)
    r = found.log_weights.exp()
    mean = found.mean
    apart = found.means - mean.unsqueeze(1)
    inverse = torch.cholesky_inverse(found.root)
    covariance = (r[..., None, None] * (inverse + apart.unsqueeze(-1) * apart.unsqueeze(-2))).sum(1)
    torch.testing.assert_close(torch.cov(z[0].T), covariance[0], rtol=0.05, atol=0.01)
    p = torch.sigmoid(z[0] @ asked.slope[0].T + asked.offset[0]).mean(0)
    torch.testing.assert_close(laplace.predict(found, asked.slope, asked.offset)[0], p, atol=0.02, rtol=0)
    score, variance = laplace.score_moments(found, asked.slope, asked.offset)
    direct = (asked.slope[0] @ inverse[0] * asked.slope[0].unsqueeze(0)).sum(-1)
    torch.testing.assert_close(variance[0], direct)
    torch.testing.assert_close(score[0], found.means[0] @ asked.slope[0].T + asked.offset[0])


# Extremes ----------------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.floats(1e-4, 1e4),
    st.floats(0.01, 30),
    st.floats(0, 30),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.sampled_from(["random", "all yes", "contradictions"]),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_newton_does_not_diverge(
    seed: int, n: int, variance: float, size: float, away: float, error: float, labels: str
) -> None:
    """Whatever the prior and the labels, the mode found is at least as likely as the prior's mean.

    With an error rate the likelihood is not concave, and eight steps may end up to half a nat below.
    """
    g = torch.Generator().manual_seed(seed)
    seen = judged(2, n, 3, seed=seed)
    seen = seen._replace(slope=size * seen.slope, offset=size * seen.offset)
    if labels == "all yes":
        seen = seen._replace(y=torch.ones_like(seen.y))
    elif labels == "contradictions":
        seen = seen._replace(slope=seen.slope[:, :1].expand(-1, n, -1).clone())
    prior = Prior(
        torch.zeros(1).double(), away * torch.randn(1, 3, generator=g).double(), torch.full((1, 3), variance).double()
    )
    found = laplace.infer(seen, prior, noise(error))
    assert all(t.isfinite().all() for t in found)
    for i in range(2):
        mine = person(seen, i)
        start, end = (log_joint(z, mine, prior, noise(error))[0, 0] for z in (prior.means, found.means[i]))
        assert end >= start - (0.5 if error else 1e-6 * abs(float(start)))


# EM on the prior ---------------------------------------------------------------------------------------------------


def total(found: Posterior) -> Sums:
    return Sums(*(t.sum(0) for t in laplace.sums(found)))


@pytest.mark.parametrize(("kind", "tolerance"), [("ratings", 1e-9), ("choices", 1e-3)])
def test_em_on_the_prior_never_lowers_the_evidence(kind: str, tolerance: float) -> None:
    """Exact for ratings. For choices the evidence is Laplace's, which may fall by 0.001 nats a person near the end."""
    people = 60
    seen, likelihood, prior = judged(people, 12, 2, kind), noise(), mixture(3, 2, seed=4)
    values = []
    for _ in range(25):
        found = laplace.infer(seen, prior, likelihood)
        values.append(float((prior.log_weights + found.evidence).logsumexp(-1).sum()))
        prior = laplace.maximise(total(found), floor=1e-6)
    rises = torch.tensor(values).double().diff()
    assert rises.min() > -tolerance * people
    assert values[-1] > values[0] + 1
    assert rises[-1] < 0.2 * rises[0]


def test_em_finds_where_people_are() -> None:
    """Two groups at -2 and +2 with variance 0.25, from ratings of many items."""
    g = torch.Generator().manual_seed(0)
    z = (
        torch.cat([torch.full((100,), -2.0), torch.full((50,), 2.0)]).double()
        + 0.5 * torch.randn(150, generator=g).double()
    )
    slope = torch.randn(150, 30, 1, generator=g).double()
    y = slope[..., 0] * z.unsqueeze(-1) + 0.1 * torch.randn(150, 30, generator=g).double()
    seen = Observations(slope, 0 * y, y, torch.ones(150, 30).bool(), torch.ones(150, 30).double())
    prior = Prior(
        torch.tensor([0.5, 0.5]).double().log(), torch.tensor([[-0.1], [0.1]]).double(), torch.ones(2, 1).double()
    )
    for _ in range(30):
        prior = laplace.maximise(total(laplace.infer(seen, prior, noise(rating=0.01))), floor=1e-4)
    torch.testing.assert_close(prior.log_weights.exp(), torch.tensor([2 / 3, 1 / 3]).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(prior.means[:, 0], torch.tensor([-2.0, 2.0]).double(), atol=0.2, rtol=0)
    torch.testing.assert_close(prior.variances[:, 0], torch.tensor([0.25, 0.25]).double(), atol=0.1, rtol=0)


def test_sums_add_up_and_the_floor_and_shrinkage_hold() -> None:
    prior, seen = mixture(3, 2), judged(10, 5, 2)
    found = laplace.infer(seen, prior, noise())
    each = laplace.sums(found)
    torch.testing.assert_close(each.count.sum(-1), torch.ones(10).double())
    parts = [total(Posterior(*(t[rows] for t in found))) for rows in (slice(0, 4), slice(4, 10))]
    for one, two, whole in zip(*parts, total(found), strict=True):
        torch.testing.assert_close(one + two, whole)
    assert (laplace.maximise(total(found), floor=3.0).variances == 3).all()
    # Before anybody counts, MAP gives N(0, 1) with equal weights; maximum likelihood stays finite.
    nobody = Sums(torch.zeros(2).double(), *(torch.zeros(2, 3).double() for _ in range(2)))
    drawn = laplace.maximise(nobody, floor=0.01, shrink=5.0)
    torch.testing.assert_close(drawn.log_weights.exp(), torch.full((2,), 0.5).double())
    assert (drawn.means == 0).all()
    torch.testing.assert_close(drawn.variances, torch.ones(2, 3).double())
    assert all(t.isfinite().all() for t in laplace.maximise(nobody, floor=0.01, shrink=0.0)[1:])


def test_one_gaussian_is_split_into_components_around_it() -> None:
    one = Prior(torch.zeros(1).double(), torch.tensor([[3.0, -1.0]]).double(), torch.tensor([[4.0, 0.01]]).double())
    drawn = laplace.split(one, 2000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.log_weights.exp().sum(), torch.tensor(1.0).double())
    torch.testing.assert_close(drawn.variances, (one.variances / 2).expand(2000, 2))
    torch.testing.assert_close(drawn.means.mean(0), one.means[0], atol=0.2, rtol=0)
    torch.testing.assert_close(drawn.means.var(0), one.variances[0], rtol=0.1, atol=0)


def test_a_mixture_is_matched_in_mean_and_variances() -> None:
    prior = mixture(4, 3)
    matched = laplace.moment_matched(prior)
    weights = prior.log_weights.exp().unsqueeze(-1)
    mean = (weights * prior.means).sum(0)
    second = (weights * (prior.variances + prior.means**2)).sum(0)
    torch.testing.assert_close(matched.means[0], mean)
    torch.testing.assert_close(matched.variances[0], second - mean**2)
    assert matched.log_weights.exp().tolist() == [1.0]
    again = laplace.moment_matched(matched)
    torch.testing.assert_close(again.variances, matched.variances)


def test_components_without_people_are_left_out() -> None:
    prior = Prior(torch.tensor([0.6, 0.005, 0.395]).log(), torch.randn(3, 2), torch.rand(3, 2))
    kept = laplace.without_unused(prior, 1 / 100)
    assert torch.equal(kept.means, prior.means[[0, 2]])
    assert torch.equal(kept.variances, prior.variances[[0, 2]])
    torch.testing.assert_close(kept.log_weights.exp(), torch.tensor([0.6, 0.395]) / 0.995)
    assert len(laplace.without_unused(prior, 1.0).means) == 1
