"""Whose preference a request asks for, and the users that callers have asked to keep."""

from __future__ import annotations

import math
import secrets
import threading

import torch
from pydantic import ValidationError

from fedvpa.apps.blends import parse_blend
from fedvpa.apps.server.errors import ApiError, invalid
from fedvpa.apps.server.fields import LARGEST
from fedvpa.apps.server.schemas import Latent, UserRef
from fedvpa.errors import UserError
from fedvpa.latents import posterior_of
from fedvpa.selector import Selector
from fedvpa.user import MixturePosterior, User

POINT = -20.0
"""Log variance of a latent that is sent as a mean alone."""


class UserStore:
    """Stored users, in memory: they are gone when the service ends. No text is kept, only latents.

    Args:
        limit: how many may be stored.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._users: dict[str, User] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._users)

    def add(self, user: User) -> str:
        """Keeps a user; returns an id that cannot be guessed.

        Raises:
            ApiError: as many as may be are stored (409).
        """
        with self._lock:
            if len(self._users) >= self.limit:
                raise ApiError(409, f"{self.limit} users are stored already", "delete some, or keep latents yourself")
            name = secrets.token_urlsafe(16)
            self._users[name] = user
            return name

    def get(self, name: str, field: str = "id") -> User:
        """A stored user.

        Raises:
            ApiError: there is none of that id (404).
        """
        if (user := self._users.get(name)) is None:
            raise ApiError(404, "no such user is stored", "infer the user again, with store: true", field)
        return user

    def replace(self, name: str, before: User, after: User) -> bool:
        """Exchanges a stored user; False if it is gone, or another request has changed it meanwhile."""
        with self._lock:
            if self._users.get(name) is not before:
                return False
            self._users[name] = after
            return True

    def remove(self, name: str) -> None:
        """Forgets a user.

        Raises:
            ApiError: there is none of that id (404).
        """
        with self._lock:
            if self._users.pop(name, None) is None:
                raise ApiError(404, "no such user is stored", None, "id")


class Users:
    """Users of requests under one selector.

    Users that many requests share are one object, so that their requests are answered in one product.
    """

    def __init__(self, selector: Selector, limit: int) -> None:
        self.selector, self.stored = selector, UserStore(limit)
        self.dim = selector.dim
        self.average = selector.known(None)
        self.prototypes = [selector.blend({k: 1.0}) for k in range(len(selector.centres))]

    def resolve(self, ref: UserRef | None, field: str = "user") -> User:
        """The user that a request means.

        Raises:
            ApiError: no such user or prototype, or a latent that does not belong to this model.
        """
        if ref is None:
            return self.average
        if ref.id is not None:
            return self.stored.get(ref.id, f"{field}.id")
        if ref.latent is not None:
            return self._inline(ref.latent, f"{field}.latent")
        if ref.prototype is not None:
            return self.prototype(ref.prototype, f"{field}.prototype")
        assert ref.blend is not None
        return self.blend({int(k): w for k, w in ref.blend.items()}, f"{field}.blend")

    def named(self, name: str, field: str) -> User:
        """The user of a name that a trainer sends: a stored user's id, a prototype's number, or a blend.

        Raises:
            ApiError: no such user or prototype.
        """
        if name.isdecimal() and len(name) < 5:
            return self.prototype(int(name), field)
        if ":" not in name or len(name) > 1000:
            return self.stored.get(name, field)
        try:
            return self.blend(parse_blend(name, field), field)
        except UserError as e:
            raise invalid(field, e.problem, e.remedy) from None

    def prototype(self, number: int, field: str) -> User:
        """A prototype as a user."""
        if not 0 <= number < len(self.prototypes):
            choices = f"choose from 0 to {len(self.prototypes) - 1}" if self.prototypes else "this model has none"
            raise invalid(field, f"no prototype {number}", choices)
        return self.prototypes[number]

    def blend(self, weights: dict[int, float], field: str) -> User:
        """A point between prototypes."""
        if not all(math.isfinite(w) for w in weights.values()):
            raise invalid(field, "weights must be numbers")
        try:
            return self.selector.blend(weights)
        except UserError as e:
            raise invalid(field, e.problem, e.remedy) from None

    def _inline(self, latent: Latent, field: str) -> User:
        rows = [("mean", latent.mean), ("log_var", latent.log_var)]
        rows += [(f"particles[{i}]", z) for i, z in enumerate(latent.particles or ())]
        if latent.posterior is not None:
            if not self.selector.judges:
                raise invalid(f"{field}.posterior", "this model's users have none", "leave it out")
            rows += [(f"posterior.means[{i}]", z) for i, z in enumerate(latent.posterior.means)]
        for name, row in rows:
            if row is not None and len(row) != self.dim:
                raise invalid(f"{field}.{name}", f"has {len(row)} numbers, this model's latent has {self.dim}")
        if self.selector.judges and not all(POINT <= v <= math.log(LARGEST) for v in latent.log_var or ()):
            raise invalid(f"{field}.log_var", f"must lie between {POINT:g} and {math.log(LARGEST):.1f}")
        values = latent.model_dump(exclude_none=True)
        # A mean alone is a point: so it is with particles, and with a posterior of next to no variance.
        values.setdefault("log_var", [POINT if self.selector.judges else 0.0] * self.dim)
        values.setdefault("model_hash", self.selector.info.model_hash)
        try:
            user = self.selector.known(User.model_validate(values))
            if user.posterior is not None and not _usable(user.posterior):
                raise invalid(f"{field}.posterior.roots", "the posterior has a variance that is no number, or huge")
            return user
        except ValidationError as e:
            message = str(e.errors()[0]["msg"]).removeprefix("Value error, ")
            raise invalid(field, message) from None
        except UserError as e:
            raise invalid(f"{field}.model_hash", e.problem, "infer the user again") from None


def _usable(posterior: MixturePosterior) -> bool:
    """Whether predictions with a posterior that a caller has sent are numbers."""
    variances = posterior_of(posterior, torch.float64).variances()
    return bool(variances.isfinite().all()) and bool(variances.max() <= LARGEST)
