"""Rows of two responses: TRL's preference columns and candidate pairs, in any table.

A row has ``prompt``, ``chosen`` and ``rejected``, standard (texts) or conversational (lists of messages; the last
assistant turn is the response). Without ``prompt`` it is what both dialogues (or texts) begin with; with one, both may
repeat it (`repeats`).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from fedvpa.errors import UserError
from fedvpa.preferences.lines import OnInvalid, Row
from fedvpa.preferences.repeats import dialogue_of, no_prompt, read_prompt
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
    return read_prompt(row["prompt"], path, line)


def preference_of(row: Row, path: Path, line: int, counts: Counter[str] | None = None) -> tuple[Prompt, str, str]:
    """The prompt, chosen and rejected response of a row in one of the public layouts."""
    return two_responses(row, "chosen", "rejected", path, line, counts)


def two_responses(
    row: Row, first: str, second: str, path: Path, line: int, counts: Counter[str] | None = None
) -> tuple[Prompt, str, str]:
    """The prompt and the responses in the columns `first` and `second`, see `repeats.dialogue_of`.

    Responses that differ by white space only are equal.
    """
    fields = (first, second)
    prompt, (one, two) = dialogue_of(row, fields, path, line, counts)
    if prompt is None:
        raise no_prompt(fields, path, line)
    if one.split() == two.split():
        but = "" if one == two else " but for white space"
        raise UserError(f"equals {first}{but}", "remove the row", file=path, line=line, field=second)
    return prompt, one.strip(), two.strip()


def one_response(row: Row, field: str, path: Path, line: int, counts: Counter[str] | None = None) -> tuple[Prompt, str]:
    """The prompt and the response in the column `field`, text or messages; without a prompt it is `NO_PROMPT`."""
    prompt, (text,) = dialogue_of(row, (field,), path, line, counts)
    return prompt or NO_PROMPT, text.strip()
