from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedvpa.config import DataConfig, FederationConfig
from fedvpa.errors import UserError
from fedvpa.preferences.clients import assign_groups, partition, with_noise
from fedvpa.preferences.schema import LabelledPool, Pair, as_prompt

N = 600


def pool(groups=("up", "down"), ties=0, switching=False):
    """Pairs in three splits; the first group says +1 on even rows, the second the opposite."""
    sign = torch.tensor([1 if i % 2 else -1 for i in range(N)], dtype=torch.int8)
    labels = torch.stack([sign * (-1) ** g for g in range(len(groups))])
    labels[:, :ties] = 0
    moved = torch.zeros_like(labels)
    moved[:, -10:] = labels[:, -10:]
    return LabelledPool(
        pairs=tuple(Pair(as_prompt(f"p{i}"), "a", "b") for i in range(N)),
        split=("train",) * 400 + ("validation",) * 80 + ("test",) * (N - 480),
        groups=groups,
        opposite=tuple((i + 1) % len(groups) for i in range(len(groups))),
        group_labels=labels,
        counts={"pairs": N},
        notes=("a note",),
        switching_labels=moved if switching else None,
    )


def make(seed=0, data=None, switching=False, ties=0, groups=("up", "down"), **federation):
    sizes = {"clients": 20, "unseen_clients": 6, "validation_clients": 4} | federation
    data = DataConfig(**(data or {}))
    return partition(pool(groups, ties, switching), data, FederationConfig(**sizes), seed)


def same(one, two):
    return (
        one.client_id == two.client_id
        and one.group == two.group
        and all(
            torch.equal(getattr(getattr(one, part), field), getattr(getattr(two, part), field))
            for part in ("train", "test")
            for field in ("index", "y")
        )
    )


def test_populations_names_and_splits():
    made = make(ties=5, data={"pairs_per_client": 30})
    assert {k: len(v) for k, v in made.clients.items()} == {"seen": 20, "validation": 4, "unseen": 6}
    assert made.clients["seen"][7].client_id == "client-007"
    ids = [c.client_id for clients in made.clients.values() for c in clients]
    assert len(set(ids)) == len(ids)
    for population, clients in made.clients.items():
        for client in clients:
            assert len(client.train) == 30
            assert len(set(client.train.index.tolist())) == 30
            assert {made.split[i] for i in client.train.index} == {"train"}
            assert {made.split[i] for i in client.test.index} == {
                "validation" if population == "validation" else "test"
            }
            for own in (client.train, client.test):
                assert own.y.dtype == torch.int8
                assert torch.equal(own.y, made.group_labels[client.group, own.index])
                assert own.y.ne(0).all()
    assert len(made.clients["unseen"][0].test) == 120
    assert made.counts == {"pairs": N}
    assert made.notes == ("a note",)
    assert made.switching == ()


def test_opposite_groups_have_exactly_opposite_test_labels():
    up, down = make().clients["unseen"][:2]
    assert (up.group, down.group) == (0, 1)
    assert torch.equal(up.test.index, down.test.index)
    assert torch.equal(up.test.y, -down.test.y)


def test_users_who_never_train_have_enough_context():
    made = make(data={"pairs_per_client": 4})
    assert {len(c.train) for c in made.clients["seen"]} == {4}
    assert {len(c.train) for p in ("validation", "unseen") for c in made.clients[p]} == {16}
    more = partition(pool(), DataConfig(pairs_per_client=4), FederationConfig(), 0, context_pairs=32)
    assert {len(c.train) for c in more.clients["unseen"]} == {32}
    few = make(ties=390, data={"pairs_per_client": 12})
    assert {len(c.train) for c in few.clients["unseen"]} == {10}


def test_same_seed_same_clients_and_other_seed_other_clients():
    one, two, other = make(), make(), make(seed=1)
    for population, clients in one.clients.items():
        assert all(map(same, clients, two.clients[population]))
        assert not any(map(same, clients, other.clients[population]))
    draws = [tuple(c.train.index.tolist()) for clients in one.clients.values() for c in clients]
    assert len(set(draws)) == len(draws)


def test_more_clients_leave_the_earlier_ones_alone():
    shares = {"group_shares": (0.7, 0.3), "label_noise": 0.2}
    few, many = make(data=shares, clients=13, unseen_clients=3), make(data=shares, clients=40, unseen_clients=9)
    for population in ("seen", "unseen", "validation"):
        assert all(map(same, few.clients[population], many.clients[population]))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 80))
def test_each_group_gets_its_share_rounded_down_or_up_at_every_number_of_clients(weights, clients):
    shares = [w / sum(weights) for w in weights]
    groups = assign_groups(shares, clients)
    for n in range(clients + 1):
        for g, share in enumerate(shares):
            assert math.floor(share * n + 1e-6 - 2e-6) <= groups[:n].count(g) <= math.ceil(share * n - 1e-6 + 2e-6)


def test_equal_shares_take_turns():
    assert assign_groups([1 / 3] * 3, 7) == [0, 1, 2, 0, 1, 2, 0]


def test_imbalance():
    made = make(data={"group_shares": (0.8, 0.2)}, clients=50)
    assert [c.group for c in made.clients["seen"]].count(0) == 40


def test_label_noise_reaches_contexts_and_never_queries():
    noise = 0.2
    made = make(data={"label_noise": noise, "pairs_per_client": 200}, clients=40)
    for population, clients in made.clients.items():
        truth = [made.group_labels[c.group, c.train.index] for c in clients]
        rate = torch.cat([c.train.y != t for c, t in zip(clients, truth, strict=True)]).double().mean().item()
        n = 200 * len(clients)
        assert abs(rate - noise) < 4 * math.sqrt(noise * (1 - noise) / n), population
        assert all(torch.equal(c.test.y, made.group_labels[c.group, c.test.index]) for c in clients)
    calm = make(data={"pairs_per_client": 200}, clients=40)
    assert torch.equal(calm.clients["seen"][0].train.index, made.clients["seen"][0].train.index)


def test_noise_of_nought_changes_nothing():
    y = torch.tensor([1, -1], dtype=torch.int8)
    assert with_noise(y, 0.0, 1) is y


def test_switching_clients_share_pairs_with_opposite_labels():
    made = make(switching=True)
    assert len(made.switching) == 12
    up, down = made.switching[:2]
    assert (up.client_id, down.client_id) == ("switching-000-up", "switching-000-down")
    assert torch.equal(up.test.index, down.test.index)
    assert torch.equal(up.test.y, -down.test.y)
    assert {made.split[i] for c in made.switching for i in c.train.index} == {"train"}
    assert all(len(c.train) == 16 for c in made.switching)


def test_shares_that_do_not_fit():
    with pytest.raises(UserError, match=r"data\.group_shares: 2 shares for 3 groups \(x, y, z\); give one share"):
        make(groups=("x", "y", "z"), data={"group_shares": (0.5, 0.5)})


def test_a_group_without_pairs():
    with pytest.raises(UserError, match="data: group 'up' labels no train pair"):
        make(ties=400)
