"""One inferred user: what `Selector.infer_user` and `Client.infer_user` return, as a small JSON file.

It needs nothing of torch, so that a client of the service does not either; `latents` makes tensors of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, field_validator, model_validator

from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import write_text

POSTERIOR_VERSION = 1
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


def _check_distribution(weights: list[float]) -> None:
    if min(weights) < 0 or not math.isclose(sum(weights), 1, rel_tol=1e-3):
        raise ValueError("weights are no distribution")


class Updates(Protocol):
    """What a user can be updated by: a selector, or a client of a service."""

    def update_user(self, user: Any, examples: Any) -> User: ...


class Origin:
    """Where a user came from. It is no part of the user: users are compared, copied and pickled without it."""

    def __init__(self, knows: Updates | None = None) -> None:
        self.knows = knows

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origin)

    def __hash__(self) -> int:
        return 0

    def __deepcopy__(self, _: dict[int, Any]) -> Origin:
        return self

    def __reduce__(self) -> tuple[type[Origin], tuple[()]]:
        return Origin, ()


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
        id: of a user that a service stores, else None.
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
    id: str | None = None
    _origin: Origin = PrivateAttr(default_factory=lambda: Origin())

    def __repr__(self) -> str:
        stored = "" if self.id is None else f", id {self.id!r}"
        return f"User({self.pairs} judgements, {len(self.mean)} dimensions, model {self.model_hash[:12]}{stored})"

    __str__ = __repr__

    def of(self, origin: Updates) -> User:
        """The same user, which knows the selector or client that `update` asks."""
        user = self.model_copy()
        user._origin = Origin(origin)
        return user

    def update(self, examples: Any) -> User:
        """The user after further judgements; of a stored one, also where it is stored (`Selector.update_user`).

        Args:
            examples: the further ones only, as for `Selector.infer_user`.

        Raises:
            UserError: as `Selector.update_user`; or the user was read from a file, and knows no selector.
        """
        if self._origin.knows is None:
            remedy = "call update_user(user, examples) of a selector or a client"
            raise UserError("this user was copied or read from a file and knows no selector", remedy, field="user")
        return self._origin.knows.update_user(self, examples)

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
        return write_text(path, json.dumps(self.latent(), indent=1) + "\n")

    def latent(self) -> dict[str, Any]:
        """All of the user but where it is stored, as JSON has it."""
        return self.model_dump(exclude_none=True, exclude={"id"})

    @staticmethod
    def load(path: str | Path) -> User:
        """Reads a user.

        Raises:
            UserError: no such file, or not a user's.
        """
        if not isinstance(path, (str, Path)):
            raise UserError(f"is {type(path).__name__}, not a path", "give the path of a user's file", field="path")
        path = Path(path).expanduser()
        try:
            return User.model_validate_json(path.read_bytes())
        except OSError as e:
            raise UserError(f"cannot be read ({e.strerror})", _REMEDY, file=path) from None
        except ValidationError as e:
            first = e.errors()[0]
            field = ".".join(str(p) for p in first["loc"]) or None
            message = first["msg"].removeprefix("Value error, ")
            raise UserError(message[0].lower() + message[1:], _REMEDY, file=path, field=field) from None


UserLike = User | int | Mapping[int, float] | None
"""Whose preference counts: an inferred user, a prototype's number, a blend of prototypes, or (None) the average user.

A client also takes a stored user's id.
"""
