"""The user's own files: TRL's preference columns, one user's examples, and candidate pairs, as JSON Lines.

A row has ``prompt``, ``chosen`` and ``rejected``, standard (texts) or conversational (lists of messages; the last
assistant turn is the response). Without ``prompt`` it is what both dialogues (or texts) begin with. ``user_id`` names
the user; an optional ``group`` names the user's true group, for evaluation only.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from fedvpa.errors import UserError
from fedvpa.preferences.lines import OnInvalid, Row, checked_text, read_rows, text_field, type_name
from fedvpa.preferences.schema import Message, Pair, Prompt

_ROLES = ("system", "user", "assistant")
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


class PreferenceRow(NamedTuple):
    """One valid row: ``user`` prefers ``pair.a`` if ``y`` is +1, else ``pair.b``."""

    user: str
    pair: Pair
    y: int
    group: str | None = None


def read_preference_rows(
    path: str | Path,
    on_invalid: OnInvalid = "error",
    counts: Counter[str] | None = None,
    user_column: str = "user_id",
) -> list[PreferenceRow]:
    """Reads rows ``prompt, chosen, rejected, user_id[, group]``.

    The pairs are in canonical order (`Pair.canonical`), so the same two responses are the same pair whoever reads
    them in whichever order.

    Args:
        path: a JSON Lines file, plain or gzipped.
        on_invalid: whether an invalid row is an error or is left out.
        counts: its ``invalid rows`` is raised by the rows left out.
        user_column: the column that names the user.

    Raises:
        UserError: an unreadable file, an invalid row, no valid row, or a user in two groups.
    """
    groups: dict[str, str | None] = {}

    def parse(row: Row, path: Path, line: int) -> PreferenceRow:
        user = _user(row, user_column, path, line)
        group = None if row.get("group") is None else text_field(row, "group", path, line)
        prompt, chosen, rejected = preference_of(row, path, line)
        if groups.setdefault(user, group) != group:
            problem = f"user {user!r} is in group {groups[user]!r} on an earlier row, here in {group!r}"
            raise UserError(problem, "give a user one group", file=path, line=line, field="group")
        return PreferenceRow(user, *Pair.canonical(prompt, chosen, rejected), group)

    return read_rows(path, parse, on_invalid, counts)


def read_examples(path: str | Path, on_invalid: OnInvalid = "error") -> list[tuple[Pair, int]]:
    """Reads one user's examples: ``prompt, chosen, rejected`` (``a`` is the chosen, y = +1), or ``prompt, a, b, y``.

    Raises:
        UserError: an unreadable file, an invalid row, or no valid row.
    """

    def parse(row: Row, path: Path, line: int) -> tuple[Pair, int]:
        if "a" in row or "b" in row:
            if "y" not in row:
                raise UserError("missing column", "1 if a is preferred, -1 if b is", file=path, line=line, field="y")
            y = row["y"]
            if isinstance(y, bool) or y not in (1, -1):
                raise UserError("must be 1 (a is preferred) or -1 (b is)", file=path, line=line, field="y")
            return candidate_of(row, path, line), int(y)
        return Pair(*preference_of(row, path, line)), 1

    return read_rows(path, parse, on_invalid)


def read_candidates(path: str | Path, on_invalid: OnInvalid = "error") -> list[Pair]:
    """Reads unlabelled pairs ``prompt, a, b``, in the file's order.

    Raises:
        UserError: an unreadable file, an invalid row, or no valid row.
    """
    return read_rows(path, candidate_of, on_invalid)


def candidate_of(row: Row, path: Path, line: int) -> Pair:
    """The pair of a row ``prompt, a, b``."""
    if "prompt" not in row:
        raise UserError("missing column", "give every row a 'prompt'", file=path, line=line, field="prompt")
    return Pair(*_two_responses(row, "a", "b", path, line))


def prompt_of(row: Row, path: Path, line: int) -> Prompt:
    """The prompt of a row ``prompt``, text or messages."""
    if row.get("prompt") is None:
        raise UserError("missing column", "give every row a 'prompt'", file=path, line=line, field="prompt")
    return _prompt(row["prompt"], path, line)


def preference_of(row: Row, path: Path, line: int) -> tuple[Prompt, str, str]:
    """The prompt, chosen and rejected response of a row in one of TRL's preference layouts."""
    return _two_responses(row, "chosen", "rejected", path, line)


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


def _two_responses(row: Row, first: str, second: str, path: Path, line: int) -> tuple[Prompt, str, str]:
    for field in (first, second):
        if field not in row:
            raise UserError("missing column", f"give every row a {field!r}", file=path, line=line, field=field)
    given = None if row.get("prompt") is None else _prompt(row["prompt"], path, line)
    texts = [isinstance(row[field], str) for field in (first, second)]
    if texts[0] != texts[1]:
        problem = f"is {type_name(row[second])}, but {first} is {type_name(row[first])}"
        raise UserError(problem, "make both texts or both lists of messages", file=path, line=line, field=second)
    split = _split_texts if texts[0] else _split_messages
    prompt, one, two = split(row, first, second, given, path, line)
    if one == two:
        raise UserError(f"equals {first}", "remove the row", file=path, line=line, field=second)
    return prompt, one, two


def _split_texts(
    row: Row, first: str, second: str, given: Prompt | None, path: Path, line: int
) -> tuple[Prompt, str, str]:
    one, two = (checked_text(row[field], field, path, line) for field in (first, second))
    if given is not None:
        return given, one, two
    if one == two:
        raise UserError(f"equals {first}", "remove the row", file=path, line=line, field=second)
    dialogues = parse_dialogue(one), parse_dialogue(two)
    if dialogues[0] and dialogues[1] and dialogues[0][0] == dialogues[1][0]:
        prompt, one, two = *dialogues[0], dialogues[1][1]
    else:
        shared = _shared_prefix(one, two)
        prompt, one, two = (Message("user", shared.strip()),), one[len(shared) :], two[len(shared) :]
        if not shared.strip():
            raise _no_prompt(first, second, path, line)
    for field, response in ((first, one), (second, two)):
        checked_text(response, field, path, line)
    return prompt, one.strip(), two.strip()


def _split_messages(
    row: Row, first: str, second: str, given: Prompt | None, path: Path, line: int
) -> tuple[Prompt, str, str]:
    heads, responses = [], []
    for field in (first, second):
        *head, last = _messages(row[field], field, path, line)
        if last.role != "assistant":
            problem = f"ends in a turn of {last.role!r}, not of the assistant"
            raise UserError(problem, "end it in the response", file=path, line=line, field=field)
        heads.append(tuple(head))
        responses.append(last.content)
    if heads[0] != heads[1]:
        problem = f"differs from {first} before the last assistant turn"
        raise UserError(problem, "compare responses to one prompt", file=path, line=line, field=second)
    if given is None and not heads[0]:
        raise _no_prompt(first, second, path, line)
    repeats = given is None or heads[0][: len(given)] == given  # the dialogue begins with the prompt
    return heads[0] if repeats else (given or ()) + heads[0], responses[0], responses[1]


def _no_prompt(first: str, second: str, path: Path, line: int) -> UserError:
    problem = f"missing column, and {first} and {second} do not begin with the same prompt"
    return UserError(problem, "give every row a 'prompt'", file=path, line=line, field="prompt")


def _shared_prefix(one: str, two: str) -> str:
    """What both texts begin with, up to the end of a word."""
    n = next((i for i, (c, d) in enumerate(zip(one, two, strict=False)) if c != d), min(len(one), len(two)))
    if n == len(one) or n == len(two):
        n -= 1  # one text begins with the whole other one: its last word is the response
    while n > 0 and not one[n - 1].isspace():
        n -= 1
    return one[:n]


def _prompt(value: Any, path: Path, line: int) -> Prompt:
    if not isinstance(value, list):
        return (Message("user", checked_text(value, "prompt", path, line)),)
    return _messages(value, "prompt", path, line)


def _messages(value: Any, field: str, path: Path, line: int) -> Prompt:
    if not isinstance(value, list):
        raise UserError(f"must be text or messages, not {type_name(value)}", file=path, line=line, field=field)
    if not value:
        raise UserError("is empty", "fill it in or remove the row", file=path, line=line, field=field)
    messages = []
    for i, item in enumerate(value):
        place = f"{field}[{i}]"
        if not isinstance(item, dict):
            problem = f"must be a message with role and content, not {type_name(item)}"
            raise UserError(problem, file=path, line=line, field=place)
        if item.get("role") not in _ROLES:
            raise UserError(f"must be one of {', '.join(_ROLES)}", file=path, line=line, field=f"{place}.role")
        messages.append(Message(item["role"], checked_text(item.get("content"), f"{place}.content", path, line)))
    return tuple(messages)


def _user(row: Row, column: str, path: Path, line: int) -> str:
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_field(row, column, path, line)
