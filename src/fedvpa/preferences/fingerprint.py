"""What data are known by, so that a run never goes on with others under the same name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fedvpa.preferences.schema import Client, FederatedPreferences

PARTS = ("people", "texts", "labels", "order")
"""Parts of the fingerprint of data; the first that differs is the one to name."""
TRAINED = "trained"
"""The further part that only the training clients decide: who they are, and what they train on."""


def fingerprint_of(data: FederatedPreferences) -> dict[str, str]:
    """16 hex digits per part: people (names, groups, populations), texts, labels, the order of all three; and
    `TRAINED`, for which the order does not count.

    Two data sets are the same to a training if all parts are equal.
    """
    items, _ = data.item_rows
    keys = [i.digest for i in items]
    rank = _ranks(keys)
    pairs = rank[data.item_rows[1].numpy()] if len(data.pairs) else np.zeros((0, 2), np.int64)
    everybody = [(p, c) for p, clients in {**data.clients, "switching": data.switching}.items() for c in clients]
    said = {(p, c.client_id): _said(c, rank, pairs) for p, c in everybody}
    names = [(p, c.client_id, None if c.group is None else data.groups[c.group]) for p, c in everybody]
    seen = sorted(c.client_id for c in data.clients["seen"])
    own = [(name, said["seen", name][0]) for name in seen]
    own_rows = np.unique(np.concatenate([_rows(c, data.item_rows[1]) for c in data.clients["seen"]]))
    return {
        "people": _digest(sorted(map(repr, names))),
        "texts": _digest(sorted(keys)),
        "labels": _digest([(*who, *said[who]) for who in sorted(said)]),
        "order": _digest([names, keys, data.split, *(_in_order(c) for _, c in everybody)]),
        TRAINED: _digest([own, [keys[i] for i in sorted(own_rows, key=lambda i: keys[i])]]),
    }


def client_fingerprint(client: Client, data: FederatedPreferences) -> str:
    """16 hex digits of one person's texts and labels, those that are held out included."""
    items, pairs = data.item_rows
    rows = _rows(client, pairs, held_out=True)
    keys = [items[i].digest for i in rows]
    rank = np.zeros(len(items), np.int64)
    rank[rows] = _ranks(keys)
    return _digest([sorted(keys), *_said(client, rank, rank[pairs.numpy()])])


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first part in which two fingerprints differ, in the order in which `now` names its parts; None: equal."""
    return next((part for part, value in now.items() if before.get(part) != value), None)


def _ranks(keys: Sequence[str]) -> np.ndarray:
    """Each key's place among them in sorted order."""
    return np.argsort(np.argsort(np.array(keys, "S64"), kind="stable"), kind="stable")


def _rows(client: Client, pairs: Tensor, held_out: bool = False) -> np.ndarray:
    """Rows of the items that a person's labels are about, each once."""
    index = [client.train.index, *([client.test.index] if held_out else [])]
    parts = [pairs[i].numpy().ravel() for i in index]
    if client.judgements is not None:
        parts += [client.judgements.first.numpy(), client.judgements.second.numpy()]
    rows = np.unique(np.concatenate(parts))
    return rows[rows >= 0]


def _said(client: Client, rank: np.ndarray, pairs: np.ndarray) -> tuple[str, str]:
    """Digests of what a person trains on and is asked, in an order that the texts decide.

    Args:
        rank: (items,) the item's place among all texts; pairs: (pairs, 2) those of each pair's a and b.
    """
    found = []
    for own in (client.train, client.test):
        found.append(_sorted([*pairs[own.index.numpy()].T, own.y.numpy()]))
    if client.judgements is not None:
        j = client.judgements
        second = np.where(j.second.numpy() < 0, -1, rank[j.second.numpy()])
        numbers = [j.value.numpy(), j.kind.numpy(), j.weight.numpy()]
        found[0] += _sorted([rank[j.first.numpy()], second, *numbers])
    return _digest([found[0]]), _digest([found[1]])


def _sorted(columns: Sequence[np.ndarray]) -> bytes:
    """Rows of some columns as bytes, sorted."""
    order = np.lexsort(columns[::-1])
    return b"".join(np.ascontiguousarray(c[order]).tobytes() for c in columns)


def _in_order(client: Client) -> str:
    tensors = [client.train.index, client.train.y, client.test.index, client.test.y]
    if client.judgements is not None:
        tensors += list(vars(client.judgements).values())
    return _digest([t.numpy().tobytes() for t in tensors])


def _digest(parts: Iterable[Any]) -> str:
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:16]
