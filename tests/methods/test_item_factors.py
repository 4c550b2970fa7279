"""Item factors: a planted matrix of votes of low rank is completed, and new items are a coin."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fedvpa.evaluation.experiment import MethodRun, prepare, run_method
from fedvpa.preferences.schema import VOTE, Client, Judgements, LabelledPairs
from toy import settings
from toy_people import people, people_world

ITEMS, VOTES = 40, 30
SETTINGS = {"method__factors": 2, "federation__clients": 60, "federation__unseen_clients": 20}


def planted(rank: int) -> MethodRun:
    """People who voted by planted factors of the items, on 30 of 40 items, and are asked about the others."""
    config = settings(**SETTINGS)
    data, features = people(config)
    g = torch.Generator().manual_seed(0)
    items = 3 * torch.randn(ITEMS, rank, generator=g)
    rows = torch.combinations(torch.arange(ITEMS))

    def voter(client: Client) -> Client:
        score = items @ torch.randn(rank, generator=g)
        order = torch.randperm(ITEMS, generator=g)
        mine, other = order[:VOTES], torch.full((VOTES,), -1)
        kind = torch.full((VOTES,), VOTE, dtype=torch.int8)
        judged = Judgements(mine, other, score[mine].sign(), kind, torch.ones(VOTES))
        hidden = torch.isin(rows, order[VOTES:]).all(1).nonzero().squeeze(-1)
        a, b = rows[hidden].unbind(1)
        y = torch.where(score[a] > score[b], 1, -1)
        apart = score[a].sign() != score[b].sign()
        test = LabelledPairs.of(hidden[apart].tolist(), y[apart].tolist())
        return Client(client.client_id, None, client.train, test, judged)

    pairs = tuple(data.pairs[0] for _ in rows)
    train = LabelledPairs.of([0, 1], [1, -1])
    clients = {
        population: tuple(voter(replace(c, train=train)) for c in some) for population, some in data.clients.items()
    }
    none = data.group_labels[:0, :0]
    data = replace(data, pairs=pairs, split=("test",) * len(rows), groups=(), opposite=(), group_labels=none)
    data = replace(data, clients=clients)
    return run_method(prepare(config, data, replace(features, pairs=rows)), "item-factors")


def test_a_planted_matrix_of_rank_two_is_completed() -> None:
    rows = {r["context_size"]: r for r in planted(2).rows if r["population"] == "unseen"}
    assert 0.35 < rows[0]["accuracy"] < 0.65  # as many like an item as not
    assert rows[16]["accuracy"] > 0.9
    assert rows[16]["accuracy"] > rows[2]["accuracy"] > rows[0]["accuracy"]


def test_new_items_are_a_coin() -> None:
    rows = [r for r in run_method(people_world(settings()), "item-factors").rows if r["population"] == "unseen"]
    assert {r["accuracy"] for r in rows} == {0.5}
    assert rows[-1]["log_loss"] == pytest.approx(math.log(2))
