"""The replay of questions in benchmarks/questions.py, on toy people who voted."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

import questions
from fedvpa.variational import laplace
from questions import Replay
from questions_figures import STEPS, Comparison, Pooled
from toy_people import laplace_settings, people_world

NO_NOISE = laplace.Noise(torch.tensor(0.0), torch.tensor(1.0))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@cache
def replay() -> Replay:
    """People with 8, 14 or 20 votes, and a selector after a short training."""
    config = laplace_settings(federation__unseen_clients=6, evaluation__context_sizes=[*STEPS, questions.ALL])
    return questions.replay_of(people_world(config, ragged=True))


@cache
def arms() -> dict[str, dict[int, dict[str, Tensor]]]:
    return replay().arms(0)


def test_each_vote_is_asked_once_and_padding_only_after_the_last() -> None:
    weight = replay().weight
    assert sorted(weight.sum(1).unique().tolist()) == [8, 14, 20]
    for order in (replay().chosen(rng()), replay().planned(rng()), questions.random_order(weight, rng())):
        for votes, row in zip(weight, order, strict=True):
            n = int(votes.sum())
            assert sorted(row[:n].tolist()) == list(range(n))
            assert not votes[row[n:]].any()


def test_the_choice_looks_at_no_answer_before_it_is_given() -> None:
    judged = replay().panel.judged
    lied = replace(replay(), panel=replace(replay().panel, judged=judged._replace(y=-judged.y)))
    true, false = replay().chosen(rng()), lied.chosen(rng())
    assert torch.equal(true[:, 0], false[:, 0])
    assert not torch.equal(true, false)
    assert torch.equal(replay().planned(rng()), lied.planned(rng()))


def test_the_first_chosen_vote_tells_most() -> None:
    belief = replay().believed(torch.zeros(6, 0, dtype=torch.int64), 0)
    seen = replay().observed(replay().panel.judged)
    gain = questions.gains(belief, seen, replay().predictor.likelihood, rng()).masked_fill(seen.weight == 0, 0)
    first = replay().chosen(rng())[:, :1]
    assert torch.equal(gain.gather(1, first), gain.amax(1, keepdim=True))


def test_many_people_in_blocks_are_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two camps: a question that divides them tells log 2 of somebody unknown, and nothing of who is known."""
    prior = laplace.Prior(torch.tensor([0.5, 0.5]).log(), torch.tensor([[3.0, 0], [-3.0, 0]]), torch.full((2, 2), 0.01))
    unknown = laplace.as_posterior(prior, 2)
    belief = unknown._replace(log_weights=torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log())
    u = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).expand(2, 2, 2)
    asked = laplace.Observations(u, torch.zeros(2, 2), torch.ones(2, 2), torch.zeros(2, 2) > 0, torch.ones(2, 2))
    for at_once in (1, questions.AT_ONCE):
        monkeypatch.setattr(questions, "AT_ONCE", at_once)
        gain = questions.gains(belief, asked, NO_NOISE, rng())
        assert gain[0, 0] > 0.6
        assert gain[0, 1] < 0.01
        assert (gain[1] < 0.01).all()


def test_the_arms_differ_in_order_only() -> None:
    """Without a vote and after all of them everybody is predicted alike, in whatever order they came."""
    first, *others = (arms()[arm] for arm in ("random", "chosen", "planned"))
    for other in others:
        for n in (0, max(STEPS)):
            assert torch.equal(first[n]["accuracy"], other[n]["accuracy"])
    assert first[32]["votes"].tolist() == replay().weight.sum(1).tolist()
    assert first[8]["votes"].tolist() == [8] * 6


def test_of_the_questionnaire_only_own_votes_are_answered() -> None:
    found = arms()["questionnaire"]
    votes = torch.stack([found[n]["votes"] for n in STEPS], 1)
    assert (votes <= torch.tensor(STEPS)).all()
    assert (votes.diff(dim=1) >= 0).all()
    assert (votes[:, -1] < replay().weight.sum(1)).any()


def test_a_person_of_two_seeds_counts_once_and_without_a_matched_query_not_at_all() -> None:
    def both(values: list[float]) -> dict[str, dict[int, dict[str, Tensor]]]:
        known = {"accuracy": torch.tensor(values), "votes": torch.zeros(2), "matched": torch.tensor([0.5, torch.nan])}
        right = known | {"accuracy": torch.zeros(2)}
        return {"chosen": dict.fromkeys(STEPS, known), "random": dict.fromkeys(STEPS, right)}

    pooled = Pooled.empty()
    pooled.add("new-items", [("x", "a"), ("x", "b")], both([1.0, 0.5]))
    pooled.add("new-items", [("x", "a"), ("y", "a")], both([0.0, 0.0]))
    assert pooled.people("new-items", "chosen", "accuracy")[:, 0].tolist() == [0.5, 0.5, 0.0]
    assert len(pooled.people("new-items", "chosen", "matched")) == 1
    found = pooled.compare(Comparison("new-items", "accuracy", "chosen", 2, "random", 8))
    assert (found["people"], found["difference"]) == (3, pytest.approx(1 / 3))
