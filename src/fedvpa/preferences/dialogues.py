"""One form for the dialogues that people have: messages, ShareGPT's turns, content in parts, JSON text, HH text."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from fedvpa.errors import UserError
from fedvpa.preferences.lines import checked_text, type_name
from fedvpa.preferences.schema import Message, Prompt

_ROLES = ("system", "user", "assistant")
_SAME = {"human": "user", "gpt": "assistant", "model": "assistant", "developer": "system"}
_TOOLS = ("tool", "function", "function_call", "observation", "ipython")
_SKIP = "leave such rows out with data.on_invalid=skip"
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_LIST_OF_TURNS = re.compile(r"\s*\[\s*\{\s*['\"](role|from|content|value)['\"]\s*:")


def unpacked(value: Any, field: str, path: Path, line: int) -> Any:
    """``value``, or the list of turns that it holds as JSON (or as Python prints it, which is what `to_csv` writes)."""
    if not isinstance(value, str) or not _LIST_OF_TURNS.match(value):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            turns = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(turns, list):
            return turns
    problem = "looks like a list of turns, but is not valid JSON"
    raise UserError(problem, "write it with json.dumps, or as JSON Lines", file=path, line=line, field=field)


def messages_of(value: Any, field: str, path: Path, line: int) -> Prompt:
    """A list of turns as messages.

    A turn has ``role`` and ``content``, or ShareGPT's ``from`` and ``value``; content is text or a list of parts of
    type text. ``developer`` is ``system``; an empty system turn at the beginning is dropped.

    Raises:
        UserError: no such list, an unknown role, or a turn without text (a tool's, an image).
    """
    if not isinstance(value, list):
        raise UserError(f"must be text or messages, not {type_name(value)}", file=path, line=line, field=field)
    if not value:
        raise UserError("is empty", "fill it in or remove the row", file=path, line=line, field=field)
    turns = [_turn(item, f"{field}[{i}]", path, line) for i, item in enumerate(value)]
    if turns[0][0] == "system" and isinstance(turns[0][1], str) and not turns[0][1].strip() and len(turns) > 1:
        turns, shift = turns[1:], 1
    else:
        shift = 0
    return tuple(
        Message(role, checked_text(text, f"{field}[{i}].content", path, line))
        for i, (role, text) in enumerate(turns, start=shift)
    )


def prompt_of_text(text: str) -> Prompt:
    """A prompt that is text: HH's dialogue, up to ``Assistant:`` or without it, or one user turn."""
    found = parse_loosely(text)
    if found is None and text.startswith(_HUMAN):
        found = parse_dialogue(f"{text}{_ASSISTANT}")
    return found[0] if found and not found[1] and found[0] else (Message("user", text),)


def parse_dialogue(text: str) -> tuple[Prompt, str] | None:
    """Splits an HH dialogue (turns after two newlines, ``Human:`` or ``Assistant:``) into prompt and last response.

    None if the text does not begin with a Human turn or does not end in an Assistant turn.
    """
    head, mark, response = text.rpartition(_ASSISTANT)
    if not mark or not text.startswith(_HUMAN) or _HUMAN in response:
        return None
    messages = []
    for part in head.split(_HUMAN)[1:]:
        human, *answers = part.split(_ASSISTANT)
        messages.append(Message("user", human.strip()))
        messages += [Message("assistant", a.strip()) for a in answers]
    return tuple(messages), response.strip()


def parse_loosely(text: str) -> tuple[Prompt, str] | None:
    """`parse_dialogue`, whatever white space stands before the first turn: many files have lost it."""
    return parse_dialogue(f"\n\n{text.lstrip()}" if text.lstrip().startswith(_HUMAN.strip()) else text)


def _turn(item: Any, place: str, path: Path, line: int) -> tuple[str, Any]:
    """Role and content of a turn, the content not yet checked."""
    if not isinstance(item, dict):
        problem = f"must be a message with role and content, not {type_name(item)}"
        raise UserError(problem, file=path, line=line, field=place)
    names = ("from", "value") if "from" in item and "role" not in item else ("role", "content")
    role, content = item.get(names[0]), item.get(names[1])
    role = _SAME.get(role, role) if isinstance(role, str) else role
    if role in _TOOLS or (role == "assistant" and item.get("tool_calls")):
        raise UserError("is a tool's turn, and only texts are read", _SKIP, file=path, line=line, field=place)
    if role not in _ROLES:
        raise UserError(f"must be one of {', '.join(_ROLES)}", file=path, line=line, field=f"{place}.{names[0]}")
    return role, _text_of_parts(content, f"{place}.{names[1]}", path, line)


def _text_of_parts(content: Any, field: str, path: Path, line: int) -> Any:
    if not isinstance(content, list):
        return content
    if not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        raise UserError("holds a part that is not text", _SKIP, file=path, line=line, field=field)
    return "".join(p["text"] for p in content)
