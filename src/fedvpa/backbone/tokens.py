"""From dialogues to token ids: the chat template, the response's exact span, and the one rule for what is too long."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from jinja2 import TemplateError

from fedvpa.errors import UserError
from fedvpa.preferences.schema import Message, Prompt

_TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_REFUSED = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
"""What a template may raise: its own refusal, or that of an expression in it."""
_DAY = datetime(2024, 7, 26)
"""The day that templates get to see; it is the one that Llama 3.1's names where it is told none."""
_ROLES = {"user": "Human", "assistant": "Assistant", "system": "System"}


class Text(NamedTuple):
    """A tokenised prompt with one continuation.

    Attributes:
        prompt: token ids, already cut.
        response: token ids, already cut, never empty.
        cut: number of tokens that were cut off.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    cut: int


def kept(prompt: int, response: int, most: int) -> tuple[int, int]:
    """How many tokens of a prompt and of a response stay where both together exceed ``most``.

    A prompt has a right to half of the tokens, a response to the other half, and either to what the other one leaves.
    Of the prompt the last tokens stay, which the response answers; of the response the first ones.
    """
    before = min(prompt, max(most // 2, most - response))
    return before, min(response, most - before)


class Renderer:
    """Renders dialogues in a model's own format.

    With a chat template the prompt ends with its generation prompt. Without one it is HH-RLHF's own format,
    ``\\n\\nHuman: ...\\n\\nAssistant:``, and the response follows after a space. Prompt and response are tokenised
    apart and joined, so that no token straddles the border. A default system prompt that the template would insert is
    left empty: it says nothing about the response and costs its tokens once per pair.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.templated = bool(tokenizer.chat_template)  # an empty one would leave nothing of the prompt
        # Some templates write today's date; a feature must not depend on the day on which it is computed.
        dated = isinstance(tokenizer.chat_template, str) and _TODAY.search(tokenizer.chat_template)
        self._template = (
            _TODAY.sub(lambda m: json.dumps(_DAY.strftime(m[2])), tokenizer.chat_template) if dated else None
        )
        self._empty_system = self.templated and self._prefers_empty_system()

    @property
    def space(self) -> str:
        """What stands between the rendered prompt and the response."""
        return "" if self.templated else " "

    def prompt(self, prompt: Prompt) -> str:
        """The dialogue as text, up to the place where the response begins.

        Raises:
            UserError: the chat template refuses the dialogue.
        """
        if not self.templated:
            return "".join(f"\n\n{_ROLES.get(m.role, m.role)}: {m.content}" for m in prompt) + "\n\nAssistant:"
        try:
            return self._apply(prompt)
        except _REFUSED:
            pass  # some templates know no system role, or insist that the roles alternate
        try:
            return self._apply(_alternating(prompt))
        except _REFUSED as e:
            remedy = "choose another backbone.model"
            raise UserError(f"the model's chat template refuses a dialogue ({e})", remedy, field="prompt") from None

    def responses(self, dialogues: Sequence[tuple[Prompt, str]], max_tokens: int) -> list[Text]:
        """Tokenises responses behind their rendered prompts, (prompt, response) each, and cuts as `tokenize` does."""
        rendered = {p: self.prompt(p) for p in dict.fromkeys(p for p, _ in dialogues)}
        tails = [self.space + response for _, response in dialogues]
        return self.tokenize([rendered[p] for p, _ in dialogues], tails, max_tokens)

    def completions(self, dialogues: Sequence[tuple[Prompt, str]], max_tokens: int) -> list[Text]:
        """Tokenises responses with the end-of-sequence token behind them, to be written by a model.

        A prompt keeps its last ``max_tokens / 2`` tokens, whatever the response, so that two responses to it have one
        prompt. A response loses what then exceeds ``max_tokens``, its end first.
        """
        whole = self.responses(dialogues, 2**31)
        end = () if self.tokenizer.eos_token_id is None else (self.tokenizer.eos_token_id,)
        texts = []
        for text in whole:
            prompt = text.prompt[-(max_tokens // 2) :]
            response = (*text.response, *end)[: max_tokens - len(prompt)]
            cut = len(text.prompt) + len(text.response) + len(end) - len(prompt) - len(response)
            texts.append(Text(prompt, response, cut))
        return texts

    def tokenize(self, prompts: Sequence[str], responses: Sequence[str], max_tokens: int) -> list[Text]:
        """Tokenises rendered prompts, each with its continuation, and cuts what exceeds ``max_tokens`` (`kept`).

        Raises:
            UserError: a continuation without a single token.
        """
        unique = {text: i for i, text in enumerate(dict.fromkeys(prompts))}
        heads = self.ids(list(unique), special=not self.templated)
        tails = self.ids(list(responses))
        texts = []
        for prompt, tail in zip(prompts, tails, strict=True):
            if not tail:
                raise UserError("an empty response", "remove it, or give it some text", field="response")
            head = heads[unique[prompt]]
            before, behind = kept(len(head), len(tail), max_tokens)
            cut = len(head) + len(tail) - before - behind
            texts.append(Text(tuple(head[len(head) - before :]), tuple(tail[:behind]), cut))
        return texts

    def ids(self, texts: list[str], special: bool = False) -> list[list[int]]:
        """Token ids per text; ``special`` adds what the tokenizer itself puts around a text's beginning."""
        if not texts:
            return []
        ids = self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        return [i[:-1] if special and len(i) > 1 and i[-1] == end else i for i in ids]

    def _apply(self, prompt: Prompt) -> str:
        messages = [m._asdict() for m in prompt]
        if self._empty_system and (not prompt or prompt[0].role != "system"):
            messages.insert(0, {"role": "system", "content": ""})
        given = {} if self._template is None else {"chat_template": self._template}
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **given)

    def _prefers_empty_system(self) -> bool:
        """True if an empty system message is accepted and makes the rendering shorter than none."""
        user = {"role": "user", "content": "x"}
        try:
            plain, empty = (
                self.tokenizer.apply_chat_template(m, add_generation_prompt=True, tokenize=False)
                for m in ([user], [{"role": "system", "content": ""}, user])
            )
        except _REFUSED:
            return False
        return len(empty) < len(plain)


def _alternating(prompt: Prompt) -> Prompt:
    """The same dialogue with system turns given to the user and neighbours of one role merged."""
    merged: list[Message] = []
    for message in prompt:
        role = "assistant" if message.role == "assistant" else "user"
        if merged and merged[-1].role == role:
            merged[-1] = Message(role, f"{merged[-1].content}\n\n{message.content}")
        else:
            merged.append(Message(role, message.content))
    return tuple(merged)
