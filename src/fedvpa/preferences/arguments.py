"""Prompts and responses that somebody hands over in Python, read by the functions that read training data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedvpa.errors import UserError
from fedvpa.inputs import kind, listed, many, plain
from fedvpa.preferences.jsonl import one_response, prompt_of, two_responses
from fedvpa.preferences.schema import Item, Message, Pair, Prompt

_HERE = Path()


def read_prompt(value: Any, field: str = "prompt") -> Prompt:
    """A prompt: a text, or messages.

    Raises:
        UserError: neither, an empty one, or a turn of an unknown role.
    """
    row = {"prompt": _turns(value, field)}
    try:
        return prompt_of(row, _HERE, 1)
    except UserError as e:
        raise _placed(e, {"prompt": field}) from None


def read_item(prompt: Any, text: Any, fields: tuple[str, str] = ("prompt", "response")) -> Item:
    """A response to a prompt, each a text or messages.

    Args:
        fields: what the two are called in errors.
    """
    row = {"prompt": _turns(prompt, fields[0]), "text": _turns(text, fields[1])}
    try:
        return Item(*one_response(row, "text", _HERE, 1))
    except UserError as e:
        raise _placed(e, dict(zip(("prompt", "text"), fields, strict=True))) from None


def read_pair(prompt: Any, a: Any, b: Any, fields: tuple[str, str, str] = ("prompt", "a", "b")) -> Pair:
    """A pair; its responses may be equal, unlike those of a judgement."""
    if isinstance(a, str) and isinstance(b, str) and a.split() == b.split():
        item = read_item(prompt, a, fields[:2])
        return Pair(item.prompt, item.text, item.text)
    row = {k: _turns(v, f) for k, v, f in zip(("prompt", "a", "b"), (prompt, a, b), fields, strict=True)}
    try:
        return Pair(*two_responses(row, "a", "b", _HERE, 1))
    except UserError as e:
        raise _placed(e, dict(zip(("prompt", "a", "b"), fields, strict=True))) from None


def read_pairs(prompts: Any, a: Any, b: Any) -> list[Pair]:
    """Pairs from columns: lists of responses, and one prompt for all or one each."""
    remedy = "give one text each, or lists of the same length"
    left, right = listed(a, "a", remedy), listed(b, "b", remedy)
    if len(left) != len(right):
        raise UserError(f"{len(right)} for {len(left)} in a", remedy, field="b")
    rows = zip(many(prompts, len(left), "prompt"), left, right, strict=True)
    return [read_pair(*row, (f"prompt[{i}]", f"a[{i}]", f"b[{i}]")) for i, row in enumerate(rows)]


def read_items(prompts: Any, responses: Any) -> list[Item]:
    """Items from columns: a list of responses, and one prompt for all or one each."""
    texts = listed(responses, "responses", "give a list of texts")
    rows = zip(many(prompts, len(texts), "prompts"), texts, strict=True)
    return [read_item(p, r, (f"prompts[{i}]", f"responses[{i}]")) for i, (p, r) in enumerate(rows)]


def _turns(value: Any, field: str) -> Any:
    """Messages as the readers know them: a list of mappings."""
    value = plain(value)
    if value is None:
        raise UserError("must be text or messages, not None", "give a text", field=field)
    if isinstance(value, (str, int, float, dict)):
        return value
    if not isinstance(value, Sequence):
        raise UserError(f"must be text or messages, not {kind(value)}", "give a text", field=field)
    return [turn._asdict() if isinstance(turn, Message) else plain(turn) for turn in value]


def _placed(e: UserError, names: dict[str, str]) -> UserError:
    """The error with the argument's name in place of the column's, and without file and line."""
    column, rest = (e.field or ""), ""
    for end, sign in enumerate(column):
        if sign in "[.":
            column, rest = column[:end], column[end:]
            break
    remedy = None if e.remedy is None else e.remedy.replace("remove the row", "leave it out")
    return UserError(e.problem, remedy or "correct it", field=names.get(column, column) + rest)
