from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from people_tables import choosers, raters, table, voters

from fedvpa.config import DataConfig, EvaluationConfig, FederationConfig
from fedvpa.errors import UserError
from fedvpa.federation.moments import rating_scale
from fedvpa.preferences.order import chosen_first
from fedvpa.preferences.people import federate_people
from fedvpa.preferences.popularity import popularity
from fedvpa.preferences.schema import CHOICE, RATING, VOTE, Item, Pair, as_prompt, prompt_key
from fedvpa.preferences.users import pseudonym

EVERYBODY = FederationConfig(clients=1000, unseen_clients=1000, validation_clients=1000)
SHARED = Path(os.environ.get("FEDVPA_SHARED", Path(__file__).parents[3] / "shared")) / "data"
TABLES = {
    "votes": table(voters(), 60),
    "ratings": table(raters(), 60),
    "choices": table(choosers(number=300), 60),
    "mixed": table(voters(items=20) + [(u, i + 20, -1, v, k) for u, i, _, v, k in raters(items=20)]
                   + [(u, i + 20, j + 20, v, k) for u, i, j, v, k in choosers(items=40, number=100)], 60),
}  # fmt: skip
BY_PROMPT = {
    "votes": table(voters(), 60, prompts=8),
    "ratings": table(raters(), 60, prompts=8),
    "choices": table(choosers(number=100, prompts=8), 60, prompts=8),
}


def federate(of, queries, seed=0, federation=EVERYBODY, **keys):
    evaluation = {k: keys.pop(k) for k in ("matched", "queries_per_user", "context_sizes") if k in keys}
    data = DataConfig(**keys)
    return federate_people(of, data, federation, EvaluationConfig(queries=queries, **evaluation), seed)


def scale_of(made):
    return rating_scale(c.ratings for c in made.clients["seen"])


def everybody(made):
    return [c for clients in made.clients.values() for c in clients]


def pair_items(made, labelled):
    """(n, 2) the preferred item and the other one."""
    ends = made.item_rows[1][labelled.index]
    return torch.where((labelled.y > 0)[:, None], ends, ends.flip(1))


def learnt_items(made, client):
    """All items that the person's context or training shows."""
    found = set(pair_items(made, client.train).flatten().tolist())
    if client.judgements is not None:
        own = client.judgements
        found |= set(own.first.tolist()) | set(own.second[own.kind == CHOICE].tolist())
    return found


def asked_items(made, client):
    return set(pair_items(made, client.test).flatten().tolist())


def opinions(of):
    """Per user and kind what was said, by the items' texts."""
    j = of.judgements
    said = {}
    for u, i, k, v, kind in zip(of.user, j.first, j.second, j.value, j.kind, strict=True):
        one, two = of.items[i].text, of.items[k].text
        own = said.setdefault(of.users[u], {VOTE: {}, RATING: {}, CHOICE: {}})[int(kind)]
        own[one if kind != CHOICE else (one, two) if v > 0 else (two, one)] = float(v)
    return said


def prefers(said, high, low, gap=0.0):
    votes, ratings = said[VOTE], said[RATING]
    return (
        (votes.get(high) == 1 and votes.get(low) == -1)
        or (high in ratings and low in ratings and ratings[high] - ratings[low] >= max(gap, 1e-9))
        or (high, low) in said[CHOICE]
    )


def assert_known_items_are_honest(made):
    for client in everybody(made):
        assert not learnt_items(made, client) & asked_items(made, client)


@pytest.mark.parametrize("kind", TABLES)
def test_known_items_are_never_in_the_persons_own_context(kind):
    made = federate(TABLES[kind], "known-items")
    assert_known_items_are_honest(made)
    halves = [c for p in ("validation", "unseen") for c in made.clients[p]]
    assert all(len(c.test) for c in halves)
    assert set().union(*(asked_items(made, c) for c in halves)) & set().union(
        *(learnt_items(made, c) for c in made.clients["seen"])
    ), "other people's judgements of the items must be there, or they are not known"


@pytest.mark.parametrize("kind", TABLES)
def test_new_items_are_in_nobodys_context_or_training(kind):
    made = federate(TABLES[kind], "new-items")
    learnt = set().union(*(learnt_items(made, c) for c in everybody(made)))
    tested = {p: set().union(*(asked_items(made, c) for c in clients)) for p, clients in made.clients.items()}
    assert all(tested.values())
    assert not learnt & (tested["seen"] | tested["validation"] | tested["unseen"])
    assert not tested["validation"] & (tested["seen"] | tested["unseen"])
    assert len(tested["unseen"]) <= 15
    assert len(tested["validation"]) <= 6
    for pair, split in zip(made.item_rows[1].tolist(), made.split, strict=True):
        whose = {"train": learnt, "validation": tested["validation"], "test": tested["unseen"] | tested["seen"]}[split]
        assert set(pair) <= whose


@pytest.mark.parametrize("kind", BY_PROMPT)
def test_by_prompt_asks_about_prompts_that_nobody_learns_from(kind):
    made = federate(BY_PROMPT[kind], "by-prompt")
    items = made.items

    def prompts(found):
        return {prompt_key(items[i].prompt) for i in found}

    learnt = prompts(set().union(*(learnt_items(made, c) for c in everybody(made))))
    tested = {p: prompts(set().union(*(asked_items(made, c) for c in cs))) for p, cs in made.clients.items()}
    assert tested["seen"]
    assert tested["unseen"] or tested["validation"]
    assert not learnt & (tested["seen"] | tested["validation"] | tested["unseen"])
    assert not tested["validation"] & (tested["seen"] | tested["unseen"])
    split = {}
    for pair, s in zip(made.pairs, made.split, strict=True):
        assert split.setdefault(prompt_key(pair.prompt), s) == s


@pytest.mark.parametrize("queries", ["known-items", "new-items"])
@pytest.mark.parametrize("kind", TABLES)
def test_labels_and_judgements_are_the_persons_own(kind, queries):
    of = TABLES[kind]
    made = federate(of, queries, min_gap=2)
    said = opinions(of)
    text = [item.text for item in made.items]
    for client in everybody(made):
        own = said[client.client_id]
        for labelled in (client.train, client.test):
            found = pair_items(made, labelled).tolist()
            assert all(prefers(own, text[high], text[low], gap=1.9999) for high, low in found)
            assert len({frozenset(pair) for pair in found}) == len(found)
        j = client.judgements
        assert (j is None) == (kind == "choices")
        for i, k, v, of_kind in [] if j is None else zip(j.first, j.second, j.value, j.kind, strict=True):
            if of_kind == CHOICE:
                assert ((text[i], text[k]) if v > 0 else (text[k], text[i])) in own[CHOICE]
            else:
                assert own[int(of_kind)][text[i]] == float(v)


def test_the_order_of_a_pair_tells_nothing_and_each_pair_is_there_once():
    made = federate(TABLES["votes"], "known-items")
    assert len(set(made.pairs)) == len(made.pairs) == made.counts["pairs"]
    assert all(Pair.canonical(p.prompt, p.b, p.a) == (p, -1) for p in made.pairs)
    y = torch.cat([c.train.y for c in everybody(made)]).float()
    assert abs(y.mean()) < 4 / len(y) ** 0.5


def test_populations():
    made = federate(TABLES["votes"], "known-items")
    assert {p: len(c) for p, c in made.clients.items()} == {"seen": 26, "validation": 4, "unseen": 10}
    for clients in made.clients.values():
        assert [c.client_id for c in clients] == sorted((c.client_id for c in clients), key=pseudonym)
    some = FederationConfig(clients=20, unseen_clients=3, validation_clients=2)
    fewer = federate(TABLES["votes"], "known-items", federation=some)
    assert {p: len(c) for p, c in fewer.clients.items()} == {"seen": 20, "validation": 2, "unseen": 3}
    for population, clients in fewer.clients.items():
        assert {c.client_id for c in clients} <= {c.client_id for c in made.clients[population]}
    assert fewer.counts["users beyond federation.clients"] == 6
    assert fewer.counts["users beyond federation.validation_clients"] == 2
    assert fewer.counts["users beyond federation.unseen_clients"] == 7


def test_of_fewer_than_five_people_nobody_is_held_out():
    four, five = (federate(table(voters(people=n), 60), "known-items") for n in (4, 5))
    assert {p: len(c) for p, c in four.clients.items()} == {"seen": 4, "validation": 0, "unseen": 0}
    assert {p: len(c) for p, c in five.clients.items()} == {"seen": 3, "validation": 1, "unseen": 1}


@pytest.mark.parametrize("queries", ["known-items", "new-items"])
def test_people_with_few_votes_train_and_are_not_held_out(queries):
    few = [(f"few{u}", i, -1, v, VOTE) for u in range(30) for i, v in ((u, 1.0), (u + 1, -1.0), (u + 2, 1.0))]
    alone = [("alone", 0, -1, 1.0, VOTE)]
    made = federate(table(voters() + few + alone, 60), queries)
    held_out = {c.client_id for p in ("validation", "unseen") for c in made.clients[p]}
    seen = {c.client_id for c in made.clients["seen"]}
    assert len(held_out) == 14 - made.counts.get("held-out users without a query", 0) > 10
    assert not any(u.startswith("few") for u in held_out)
    trained = len([u for u in seen if u.startswith("few")])
    assert trained == 30 - made.counts.get("users without a training pair", 0) > 5
    assert made.counts["users with fewer than 2 judgements"] == 1
    assert "alone" not in seen
    strict = federate(table(voters() + few, 60), queries, min_votes=1000)
    assert not strict.clients["unseen"]


@pytest.mark.parametrize("kind", TABLES)
def test_training_people_hold_as_many_pairs_and_judgements_as_configured(kind):
    made = federate(TABLES[kind], "new-items", pairs_per_client=10)
    for client in made.clients["seen"]:
        assert len(client.train) == 10
        if kind != "choices":
            told = torch.where(client.judgements.kind == CHOICE, 2, 1).sum()
            assert 19 <= told <= 20
            if kind != "mixed":
                assert told == 20


@pytest.mark.parametrize("kind", TABLES)
def test_contexts_are_nested_and_start_with_fresh_items(kind):
    made = federate(TABLES[kind], "known-items", context_sizes=(80,))
    for client in (c for p in ("validation", "unseen") for c in made.clients[p]):
        pairs = pair_items(made, client.train).tolist()
        assert 8 <= len(pairs) <= 80
        if kind == "choices":
            assert client.judgements is None
            continue
        assert len(pairs) <= 40
        j = client.judgements
        assert len(j) <= 80
        said = [frozenset(x) - {-1} for x in zip(j.first.tolist(), j.second.tolist(), strict=True)]
        distinct = set(zip(j.kind.tolist(), said, strict=True))
        assert len(distinct) == len(j)
        for n in range(1, len(pairs) + 1):
            assert set().union(*pairs[:n]) <= set().union(*said[: 2 * n])
        if kind != "mixed":
            fresh = [not set(pair) & set().union(*pairs[:n]) for n, pair in enumerate(pairs)]
            assert fresh == sorted(fresh, reverse=True)
        if kind == "votes":
            yes = int((j.value > 0).sum())
            assert sum(fresh) == min(yes, len(j) - yes)
        if kind == "ratings":
            assert sum(fresh) == len(j) // 2
        if kind in ("votes", "ratings"):
            assert len(j) > 15


def test_the_same_seed_gives_the_same_clients_in_any_order_of_the_table():
    rows = voters() + [(u, i + 60, -1, v, k) for u, i, _, v, k in raters()]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    one, two, other = (
        federate(table(r, 120), "known-items", seed)
        for r, seed in ((rows, 0), ([rows[i] for i in order], 0), (rows, 1))
    )
    assert one.pairs == two.pairs
    assert one.split == two.split
    assert torch.equal(one.matched, two.matched)
    for mine, yours in zip(everybody(one), everybody(two), strict=True):
        assert mine.client_id == yours.client_id
        assert torch.equal(mine.train.index, yours.train.index)
        assert torch.equal(mine.test.y, yours.test.y)
        assert torch.equal(mine.judgements.value, yours.judgements.value)
    assert {c.client_id for c in one.clients["unseen"]} != {c.client_id for c in other.clients["unseen"]}


def test_a_table_with_repetitions_contradictions_and_equal_items():
    rows = voters()
    clean = federate(table(rows, 60), "known-items")
    doubled = table([*rows, *rows[:7]], 60)
    made = federate(doubled, "known-items")
    assert made.counts["repeated judgements"] == 7
    assert made.pairs == clean.pairs
    contrary = federate(table([*rows, (*rows[0][:3], -rows[0][3], VOTE)], 60), "known-items")
    assert contrary.counts["contradictory judgements"] == 1
    twice = replace(table(rows, 61), items=(*doubled.items, doubled.items[0]))
    assert federate(twice, "known-items").pairs == clean.pairs
    turned = [(u, k, i, -v, kind) for u, i, k, v, kind in choosers()]
    assert federate(table(turned, 60), "known-items").pairs == federate(table(choosers(), 60), "known-items").pairs


@pytest.mark.parametrize("pairs", [5, 100])
def test_the_rating_scale_is_that_of_all_ratings_that_training_people_may_learn_from(pairs):
    """Also of those that are not among the judgements that they train on."""
    made = federate(TABLES["ratings"], "new-items", pairs_per_client=pairs)
    asked = {made.items[i].text for c in everybody(made) for i in asked_items(made, c)}
    training = {c.client_id for c in made.clients["seen"]}
    learnt = [v for u, i, _, v, _ in raters() if u in training and f"text {i}" not in asked]
    values = torch.tensor(learnt, dtype=torch.float64)
    assert scale_of(made) == pytest.approx((float(values.mean()), float(values.std(correction=0))))
    assert scale_of(federate(TABLES["votes"], "new-items")) == (0.0, 1.0)


def test_halves_of_the_items_lose_as_few_choices_as_possible():
    """Items 0 to 9 are compared with each other and so are 10 to 19: one part is the context, the other is asked."""
    part = [(i, k) for i in range(10) for k in range(i)]
    rows = [(f"u{u}", i + o, k + o, 1.0, CHOICE) for u in range(20) for o in (0, 10) for i, k in part]
    one = FederationConfig(clients=1, sampled_clients=1)
    made = federate(table(rows, 20), "known-items", federation=one, context_sizes=(64,))
    for client in made.clients["unseen"]:
        assert len(client.train) == len(client.test) == len(part)
    tenth = 2
    assert len(made.clients["seen"][0].test) == tenth * (tenth - 1) / 2
    assert made.counts["choices across a person's two parts"] == tenth * (10 - tenth)


def test_the_strength_of_choices_is_kept():
    rows = choosers()
    weights = [1.0 + i % 3 for i in range(len(rows))]
    made = federate(table(rows, 60, weights=weights), "known-items")
    given_ = {(u, frozenset((f"text {i}", f"text {k}"))): w for (u, i, k, *_), w in zip(rows, weights, strict=True)}
    client = made.clients["unseen"][0]
    j = client.judgements
    assert (j.kind == CHOICE).all()
    for i, k, w in zip(j.first.tolist(), j.second.tolist(), j.weight.tolist(), strict=True):
        assert given_[client.client_id, frozenset((made.items[i].text, made.items[k].text))] == w
    assert set(j.weight.tolist()) == {1, 2, 3}


def test_popularity_is_the_smoothed_share_for_an_item():
    said = [("a", 0, -1, 1, VOTE), ("b", 0, -1, 1, VOTE), ("a", 1, -1, -1, VOTE), ("a", 2, 3, 1, CHOICE)]
    shares, numbers = popularity(table([*said, ("b", 3, 2, -1, CHOICE)], 5).judgements, 5)
    assert shares.tolist() == [3 / 4, 1 / 3, 3 / 4, 1 / 4, 1 / 2]
    assert numbers.tolist() == [2, 1, 2, 2, 0]
    rated = [("a", 0, -1, 10, RATING), ("b", 0, -1, 5, RATING), ("a", 1, -1, -10, RATING), ("b", 2, -1, 3, RATING)]
    shares, _ = popularity(table(rated, 4).judgements, 4)
    mean = (1 + 0.75 + 0 + 0.65) / 4
    expected = [(1.75 + 2 * mean) / 4, 2 * mean / 3, (0.65 + 2 * mean) / 3, mean]
    assert shares.tolist() == pytest.approx(expected)


def test_matched_pairs_are_about_equally_popular_among_the_training_people_alone():
    """Held-out people turn their votes round, which would change what is matched if they counted."""
    clients = federate(table(voters(), 60), "known-items").clients
    seen = {c.client_id for c in clients["seen"]}
    rows = [(u, i, k, v if u in seen else 1.0 if i % 2 else -1.0, kind) for u, i, k, v, kind in voters()]
    made = federate(table(rows, 60), "known-items")
    assert {c.client_id for c in made.clients["seen"]} == seen
    popular = {}
    for i in range(60):
        own = [v for u, k, _, v, _ in rows if k == i and u in seen]
        popular[f"text {i}"] = (own.count(1.0) + 1) / (len(own) + 2)
    assert made.matched.tolist() == [abs(popular[p.a] - popular[p.b]) < 0.1 for p in made.pairs]
    assert 0 < int(made.matched.sum()) < len(made.pairs)
    assert federate(table(rows, 60), "known-items", matched=2).matched.all()


def test_matched_is_not_known_where_training_people_judged_none_of_the_queries():
    """Each person has prompts of their own, as in a file of conversations."""
    rows = [(f"u{u}", 20 * u + i, 20 * u + i + 10, 1.0, CHOICE) for u in range(12) for i in range(10)]
    texts = tuple(Item(as_prompt(f"question {i // 20} {i % 10}"), f"text {i}") for i in range(240))
    made = federate(replace(table(rows, 240), items=texts), "by-prompt")
    assert made.matched is None
    assert all(len(c.test) for c in made.clients["unseen"])


def test_groups_are_known_where_the_table_has_them():
    """Two groups say the opposite of each other; noise changes training labels and not what is known of the groups."""
    turn = {f"u{u}": (-1) ** u for u in range(40)}
    rows = [(f"u{u}", i, -1, float(turn[f"u{u}"] * (-1) ** (i // 2)), VOTE) for u in range(40) for i in range(60)]
    groups = {u: "odd" if t < 0 else "even" for u, t in turn.items()}
    made = federate(table(rows, 60, groups=groups), "known-items", label_noise=0.3)
    assert made.groups == ("even", "odd")
    assert made.opposite == (1, 0)
    assert all(made.groups[c.group] == groups[c.client_id] for c in everybody(made))
    assert not (made.group_labels[0] * made.group_labels[1] > 0).any()
    for client in everybody(made):
        asked = made.group_labels[client.group, client.test.index]
        assert torch.equal(asked, client.test.y)
    assert federate(table(rows, 60), "known-items").groups == ()


@pytest.mark.parametrize("kind", ["votes", "ratings", "choices"])
def test_noise_exchanges_training_judgements_before_pairs_and_never_queries(kind):
    of = TABLES[kind]
    clean = federate(of, "known-items", pairs_per_client=1000, queries_per_user=10_000)
    noisy = federate(of, "known-items", pairs_per_client=1000, queries_per_user=10_000, label_noise=0.25)
    said = opinions(of)
    text = [item.text for item in noisy.items]
    mean, _ = scale_of(noisy) if kind == "ratings" else (0.0, 1.0)
    assert scale_of(noisy) == scale_of(clean)
    changed = total = 0
    for client, before in zip(everybody(noisy), everybody(clean), strict=True):
        own = said[client.client_id]
        assert asked_items(noisy, client) == asked_items(clean, before)
        assert all(prefers(own, text[a], text[b]) for a, b in pair_items(noisy, client.test).tolist())
        found = pair_items(noisy, client.train).tolist()
        if kind == "choices":
            changed += sum((text[a], text[b]) not in own[CHOICE] for a, b in found)
            total += len(found)
            continue
        now = dict(zip(client.judgements.first.tolist(), client.judgements.value.tolist(), strict=True))
        assert all(now[a] > now[b] for a, b in found if a in now and b in now)
        for i, v in now.items():
            if kind == "votes":
                changed += v != own[VOTE][text[i]]
            else:
                was = own[RATING][text[i]]
                assert v == pytest.approx(was, abs=1e-4) or v == pytest.approx(2 * mean - was, abs=1e-4)
                changed += (v - mean) * (was - mean) < 0
            total += 1
    assert 0.2 < changed / total < 0.3


@pytest.mark.parametrize("rows", [voters(), choosers(), [(f"u{u}", 4 * u + i, -1, 1.0 - 2 * (i % 2), VOTE)
                                                          for u in range(15) for i in range(4)]],
                         ids=["votes", "choices", "prompt of one's own"])  # fmt: skip
def test_a_split_that_leaves_nothing_to_test_is_refused_in_one_line(rows):
    of = table(rows, 60)
    if len(rows) == 60:
        of = replace(of, items=tuple(Item(as_prompt(f"question {i // 4}"), f"text {i}") for i in range(60)))
    with pytest.raises(UserError) as e:
        federate(of, "by-prompt")
    message = str(e.value)
    assert "nothing can be tested" in message
    assert "evaluation.queries=known-items or evaluation.queries=new-items" in message
    assert "\n" not in message


def test_new_items_that_no_two_of_share_a_prompt_are_refused():
    rows = [(f"u{u}", i, i + 1, 1.0, CHOICE) for u in range(10) for i in (0, 2)]
    of = replace(table(rows, 4), items=tuple(Item(as_prompt(f"question {i // 2}"), f"text {i}") for i in range(4)))
    with pytest.raises(UserError, match=r"nothing can be tested with new-items.*evaluation\.queries=by-prompt"):
        federate(of, "new-items")


def test_people_who_always_say_the_same_cannot_train():
    with pytest.raises(UserError, match="no person is left who can train"):
        federate(table([(f"u{u}", i, -1, 1.0, VOTE) for u in range(10) for i in range(20)], 20), "known-items")


def test_equal_ratings_are_refused():
    with pytest.raises(UserError, match="all 20 ratings of the training people are 3; give ratings that differ"):
        federate(table([(f"u{u}", i, -1, 3.0, RATING) for u in range(4) for i in range(5)], 5), "known-items")


def test_pairs_that_are_turned_for_the_study_of_leaks_stay_matched():
    made = federate(TABLES["votes"], "known-items")
    turned = chosen_first(made)
    assert len(turned.matched) == len(turned.pairs)
    assert torch.equal(turned.matched[len(made.pairs) :], made.matched)


def test_notes_counts_and_items_go_along():
    made = federate(table(voters(), 60, notes=("By somebody.",), counts={"passes": 3}), "known-items")
    assert made.notes == ("By somebody.",)
    assert made.counts["passes"] == 3
    assert made.item_rows[0] == made.items


JUDGEMENTS = st.tuples(
    st.integers(0, 6),
    st.integers(0, 11),
    st.integers(0, 11),
    st.integers(1, 5),
    st.sampled_from([VOTE, RATING, CHOICE]),
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(JUDGEMENTS, min_size=40, max_size=100),
    st.sampled_from([("known-items", 1), ("known-items", 3), ("new-items", 1), ("by-prompt", 3)]),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.2]),
)
def test_no_query_is_ever_answered_by_a_context(drawn, split, seed, noise):
    queries, prompts = split
    rows = []
    for u, i, k, v, kind in drawn:
        other = k - k % prompts + i % prompts if kind == CHOICE else -1
        rows.append((f"u{u}", i, other, float(v if kind == RATING else 1 if v > 2 else -1), kind))
    try:
        made = federate(table(rows, 12, prompts=prompts), queries, seed, min_votes=1, label_noise=noise)
    except UserError:
        assume(False)
    assert made.clients["seen"]
    if queries == "known-items":
        assert_known_items_are_honest(made)
    else:
        learnt = set().union(*(learnt_items(made, c) for c in everybody(made)))
        assert not learnt & set().union(*(asked_items(made, c) for c in everybody(made)))
    said = opinions(table(rows, 12, prompts=prompts))
    text = [item.text for item in made.items]
    for client in everybody(made):
        found = pair_items(made, client.test).tolist()
        assert all(prefers(said[client.client_id], text[high], text[low]) for high, low in found)
    assert {c.client_id for c in everybody(made)} <= set(said)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "polis").is_dir(), reason="shared/data/polis is not there")
@pytest.mark.parametrize("queries", ["known-items", "new-items"])
def test_a_real_consultation(queries):
    made = federate(polis("american-assembly.bowling-green"), queries, pairs_per_client=40)
    unseen = made.clients["unseen"]
    if queries == "known-items":
        assert_known_items_are_honest(made)
    else:
        learnt = set().union(*(learnt_items(made, c) for c in everybody(made)))
        assert not learnt & set().union(*(asked_items(made, c) for c in everybody(made)))
    assert 230 <= len(unseen) <= 239
    assert len(made.clients["validation"]) <= 95
    assert len(made.clients["seen"]) > 624
    assert sum(len(c.test) for c in unseen) / len(unseen) > 40
    assert sum(len(c.train) for c in unseen) / len(unseen) > 30
    assert 0.2 < made.matched.float().mean() < 0.4
    shown = torch.cat([c.test.y for c in unseen]).float()
    assert abs(shown.mean()) < 0.05


def polis(name):
    pd = pytest.importorskip("pandas")
    items = pd.read_csv(SHARED / "polis" / name / "items.csv.gz")
    votes = pd.read_csv(SHARED / "polis" / name / "ratings.csv.gz").query("rating != 0")
    place = {item: i for i, item in enumerate(items["item"])}
    rows = [
        (u, place[i], -1, float(v), VOTE) for u, i, v in zip(votes["user"], votes["item"], votes["rating"], strict=True)
    ]
    texts = tuple(Item(as_prompt(p), t) for p, t in zip(items["prompt"], items["text"], strict=True))
    return replace(table(rows, len(items)), items=texts)


def test_without_a_population_nobody_is_held_out_for_it() -> None:
    """At a node of a network all people train, not those who would have been held out elsewhere."""
    rows = voters()
    for unseen, validation in ((0, 0), (3, 0), (0, 3)):
        sizes = FederationConfig(clients=1000, unseen_clients=unseen, validation_clients=validation)
        made = federate_people(
            table(rows, 60), DataConfig(name="table"), sizes, EvaluationConfig(queries="known-items"), 0
        )
        found = {population: len(own) for population, own in made.clients.items()}
        assert (found["unseen"], found["validation"]) == (unseen, validation)
        if not unseen and not validation:
            assert found["seen"] == 40
