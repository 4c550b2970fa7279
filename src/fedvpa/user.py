"""One inferred user: what `Selector.infer_user` returns, as a small JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator
from torch import Tensor

from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import write_text
from fedvpa.variational.gaussian import Gaussian
from fedvpa.variational.inference import Particles
from fedvpa.variational.laplace import Posterior, moments

POSTERIOR_VERSION = 1
NEGLIGIBLE = 1e-4
"""A component of smaller weight is left out of a user's file."""
_REMEDY = "make it with `fedvpa personalize`"


class MixturePosterior(BaseModel):
    """q(z | judgements) as a mixture of Gaussians (`laplace.Posterior`), as a part of a user's file.

    Attributes:
        version: of this form.
        weights: (K,) sum to 1; means: (K, d).
        roots: (K, d (d + 1) / 2) the lower triangles of the Cholesky factors of the precisions, row by row.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    version: int = POSTERIOR_VERSION
    weights: list[float]
    means: list[list[float]]
    roots: list[list[float]]

    @field_validator("version")
    @classmethod
    def _known(cls, version: int) -> int:
        if version != POSTERIOR_VERSION:
            raise ValueError(f"is {version}, this version of fedvpa reads {POSTERIOR_VERSION}")
        return version

    @model_validator(mode="after")
    def _consistent(self) -> MixturePosterior:
        dim = len(self.means[0]) if self.means else 0
        if not dim or not len(self.weights) == len(self.means) == len(self.roots):
            raise ValueError("weights, means and roots of the posterior differ in number")
        if any(len(m) != dim for m in self.means) or any(len(r) != dim * (dim + 1) // 2 for r in self.roots):
            raise ValueError("means and roots of the posterior differ in length")
        _check_distribution(self.weights)
        if min(row[i * (i + 3) // 2] for row in self.roots for i in range(dim)) <= 0:
            raise ValueError("a root of the posterior has no positive diagonal")
        return self

    @staticmethod
    def of(q: Posterior) -> MixturePosterior:
        """One person's posterior (1, K, ...), without components of negligible weight."""
        weights = q.log_weights[0].double().exp()
        kept = weights >= NEGLIGIBLE
        row, column = torch.tril_indices(*q.root.shape[-2:])
        return MixturePosterior(
            weights=(weights[kept] / weights[kept].sum()).tolist(),
            means=q.means[0, kept].tolist(),
            roots=q.root[0, kept][:, row, column].tolist(),
        )

    def tensors(self, dtype: torch.dtype) -> Posterior:
        """The posterior (1, K, ...) of one person."""
        means = torch.tensor([self.means], dtype=dtype)
        dim = means.shape[-1]
        root = torch.zeros(*means.shape, dim, dtype=dtype)
        row, column = torch.tril_indices(dim, dim)
        root[..., row, column] = torch.tensor([self.roots], dtype=dtype)
        log_weights = torch.tensor([self.weights], dtype=dtype).log()
        return Posterior(log_weights, means, root, torch.zeros_like(log_weights))


def _check_distribution(weights: list[float]) -> None:
    if min(weights) < 0 or not math.isclose(sum(weights), 1, rel_tol=1e-3):
        raise ValueError("weights are no distribution")


class User(BaseModel):
    """A user's latent under one model.

    Attributes:
        mean, log_var: (d,) the posterior q(z | C) as one Gaussian; empty for a model without a latent.
        pairs: number of labelled pairs, or of judgements, that it was inferred from.
        model_hash: the model that it belongs to.
        inference: how predictions for this user are made.
        particles: (particles, d) and weights: (particles,), the latents that this inference predicts with; without
            them it is the mean alone.
        posterior: of a model that takes judgements (`fedvpa-laplace`) the whole q(z | judgements): predictions are made
            with it, and further judgements update it.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    mean: list[float]
    log_var: list[float]
    pairs: int
    model_hash: str
    inference: str | None = None
    particles: list[list[float]] | None = None
    weights: list[float] | None = None
    posterior: MixturePosterior | None = None

    @model_validator(mode="after")
    def _same_sizes(self) -> User:
        if len(self.mean) != len(self.log_var):
            raise ValueError("mean and log_var differ in length")
        if (self.particles is None) != (self.weights is None):
            raise ValueError("particles and weights belong together")
        if self.particles is not None and self.weights is not None:
            if len(self.particles) != len(self.weights) or not self.weights:
                raise ValueError("particles and weights differ in number")
            if any(len(z) != len(self.mean) for z in self.particles):
                raise ValueError("particles and mean differ in length")
            _check_distribution(self.weights)
        if self.posterior is not None and len(self.posterior.means[0]) != len(self.mean):
            raise ValueError("posterior and mean differ in length")
        return self

    def save(self, path: str | Path) -> Path:
        """Writes the user as JSON, whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        return write_text(path, json.dumps(self.model_dump(exclude_none=True), indent=1) + "\n")

    @staticmethod
    def load(path: str | Path) -> User:
        """Reads a user.

        Raises:
            UserError: no such file, or not a user's.
        """
        path = Path(path)
        try:
            return User.model_validate_json(path.read_bytes())
        except OSError as e:
            raise UserError(f"cannot be read ({e.strerror})", _REMEDY, file=path) from None
        except ValidationError as e:
            first = e.errors()[0]
            field = ".".join(str(p) for p in first["loc"]) or None
            message = first["msg"].removeprefix("Value error, ")
            raise UserError(message[0].lower() + message[1:], _REMEDY, file=path, field=field) from None


def as_user(found: Any, posterior: Gaussian | None, pairs: int, inference: str, model_hash: str) -> User:
    """A `User` from what a predictor inferred for one user.

    Args:
        found: particles (1, particles, d); anything for a model without a latent.
        posterior: q(z | C) (1, d), or None for a model without a latent.
    """
    if posterior is None:
        return User(mean=[], log_var=[], pairs=pairs, model_hash=model_hash, inference=inference)
    return User(
        mean=posterior.mean[0].tolist(),
        log_var=posterior.log_var[0].tolist(),
        pairs=pairs,
        model_hash=model_hash,
        inference=inference,
        particles=found.z[0].tolist(),
        weights=found.log_weights[0].exp().tolist(),
    )


def judged_user(q: Posterior, judgements: int, inference: str, model_hash: str) -> User:
    """A `User` with the whole posterior (1, K, ...)."""
    posterior = MixturePosterior.of(q)
    one = moments(Posterior(*(t.double() for t in q)))
    return User(
        mean=one.mean[0].tolist(),
        log_var=one.log_var[0].tolist(),
        pairs=judgements,
        model_hash=model_hash,
        inference=inference,
        posterior=posterior,
    )


def gaussian_posterior(mean: list[float], log_var: list[float]) -> MixturePosterior:
    """N(mean, exp(log_var)) as a posterior of one component."""
    roots = [
        math.exp(-0.5 * log_var[row]) if row == column else 0.0 for row in range(len(mean)) for column in range(row + 1)
    ]
    return MixturePosterior(weights=[1.0], means=[mean], roots=[roots])


Latent = Particles | Posterior | Tensor
"""What a predictor predicts with: one or more users' particles or posteriors; (users, 0) for a model without z."""


def latent_of(user: User, dtype: torch.dtype) -> Latent:
    """A user's latent: its posterior (1, K), its particles (1, particles, d), or (1, 0) for a model without one."""
    if user.posterior is not None:
        return user.posterior.tensors(dtype)
    if not user.mean:
        return torch.zeros(1, 0, dtype=dtype)
    if user.particles is None or user.weights is None:
        return Particles.point(torch.tensor([user.mean], dtype=dtype))
    z, weights = torch.tensor([user.particles], dtype=dtype), torch.tensor([user.weights], dtype=dtype)
    return Particles(z, weights.log())


def stack_users(users: Sequence[User], dtype: torch.dtype) -> Latent:
    """Several users of one model, as `latent_of`; who has fewer particles or components gets some of weight 0."""
    latents = [latent_of(user, dtype) for user in users]
    mixtures = [q for q in latents if isinstance(q, Posterior)]
    points = [p for p in latents if isinstance(p, Particles)]
    if mixtures:
        return Posterior(
            _padded([q.log_weights for q in mixtures], -torch.inf),
            _padded([q.means for q in mixtures], 0.0),
            _padded_roots([q.root for q in mixtures]),
            _padded([q.evidence for q in mixtures], 0.0),
        )
    if points:
        return Particles(_padded([p.z for p in points], 0.0), _padded([p.log_weights for p in points], -torch.inf))
    return torch.zeros(len(users), 0, dtype=dtype)


def _padded(rows: Sequence[Tensor], value: float) -> Tensor:
    """Rows (1, n, ...) of different n as one tensor."""
    return torch.nn.utils.rnn.pad_sequence([row[0] for row in rows], batch_first=True, padding_value=value)


def _padded_roots(rows: Sequence[Tensor]) -> Tensor:
    """As `_padded`, with the identity in the padding: a root must have an inverse."""
    found = _padded(rows, 0.0)
    for i, row in enumerate(rows):
        found[i, row.shape[1] :] = torch.eye(row.shape[-1], dtype=row.dtype)
    return found
