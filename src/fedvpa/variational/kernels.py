"""The heavy pieces of a local step, with gradients written out: fewer passes and fewer small operations than autograd.

Each function is one line of mathematics, given in its docstring with its gradient; `tests/variational/test_kernels.py`
checks every one against finite differences. Parameters may be shared by all rows or stacked, one set per client.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_gelu_backward = torch.ops.aten.gelu_backward


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b.

    Args:
        x: (..., rows, inputs), or (K, rows, inputs) for a stack of clients.
        weight: (outputs, inputs), or (K, outputs, inputs).
        bias: (outputs,), (K, outputs) or None.
    """
    return F.linear(x, weight, bias) if weight.dim() == 2 else _StackedAffine.apply(x, weight, bias)


def gelu_difference(x: Tensor) -> Tensor:
    """d = GELU(x_a) - GELU(x_b), with dL/dx_a = GELU'(x_a) dL/dd and dL/dx_b = -GELU'(x_b) dL/dd.

    Args:
        x: (..., 2 * pairs, h), the rows a of all pairs, then their rows b.

    Returns:
        (..., pairs, h)
    """
    return _GeluDifference.apply(x)


def mirrored_gelu(u: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The odd and the even part in u of GELU(b + u): (GELU(b + u) -+ GELU(b - u)) / 2.

    With the gradients g_o, g_e of the two parts and p = GELU'(b + u) (g_e + g_o) / 2, m = GELU'(b - u) (g_e - g_o) / 2:
    dL/du = p - m, dL/db = sum of p + m over the rows.

    Args:
        u: (..., rows, width)
        bias: (width,), or (K, width) for a stack of clients.

    Returns:
        odd, even: (..., rows, width) each.
    """
    return _MirroredGelu.apply(u, bias)


class _StackedAffine(torch.autograd.Function):
    """The gradient of W is a GEMM that writes W's own layout. Autograd's formula yields the transpose, and copying that
    into place costs about as much as the forward GEMM."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        to_x = torch.bmm(gradient, weight) if ctx.needs_input_grad[0] else None
        return to_x, torch.bmm(gradient.mT, x), gradient.sum(-2) if ctx.needs_input_grad[2] else None


class _GeluDifference(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        a, b = F.gelu(x).chunk(2, -2)
        return a - b

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        to_x = torch.empty_like(x)
        to_a, to_b = to_x.chunk(2, -2)
        to_a.copy_(gradient)
        torch.neg(gradient, out=to_b)
        return _gelu_backward.grad_input(to_x, x, grad_input=to_x)


class _MirroredGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        centre = bias if bias.dim() == 1 else bias.unsqueeze(-2)
        plus, minus = centre + u, centre - u
        ctx.save_for_backward(plus, minus)
        ctx.bias_dims = bias.dim()
        a, b = F.gelu(plus), F.gelu(minus)
        odd = (a - b).mul_(0.5)
        return odd, a.sub_(odd)

    @staticmethod
    def backward(ctx: Any, to_odd: Tensor, to_even: Tensor) -> tuple[Tensor, Tensor]:
        plus, minus = ctx.saved_tensors
        p = _gelu_backward((to_even + to_odd).mul_(0.5), plus)
        m = _gelu_backward((to_even - to_odd).mul_(0.5), minus)
        to_u = p - m
        total = p.add_(m)
        return to_u, total.sum(-2) if ctx.bias_dims > 1 else total.flatten(0, -2).sum(0)
