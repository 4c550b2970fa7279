"""Base choice logits against a plain run of the whole model, both orders, one at a time."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedvpa.backbone import choice
from fedvpa.backbone.choice import _answers
from fedvpa.backbone.tokens import Renderer
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Message, Pair

QUESTION = (
    "Here is a dialogue, followed by two possible responses.\n\n{dialogue}\n\nResponse A: {a}\n\nResponse B: {b}\n\n"
    "Which response is better? Answer with A or B."
)


def reference(folder, text: str, space: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    a, b = (tokenizer(space + x, add_special_tokens=False)["input_ids"][-1] for x in "AB")
    with torch.no_grad():
        logits = lm(torch.tensor([ids])).logits[0, -1]
    return float(logits[a] - logits[b])


@pytest.mark.parametrize("model", ["tiny", "chatty"])
def test_equation_2(model, request, backbone_of, pairs) -> None:
    folder = request.getfixturevalue(model)
    found = backbone_of(folder, choice_logits=True).encode_pairs(pairs[:2], progress=False)
    around = (
        ("\n\nHuman: ", "\n\nAssistant:", " ")
        if model == "tiny"
        else ("<s>system\n</s>\n<s>user\n", "</s>\n<s>assistant\n", "")
    )
    dialogues = [
        "Human: What is a fox?",
        "Human: Hi\n\nAssistant: Hello.\n\nHuman: Tell me about the sea and its tides.",
    ]
    assert found.base_logit is not None
    for pair, dialogue, got in zip(pairs, dialogues, found.base_logit, strict=False):
        shown = [
            reference(folder, around[0] + QUESTION.format(dialogue=dialogue, a=a, b=b) + around[1], around[2])
            for a, b in ((pair.a, pair.b), (pair.b, pair.a))
        ]
        assert float(got) == pytest.approx((shown[0] - shown[1]) / 2, abs=1e-4)


def test_a_swapped_pair_has_the_negated_logit(tiny, backbone_of, pairs) -> None:
    backbone = backbone_of(tiny, choice_logits=True)
    first = backbone.encode_pairs(pairs, progress=False)
    second = backbone.encode_pairs([Pair(p.prompt, p.b, p.a) for p in pairs], progress=False)
    assert first.base_logit is not None
    assert first.base_logit.abs().min() > 0
    assert torch.equal(first.base_logit, -second.base_logit)
    assert (first.report.computed, second.report.computed, second.report.cached) == (4, 0, 4)


def test_off_by_default_and_cached_apart(tiny, backbone_of, pairs) -> None:
    assert backbone_of(tiny).encode_pairs(pairs, progress=False).base_logit is None
    report = backbone_of(tiny, choice_logits=True).encode_pairs(pairs, progress=False).report
    assert report.computed == 4
    assert backbone_of(tiny, choice_logits=True).encode_pairs(pairs, progress=False).report.computed == 0


def test_long_dialogues_lose_their_beginning_not_the_question(tiny, backbone_of) -> None:
    pair = Pair((Message("user", "x" * 600 + " What now?"),), "Run.", "Stay.")
    backbone = backbone_of(tiny, choice_logits=True, max_tokens=200)
    found = backbone.encode_pairs([pair], progress=False)
    assert found.report.truncated == 1
    dialogue = f"Human: {pair.prompt[0].content}"
    shown = []
    for a, b in ((pair.a, pair.b), (pair.b, pair.a)):
        text = "\n\nHuman: " + QUESTION.format(dialogue=dialogue, a=a, b=b) + "\n\nAssistant:"
        shown.append(reference(tiny, text[-200:], " "))
    assert float(found.base_logit[0]) == pytest.approx((shown[0] - shown[1]) / 2, abs=1e-4)


def test_a_capped_head(tiny, backbone_of, pairs) -> None:
    backbone = backbone_of(tiny, choice_logits=True)
    backbone._load(frozenset({None})).config.final_logit_softcapping = 1e-3
    found = backbone.encode_pairs(pairs, progress=False)
    assert found.base_logit is not None
    assert 0 < found.base_logit.abs().max() <= 2e-3


def test_a_tokenizer_that_cannot_answer(tiny) -> None:
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny))
    renderer.ids = lambda texts, special=False: [[5] for _ in texts]
    with pytest.raises(UserError, match=r"backbone\.choice_logits"):
        _answers(renderer)


def test_the_marker_never_reaches_the_model(chatty) -> None:
    renderer = Renderer(AutoTokenizer.from_pretrained(chatty))
    head, tail = choice._around(renderer, (Message("user", f"odd {choice._HERE} text"),))
    assert head.endswith(f"odd {choice._HERE} text")
    assert tail == "</s>\n<s>assistant\n"
