"""The remote reward-model protocol of OpenRLHF (``--remote_rm_url``; openrlhf/utils/agent.py and cli/serve_rm.py).

The trainer posts ``query`` (prompt and response as the policy saw them, with its chat template and special tokens) and,
in recent versions, ``prompts`` (the same without the response) and ``labels``. A selector wants a dialogue and a
response, so the template's marks are taken off again. Templates that are not known here need ``prompts``, and then the
rendered prompt counts as one user turn.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fedvpa.apps.server.errors import invalid
from fedvpa.preferences.schema import Message, Prompt


class _Template(NamedTuple):
    """How a family of templates begins a turn (group 1 is the role) and ends it."""

    head: re.Pattern[str]
    end: tuple[str, ...]


_TEMPLATES = (
    _Template(re.compile(r"<\|im_start\|>(\w+)\n"), ("<|im_end|>",)),
    _Template(re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n"), ("<|eot_id|>",)),
    _Template(re.compile(r"<start_of_turn>(\w+)\n"), ("<end_of_turn>",)),
    _Template(re.compile(r"<\|(system|user|assistant)\|>\n?"), ("<|end|>", "</s>", "<|endoftext|>")),
    _Template(re.compile(r"\n\n(Human|Assistant):"), ()),
)
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "model": "assistant"}
_SPECIAL = r"<\|[^<>|\n]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk|end_of_turn)>|\[PAD\]"
_TRAILING = re.compile(rf"(?:\s|{_SPECIAL})+\Z")
_LEADING = re.compile(rf"\A(?:\s|{_SPECIAL})*\Z")


def split(query: str, prompt: str | None, number: int) -> tuple[Prompt, str]:
    """The dialogue and the response of a query.

    Args:
        query: prompt and response; prompt: the prompt alone, where the trainer sends it.
        number: of the query in its request, for errors.

    Returns:
        The dialogue, and the response without white space and special tokens around it; it may be empty.

    Raises:
        ApiError: the place where the response begins cannot be found.
    """
    if prompt and prompt.strip():
        before, found, response = query.partition(prompt)
        if found and _LEADING.match(before):
            return dialogue(prompt), bare(response)
    if (turns := _turns(query)) and turns[-1].role == "assistant" and any(m.content for m in turns[:-1]):
        return tuple(m for m in turns[:-1] if m.content), turns[-1].content
    remedy = "send prompts as well, or let the policy use a chat template"
    raise invalid(f"query[{number}]", "the response cannot be told from the prompt", remedy)


def dialogue(prompt: str) -> Prompt:
    """A rendered prompt as a dialogue; as one user turn where its template is not known."""
    turns = tuple(m for m in _turns(prompt) if m.content)
    return turns or (Message("user", prompt.strip()),)


def bare(text: str) -> str:
    """A text without the special tokens at its end, and white space around it."""
    return _TRAILING.sub("", text).strip()


def _turns(text: str) -> list[Message]:
    """The turns of a rendered dialogue; none if no template fits."""
    for template in _TEMPLATES:
        heads = list(template.head.finditer(text))
        if not heads or not _LEADING.match(text[: heads[0].start()]):
            continue
        turns = []
        for head, following in zip(heads, [*heads[1:], None], strict=True):
            content = text[head.end() : following.start() if following else len(text)]
            for end in template.end:
                content = content.split(end)[0]
            turns.append(Message(_ROLES.get(head[1].lower(), "user"), bare(content)))
        return turns
    return []
