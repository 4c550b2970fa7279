"""Rows of two responses: TRL's preference columns and candidate pairs, in any table.

A row has ``prompt``, ``chosen`` and ``rejected``, standard (texts) or conversational (lists of messages; the last
assistant turn is the response). Without ``prompt`` it is what both dialogues (or texts) begin with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fedvpa.errors import UserError
from fedvpa.preferences.dialogues import joined, messages_of, parse_dialogue, prompt_of_text, unpacked
from fedvpa.preferences.lines import OnInvalid, Row, checked_text, type_name
from fedvpa.preferences.schema import Message, Pair, Prompt
from fedvpa.preferences.tables import read_table, table_rows

NO_PROMPT: Prompt = (Message("user", "What do you think?"),)
"""Stands before items of a table that has no column for prompts."""


class PreferenceRow(NamedTuple):
    """One valid row: ``user`` prefers ``pair.a`` if ``y`` is +1, else ``pair.b``."""

    user: str
    pair: Pair
    y: int
    group: str | None = None


def read_candidates(path: str | Path, on_invalid: OnInvalid = "error") -> list[Pair]:
    """Reads unlabelled pairs ``prompt, a, b``, in the file's order.

    Raises:
        UserError: an unreadable file, an invalid row, or no valid row.
    """
    return table_rows(read_table(path), candidate_of, on_invalid)


def candidate_of(row: Row, path: Path, line: int) -> Pair:
    """The pair of a row ``prompt, a, b``."""
    if "prompt" not in row:
        raise UserError("missing column", "give every row a 'prompt'", file=path, line=line, field="prompt")
    return Pair(*two_responses(row, "a", "b", path, line))


def prompt_of(row: Row, path: Path, line: int) -> Prompt:
    """The prompt of a row ``prompt``, text or messages."""
    if row.get("prompt") is None:
        raise UserError("missing column", "give every row a 'prompt'", file=path, line=line, field="prompt")
    return _prompt(row["prompt"], path, line)


def preference_of(row: Row, path: Path, line: int) -> tuple[Prompt, str, str]:
    """The prompt, chosen and rejected response of a row in one of TRL's preference layouts."""
    return two_responses(row, "chosen", "rejected", path, line)


def two_responses(row: Row, first: str, second: str, path: Path, line: int) -> tuple[Prompt, str, str]:
    """The prompt and the responses in the columns `first` and `second`, in one of TRL's layouts.

    Responses that differ by white space only are equal.
    """
    for field in (first, second):
        if field not in row:
            raise UserError("missing column", f"give every row a {field!r}", file=path, line=line, field=field)
    row = {**row, **{field: unpacked(row[field], field, path, line) for field in (first, second)}}
    given = None if row.get("prompt") is None else _prompt(row["prompt"], path, line)
    texts = [isinstance(row[field], str) for field in (first, second)]
    if texts[0] != texts[1]:
        problem = f"is {type_name(row[second])}, but {first} is {type_name(row[first])}"
        raise UserError(problem, "make both texts or both lists of messages", file=path, line=line, field=second)
    split = _split_texts if texts[0] else _split_messages
    prompt, one, two = split(row, first, second, given, path, line)
    if one.split() == two.split():
        but = "" if one == two else " but for white space"
        raise UserError(f"equals {first}{but}", "remove the row", file=path, line=line, field=second)
    return prompt, one, two


def _split_texts(
    row: Row, first: str, second: str, given: Prompt | None, path: Path, line: int
) -> tuple[Prompt, str, str]:
    one, two = (checked_text(row[field], field, path, line) for field in (first, second))
    if given is not None:
        return given, *_without_prompt(row["prompt"], one, two)
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


def _without_prompt(prompt: Any, one: str, two: str) -> tuple[str, str]:
    """Both responses, without the text of the prompt where both begin with it and go on after a white space."""
    if isinstance(prompt, str):
        rests = [text[len(prompt) :] for text in (one, two) if text.startswith(prompt)]
        if len(rests) == 2 and all(r.strip() and (r[0].isspace() or prompt[-1].isspace()) for r in rests):
            return rests[0].strip(), rests[1].strip()
    return one, two


def _split_messages(
    row: Row, first: str, second: str, given: Prompt | None, path: Path, line: int
) -> tuple[Prompt, str, str]:
    heads, responses = [], []
    for field in (first, second):
        *head, last = messages_of(row[field], field, path, line)
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
    return joined(given or (), heads[0]), responses[0], responses[1]


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
    value = unpacked(value, "prompt", path, line)
    if not isinstance(value, list):
        return prompt_of_text(checked_text(value, "prompt", path, line))
    return messages_of(value, "prompt", path, line)


def one_response(row: Row, field: str, path: Path, line: int) -> tuple[Prompt, str]:
    """The prompt and the response in the column `field`, text or messages; without a prompt it is `NO_PROMPT`."""
    if field not in row:
        raise UserError("missing column", f"give every row a {field!r}", file=path, line=line, field=field)
    prompt = None if row.get("prompt") is None else _prompt(row["prompt"], path, line)
    value = unpacked(row[field], field, path, line)
    if not isinstance(value, list):
        return prompt or NO_PROMPT, checked_text(value, field, path, line).strip()
    *head, last = messages_of(value, field, path, line)
    if last.role != "assistant":
        problem = f"ends in a turn of {last.role!r}, not of the assistant"
        raise UserError(problem, "end it in the response", file=path, line=line, field=field)
    return joined(prompt or (), tuple(head)) or NO_PROMPT, last.content
