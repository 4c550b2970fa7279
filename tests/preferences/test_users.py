from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from fedvpa.config import DataConfig, ExperimentConfig, FederationConfig
from fedvpa.errors import UserError
from fedvpa.preferences.jsonl import PreferenceRow
from fedvpa.preferences.schema import Pair, as_prompt
from fedvpa.preferences.sources import load_preferences
from fedvpa.preferences.users import federate, pseudonym

SIZES = FederationConfig(clients=100, unseen_clients=100, validation_clients=100)


def load(**data):
    return load_preferences(ExperimentConfig(data=DataConfig(name="jsonl", **data), federation=SIZES))


def row(user, prompt, chosen="yes", rejected="no", group=None):
    return PreferenceRow(user, *Pair.canonical(as_prompt(prompt), chosen, rejected), group)


def own_prompts(users=20, pairs=8):
    return [row(f"u{u}", f"question {i} of {u}") for u in range(users) for i in range(pairs)]


def shared_prompts(users=30, prompts=40):
    """Everybody labels the same pairs; odd users choose the other response."""
    turn = [("yes", "no"), ("no", "yes")]
    return [
        row(f"u{u}", f"question {i}", *turn[u % 2], group=f"g{u % 2}") for u in range(users) for i in range(prompts)
    ]


def prompts_of(made, own):
    return {made.pairs[i].prompt for i in own.index.tolist()}


@pytest.mark.parametrize("rows", [own_prompts(), shared_prompts()], ids=["own", "shared"])
def test_populations_and_splits(rows):
    made = federate(rows, DataConfig(pairs_per_client=100), SIZES, 0)
    users = len({r.user for r in rows})
    assert [len(made.clients[p]) for p in ("seen", "validation", "unseen")] == [users * 3 // 5, users // 5, users // 5]
    trained = set().union(*(prompts_of(made, c.train) for clients in made.clients.values() for c in clients))
    for population, clients in made.clients.items():
        for client in clients:
            assert len(client.train)
            assert len(client.test)
            assert {made.split[i] for i in client.train.index} == {"train"}
            assert {made.split[i] for i in client.test.index} == {
                "validation" if population == "validation" else "test"
            }
            assert not trained & prompts_of(made, client.test)
    splits = {}
    for pair, split in zip(made.pairs, made.split, strict=True):
        assert splits.setdefault(pair.prompt, split) == split
    share = sum(s != "train" for s in made.split) / len(made.split)
    assert 0.2 < share < 0.3
    assert made.counts["pairs"] == len(made.pairs) == len({r.pair for r in rows})


def test_labels_are_the_users_own():
    made = federate(shared_prompts(), DataConfig(), SIZES, 0)
    for client in (c for clients in made.clients.values() for c in clients):
        for i, y in zip(client.test.index.tolist(), client.test.y.tolist(), strict=True):
            chosen = made.pairs[i].a if y == 1 else made.pairs[i].b
            assert chosen == ("yes", "no")[client.group]


def test_a_column_group_makes_groups_known():
    made = federate(shared_prompts(), DataConfig(), SIZES, 0)
    assert made.groups == ("g0", "g1")
    assert made.opposite == (1, 0)
    assert torch.equal(made.group_labels[0], -made.group_labels[1])
    assert made.conflicting().all()


def test_group_labels_are_the_majority_s_and_nought_when_divided():
    rows = [row(u, p, *("yn" if u != "odd" else "ny"), group="g") for u in ("a", "b", "odd") for p in ("one", "two")]
    rows += [row(u, "three", *y, group="g") for u, y in (("a", "yn"), ("odd", "ny"))]
    made = federate([*rows, row("x", "one"), row("x", "four")], DataConfig(), SIZES, 0)
    said = zip(made.pairs, made.group_labels[0].tolist(), strict=True)
    chosen = {p.prompt[0].content: (p.a if y == 1 else p.b) if y else None for p, y in said}
    assert chosen == {"one": "y", "two": "y", "three": None, "four": None}
    assert {c.client_id: c.group for c in made.clients["seen"]} == {"a": 0, "b": 0, "odd": 0, "x": None}


def test_without_groups_nothing_is_known():
    made = federate(own_prompts(), DataConfig(), SIZES, 0)
    assert made.groups == made.opposite == ()
    assert made.group_labels.shape == (0, len(made.pairs))
    assert not made.conflicting().any()
    assert {c.group for clients in made.clients.values() for c in clients} == {None}


def test_roles_and_splits_do_not_depend_on_seed_or_row_order():
    rows = own_prompts(pairs=30)
    one, two = federate(rows, DataConfig(), SIZES, 0), federate(rows[::-1], DataConfig(), SIZES, 1)
    assert [c.client_id for c in one.clients["unseen"]] == [c.client_id for c in two.clients["unseen"]]
    assert dict(zip(one.pairs, one.split, strict=True)) == dict(zip(two.pairs, two.split, strict=True))
    first, other = one.clients["seen"][0], two.clients["seen"][0]
    assert len(first.train) == 16
    assert prompts_of(one, first.train) != prompts_of(two, other.train)
    again = federate(rows, DataConfig(), SIZES, 0).clients["seen"][0]
    assert torch.equal(first.train.index, again.train.index)


def test_few_users_are_all_seen():
    made = federate(own_prompts(users=4), DataConfig(), SIZES, 0)
    assert [len(made.clients[p]) for p in ("seen", "validation", "unseen")] == [4, 0, 0]


def test_numbers_asked_for_are_upper_bounds():
    sizes = FederationConfig(clients=7, sampled_clients=2, unseen_clients=3, validation_clients=2)
    made = federate(own_prompts(users=30), DataConfig(), sizes, 0)
    assert [len(made.clients[p]) for p in ("seen", "validation", "unseen")] == [7, 2, 3]
    assert made.counts["users beyond federation.clients"] == 18


def test_pairs_per_client_and_noise():
    made = federate(own_prompts(pairs=40), DataConfig(pairs_per_client=4, label_noise=0.3), SIZES, 0)
    assert {len(c.train) for c in made.clients["seen"]} == {4}
    assert {len(c.train) for c in made.clients["unseen"]} == {16}
    more = federate(own_prompts(pairs=40), DataConfig(pairs_per_client=4), SIZES, 0, context_pairs=24)
    assert {len(c.train) for c in more.clients["unseen"]} == {24}
    flipped = [
        (made.pairs[i].a if y == 1 else made.pairs[i].b) == "no"
        for c in made.clients["unseen"]
        for i, y in zip(c.train.index.tolist(), c.train.y.tolist(), strict=True)
    ]
    assert 0.1 < sum(flipped) / len(flipped) < 0.5
    for client in made.clients["unseen"]:
        said = zip(client.test.index.tolist(), client.test.y.tolist(), strict=True)
        assert all((made.pairs[i].a if y == 1 else made.pairs[i].b) == "yes" for i, y in said)


def test_poor_users_and_doubtful_rows_are_left_out_with_a_count():
    rows = [*own_prompts(users=3), row("poor", "only one")]
    rows += [row("torn", "p"), row("torn", "p", "no", "yes"), row("torn", "q")]
    rows += [row("u0", "question 0 of 0")]
    counts = Counter()
    made = federate(rows, DataConfig(), SIZES, 0, counts)
    assert [c.client_id for c in made.clients["seen"]] == sorted(["u0", "u1", "u2"], key=pseudonym)
    assert made.counts["users with fewer than 2 pairs"] == 2
    assert made.counts["contradictory pairs"] == 1
    assert made.counts["repeated rows"] == 1
    assert made.counts["rows"] == len(rows)


def test_users_whose_prompts_are_all_for_testing_are_left_out():
    made = federate(shared_prompts(), DataConfig(), SIZES, 0)
    tested = next(p for p, s in zip(made.pairs, made.split, strict=True) if s == "test")
    text = tested.prompt[0].content
    late = [row(f"z{u}", text, "yes", other) for u in range(20) for other in ("no", "perhaps")]
    made = federate([*shared_prompts(), *late], DataConfig(), SIZES, 0)
    left = {c.client_id for clients in made.clients.values() for c in clients if c.client_id.startswith("z")}
    assert made.counts["users without a training pair"] > 0
    assert len(left) + made.counts["users without a training pair"] == 20


def test_a_user_with_one_prompt_only_trains():
    rows = [row(f"u{u}", f"prompt {u}", chosen) for u in range(6) for chosen in ("yes", "maybe")]
    made = federate(rows, DataConfig(), SIZES, 0)
    assert [len(made.clients[p]) for p in ("seen", "validation", "unseen")] == [6, 0, 0]
    assert all(len(c.train) == 2 and not len(c.test) for c in made.clients["seen"])


def test_nobody_left():
    with pytest.raises(UserError) as e:
        federate([row("a", "x"), row("b", "y")], DataConfig(), SIZES, 0, file="f.jsonl")
    assert str(e.value) == "f.jsonl: user_id: no user with 2 pairs or more is left; give each user several rows"


def test_from_a_file(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [json.dumps({"prompt": f"p{i}", "chosen": "a", "rejected": "b", "user_id": f"u{i % 5}"}) for i in range(40)]
    path.write_text("\n".join([*lines, "rubbish"]))
    made = load(path=str(path), on_invalid="skip")
    assert [len(made.clients[p]) for p in ("seen", "validation", "unseen")] == [3, 1, 1]
    assert made.counts["invalid rows"] == 1
    with pytest.raises(UserError, match=r"x\.jsonl:41: not valid JSON"):
        load(path=str(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data.path: is empty; name a table"),
        ({"path": "x", "groups": ("a",)}, "data.groups: has no meaning for jsonl"),
        ({"path": "x", "group_shares": (1.0,)}, "data.group_shares: has no meaning for jsonl"),
        ({"path": "x", "subsets": ("a",)}, "data.subsets: has no meaning for jsonl"),
    ],
)
def test_keys_that_do_not_fit(data, message):
    with pytest.raises(UserError) as e:
        load(**data)
    assert str(e.value).startswith(message)
