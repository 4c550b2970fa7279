from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedvpa.errors import UserError
from fedvpa.preferences.attributes import OPPOSITES, RULES, opposites, rule_labels, rule_names
from fedvpa.preferences.schema import Pair, as_prompt


def prefers(rule: str, one: str, two: str) -> bool:
    return RULES[rule](one) > RULES[rule](two)


@pytest.mark.parametrize(
    ("rule", "better", "worse"),
    [
        ("longer", "three plain words", "two words"),
        ("shorter", "two words", "three plain words"),
        ("asks-back", "Why? How?", "Why? Because."),
        ("does-not-ask", "Sure.", "Sure?"),
        ("hedges", "perhaps it rains", "perhaps it rains here now"),  # per word, not in all
        ("does-not-hedge", "It rains.", "Maybe it rains."),
        ("first-person", "I’m here", "we are here"),  # a typographic apostrophe counts too
        ("no-first-person", "Sixty mice", "my mice"),
    ],
)
def test_each_rule_prefers_what_its_name_says(rule, better, worse):
    assert prefers(rule, better, worse)
    assert prefers(OPPOSITES[rule], worse, better)


def test_a_word_list_matches_whole_words_only():
    assert RULES["hedges"]("mayhem Mighty") == 0
    assert RULES["first-person"]("mine is in Miami") == 0.25
    assert RULES["hedges"]("123 !") == 0


@given(st.lists(st.tuples(st.text("ab ?I", min_size=1), st.text("ab ?I", min_size=1)), max_size=8))
def test_opposite_rules_give_exactly_opposite_labels_and_only_ties_have_none(texts):
    pairs = [Pair(as_prompt("x"), a, b) for a, b in texts]
    names = tuple(RULES)
    labels = rule_labels(pairs, names)
    assert labels.shape == (8, len(pairs))
    assert labels.dtype == torch.int8
    for i, j in enumerate(opposites(names)):
        assert torch.equal(labels[i], -labels[j])
    for row, (a, b) in enumerate(texts):
        assert (labels[0, row] == 0) == (len(a.split()) == len(b.split()))


def test_names_may_have_spaces_and_underscores():
    assert rule_names(["Asks back", "does_not_ask"]) == ("asks-back", "does-not-ask")


def test_opposites_among_the_groups_else_the_next_group():
    assert opposites(("longer", "asks-back", "shorter")) == (2, 2, 0)
    assert opposites(("longer",)) == (0,)
    assert opposites(()) == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["langer"], "data.groups: unknown group 'langer'; did you mean longer? choose from longer, shorter"),
        (["longer", "longer"], "data.groups: needs groups that differ"),
        ([], "data.groups: is empty"),
    ],
)
def test_unknown_repeated_or_no_names(names, message):
    with pytest.raises(UserError) as e:
        rule_names(names)
    assert str(e.value).startswith(message)
