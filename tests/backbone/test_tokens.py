"""Rendering and packing in detail."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fedvpa.backbone.packing import collate, make_batches, make_rows
from fedvpa.backbone.tokens import Renderer, Text
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Message

STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "[{{ m['role'] }}|{{ m['content'] }}]{% endfor %}"
)


@pytest.fixture
def renderer(chatty) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(chatty))


def with_template(chatty, template: str) -> Renderer:
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    tokenizer.chat_template = template
    return Renderer(tokenizer)


def test_a_systems_own_words_are_kept(renderer) -> None:
    text = renderer.prompt((Message("system", "Be brief."), Message("user", "q")))
    assert text == "<s>system\nBe brief.</s>\n<s>user\nq</s>\n<s>assistant\n"


def test_a_strict_template_gets_an_alternating_dialogue(chatty) -> None:
    renderer = with_template(chatty, STRICT)
    dialogue = [("system", "s"), ("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")]
    assert renderer.prompt(tuple(Message(*m) for m in dialogue)) == "[user|s\n\na\n\nb][assistant|c][user|d]"


def test_a_template_that_refuses(chatty) -> None:
    renderer = with_template(chatty, "{{ raise_exception('never') }}")
    with pytest.raises(UserError, match=r"refuses a dialogue \(never\)"):
        renderer.prompt((Message("user", "q"),))


def test_what_the_tokenizer_adds_by_itself_stays_in_front_only() -> None:
    class Adds:
        chat_template, eos_token_id = None, 1

        def __call__(self, texts, add_special_tokens, verbose):
            ids = [[ord(c) for c in t] for t in texts]
            return {"input_ids": [[0, *i, 1] for i in ids] if add_special_tokens else ids}

    (text,) = Renderer(Adds()).tokenize(["ab"], ["c"], 100)
    assert text == Text((0, 97, 98), (99,), 0)


def test_a_continuation_without_tokens(renderer) -> None:
    assert renderer.ids([]) == []
    with pytest.raises(UserError, match="an empty response"):
        renderer.tokenize(["p"], [""], 100)


_texts = st.lists(
    st.builds(
        Text,
        st.sampled_from([(), (1,), (1, 2, 3), (4, 5, 6, 7)]),
        st.lists(st.integers(2, 9), min_size=1, max_size=9).map(tuple),
        st.just(0),
    ),
    min_size=1,
    max_size=12,
)


@given(_texts, st.integers(1, 40), st.integers(8, 60), st.booleans())
def test_rows_and_batches_hold_every_text_once(texts, longest, budget, packed) -> None:
    rows = make_rows(texts, packed, longest)
    batches = make_batches(rows, budget)
    assert sorted(i for b in batches for r in b for i in r.items) == list(range(len(texts)))
    lengths = [r.tokens for b in batches for r in b]
    assert lengths == sorted(lengths, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * batch[0].tokens <= budget
        ready = collate(batch, packed, torch.float32, torch.device("cpu"))
        for item, r, start, stop in ready.spans:
            assert tuple(ready.input_ids[r, start:stop].tolist()) == texts[item].response
    for row in rows:
        assert packed or len(row.items) == 1
        assert len(row.items) <= 2 or row.tokens <= longest
        assert all(texts[i].prompt == row.prompt for i in row.items)


@given(_texts)
def test_a_continuation_sees_its_prompt_and_its_own_past_only(texts) -> None:
    for row in make_rows(texts, True, 40):
        batch = collate([row], True, torch.float32, torch.device("cpu"))
        sees = batch.attention_mask[0, 0] == 0
        assert batch.position_ids is not None
        for item, _, start, stop in batch.spans:
            own = len(texts[item].prompt)
            assert batch.position_ids[0, start:stop].tolist() == list(range(own, own + stop - start))
            for t in range(start, stop):
                assert sees[t].nonzero().flatten().tolist() == [*range(own), *range(start, t + 1)]


def test_templates_that_fail_otherwise_or_hold_nothing(chatty) -> None:
    typed = with_template(chatty, "{{ messages[0]['content'] + 1 }}")
    with pytest.raises(UserError, match="the model's chat template refuses a dialogue"):
        typed.prompt((Message("user", "q"),))
    for empty in ("", None):
        renderer = with_template(chatty, empty)
        assert renderer.prompt((Message("user", "q"),)) == "\n\nHuman: q\n\nAssistant:"
