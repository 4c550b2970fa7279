"""The map as SVG: users, prototypes, and the way of one posterior across it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from fedvpa.apps.studio.latent_map import Array, LatentMap
from fedvpa.reporting.plots import PALETTE
from fedvpa.user import User

WIDTH, HEIGHT, MARGIN = 520, 440, 28
SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-4.8L4.6 3.4h-9.2z",
    "M0-5L5 0L0 5L-5 0z",
    "M0 4.8L4.6-3.4h-9.2z",
    "M-1.6-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z",
)
STAR = "M0-10L2.6-3.6L9.5-3.1L4.2 1.4L5.9 8.1L0 4.4L-5.9 8.1L-4.2 1.4L-9.5-3.1L-2.6-3.6z"


def draw(world_map: LatentMap, trail: Sequence[User], prototypes: Sequence[str], summary: str) -> Markup:
    """The map with a user's posterior.

    Args:
        trail: the user after each answer, the first before any; the last one has the ellipse.
        prototypes: their names; summary: what the picture shows, for those who do not see it.
    """
    first, last = world_map.ellipse(trail[0]), world_map.ellipse(trail[-1])
    view = _View(_bounds(world_map, [(e.centre, e.radii[0]) for e in (first, last)]))
    x, y = view(last.centre)
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (view(world_map.place(user.mean)) for user in trail))
    rx, ry = (r * view.scale for r in last.radii)
    return Markup(
        '<figure class="map"><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}'
        '<g class="you"><polyline points="{}"/><ellipse rx="{}" ry="{}" transform="translate({} {}) rotate({})"/>'
        '<circle cx="{}" cy="{}" r="6"/><text x="{}" y="{}">you</text></g></svg>{}</figure>'
    ).format(
        WIDTH,
        HEIGHT,
        f"Map of users and prototypes. {summary}",
        _users(world_map, view),
        _stars(world_map, view),
        path,
        *(f"{v:.1f}" for v in (rx, ry, x, y, -math.degrees(last.angle), x, y, x + 10, y + 18)),
        _legend(world_map, prototypes),
    )


class _View:
    """Latent coordinates to the picture's, equal in both directions, y upwards."""

    def __init__(self, bounds: Array) -> None:
        low, high = bounds
        size = np.maximum(high - low, 1e-9)
        self.scale = float(min((WIDTH - 2 * MARGIN) / size[0], (HEIGHT - 2 * MARGIN) / size[1]))
        self.middle = (low + high) / 2

    def __call__(self, point: Sequence[float] | Array) -> tuple[float, float]:
        x, y = (np.asarray(point) - self.middle) * self.scale
        return WIDTH / 2 + float(x), HEIGHT / 2 - float(y)


def _bounds(world_map: LatentMap, discs: Sequence[tuple[tuple[float, float], float]]) -> Array:
    corners = [np.asarray(c) + s * r for c, r in discs for s in (-1.0, 1.0)]
    points = np.concatenate([world_map.users, world_map.prototypes, np.asarray(corners)])
    return np.stack([points.min(0), points.max(0)])


def _users(world_map: LatentMap, view: _View) -> Markup:
    marks = []
    for point, group, seen in zip(world_map.users, world_map.groups, world_map.seen, strict=True):
        x, y = view(point)
        marks.append(
            Markup('<path class="{}" d="{}" transform="translate({} {})" style="--c:{}"/>').format(
                "seen" if seen else "new", _shape(group), f"{x:.1f}", f"{y:.1f}", _color(group)
            )
        )
    return Markup('<g class="users">{}</g>').format(Markup("").join(marks))


def _stars(world_map: LatentMap, view: _View) -> Markup:
    marks = []
    for k, point in enumerate(world_map.prototypes):
        x, y = view(point)
        marks.append(
            Markup('<g transform="translate({} {})"><path d="{}"/><text x="11" y="-7">{}</text></g>').format(
                f"{x:.1f}", f"{y:.1f}", STAR, k
            )
        )
    return Markup('<g class="prototypes">{}</g>').format(Markup("").join(marks))


def _legend(world_map: LatentMap, prototypes: Sequence[str]) -> Markup:
    entries = [(_shape(i), f"--c:{_color(i)}", "seen", name) for i, name in enumerate(world_map.names)]
    if not world_map.names and len(world_map.users):
        entries.append((_shape(None), f"--c:{_color(None)}", "seen", "users"))
    if not all(world_map.seen):
        entries.append((_shape(0), "--c:currentColor", "new", "hollow: not in training"))
    entries.append((STAR, "", "star", "prototypes" if len(prototypes) > 1 else "prototype"))
    items = Markup("").join(
        Markup(
            '<li><svg viewBox="-11 -11 22 22" aria-hidden="true"><path class="{}" d="{}" style="{}"/></svg>{}</li>'
        ).format(kind, shape, style, name)
        for shape, style, kind, name in entries
    )
    shares = world_map.shares
    share = f" They hold {shares.sum():.0%} of the users' differences." if shares.sum() > 0 else ""
    caption = f"The two directions in which users differ most.{share} The ellipse holds 95 % of your posterior."
    return Markup('<figcaption><ul class="legend">{}</ul><p class="soft">{}</p></figcaption>').format(items, caption)


def _shape(group: int | None) -> str:
    return SHAPES[0 if group is None else group % len(SHAPES)]


def _color(group: int | None) -> str:
    return "var(--soft)" if group is None else PALETTE[group % len(PALETTE)]
