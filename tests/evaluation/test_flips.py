"""Couples of people who disagree: counted, and the clearest of those who are both predicted rightly."""

from __future__ import annotations

from typing import Any

import torch

from fedvpa.evaluation.flips import find_flips
from fedvpa.evaluation.protocol import make_panel
from fedvpa.methods.base import Context, Pool
from fedvpa.preferences.schema import Client, FederatedPreferences, LabelledPairs, Message, Pair

PAIRS = tuple(Pair((Message("user", "Town?"),), f"more {k}", f"less {k}") for k in range(4))
# Pair 3 is what everybody was inferred from; of the others: who was asked, and the label.
ASKED = {"ann": ((0, 1), (1, 1)), "bob": ((0, -1), (1, -1), (2, 1)), "cyd": ((0, -1), (2, -1)), "dan": ((0, 1),)}
P = {"ann": (0.9, 0.6, 0.5), "bob": (0.3, 0.2, 0.5), "cyd": (0.6, 0.5, 0.1), "dan": (0.8, 0.5, 0.5)}


class Known:
    """Predicts what `P` says."""

    def infer(self, context: Context, how: str, groups: torch.Tensor) -> None:
        assert (context.index == 3).all()

    def predict(self, users: None, index: torch.Tensor) -> torch.Tensor:
        values = torch.tensor([[*P[name], 0.5] for name in ASKED])
        return torch.gather(values, 1, index)


def flips(size: int = 1) -> dict[str, Any]:
    clients = tuple(
        Client(name, None, LabelledPairs.of([3], [1]), LabelledPairs.of(*zip(*asked, strict=True)))
        for name, asked in ASKED.items()
    )
    split = ("test", "test", "test", "train")
    data = FederatedPreferences(PAIRS, split, (), (), torch.zeros(0, 4, dtype=torch.int8), {"unseen": clients})
    panel = make_panel(data, clients, 0, Pool(torch.zeros(8, 1), data.item_rows[1]))
    return find_flips(Known(), panel, PAIRS, size, "none")  # type: ignore[arg-type]


def test_couples_and_the_clearest() -> None:
    found = flips()
    # Pair 0: ann and dan against bob and cyd; pair 1: ann against bob; pair 2: bob against cyd.
    assert (found["answers"], found["couples"]) == (1, 6)
    # cyd's 0.6 for pair 0 is wrong, and bob's 0.5 for pair 2 is no prediction.
    assert found["right"] == 3
    clearest = found["clearest"]
    assert (clearest["a"], clearest["b"]) == ("more 0", "less 0")
    assert abs(clearest["first"] - 0.9) < 1e-6
    assert abs(clearest["second"] - 0.3) < 1e-6


def test_people_with_fewer_answers_are_left_out() -> None:
    assert flips(2) == {"answers": 2, "couples": 0, "right": 0, "clearest": None}
