"""Which response of a pair is shown first: a random one, or always the one that its user prefers."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedvpa.preferences.schema import Client, FederatedPreferences, LabelledPairs, Pair

NOTE = (
    "Every pair shows its user's preferred response first (data.order: chosen-first), which gives labels away to a "
    "selector that is not antisymmetric; no result of it says anything about preferences."
)


def chosen_first(data: FederatedPreferences) -> FederatedPreferences:
    """The same users and labels with every pair turned so that the user's preferred response is ``a``: y is always +1.

    That order gives every label away to whoever looks at it; it is there for the study of leaks (method.md, section 4)
    and for nothing else. Users who disagree see a pair in opposite orders, so the pool holds each pair twice: pair i as
    it was, and with its responses exchanged at i + n, n the number of pairs before.
    """
    n = len(data.pairs)

    def turned(held: LabelledPairs) -> LabelledPairs:
        return LabelledPairs(held.index + n * (held.y < 0), torch.ones_like(held.y))

    def client(c: Client) -> Client:
        return replace(c, train=turned(c.train), test=turned(c.test))

    return replace(
        data,
        pairs=data.pairs + tuple(Pair(p.prompt, p.b, p.a) for p in data.pairs),
        split=data.split * 2,
        group_labels=torch.cat([data.group_labels, -data.group_labels], 1),
        clients={population: tuple(map(client, clients)) for population, clients in data.clients.items()},
        switching=tuple(map(client, data.switching)),
        notes=(*data.notes, NOTE),
        matched=None if data.matched is None else data.matched.repeat(2),
    )
