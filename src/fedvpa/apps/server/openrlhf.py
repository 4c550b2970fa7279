"""The remote reward-model protocol of OpenRLHF (``--remote_rm_url``; openrlhf/utils/agent.py and cli/serve_rm.py).

The trainer posts ``query`` (prompt and response as the policy saw them, with its chat template and special tokens) and,
in recent versions, ``prompts`` (the same without the response) and ``labels``. A selector wants a dialogue and a
response, so the template's marks are taken off again, and so is what the template adds by itself: a default system
turn, an empty think block. Templates that are not known here need ``prompts``, and then the rendered prompt counts as
one user turn.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fedvpa.apps.server.additions import KNOWN, Additions
from fedvpa.apps.server.errors import invalid
from fedvpa.preferences.schema import Message, Prompt


class _Template(NamedTuple):
    """How a family of templates begins a turn (group 1 is the role) and ends it."""

    head: re.Pattern[str]
    end: tuple[str, ...]


_TEMPLATES = (
    _Template(re.compile(r"<\|im_start\|>(\w+)(?:\n|<\|im_sep\|>)"), ("<|im_end|>",)),
    _Template(re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n"), ("<|eot_id|>",)),
    _Template(re.compile(r"<start_of_turn>(\w+)\n"), ("<end_of_turn>",)),
    _Template(re.compile(r"<\|(system|user|assistant)\|>\n?"), ("<|end|>", "</s>", "<|endoftext|>")),
    _Template(re.compile(r"<｜(User|Assistant)｜>"), ("<｜end▁of▁sentence｜>",)),
    _Template(re.compile(r"<\|START_OF_TURN_TOKEN\|><\|(SYSTEM|USER|CHATBOT)_TOKEN\|>"), ("<|END_OF_TURN_TOKEN|>",)),
    _Template(re.compile(r"\[(/?INST)\]"), ("</s>",)),
    _Template(re.compile(r"\n\n(Human|Assistant):"), ()),
)
_AFTER_SYSTEM = ("<｜User｜>",)
"""Heads before which a template writes the system turn without a mark of its own."""
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "model": "assistant"}
_ROLES |= {"chatbot": "assistant", "inst": "user", "/inst": "assistant"}
_SPECIAL = r"<\|[^<>|\n]{1,40}\|>|<｜[^<>｜\n]{1,40}｜>|</?s>|<(?:bos|eos|pad|unk|end_of_turn|sop)>|\[(?:PAD|gMASK)\]"
_TRAILING = re.compile(rf"(?:\s|{_SPECIAL})+\Z")
_LEADING = re.compile(rf"\A(?:\s|{_SPECIAL})*\Z")
_BEGINNING = re.compile(rf"\A(?:\s|{_SPECIAL})+")
_SYSTEM = re.compile(r"\A\s*<<SYS>>\n(.*?)\n<</SYS>>", re.DOTALL)
_NO_THOUGHT = re.compile(r"\A\s*<think>\s*</think>")
_THINK = "<think>"


def split(query: str, prompt: str | None, number: int, additions: Additions = KNOWN) -> tuple[Prompt, str]:
    """The dialogue and the response of a query.

    Args:
        query: prompt and response; prompt: the prompt alone, where the trainer sends it.
        number: of the query in its request, for errors.
        additions: what templates add by themselves.

    Returns:
        The dialogue, and the response without white space and special tokens around it; it may be empty.

    Raises:
        ApiError: the place where the response begins cannot be found.
    """
    if prompt and prompt.strip():
        before, found, response = query.partition(prompt)
        if found and _LEADING.match(before):
            return dialogue(prompt, additions), bare(response)
    if (turns := _turns(query)) and turns[-1].role == "assistant" and any(m.content for m in turns[:-1]):
        return additions.without(tuple(m for m in turns[:-1] if m.content)), turns[-1].content
    remedy = "send prompts as well, or let the policy use a chat template"
    raise invalid(f"query[{number}]", "the response cannot be told from the prompt", remedy)


def dialogue(prompt: str, additions: Additions = KNOWN) -> Prompt:
    """A rendered prompt as a dialogue; as one user turn where its template is not known."""
    turns = tuple(m for m in _turns(prompt) if m.content)
    if turns and turns[-1] == Message("assistant", _THINK):  # the template lets the model begin to think
        turns = turns[:-1]
    return additions.without(turns) or (Message("user", prompt.strip()),)


def bare(text: str) -> str:
    """A text without the special tokens at its end, an empty think block at its head, and white space around it."""
    return _NO_THOUGHT.sub("", _TRAILING.sub("", text)).strip()


def _turns(text: str) -> list[Message]:
    """The turns of a rendered dialogue; none if no template fits."""
    for template in _TEMPLATES:
        heads = list(template.head.finditer(text))
        if not heads:
            continue
        before = _BEGINNING.sub("", text[: heads[0].start()])
        if before and heads[0][0] not in _AFTER_SYSTEM:
            continue
        turns = [Message("system", bare(before))] if before else []
        for head, following in zip(heads, [*heads[1:], None], strict=True):
            content = text[head.end() : following.start() if following else len(text)]
            for end in template.end:
                content = content.split(end)[0]
            if system := _SYSTEM.match(content):  # Llama 2 puts it into the first user turn
                turns.append(Message("system", system[1].strip()))
                content = content[system.end() :]
            turns.append(Message(_ROLES.get(head[1].lower(), "user"), bare(content)))
        return turns
    return []
