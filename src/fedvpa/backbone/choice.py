"""Base choice logits: what the frozen model itself prefers (method.md, section 2; Eq. 2 of arXiv 2605.30873)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedvpa.backbone.extract import Item
from fedvpa.backbone.forward import FrozenLM, pool
from fedvpa.backbone.packing import Batch
from fedvpa.backbone.tokens import Renderer, Text, kept
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Message, Prompt

_NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}
_HEAD = "Here is a dialogue, followed by two possible responses.\n\n{dialogue}"
_TAIL = "\n\nResponse A: {a}\n\nResponse B: {b}\n\nWhich response is better? Answer with A or B."
_HERE = "[[fedvpa:responses]]"


@dataclass(frozen=True)
class ChoiceExtractor:
    """l(a, b) = logit("A") - logit("B") at the end of a choice prompt that shows a as A and b as B.

    An `Item` holds both responses in the order shown; the two orders of a pair share the dialogue's part of the row.
    """

    load: Callable[[frozenset[int | None]], FrozenLM]
    max_tokens: int
    base_identity: Mapping[str, Any]
    label: str = "choice logits"
    dim: int = 1
    layer: None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**self.base_identity, "kind": "choice", "template": [_HEAD, _TAIL]}

    def texts(self, lm: FrozenLM, items: Sequence[Item]) -> list[Text]:
        return choice_texts(lm.renderer, items, self.max_tokens)

    @torch.inference_mode()
    def vectors(self, lm: FrozenLM, hidden: Tensor, batch: Batch) -> Tensor:
        """(spans, 1)"""
        return answer_logits(lm, hidden, batch).unsqueeze(-1)


def choice_texts(renderer: Renderer, items: Sequence[Item], max_tokens: int) -> list[Text]:
    """The choice prompt of each item, with its two responses in the order shown.

    Where it is too long, the dialogue keeps its last tokens, at least half of what is left beside the question; of the
    other half each response keeps its first tokens. The question itself is always whole.
    """
    rendered = {p: _around(renderer, p) for p in dict.fromkeys(i.prompt for i in items)}
    heads = [rendered[i.prompt][0] for i in items]
    tails = [_TAIL.format(a=i.responses[0], b=i.responses[1]) + rendered[i.prompt][1] for i in items]
    whole = renderer.tokenize(heads, tails, 2**31)
    return [
        text
        if len(text.prompt) + len(text.response) <= max_tokens
        else _shortened(renderer, text, item, end, max_tokens)
        for text, item, end in zip(whole, items, (rendered[i.prompt][1] for i in items), strict=True)
    ]


def _shortened(renderer: Renderer, text: Text, item: Item, end: str, most: int) -> Text:
    """A choice prompt that is too long, with its responses cut; ``end``: what stands behind the question."""
    before, between, behind = _TAIL.split("{a}")[0], *_TAIL.split("{a}")[1].split("{b}")
    first, middle, last, a, b = renderer.ids([before, between, behind + end, *item.responses])
    room = max(most - len(first) - len(middle) - len(last), 3)
    prompt, responses = kept(len(text.prompt), len(a) + len(b), room)
    one = min(len(a), max(responses // 2, responses - len(b)))
    tail = [*first, *a[:one], *middle, *b[: responses - one], *last]
    cut = len(text.prompt) - prompt + len(a) + len(b) - responses
    return Text(text.prompt[len(text.prompt) - prompt :], tuple(tail), cut)


def answer_logits(lm: FrozenLM, hidden: Tensor, batch: Batch) -> Tensor:
    """(spans,) float32 logit("A") - logit("B") behind the last token of each span. hidden: (rows, length, D)"""
    logits = lm.logits(pool(hidden, batch.spans, "last"), list(_answers(lm.renderer)))
    return logits[:, 0] - logits[:, 1]


def _around(renderer: Renderer, prompt: Prompt) -> tuple[str, str]:
    """The rendered choice prompt before and behind the two responses."""
    dialogue = "\n\n".join(f"{_NAMES.get(m.role, m.role)}: {m.content}" for m in prompt)
    question = renderer.prompt((Message("user", _HEAD.format(dialogue=dialogue) + _HERE),))
    head, _, tail = question.rpartition(_HERE)
    return head, tail


def _answers(renderer: Renderer) -> tuple[int, int]:
    """Token ids of the two answers."""
    a, b = (ids[-1] for ids in renderer.ids([renderer.space + "A", renderer.space + "B"]))
    if a == b:
        raise UserError("the tokenizer has no tokens for A and B", "set it to false", field="backbone.choice_logits")
    return a, b
