"""The hand-written gradients against finite differences, and the functions against their plain formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from fedvpa.variational.kernels import affine, gelu_difference, mirrored_gelu


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_(True)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("stacked", [True, False])
def test_affine_is_the_product_and_its_gradient(stacked: bool, with_bias: bool) -> None:
    lead = (2,) if stacked else ()
    x, weight = draw(2, 3, 4), draw(*lead, 5, 4, seed=1)
    bias = draw(*lead, 5, seed=2) if with_bias else None
    expected = torch.einsum("krd,khd->krh" if stacked else "krd,hd->krh", x, weight)
    if bias is not None:
        expected = expected + (bias.unsqueeze(1) if stacked else bias)
    torch.testing.assert_close(affine(x, weight, bias), expected)
    assert gradcheck(affine, (x, weight, bias))
    assert gradcheck(lambda w: affine(x.detach(), w, bias), (weight,))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_gelu_difference(lead: tuple[int, ...]) -> None:
    x = draw(*lead, 6, 4)
    a, b = x[..., :3, :], x[..., 3:, :]
    torch.testing.assert_close(gelu_difference(x), F.gelu(a) - F.gelu(b))
    assert gradcheck(gelu_difference, (x,))
    # A gradient that arrives transposed, as from a product with d^T, changes nothing.
    w = draw(*lead, 2, 4, seed=1).detach()
    assert gradcheck(lambda v: w @ gelu_difference(v).mT, (x,))


@pytest.mark.parametrize(("lead", "stacked"), [((), False), ((2,), False), ((2,), True)])
def test_mirrored_gelu(lead: tuple[int, ...], stacked: bool) -> None:
    u, bias = draw(*lead, 3, 4), draw(*(lead if stacked else ()), 4, seed=1)
    centre = bias.unsqueeze(-2)
    odd, even = mirrored_gelu(u, bias)
    torch.testing.assert_close(odd + even, F.gelu(centre + u))
    torch.testing.assert_close(even - odd, F.gelu(centre - u))
    minus_odd, same_even = mirrored_gelu(-u, bias)
    assert (minus_odd == -odd).all()
    torch.testing.assert_close(same_even, even)
    assert gradcheck(mirrored_gelu, (u, bias))
    # Only one of the two parts is used.
    assert gradcheck(lambda v, b: mirrored_gelu(v, b)[0], (u, bias))
    assert gradcheck(lambda v, b: mirrored_gelu(v, b)[1], (u, bias))
