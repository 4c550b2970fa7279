"""votes-mean: what people think of items, although who judges what has a threshold that biases the plain average."""

from __future__ import annotations

import torch

from fedvpa.evaluation.experiment import run_method
from fedvpa.federation import rounds
from fedvpa.federation.rounds import ClientData
from fedvpa.methods.base import Pool, Setup
from fedvpa.methods.votes_mean import VotesMean
from fedvpa.preferences.schema import VOTE, Client, Judgements, LabelledPairs
from fedvpa.preferences.seeding import generator
from toy import settings, world
from toy_people import people_world

ITEMS, EACH = 40, 30


def voter(i: int, merit: torch.Tensor, g: torch.Generator) -> Client:
    """Even people agree with nearly everything and judge the worse items, odd people with little and the better."""
    generous = i % 2 == 0
    items = torch.arange(EACH) if generous else torch.arange(ITEMS - EACH, ITEMS)
    agree = torch.rand(EACH, generator=g) < torch.sigmoid(merit[items] + (2.0 if generous else -2.0))
    value, none = torch.where(agree, 1.0, -1.0), torch.full((EACH,), -1)
    votes = Judgements(items, none, value, torch.full((EACH,), VOTE, dtype=torch.int8), torch.ones(EACH))
    return Client(f"{i}", None, LabelledPairs.of([0], [1]), LabelledPairs.of([], []), votes)


def test_it_recovers_the_items_means_where_the_plain_average_does_not() -> None:
    g = generator(0, "voters")
    merit = torch.linspace(-1.5, 1.5, ITEMS)
    clients = [voter(i, merit, g) for i in range(120)]
    first, second = torch.triu_indices(ITEMS, ITEMS, 1)
    pool = Pool(3.0 * torch.eye(ITEMS).double(), torch.stack([first, second], 1))
    config = settings(
        laplace__rounds=40, laplace__learning_rate=0.05, laplace__dropout=0.0, laplace__samples=1,
        federation__clients=120, federation__sampled_clients=120,
    ).for_method("votes-mean")  # fmt: skip
    method = VotesMean(Setup(config, ITEMS, len(clients), 1, torch.float64))
    server = rounds.train(method, config, ClientData(pool, clients)).server
    p = method.predictor(server, pool).predict(torch.zeros(1, 0), torch.arange(len(first)).unsqueeze(0))[0]
    wanted = torch.sigmoid(merit[first] - merit[second])
    judged = torch.cat([c.judgements.first for c in clients])
    agreed = torch.cat([c.judgements.value for c in clients]) > 0
    share = torch.stack([agreed[judged == k].double().mean() for k in range(ITEMS)])
    worst, best = first < 10, second >= 30
    assert share[:10].mean() > share[30:].mean() + 0.2  # by the plain average the worse items are the better ones
    assert (p[worst & best] < 0.5).all()
    assert (p - wanted).abs().mean() < 0.1
    assert abs(float(server.spread.sqrt()) - 2.0) < 0.5  # and the thresholds' deviation


def test_everybody_gets_the_same_predictions_without_a_context() -> None:
    for prepared in (people_world(settings(laplace__rounds=3)), world(settings(laplace__rounds=3))):
        run = run_method(prepared, "votes-mean")
        assert {(r["context_size"], r["inference"]) for r in run.rows} == {(None, "none")}
        p = run.predictor.predict(None, torch.arange(5).expand(2, -1))
        assert (p[0] == p[1]).all()
        assert (p != 0.5).any()
