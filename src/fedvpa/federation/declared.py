"""What a client's upload must be like: names, shapes, dtypes, finiteness, bounds. One declaration for every engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedvpa.config import ExperimentConfig
from fedvpa.methods.base import Download, Judging, Method, Upload
from fedvpa.variational.selector import Theta


@dataclass(frozen=True)
class Field:
    """One named array of a message.

    Attributes:
        shape: of one user's row.
        dtype: exactly.
        low, high: bounds of every entry; norm: bound of a row's Euclidean norm.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float = -math.inf
    high: float = math.inf
    norm: float = math.inf

    def problems(self, rows: Tensor) -> dict[int, str]:
        """Which rows of (users, ...) break a bound, and which bound."""
        flat = flat_rows(rows)
        checks = {
            "is not finite": ~torch.isfinite(flat).all(1),
            f"is below {self.low:g}": (flat < self.low).any(1),
            f"is above {self.high:g}": (flat > self.high).any(1),
            f"has a norm above {self.norm:g}": flat.norm(dim=1) > self.norm,
        }
        return {i: what for what, bad in reversed(checks.items()) for i in bad.nonzero().flatten().tolist()}


Fields = Mapping[str, Field]


def upload_fields(
    theta: Theta,
    latent: int,
    metrics: Iterable[str],
    config: ExperimentConfig,
    sums: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Field]:
    """A round's upload; with privacy on there are no metrics, and every number of examples is 1.

    Args:
        theta: the parameters that the client received, without a client dimension.
        latent: dimensions of uploaded posteriors; metrics: names of the scalars that the method reports.
        sums: shapes of the statistics of which only sums are used (`Judging.sums_shapes`).
    """
    norm = config.defence.max_posterior_norm
    sum_bounds = {
        "people": (1.0, 1.0),
        "count": (0.0, 1 + 1e-3),
        "first": (-norm, norm),
        "second": (0.0, norm**2),
    }
    dtype, limits, private = next(iter(theta.values())).dtype, config.defence, config.privacy.on
    return {
        **{f"theta.{k}": Field(tuple(v.shape), v.dtype) for k, v in theta.items()},
        "means": Field((latent,), dtype, norm=limits.max_posterior_norm),
        "variances": Field((latent,), dtype, 0, limits.max_posterior_norm**2),
        **{
            f"sums.{k}": Field(shape, dtype, *sum_bounds.get(k, (0.0, norm * config.defence.max_pairs)))
            for k, shape in (sums or {}).items()
        },
        "counts": Field((), torch.int64, 1, 1 if private else limits.max_pairs),
        **({} if private else {f"metrics.{k}": Field((), dtype) for k in metrics}),
    }


def sums_of(method: Method, download: Download) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the sums that a method's clients upload; none for most methods."""
    return method.sums_shapes(download) if isinstance(method, Judging) else {}


def upload_arrays(upload: Upload) -> dict[str, Tensor]:
    """An upload as named arrays (users, ...)."""
    return {
        **{f"theta.{k}": v for k, v in upload.theta.items()},
        "means": upload.means,
        "variances": upload.variances,
        **{f"sums.{k}": v for k, v in upload.sums.items()},
        "counts": upload.counts.to(torch.int64),
        **{f"metrics.{k}": v for k, v in upload.metrics.items()},
    }


def form_problem(arrays: Mapping[str, Tensor], fields: Fields, rows: int) -> str | None:
    """Why arrays are not of the declared form, or None; their values are still to be checked (`problems`)."""
    if set(arrays) != set(fields):
        odd = sorted({*arrays} ^ {*fields})[0]
        return f"{odd} is {'not declared' if odd in arrays else 'missing'}"
    for name, field in fields.items():
        wanted, value = (rows, *field.shape), arrays[name]
        if tuple(value.shape) != wanted:
            return f"{name} has shape {tuple(value.shape)}, not {wanted}"
        if value.dtype != field.dtype:
            return f"{name} has another dtype than {field.dtype}"
    return None


def problems(arrays: Mapping[str, Tensor], fields: Fields) -> dict[int, str]:
    """Rows that break a field's bounds."""
    found: dict[int, str] = {}
    for name, field in fields.items():
        found |= {i: f"{name} {what}" for i, what in field.problems(arrays[name]).items()}
    return found


def update_norms(arrays: Mapping[str, Tensor], theta: Theta) -> Tensor:
    """(users,) norms of the changes of all parameters; `theta` may have a leading dimension of users, or of 1."""
    squares = [flat_rows(arrays[f"theta.{k}"] - v).square().sum(1) for k, v in theta.items()]
    return torch.stack(squares).sum(0).sqrt()


def upload_problems(
    arrays: Mapping[str, Tensor], fields: Fields, theta: Theta, config: ExperimentConfig, announced: Tensor
) -> dict[int, str]:
    """`problems`, changes of the parameters that are too large, and numbers of examples that nobody announced.

    Args:
        announced: (users,) the number of training pairs that each had in round 0.
    """
    most, key = largest_change(theta, config)
    large = (update_norms(arrays, theta) > most).nonzero().flatten().tolist()
    many = (arrays["counts"] > announced).nonzero().flatten().tolist()
    return {
        **dict.fromkeys(many, "counts is above the number of pairs of round 0"),
        **dict.fromkeys(large, f"theta has changed by more than {key} ({most:.4g})"),
        **problems(arrays, fields),
    }


def largest_change(theta: Theta, config: ExperimentConfig) -> tuple[float, str]:
    """The largest norm of an honest client's change of `theta`, and the key that bounds it.

    A clipped change is added to theta and rounded, so what arrives may exceed `privacy.clip` by rounding errors.
    """
    bound, clip = config.defence.max_update_norm, config.privacy.clip
    if clip is None or clip > bound:
        return bound, "defence.max_update_norm"
    size = math.sqrt(sum(float(v.double().square().sum()) for v in theta.values()))
    rounding = max(torch.finfo(v.dtype).eps for v in theta.values()) * (size + clip)
    return clip * (1 + 1e-6) + rounding, "privacy.clip"


def flat_rows(rows: Tensor) -> Tensor:
    """(users, entries) in double precision."""
    return rows.double().flatten(1) if rows.ndim > 1 else rows.double().unsqueeze(-1)
