"""What people judged, before anybody is made a client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedvpa.config import DataConfig, EvaluationConfig, FederationConfig
from fedvpa.preferences.schema import FederatedPreferences, Item, Judgements


@dataclass(frozen=True)
class PeopleTable:
    """What people judged, as a source gives it, before anybody is made a client.

    Attributes:
        items: the distinct items.
        users: distinct names, in the order of first appearance.
        user: (n,) int64 position in `users`.
        judgements: n rows; a RATING's value is raw here (standardised later by the training people's moments).
        groups: user -> true group, where known (evaluation only); often empty.
        counts: what was read, dropped and why.
        notes: sentences to show beside results (for instance a data licence or attribution).
        columns: which columns were taken for what, in one line.
    """

    items: tuple[Item, ...]
    users: tuple[str, ...]
    user: Tensor
    judgements: Judgements
    groups: Mapping[str, str]
    counts: Mapping[str, int]
    notes: tuple[str, ...]
    columns: str = ""


def federate_people(
    table: PeopleTable, data: DataConfig, federation: FederationConfig, evaluation: EvaluationConfig, seed: int
) -> FederatedPreferences:
    """Divides people among clients."""
    raise NotImplementedError
