"""Turning pairs so that the preferred response comes first changes what is shown first, and nothing else."""

from __future__ import annotations

import pytest
import torch

from fedvpa.config import parse_config
from fedvpa.errors import UserError
from fedvpa.preferences.sources import load_preferences


@pytest.fixture(scope="module")
def both():
    sizes = {"clients": 8, "sampled_clients": 4, "unseen_clients": 4, "validation_clients": 4}
    tree = {"data": {"name": "synthetic"}, "federation": sizes}
    random = load_preferences(parse_config(tree))
    return random, load_preferences(parse_config({**tree, "data": {"name": "synthetic", "order": "chosen-first"}}))


def clients_of(data):
    return [c for population in data.clients.values() for c in population]


def test_every_label_is_that_a_is_preferred(both):
    random, turned = both
    assert {y for c in clients_of(random) for y in c.train.y.tolist()} == {-1, 1}
    for client in clients_of(turned):
        assert (client.train.y == 1).all()
        assert (client.test.y == 1).all()


def test_everybody_prefers_the_same_response_as_before(both):
    random, turned = both

    def preferred(data, held):
        pairs = [data.pairs[i] for i in held.index.tolist()]
        return [(p.prompt, *((p.a, p.b) if y > 0 else (p.b, p.a))) for p, y in zip(pairs, held.y.tolist(), strict=True)]

    for before, after in zip(clients_of(random), clients_of(turned), strict=True):
        assert (before.client_id, before.group) == (after.client_id, after.group)
        assert preferred(random, before.train) == preferred(turned, after.train)
        assert preferred(random, before.test) == preferred(turned, after.test)


def test_the_pool_holds_each_pair_in_both_orders_with_opposite_labels(both):
    random, turned = both
    n = len(random.pairs)
    assert turned.pairs[:n] == random.pairs
    assert [(p.prompt, p.b, p.a) for p in turned.pairs[n:]] == [(p.prompt, p.a, p.b) for p in random.pairs]
    assert turned.split == random.split * 2
    assert torch.equal(turned.group_labels[:, n:], -random.group_labels)
    assert torch.equal(turned.conflicting(), random.conflicting().repeat(2))


def test_results_carry_a_warning(both):
    random, turned = both
    assert turned.notes[:-1] == random.notes
    assert "chosen-first" in turned.notes[-1]


def test_an_unknown_order_is_refused():
    with pytest.raises(UserError, match=r"data.order: unknown value 'chosen_first'; did you mean chosen-first"):
        parse_config({"data": {"order": "chosen_first"}})
