"""Inference without training: particles, mixture, refinement."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from fedvpa.variational import inference, prior
from fedvpa.variational.inference import Particles
from fedvpa.variational.selector import Sizes, Theta, init_theta, score

H, DIM, USERS, PAIRS = 6, 3, 2, 5


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def theta() -> Theta:
    g = torch.Generator().manual_seed(0)
    return {k: 2 * torch.randn(v.shape, generator=g).double() for k, v in init_theta(Sizes(4, H, DIM, 5), g).items()}


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """d, y, context."""
    y = torch.where(draw(2, USERS, PAIRS) > 0, 1.0, -1.0).double()
    return draw(1, USERS, PAIRS, H), y, torch.tensor([[True] * 3 + [False] * 2, [True] * 5])


def test_a_point_is_one_particle_of_weight_one(theta: Theta) -> None:
    z, d = draw(0, USERS, DIM), draw(1, USERS, PAIRS, H)
    point = Particles.point(z)
    torch.testing.assert_close(point.mean, z)
    p = inference.predictive(theta, point, d, None)
    torch.testing.assert_close(p, torch.sigmoid(score(theta, d, z.unsqueeze(1)).squeeze(1)))


def test_mixture_predicts_with_the_responsible_centres(theta: Theta, pairs: tuple) -> None:
    d, y, context = pairs
    centres, shares = draw(4, 3, DIM), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    particles = inference.mixture_particles(theta, centres, shares.log(), d, None, y, context)
    found = inference.predictive(theta, particles, d, None)
    for i in range(USERS):
        p = torch.sigmoid(score(theta, d[i], centres))
        likelihood = torch.where(y[i] > 0, p, 1 - p)[:, context[i]].prod(-1)
        r = shares * likelihood / (shares * likelihood).sum()
        torch.testing.assert_close(particles.log_weights[i].exp(), r)
        torch.testing.assert_close(found[i], r @ p)
        torch.testing.assert_close(particles.mean[i], r @ centres)


def test_without_context_the_mixture_is_the_shares(theta: Theta, pairs: tuple) -> None:
    d, y, context = pairs
    shares = torch.tensor([0.2, 0.8], dtype=torch.float64)
    particles = inference.mixture_particles(theta, draw(4, 2, DIM), shares.log(), d, None, y, context & False)
    torch.testing.assert_close(particles.log_weights.exp(), shares.expand(USERS, 2))


def test_refinement_climbs_the_log_joint_from_the_best_start(theta: Theta, pairs: tuple) -> None:
    d, y, context = pairs
    w = torch.tensor([[0.4, 0.6]], dtype=torch.float64)
    mix = prior.with_standard(w.log(), draw(5, 2, DIM), torch.ones(2, DIM).double(), 0.5, 0.05)
    density = MixtureSameFamily(
        Categorical(probs=mix.log_weights[0].exp()), Independent(Normal(mix.means, mix.variances.sqrt()), 1)
    )

    def log_joint(i: int, z: torch.Tensor) -> float:
        p = torch.sigmoid(score(theta, d[i], z.unsqueeze(0)))[0]
        return float(torch.where(y[i] > 0, p, 1 - p)[context[i]].log().sum() + density.log_prob(z))

    starts = draw(6, USERS, 4, DIM)
    found = inference.refine(theta, starts, mix, d, None, y, context)
    assert not found.requires_grad
    assert all(v.grad is None for v in theta.values())
    for i in range(USERS):
        before = max(log_joint(i, z) for z in starts[i])
        assert log_joint(i, found[i]) > before
        # Steps in random directions from where it ended lead down: it stopped at a summit, or close to one.
        steps = 0.3 * torch.nn.functional.normalize(draw(7, 16, DIM), dim=-1)
        assert max(log_joint(i, found[i] + s) for s in steps) < log_joint(i, found[i]) + 1e-3
    unmoved = inference.refine(theta, starts, mix, d, None, y, context, steps=0)
    best = [max(range(4), key=lambda k: log_joint(i, starts[i, k])) for i in range(USERS)]
    torch.testing.assert_close(unmoved, torch.stack([starts[i, k] for i, k in enumerate(best)]))


def test_refined_users_do_not_depend_on_one_another(theta: Theta, pairs: tuple) -> None:
    d, y, context = pairs
    mix = prior.with_standard(torch.zeros(1, 1).double(), draw(5, 1, DIM), torch.ones(1, DIM).double(), 0.5, 0.05)
    starts = draw(6, USERS, 2, DIM)
    together = inference.refine(theta, starts, mix, d, None, y, context)
    alone = inference.refine(theta, starts[1:], mix, d[1:], None, y[1:], context[1:])
    torch.testing.assert_close(together[1:], alone)
