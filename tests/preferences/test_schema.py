from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedvpa.preferences.schema import Message, Pair, as_prompt, prompt_key

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(TEXT, TEXT, TEXT)
def test_either_order_of_two_responses_is_one_pair_with_opposite_labels(prompt, one, two):
    pair, y = Pair.canonical(as_prompt(prompt), one, two)
    again, z = Pair.canonical(as_prompt(prompt), two, one)
    assert pair == again
    assert pair.key == again.key
    assert (pair.a if y == 1 else pair.b) == one
    assert one == two or y == -z


def test_the_canonical_order_does_not_follow_length():
    signs = [Pair.canonical(as_prompt(f"question {i}"), "short", "a much longer response")[1] for i in range(1000)]
    assert abs(sum(signs)) < 120


def test_prompt_key_is_the_normalised_first_user_turn():
    system, first, second = Message("system", "Be kind."), Message("user", "  What's UP?\n"), Message("user", "more")
    assert prompt_key((system, first)) == prompt_key((first, Message("assistant", "x"), second)) == "what s up"
    assert prompt_key((Message("user", "???"),)) == "???"
    assert prompt_key((system,)) == "be kind"


def test_a_prompt_from_messages():
    assert as_prompt([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]) == (
        Message("system", "s"),
        Message("user", "u"),
    )
