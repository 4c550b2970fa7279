"""One inferred user: what `Selector.infer_user` returns, as a small JSON file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import Tensor

from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import write_text
from fedvpa.variational.gaussian import Gaussian
from fedvpa.variational.inference import Particles

_REMEDY = "make it with `fedvpa personalize`"


class User(BaseModel):
    """A user's latent under one model.

    Attributes:
        mean, log_var: (d,) the posterior q(z | C); empty for a model without a latent.
        pairs: number of labelled pairs that it was inferred from.
        model_hash: the model that it belongs to.
        inference: how predictions for this user are made.
        particles: (particles, d) and weights: (particles,), the latents that this inference predicts with; without
            them it is the mean alone.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    mean: list[float]
    log_var: list[float]
    pairs: int
    model_hash: str
    inference: str | None = None
    particles: list[list[float]] | None = None
    weights: list[float] | None = None

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
            if min(self.weights) < 0 or not math.isclose(sum(self.weights), 1, rel_tol=1e-3):
                raise ValueError("weights are no distribution")
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


def latent_of(user: User, dtype: torch.dtype) -> Particles | Tensor:
    """What a predictor predicts with: particles (1, particles, d), or (1, 0) for a model without a latent."""
    if not user.mean:
        return torch.zeros(1, 0, dtype=dtype)
    if user.particles is None or user.weights is None:
        return Particles.point(torch.tensor([user.mean], dtype=dtype))
    z, weights = torch.tensor([user.particles], dtype=dtype), torch.tensor([user.weights], dtype=dtype)
    return Particles(z, weights.log())
