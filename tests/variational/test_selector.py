"""The selector: antisymmetric in the two responses, by construction."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvpa.variational.selector import Residual, Sizes, Theta, difference, init_theta, linear_in_latent, score

SIZES = Sizes(features=5, hidden=6, latent=3, encoder=4, prototypes=2)


def model(seed: int, sizes: Sizes = SIZES) -> Theta:
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=g, dtype=torch.float64) for k, v in init_theta(sizes, g).items()}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 10_000), st.integers(1, 5), st.booleans())
@settings(max_examples=30, deadline=None)
def test_swapping_the_responses_negates_the_score(seed: int, pairs: int, with_base: bool) -> None:
    theta, z = model(seed), draw(seed + 1, 4, 3)
    a, b = draw(seed + 2, pairs, 5), draw(seed + 3, pairs, 5)
    base = draw(seed + 4, pairs) if with_base else None
    one = score(theta, difference(theta, torch.cat([a, b])), z, base)
    other = score(theta, difference(theta, torch.cat([b, a])), z, None if base is None else -base)
    assert one.shape == (4, pairs)
    torch.testing.assert_close(one, -other, rtol=1e-10, atol=1e-12)
    # From the difference embedding on it is exact to the last bit, with and without z.
    d = difference(theta, torch.cat([a, b]))
    for latent in (z, None):
        assert (score(theta, d, latent, base) == -score(theta, -d, latent, None if base is None else -base)).all()


def test_equal_responses_score_zero() -> None:
    theta, a = model(0), draw(0, 4, 5)
    assert (score(theta, difference(theta, torch.cat([a, a])), draw(1, 2, 3)) == 0).all()


def test_score_by_hand() -> None:
    theta, d, z, base = model(1), draw(1, 2, 6), draw(3, 1, 3), draw(4, 2)
    w = theta["selector.weight"] @ z[0] + theta["selector.common"]
    torch.testing.assert_close(score(theta, d, z, base)[0], theta["selector.alpha"] * base + d @ w / math.sqrt(6))


def test_the_difference_is_one_of_a_map_of_each_response_alone() -> None:
    theta, (a, b, c) = model(1), draw(1, 3, 4, 5)

    def between(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return difference(theta, torch.cat([x, y]))

    torch.testing.assert_close(between(a, b) + between(b, c), between(a, c))
    torch.testing.assert_close(between(a, b)[2:], difference(theta, torch.cat([a[2:], b[2:]])))
    assert between(a, b).shape == (4, 6)
    doubled = between(2 * a, 2 * b)  # and not a linear one
    assert (doubled - 2 * between(a, b)).abs().max() > 1e-3


def test_literal_residual_is_a_constant_that_a_swap_does_not_negate() -> None:
    theta = model(2, Sizes(5, 6, 3, 4, residual="bias"))
    d, z = draw(0, 4, 6), draw(1, 2, 3)
    shift = score(theta, d, z) - score(theta, d, torch.zeros_like(z))
    torch.testing.assert_close(shift, (z @ theta["selector.weight"].T).expand(2, 4))
    assert (score(theta, d, z) + score(theta, -d, z)).abs().min() > 1e-6


def test_a_model_without_latent_ignores_it() -> None:
    theta = model(3, Sizes(5, 6, 0, 0))
    assert not any(k.startswith(("encoder", "prototypes", "selector.weight")) for k in theta)
    d = draw(0, 4, 6)
    torch.testing.assert_close(score(theta, d, draw(1, 2, 3)), score(theta, d, None).expand(2, 4))


@pytest.mark.parametrize("residual", ["content", "bias"])
def test_a_stack_of_clients_is_each_client_alone(residual: str) -> None:
    parts = [model(s, Sizes(5, 6, 3, 4, residual=residual)) for s in range(3)]
    stacked = {k: torch.stack([p[k] for p in parts]) for k in parts[0]}
    x, z, base = draw(0, 3, 8, 5), draw(1, 3, 2, 3), draw(2, 3, 4)
    d = difference(stacked, x)
    s, common = score(stacked, d, z, base), score(stacked, d, None, base)
    for i, theta in enumerate(parts):
        one = difference(theta, x[i])
        torch.testing.assert_close(d[i], one)
        torch.testing.assert_close(s[i], score(theta, one, z[i], base[i]))
        torch.testing.assert_close(common[i], score(theta, one, None, base[i]))


def test_initialisation_depends_on_the_generator_only() -> None:
    one, same, other = (init_theta(SIZES, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert all((one[k] == same[k]).all() for k in one)
    assert any((one[k] != other[k]).any() for k in one)
    assert one["selector.alpha"] == 0


@pytest.mark.parametrize("residual", ["content", "bias"])
@pytest.mark.parametrize("with_base", [False, True])
def test_the_score_is_linear_in_the_latent(residual: Residual, with_base: bool) -> None:
    theta = model(3, SIZES if residual == "content" else Sizes(5, 6, 3, 4, 2, residual))
    d, z, base = draw(1, 2, 7, 6), draw(2, 2, 4, 3), draw(3, 2, 7) if with_base else None
    slope, offset = linear_in_latent(theta, d, base)
    torch.testing.assert_close(z @ slope.mT + offset.unsqueeze(-2), score(theta, d, z, base))
