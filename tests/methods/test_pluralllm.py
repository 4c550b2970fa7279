"""pluralllm: a context is a set, targets do not see each other, and groups are told apart in context."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedvpa.config import ExperimentConfig
from fedvpa.evaluation.experiment import Prepared, run_method
from fedvpa.federation import rounds
from fedvpa.methods.base import Judged
from fedvpa.methods.pluralllm import InContextPredictor
from toy import method_of, settings, world
from toy_people import people_world

KINDS = ("choice", "vote", "rating")


def small(**overrides: Any) -> ExperimentConfig:
    return settings(method__attention_layers=1, method__attention_width=32, **overrides)


def moved(prepared: Prepared) -> InContextPredictor:
    """A predictor whose parameters are all away from where they start, so that everything in it matters."""
    method = method_of(prepared, "pluralllm")
    server = rounds.start(method, prepared.config, len(prepared.clients)).server
    g = torch.Generator().manual_seed(0)
    theta = {k: v + 0.3 * torch.randn(v.shape, generator=g).double() for k, v in server.theta.items()}
    return InContextPredictor(theta, prepared.pool)


@pytest.fixture(scope="module")
def mixed() -> Prepared:
    return people_world(small(), kinds=KINDS)


def test_the_order_of_a_context_has_no_effect_but_its_labels_have(mixed: Prepared) -> None:
    predictor, panel = moved(mixed), mixed.panels["unseen"]
    context = panel.judgements(9)
    p = predictor.predict(predictor.infer(context), panel.query)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    shuffled = predictor.predict(predictor.infer(Judged(*(t[:, order] for t in context))), panel.query)
    torch.testing.assert_close(shuffled, p)
    padded = Judged(*(torch.cat([t, t[:, :3]], 1) for t in context))
    padded.weight[:, 9:] = 0
    torch.testing.assert_close(predictor.predict(predictor.infer(padded), panel.query), p)
    for i in range(3):  # a choice, a vote and a rating
        y = context.y.clone()
        y[:, i] *= -1
        other = predictor.predict(predictor.infer(context._replace(y=y)), panel.query)
        assert ((other - p).abs().amax(1) > 1e-3).all()


def test_what_is_asked_beside_a_pair_has_no_effect(mixed: Prepared) -> None:
    predictor, panel = moved(mixed), mixed.panels["unseen"]
    users = predictor.infer(panel.judgements(6))
    p = predictor.predict(users, panel.query)
    torch.testing.assert_close(predictor.predict(users, panel.query[:, :1]), p[:, :1])
    torch.testing.assert_close(predictor.predict(predictor.rows(users, torch.tensor([2])), panel.query[2:3]), p[2:3])


def test_a_pair_turned_over_has_the_opposite_probability(mixed: Prepared) -> None:
    predictor, panel = moved(mixed), mixed.panels["unseen"]
    users = predictor.infer(panel.judgements(6))
    p = predictor.predict(users, panel.query)
    predictor.pool = type(mixed.pool)(mixed.pool.items, mixed.pool.pairs.flip(1))
    torch.testing.assert_close(predictor.predict(users, panel.query), 1 - p)


def test_targets_never_see_their_labels() -> None:
    """A client's loss under other labels of the targets is that of the same scores with the other labels."""
    prepared = people_world(small(), kinds=("vote",))
    method, theta = method_of(prepared, "pluralllm"), moved(prepared).theta
    batch = prepared.clients.judgements.batch(torch.arange(2))
    everything = Judged(*batch[2:7])
    seen, asked = Judged(*(t[:, :5] for t in everything)), Judged(*(t[:, 5:6] for t in everything))
    loss = method.loss(theta, batch.items, seen, asked)
    other = method.loss(theta, batch.items, seen, asked._replace(y=-asked.y))
    torch.testing.assert_close((-loss).exp() + (-other).exp(), torch.ones(2).double())


@pytest.mark.parametrize("kinds", [KINDS, ("vote",), None])
def test_the_cohorts_step_is_the_clients_mean_step(kinds: tuple[str, ...] | None) -> None:
    config = small()
    prepared = world(config, ragged=True) if kinds is None else people_world(config, kinds=kinds, ragged=True)
    method = method_of(prepared, "pluralllm")
    loop = config.model_copy(update={"federation": config.federation.model_copy(update={"engine": "loop"})})
    one, two = (rounds.train(method, c, prepared.clients) for c in (config, loop))
    start = rounds.start(method, config, 6).server.theta
    for k, v in one.server.theta.items():
        torch.testing.assert_close(v, two.server.theta[k], atol=1e-6, rtol=0)
    assert all((start[k] - v).abs().max() > 0 for k, v in one.server.theta.items() if k.endswith("weight"))


@pytest.mark.parametrize("kinds", [("vote",), None])
def test_it_tells_opposite_groups_apart_in_context(kinds: tuple[str, ...] | None) -> None:
    config = small(
        data__pairs_per_client=20, federation__clients=12, federation__sampled_clients=12, method__attention_rounds=60,
        federation__server_optimizer="adam", federation__server_learning_rate=0.003, federation__dtype="float32",
        federation__unseen_clients=12,
    )  # fmt: skip
    run = run_method(world(config) if kinds is None else people_world(config, kinds=kinds), "pluralllm")
    rows = {r["context_size"]: r for r in run.rows if r["population"] == "unseen"}
    assert rows[8]["accuracy"] > 0.8
    assert rows[8]["switch_gap"] > 0.6
    assert rows[8]["flip_rate"] > 0.8
    assert abs(rows[0]["accuracy"] - 0.5) < 0.1
