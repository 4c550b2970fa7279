"""The map of users and prototypes in two dimensions, and where a posterior lies on it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvpa.reporting.plots_latent import principal_plane
from fedvpa.user import User

RADIUS = math.sqrt(-2 * math.log(1 - 0.95))
"""Standard deviations around the mean that hold 95 % of a Gaussian in two dimensions."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ellipse:
    """95 % of a posterior on the map.

    Attributes:
        centre: (2,); radii: the longer and the shorter half-axis; angle: of the longer one, in radians.
    """

    centre: tuple[float, float]
    radii: tuple[float, float]
    angle: float

    @property
    def area(self) -> float:
        return math.pi * self.radii[0] * self.radii[1]


@dataclass(frozen=True)
class LatentMap:
    """The plane of the report's figure: the first two principal components of the users' posterior means.

    Attributes:
        origin: (d,) the users' mean; axes: (2, d) orthonormal directions; shares: (2,) of the variance.
        users: (n, 2); groups: (n,) index into `names` or None; seen: (n,) whether the user took part in training.
        prototypes: (M, 2); names: of the true groups, where they are known.
    """

    origin: Array
    axes: Array
    shares: Array
    users: Array
    groups: tuple[int | None, ...]
    seen: tuple[bool, ...]
    prototypes: Array
    names: tuple[str, ...]

    @staticmethod
    def of(diagnostics: Mapping[str, Any], centres: Sequence[Sequence[float]]) -> LatentMap:
        """From a method's diagnostics in ``results.json``; without them, the plane of the prototypes alone.

        Args:
            centres: (M, d) the selector's prototypes, which the diagnostics need not have.
        """
        latents = diagnostics.get("latents") or {"means": [], "groups": [], "populations": []}
        points = np.asarray(centres, dtype=np.float64)
        means = np.asarray(latents["means"], dtype=np.float64).reshape(-1, points.shape[1])
        base = means if len(means) > 1 else points
        _, axes, shares = principal_plane(base)
        origin = base.mean(0)
        return LatentMap(
            origin=origin,
            axes=axes,
            shares=shares,
            users=(means - origin) @ axes.T,
            groups=tuple(latents["groups"]),
            seen=tuple(p == "seen" for p in latents["populations"]),
            prototypes=(points - origin) @ axes.T,
            names=tuple(diagnostics.get("group_names") or ()),
        )

    def place(self, mean: Sequence[float]) -> tuple[float, float]:
        """Where a latent (d,) lies."""
        x, y = (np.asarray(mean) - self.origin) @ self.axes.T
        return float(x), float(y)

    def ellipse(self, user: User) -> Ellipse:
        """Where 95 % of a user's posterior q(z | C), projected on the plane, lies."""
        covariance = (self.axes * np.exp(np.asarray(user.log_var))) @ self.axes.T
        values, vectors = np.linalg.eigh(covariance)
        longer, shorter = (RADIUS * math.sqrt(max(float(v), 0.0)) for v in values[::-1])
        direction = vectors[:, 1]
        return Ellipse(self.place(user.mean), (longer, shorter), math.atan2(direction[1], direction[0]))

    def prototype_names(self) -> tuple[str, ...]:
        """The number of each prototype, as `--prototype` takes it, and the group of most users nearest to it."""
        members: list[Counter[int]] = [Counter() for _ in self.prototypes]
        for point, group in zip(self.users, self.groups, strict=True):
            if group is not None:
                members[int(((self.prototypes - point) ** 2).sum(1).argmin())][group] += 1
        most = [counter.most_common(1) for counter in members]
        return tuple(
            f"Prototype {k} · {self.names[found[0][0]]}" if found else f"Prototype {k}" for k, found in enumerate(most)
        )
