"""Posteriors do not depend on who else is inferred, on the number of threads, or on the way they are solved."""

from __future__ import annotations

import pytest
import torch

from fedvpa.variational import laplace
from fedvpa.variational.laplace import Noise, Observations, Posterior, Prior


def problem(people: int, answers: int, dim: int = 6, components: int = 3) -> tuple[Observations, Prior, Noise]:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    y = torch.where(normal(people, answers) > 0, 1.0, -1.0).double()
    rated, weight = normal(people, answers) > 1, (normal(people, answers) > -1).double()
    seen = Observations(2 * normal(people, answers, dim), normal(people, answers), y, rated, weight)
    prior = Prior(normal(components).log_softmax(0), normal(components, dim), normal(components, dim).exp())
    return seen, prior, Noise(torch.tensor(0.05).double(), torch.tensor(0.7).double())


def same(a: Posterior, b: Posterior, tolerance: float) -> None:
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("answers", [2, 20])
def test_a_person_is_inferred_the_same_alone_and_among_many(answers: int) -> None:
    seen, prior, noise = problem(500, answers)
    many = laplace.infer(seen, prior, noise)
    for i in (0, 250, 499):
        alone = laplace.infer(Observations(*(t[i : i + 1] for t in seen)), prior, noise)
        same(Posterior(*(t[i : i + 1] for t in many)), alone, 1e-10)


def test_threads_change_nothing_and_keep_their_number() -> None:
    seen, prior, noise = problem(500, 4)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(laplace.infer(seen, prior, noise))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    same(*found, 1e-10)


@pytest.mark.parametrize("answers", [2, 5, 6, 20])
def test_the_posterior_is_at_the_mode_with_its_curvature(answers: int) -> None:
    """Against autograd: the gradient of the log posterior vanishes, in the dual (fewer answers) and in the primal."""
    seen, prior, noise = problem(20, answers)
    seen = seen._replace(gaussian=torch.zeros_like(seen.gaussian))
    noise = noise._replace(error=torch.zeros(()).double())
    q = laplace.infer(seen, prior, noise, 50)

    def log_density(z: torch.Tensor) -> torch.Tensor:
        score = seen.offset.unsqueeze(-2) + z @ seen.slope.mT
        log_prior = -0.5 * ((z - prior.means) ** 2 / prior.variances).sum(-1)
        return laplace.log_likelihood(score, seen, noise).sum(-1) + log_prior

    z = q.means.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(log_density(z).sum(), z, create_graph=True)
    assert gradient.abs().max() < 1e-4
    rows = [torch.autograd.grad(gradient[..., i].sum(), z, retain_graph=True)[0] for i in range(z.shape[-1])]
    torch.testing.assert_close(q.root @ q.root.mT, -torch.stack(rows, -2), rtol=1e-8, atol=1e-8)
