"""The selector p(a > b | x, z): feature map, difference embedding and score (method.md, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedvpa.variational.encoder import linear
from fedvpa.variational.kernels import affine, gelu_difference
from fedvpa.variational.prototypes import qr_prototypes

Theta = dict[str, Tensor]
Residual = Literal["content", "bias"]


@dataclass(frozen=True)
class Sizes:
    """Dimensions of the trained model: D features, h hidden, d latent, the encoder's width and M prototypes.

    ``latent = 0`` is a selector without z (Bradley-Terry); ``prototypes = 0`` a model without prototypes.
    """

    features: int
    hidden: int
    latent: int
    encoder: int
    prototypes: int = 0
    residual: Residual = "content"
    attention: bool = False
    kappa: float = 5.0


def init_theta(sizes: Sizes, generator: torch.Generator) -> Theta:
    """Fresh parameters of the whole model, float32.

    Weights are uniform in +-1/sqrt(inputs), as in `torch.nn.Linear`; alpha, w0 and the biases start at 0.
    """

    def weight(outputs: int, inputs: int) -> Tensor:
        return (2 * torch.rand(outputs, inputs, generator=generator) - 1) / math.sqrt(inputs)

    h, d = sizes.hidden, sizes.latent
    theta = {
        "features.weight": weight(h, sizes.features),
        "features.bias": torch.zeros(h),
        "selector.common": torch.zeros(h),
        "selector.alpha": torch.zeros(()),
    }
    if d:
        theta |= {
            "encoder.0.weight": weight(sizes.encoder, h),
            "encoder.0.bias": torch.zeros(sizes.encoder),
            "encoder.1.weight": weight(2 * d, sizes.encoder),
            "encoder.1.bias": torch.zeros(2 * d),
            "selector.weight": weight(h, d) if sizes.residual == "content" else weight(1, d),
        }
    if d and sizes.attention:
        theta["attention.weight"] = weight(1, 2 * d)
    if d and sizes.prototypes:
        theta["prototypes"] = qr_prototypes(sizes.prototypes, d, sizes.kappa, generator)
    return theta


def embed(theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The feature map g of single items, a layer with GELU. x: (..., items, D) standardised -> (..., items, h)"""
    return F.gelu(linear(x, theta, "features"))


def difference(theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Difference embedding d = g(h(x, a)) - g(h(x, b)), antisymmetric in (a, b); g is one layer with GELU.

    Args:
        x: (..., 2 * pairs, D) standardised features: the responses a of all pairs, then their responses b.

    Returns:
        (..., pairs, h)
    """
    return gelu_difference(linear(x, theta, "features"))


def score(theta: Mapping[str, Tensor], d: Tensor, z: Tensor | None, base_logit: Tensor | None = None) -> Tensor:
    """s(x, a, b; z) = alpha * l0 + <W z + w0, d> / sqrt(h), with p(a > b | x, z) = sigmoid(s).

    The content residual is antisymmetric: s(x, a, b; z) = -s(x, b, a; z). With a one-row ``selector.weight`` it is
    the paper's literal residual instead, alpha * l0 + <w0, d> / sqrt(h) + <W, z>: a constant on the choice logits.

    Args:
        d: (..., pairs, h) difference embeddings.
        z: (..., latents, dim), or None for the selector without z.
        base_logit: (..., pairs) l0, or None.

    Returns:
        (..., latents, pairs), or (..., pairs) without z.
    """
    common, scale = theta["selector.common"], 1 / math.sqrt(d.shape[-1])
    weight = theta.get("selector.weight")
    if z is not None and weight is not None and weight.shape[-2] > 1:
        logits = affine(d, scale * affine(z, weight, common)).mT
    else:
        logits = (d @ (scale * common).unsqueeze(-1)).mT
    if base_logit is not None:
        alpha = theta["selector.alpha"]
        logits = logits + ((alpha.unsqueeze(-1) if alpha.dim() else alpha) * base_logit).unsqueeze(-2)
    if z is None:
        return logits.squeeze(-2)
    if weight is not None and weight.shape[-2] == 1:
        return logits + affine(z, weight)
    return logits.expand(*logits.shape[:-2], z.shape[-2], -1)


def linear_in_latent(theta: Mapping[str, Tensor], d: Tensor, base_logit: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The score as a linear function of z, s = <slope, z> + offset, for many z of the same pairs.

    Args:
        d: (..., pairs, h); base_logit: (..., pairs) or None.

    Returns:
        slope (..., pairs, dim) and offset (..., pairs).
    """
    weight = theta["selector.weight"]
    offset = score(theta, d, None, base_logit)
    if weight.shape[-2] == 1:
        return weight.expand(*d.shape[:-1], -1), offset
    return d @ weight / math.sqrt(d.shape[-1]), offset
