"""A selector that takes judgements as they are: mixed kinds, users that are updated, questions worth asking."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fedvpa import Selector, User, UserError
from fedvpa.latents import posterior_of, stack_users
from fedvpa.methods.fedvpa_laplace import LaplacePredictor
from fedvpa.preferences.schema import Pair, as_prompt
from fedvpa.variational import laplace

PROMPT = "Question 50 of many?"
LONG, SHORT = "Answer 50, at some length and with care.", "No 50."


def answers(longer: bool = True) -> list[dict[str, Any]]:
    """Every kind of judgement, of somebody who likes longer (or shorter) answers."""
    texts = [(f"Topic {k}?", f"Answer {k}, at some length and with care.", f"No {k}.") for k in range(8)]
    (p, a, b), (q, c, d), *rest = [(p, *((a, b) if longer else (b, a))) for p, a, b in texts]
    return [
        {"prompt": p, "chosen": a, "rejected": b},
        {"prompt": q, "a": d, "b": c, "preferred": "b", "margin": 2.0},
        {"prompt": [{"role": "user", "content": rest[0][0]}], "completion": rest[0][1], "label": True},
        {"prompt": rest[1][0], "response": rest[1][2], "vote": -1},
        {"prompt": rest[2][0], "text": rest[2][1], "rating": 5},
        {"prompt": rest[3][0], "text": rest[3][2], "rating": "1"},
        {"prompt": rest[4][0], "text": rest[4][2], "vote": 0},
    ]


@pytest.fixture(scope="module")
def selector(judged_run: Path) -> Selector:
    return Selector.from_pretrained(judged_run)


def test_the_rating_scale_is_the_runs(selector: Selector) -> None:
    mean, scale = selector.info.rating_scale
    assert mean == pytest.approx(3.0, abs=0.3)
    assert scale == pytest.approx(1.6, abs=0.3)


def test_all_kinds_in_one_list(selector: Selector) -> None:
    likes, dislikes = selector.infer_user(answers()), selector.infer_user(answers(longer=False))
    assert likes.pairs == 6  # a pass says nothing
    assert selector.prefer(PROMPT, LONG, SHORT, likes) > 0.6
    assert selector.prefer(PROMPT, LONG, SHORT, dislikes) < 0.4
    assert selector.prefer(PROMPT, SHORT, LONG, likes) == pytest.approx(
        1 - selector.prefer(PROMPT, LONG, SHORT, likes), abs=1e-5
    )


@pytest.mark.parametrize("kind", range(6))
def test_each_kind_alone_tells_something(selector: Selector, kind: int) -> None:
    likes, dislikes = selector.infer_user([answers()[kind]]), selector.infer_user([answers(longer=False)[kind]])
    assert likes.pairs == 1
    assert selector.prefer(PROMPT, LONG, SHORT, likes) > selector.prefer(PROMPT, LONG, SHORT, dislikes) + 1e-3


def test_a_rating_is_read_on_the_runs_scale(selector: Selector) -> None:
    """A rating is worth what it is worth among the training people's: 3 is no praise."""
    p = [
        selector.prefer(PROMPT, LONG, SHORT, selector.infer_user([{"prompt": "x", "text": LONG, "rating": r}]))
        for r in (1, 3, 5)
    ]
    assert p == sorted(p)


def test_two_parts_are_close_to_all_at_once(selector: Selector) -> None:
    given = answers()
    whole = selector.infer_user(given, "mixture")
    parts = selector.update_user(selector.infer_user(given[:3], "mixture"), given[3:])
    assert parts.pairs == whole.pairs
    assert parts.inference == "mixture"
    assert parts.mean == pytest.approx(whole.mean, abs=0.15)
    p, q = (selector.prefer(PROMPT, LONG, SHORT, u) for u in (whole, parts))
    assert q == pytest.approx(p, abs=0.03)
    first = selector.prefer(PROMPT, LONG, SHORT, selector.infer_user(given[:3], "mixture"))
    assert abs(q - p) < abs(first - p)


def test_a_file_keeps_the_posterior(selector: Selector, tmp_path: Path) -> None:
    user = selector.infer_user(answers()[:3])
    again = User.load(user.save(tmp_path / "u.json"))
    assert again == user
    assert selector.prefer(PROMPT, LONG, SHORT, again) == selector.prefer(PROMPT, LONG, SHORT, user)
    assert selector.update_user(again, answers()[3:]) == selector.update_user(user, answers()[3:])
    assert user.posterior is not None
    assert sum(user.posterior.weights) == pytest.approx(1)
    assert min(user.posterior.weights) >= 1e-4
    assert "Topic" not in (tmp_path / "u.json").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version: is 2, this version of fedvpa reads 1"),
        ({"weights": []}, "differ in number"),
        ({"weights": [0.5, 0.1]}, "weights are no distribution"),
        ({"roots": [[1.0], [1.0]]}, "differ in length"),
        ({"means": [[0.0], [0.0]], "roots": [[1.0], [1.0]]}, "posterior and mean differ in length"),
        ({"roots": [[-1.0] * 15, [-1.0] * 15]}, "no positive diagonal"),
    ],
)
def test_a_damaged_posterior_is_refused(
    selector: Selector, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    tree = json.loads(selector.infer_user([]).save(tmp_path / "u.json").read_text())
    tree["posterior"] |= change
    (tmp_path / "u.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=message):
        User.load(tmp_path / "u.json")


def test_users_of_another_model_are_refused(selector: Selector, finished: Path) -> None:
    stranger = selector.infer_user(answers()).model_copy(update={"model_hash": "0" * 64})
    for use in (
        lambda: selector.update_user(stranger, answers()),
        lambda: selector.prefer(PROMPT, LONG, SHORT, stranger),
        lambda: selector.ask(stranger, [{"prompt": "x", "text": "y"}]),
        lambda: Selector.from_pretrained(finished).prefer(PROMPT, LONG, SHORT, selector.infer_user([])),
    ):
        with pytest.raises(UserError, match="inferred with another model"):
            use()
    short = selector.infer_user([]).model_copy(update={"mean": [0.0], "log_var": [0.0], "posterior": None})
    with pytest.raises(UserError, match="mean: has another length"):
        selector.known(short)


def test_nobody_is_the_prior(selector: Selector) -> None:
    p = selector.parameters
    nobody = selector.infer_user([], "mixture")
    assert nobody.mean == pytest.approx((p.shares @ p.centroids).tolist(), abs=1e-5)
    assert selector.prefer(PROMPT, LONG, SHORT) == selector.prefer(PROMPT, LONG, SHORT, selector.infer_user([]))


def test_a_component_as_a_user(selector: Selector) -> None:
    p = selector.parameters
    user = selector.blend({1: 1.0})
    assert user.mean == pytest.approx(p.centroids[1].tolist(), abs=1e-6)
    assert user.log_var == pytest.approx(p.spread[1].log().tolist(), abs=1e-5)
    assert user.posterior is not None
    prior = laplace.Prior(torch.zeros(1), p.centroids[1:2], p.spread[1:2])
    predictor = selector.predictor_of([Pair(as_prompt(PROMPT), LONG, SHORT)])
    expected = predictor.predict(laplace.as_posterior(prior, 1), torch.zeros(1, 1, dtype=torch.int64))
    assert selector.prefer(PROMPT, LONG, SHORT, user) == pytest.approx(float(expected), abs=1e-6)
    between = selector.update_user(selector.blend({0: 0.5, 1: 0.5}), answers())
    assert selector.prefer(PROMPT, LONG, SHORT, between) > 0.5


def test_rewards_are_log_odds_with_the_doubt_taken_off(selector: Selector) -> None:
    user = selector.infer_user(answers())
    a, b = selector.rewards([as_prompt(PROMPT)] * 2, [LONG, SHORT], user).tolist()
    assert a > b
    x = selector.parameters.standardizer(selector.backbone.encode_texts([as_prompt(PROMPT)], [LONG]))
    from fedvpa.methods.base import Pool

    predictor = selector.predictor(Pool.of_pairs(torch.stack([x, torch.zeros_like(x)], 1)))
    assert isinstance(predictor, LaplacePredictor)
    assert user.posterior is not None
    q = posterior_of(user.posterior, selector.dtype)
    slope = torch.nn.functional.pad(predictor.slope[0] - predictor.slope[1], (0, 1))
    mean, variance = laplace.score_moments(
        q, slope.view(1, 1, -1), (predictor.offset[0] - predictor.offset[1]).view(1, 1)
    )
    scale, doubt = predictor.calibration
    logits = scale * mean / torch.sqrt(1 + math.pi / 8 * scale**2 * doubt * variance)
    assert a == pytest.approx(float((q.log_weights.exp().unsqueeze(-1) * logits).sum()), abs=1e-4)
    assert selector.reward_function(user)([PROMPT], [LONG]) == pytest.approx([10 * math.tanh(a / 10)], abs=1e-5)
    assert [r for r, _ in selector.rank(PROMPT, [SHORT, LONG], user)] == [LONG, SHORT]


def test_several_users_at_once(selector: Selector) -> None:
    users = [selector.infer_user(answers()), selector.blend({0: 1.0}), selector.infer_user([])]
    pairs = [Pair(as_prompt(PROMPT), LONG, SHORT), Pair(as_prompt("Else?"), "Yes.", "No.")]
    stacked = stack_users(users, selector.dtype)
    p = selector.predictor_of(pairs).predict(stacked, torch.arange(2).expand(3, -1))
    torch.testing.assert_close(p, selector.preferences(pairs, users))


def test_alignment_gets_the_posterior_mean(selector: Selector) -> None:
    from fedvpa.alignment.labelling import point_of

    user = selector.infer_user(answers())
    assert point_of(user) == pytest.approx(user.mean, abs=1e-6)
    assert len(user.mean) == selector.centres.shape[1]


# A method that takes pairs only ------------------------------------------------------------------------------------


def test_a_method_of_pairs_gets_the_pairs_that_votes_make(finished: Path) -> None:
    selector = Selector.from_pretrained(finished)
    votes = [
        {"prompt": "Tea?", "completion": "Yes please, a large one.", "label": True},
        {"prompt": "Tea?", "completion": "No.", "label": False},
        {"prompt": "Tea?", "text": "Later.", "rating": 2},
        {"prompt": "Tea?", "text": "Gladly, at once.", "rating": 9},
        {"prompt": "Coffee?", "text": "Never.", "rating": 1},
    ]
    pairs = [
        {"prompt": "Tea?", "chosen": "Yes please, a large one.", "rejected": "No."},
        {"prompt": "Tea?", "chosen": "Gladly, at once.", "rejected": "Later."},
    ]
    user, expected = selector.infer_user(votes, "amortised"), selector.infer_user(pairs, "amortised")
    assert user.pairs == 2
    assert user.mean == pytest.approx(expected.mean, abs=1e-6)
    with pytest.raises(UserError, match="no two of the judgements make one; give a yes and a no") as e:
        selector.infer_user(votes[:1] + votes[4:])
    assert "\n" not in str(e.value)


def test_users_of_other_methods_are_not_updated(finished: Path) -> None:
    selector = Selector.from_pretrained(finished)
    with pytest.raises(
        UserError, match="a user of fedvpa-gp cannot be updated; infer the user again, from all answers"
    ):
        selector.update_user(selector.infer_user(answers()[:2]), answers()[:2])


def test_ratings_need_a_run_with_ratings(selector: Selector) -> None:
    bare = Selector(selector.parameters, selector.info.model_copy(update={"rating_scale": (0.0, 1.0)}))
    with pytest.raises(UserError, match="nobody gave ratings in the run's training data"):
        bare.infer_user([{"prompt": "x", "text": "y", "rating": 4}])
    as_votes = [{"prompt": "x", "text": LONG, "rating": 1}, {"prompt": "x", "text": SHORT, "rating": -1}]
    named = [{"prompt": "x", "text": LONG, "vote": 1}, {"prompt": "x", "text": SHORT, "vote": -1}]
    assert bare.infer_user(as_votes) == bare.infer_user(named)


# Questions ---------------------------------------------------------------------------------------------------------


def test_it_asks_what_tells_most(selector: Selector) -> None:
    """People differ in which length they like, so a question about two equal lengths tells least."""
    pool = [
        {"prompt": PROMPT, "a": "No 51.", "b": "No 52."},
        {"prompt": PROMPT, "a": SHORT, "b": LONG},
        {"prompt": PROMPT, "a": "No 53.", "b": "No 54."},
    ]
    (best,) = selector.ask(None, pool)
    assert best.row == 1
    assert 0 < best.bits <= 1
    every = selector.ask(None, pool, 10)
    assert sorted(a.row for a in every) == [0, 1, 2]
    assert every[0] == best
    known = selector.infer_user(answers() * 3)
    assert selector.ask(known, pool)[0].bits < best.bits
    assert selector.ask(known, []) == []


def test_items_are_asked_by_yes_or_no(selector: Selector) -> None:
    asked = selector.ask(None, [{"prompt": PROMPT, "text": LONG}, {"prompt": PROMPT, "a": LONG, "b": SHORT}], 2)
    by_row = {a.row: a.question for a in asked}
    assert by_row[0].second is None
    assert by_row[0].answered(True).value == 1.0
    assert by_row[1].answered(False).value == -1.0


def test_a_method_of_pairs_asks_about_pairs(finished: Path) -> None:
    selector = Selector.from_pretrained(finished)
    pool = [{"prompt": PROMPT, "a": LONG, "b": SHORT}, {"prompt": PROMPT, "a": SHORT, "b": "No 51."}]
    assert len(selector.ask(None, pool, 2)) == 2
    with pytest.raises(UserError, match="pool: fedvpa-gp learns from pairs, and the pool has single responses"):
        selector.ask(None, [{"prompt": PROMPT, "text": LONG}])
