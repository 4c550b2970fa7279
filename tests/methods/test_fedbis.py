"""FedBis and FedBiscuit on the language model: the choice prompt, one random order per pair, groups and votes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from fedvpa.evaluation.experiment import Prepared, run_method
from fedvpa.federation import rounds
from fedvpa.methods.base import stack_theta
from fedvpa.methods.fedbis import FedBis, FedBiscuitLoRA
from fedvpa.methods.registry import create
from tiny_language import configuration, some_adapter, world

LORA = {"backbone__train": "lora", "lora__learning_rate": 0.02}


@pytest.fixture(scope="module")
def prepared(experiment: Path) -> Prepared:
    return world(configuration(experiment, "fedbt", **LORA))


def method_of(prepared: Prepared) -> Any:
    return create(prepared.config.method.name, prepared.setup(prepared.config))


def test_a_step_shows_each_pair_in_one_order(prepared: Prepared) -> None:
    """Its loss is the cross-entropy of the answers A and B; the label turns over with the order."""
    method = method_of(prepared)
    assert type(method) is FedBis
    assert prepared.pool.texts is not None
    pairs, y = prepared.pool.texts.take(range(4)), torch.tensor([1.0, -1.0, 1.0, -1.0])
    adapter, normal = some_adapter(method.lm), torch.tensor([0.5, -0.5, -0.1, 2.0])
    shown = method.lm.answers(pairs.texts, adapter).reshape(4, 2)
    picked = shown[torch.arange(4), (normal <= 0).long()]
    answer = torch.tensor([0, 0, 1, 1])  # A where the preferred response is shown as A
    by_hand = functional.cross_entropy(torch.stack([picked, torch.zeros(4)], 1), answer)
    loss = method._backward(stack_theta(adapter, 1), pairs, y, normal)
    torch.testing.assert_close(loss, by_hand.detach(), atol=1e-5, rtol=0)
    both = method.all_logits(adapter, pairs)
    torch.testing.assert_close(both, ((shown[:, 0] - shown[:, 1]) / 2).detach(), atol=1e-5, rtol=0)


def test_orders_are_random_and_depend_on_the_client(prepared: Prepared) -> None:
    method, config = method_of(prepared), prepared.config
    noise = [rounds.round_noise(method, config, prepared.clients, torch.tensor([i]), 0).normal for i in (0, 0, 1)]
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
    assert 0 < (noise[0] > 0).float().mean() < 1


def test_it_learns_what_all_users_want(experiment: Path, tmp_path: Path) -> None:
    lines = [line for line in (experiment.parent / "data.jsonl").read_text().splitlines() if '"longer"' in line]
    (tmp_path / "agreed.jsonl").write_text("\n".join(lines) + "\n")
    sizes = {"clients": 4, "unseen_clients": 1, "validation_clients": 1, "sampled_clients": 2}
    changes = {f"federation__{k}": v for k, v in sizes.items()} | {"lora__rounds": 6, "lora__dropout": 0.0}
    config = configuration(experiment, "fedbt", data__path=str(tmp_path / "agreed.jsonl"), **LORA, **changes)
    losses: list[float] = []
    run = run_method(world(config), "fedbt", on_round=lambda r, s, v: losses.append(r.metrics["loss"]))
    assert {r["population"]: r["accuracy"] for r in run.rows}["unseen"] > 0.8
    assert losses[-1] < losses[0]


def test_fedbiscuit_warms_adapters_up_in_turn_then_groups_clients_and_votes(experiment: Path) -> None:
    config = configuration(
        experiment,
        "fedbiscuit",
        **LORA,
        method__selectors=2,
        method__selector_warmup=0.3,
        method__regroup_every=1,
        lora__local_steps=1,
    )
    prepared = world(config)
    method = method_of(prepared)
    assert type(method) is FedBiscuitLoRA
    states = [rounds.start(method, config, len(prepared.clients))]
    reports: list[rounds.RoundReport] = []

    def keep(report: rounds.RoundReport, state: rounds.TrainingState) -> None:
        states.append(state)
        reports.append(report)

    rounds.train(method, config, prepared.clients, callback=keep)
    moved = [
        {k.split("/")[0] for k, v in b.server.theta.items() if (v != a.server.theta[k]).any()}
        for a, b in pairwise(states)
    ]
    assert moved[:2] == [{"0"}, {"1"}]
    assert states[-1].server.labels.bincount().tolist() == [3, 3]
    one = sum(4 * v.numel() for k, v in states[0].server.theta.items() if k.startswith("0/"))
    assert reports[-1].bytes_up == one + 2 * 4 + 8 + 4 * len(method.metric_names)
    index = torch.arange(6).unsqueeze(0)
    p = method.predictor(states[-1].server, prepared.pool).predict(None, index)[0]
    assert prepared.pool.texts is not None
    each = [method.all_logits(t, prepared.pool.texts.take(range(6))) for t in method.selectors(states[-1].server.theta)]
    votes = sum((s > 0).float() for s in each)
    assert torch.equal(p > 0.5, (votes > 1) | ((votes == 1) & (sum(torch.sigmoid(s) for s in each) > 1)))
