"""One person's judgements of any kind, mixed freely: choices, votes and ratings; and questions to ask that person.

A row is one of these, under the usual names of columns (`columns.USUAL`):

- a choice: ``prompt, chosen, rejected``, or ``prompt, a, b`` with ``preferred`` (``a`` or ``b``) or ``y`` (1 or -1);
  ``margin`` is its strength;
- a vote: ``prompt, completion`` with ``label`` (true or false, as in TRL's unpaired data) or ``vote`` (1 or -1);
- a rating: ``prompt, text, rating``, a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedvpa.errors import UserError
from fedvpa.preferences.cells import by_role, item_of, number_of, preferred_of, strength_of, truth_of
from fedvpa.preferences.columns import USUAL, plain_name
from fedvpa.preferences.draws import draw_context, ends
from fedvpa.preferences.jsonl import candidate_of, preference_of
from fedvpa.preferences.lines import OnInvalid, Row
from fedvpa.preferences.schema import CHOICE, RATING, VOTE, Item, Judgements, Pair
from fedvpa.preferences.seeding import generator
from fedvpa.preferences.tables import Table, read_table, table_rows

_ROLES: Mapping[str, tuple[str, ...]] = {
    **{role: USUAL[role] for role in ("prompt", "chosen", "rejected", "a", "b", "text", "margin")},
    **{role: USUAL[role] for role in ("score_chosen", "score_rejected")},
    "preferred": tuple(name for name in USUAL["preferred"] if name != "label"),
    "y": ("y",),
    "rating": tuple(name for name in USUAL["rating"] if name != "vote"),
    "label": USUAL["label"],
    "vote": ("vote", "thumb", "thumbs"),
}
_KINDS = "give chosen and rejected, or a and b with preferred, or text with label, vote or rating"


class Example(NamedTuple):
    """One judgement.

    Attributes:
        first: what is judged; second: a choice's other response, else None.
        kind: `CHOICE`, `VOTE` or `RATING`.
        value: +1 if ``first`` is preferred, or liked, else -1; or a rating as it was given.
        strength: of a choice, not below 0; None where none was given.
    """

    first: Item
    second: Item | None
    kind: int
    value: float
    strength: float | None = None

    @staticmethod
    def choice(pair: Pair, y: float, strength: float | None = None) -> Example:
        """A choice between a pair's responses; y is +1 if ``a`` is preferred, else -1."""
        return Example(Item(pair.prompt, pair.a), Item(pair.prompt, pair.b), CHOICE, y, strength)


class Question(NamedTuple):
    """A judgement that somebody could be asked for: of ``first`` alone (yes or no), or which of two is preferred."""

    first: Item
    second: Item | None = None

    def answered(self, yes: bool) -> Example:
        """The answer: yes, or the first; no, or the second."""
        return Example(self.first, self.second, VOTE if self.second is None else CHOICE, 1.0 if yes else -1.0)


def examples_of(rows: Sequence[Mapping[str, Any]], place: Path) -> list[Example]:
    """One person's judgements from objects; ties and passes are left out.

    Args:
        place: what stands before the number of a row in an error.

    Raises:
        UserError: a row without one of the columns, with an empty text, or that compares two equal ones.
    """
    found = [_read(row, place, number, _example, True) for number, row in enumerate(rows, 1)]
    return [example for example in found if example is not None]


def read_examples(path: str | Path, on_invalid: OnInvalid = "error") -> list[Example]:
    """One person's judgements from any table (`read_table`); ties and passes are left out.

    Raises:
        UserError: an unreadable file, an invalid row, or no row that says something.
    """
    found = [example for example in _rows(read_table(path), _example, on_invalid) if example is not None]
    if not found:
        raise UserError("every row is a tie or a pass", "give rows that say something", file=path)
    return found


def questions_of(rows: Sequence[Mapping[str, Any]], place: Path) -> list[Question]:
    """Questions from objects ``prompt, text`` or ``prompt, a, b``, as `examples_of` reads judgements."""
    return [_read(row, place, number, _question, True) for number, row in enumerate(rows, 1)]


def read_questions(path: str | Path, on_invalid: OnInvalid = "error") -> list[Question]:
    """Questions from a table with ``prompt, text`` (items) or ``prompt, a, b`` (pairs), in the file's order.

    Raises:
        UserError: an unreadable file, an invalid row, or no valid row.
    """
    return _rows(read_table(path), _question, on_invalid)


def as_judgements(examples: Sequence[Example], rated: bool) -> tuple[tuple[Item, ...], Judgements]:
    """The distinct items of examples, and the judgements as rows of them, ratings as they were given.

    Strengths are divided by their mean; a choice without one has 1.

    Args:
        rated: whether anybody rated in training. Otherwise a rating of 1 or -1 is a vote and one of 0 a pass.

    Raises:
        UserError: another rating where nobody rated in training.
    """
    if not rated:
        examples = [_as_vote(e) for e in examples if e.kind != RATING or e.value != 0]
    place: dict[Item, int] = {}
    first = [place.setdefault(e.first, len(place)) for e in examples]
    second = [-1 if e.second is None else place.setdefault(e.second, len(place)) for e in examples]
    given = [e.strength for e in examples if e.strength is not None]
    mean = (sum(given) / len(given) if given else 1.0) or 1.0
    return tuple(place), Judgements(
        torch.tensor(first, dtype=torch.int64),
        torch.tensor(second, dtype=torch.int64),
        torch.tensor([e.value for e in examples], dtype=torch.float32),
        torch.tensor([e.kind for e in examples], dtype=torch.int8),
        torch.tensor([1.0 if e.strength is None else e.strength / mean for e in examples], dtype=torch.float32),
    )


def as_pairs(examples: Sequence[Example]) -> list[tuple[Pair, int]]:
    """What examples say about pairs, for methods that take nothing else.

    Choices as they are; and of votes and ratings pairs of one prompt, a yes over a no, the higher rating over the
    lower, up to as many as there are votes and ratings: each judgement once where possible (`draws.draw_context`).

    Raises:
        UserError: examples, but no pair among them.
    """
    chosen = [(Pair(e.first.prompt, e.first.text, e.second.text), int(e.value)) for e in examples if e.second]
    alone = [e for e in examples if e.second is None]
    if alone:
        items, own = as_judgements(alone, True)
        numbers: dict[Any, int] = {}
        prompts = torch.tensor([numbers.setdefault(e.first.prompt, len(numbers)) for e in alone])
        rows, _ = draw_context(own, prompts, len(alone), len(alone), 0.0, generator(0, "examples"))
        for high, low in ends(own, rows).tolist():
            chosen.append((Pair(items[high].prompt, items[high].text, items[low].text), 1))
    if examples and not chosen:
        problem = "this selector learns from pairs, and no two of the judgements make one"
        raise UserError(problem, "give a yes and a no, or two ratings, to responses of one prompt", field="examples")
    return chosen


def _as_vote(example: Example) -> Example:
    if example.kind != RATING:
        return example
    if abs(example.value) != 1:
        problem = f"is {example.value:g}, but nobody gave ratings in the run's training data"
        raise UserError(problem, "give votes (label: true or false) or choices", field="rating")
    return example._replace(kind=VOTE)


def _rows(table: Table, parse: Callable[[Row, Path, int], Any], on_invalid: OnInvalid) -> list[Any]:
    return table_rows(table, lambda row, path, line: _read(row, path, line, parse, table.typed), on_invalid)


def _read(row: Row, path: Path, line: int, parse: Callable[[Row, Path, int], Any], typed: bool) -> Any:
    """`parse` for a row under its roles; cells that hold nothing count as missing."""
    if not isinstance(row, Mapping):
        raise UserError("must be an object", _KINDS, file=path, line=line)
    filled = {plain_name(str(k)): k for k, v in reversed(list(row.items())) if not _absent(v, typed)}
    columns = {
        role: filled[name]
        for role, names in _ROLES.items()
        for name in [next((n for n in names if n in filled), None)]
        if name is not None
    }
    return by_role(parse, columns, typed)(row, path, line)


def _absent(value: Any, typed: bool) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (not typed and isinstance(value, str) and not value.strip())


def _example(row: Row, path: Path, line: int) -> Example | None:
    if "chosen" in row or "rejected" in row:
        pair, strength = Pair(*preference_of(row, path, line)), strength_of(row, path, line)
        return None if strength == 0 else Example.choice(pair, 1.0, strength)
    if "a" in row or "b" in row:
        pair, y = candidate_of(row, path, line), _preferred(row, path, line)
        strength = strength_of(row, path, line)
        return None if y == 0 or strength == 0 else Example.choice(pair, y, strength)
    if "text" not in row:
        raise UserError("missing column", _KINDS, file=path, line=line, field="chosen")
    item = item_of(row, path, line)
    if "rating" in row and (truth := truth_of(row, "rating")) is None:
        return Example(item, None, RATING, number_of(row, "rating", path, line))
    value = (1.0 if truth else -1.0) if "rating" in row else _vote(row, path, line)
    return Example(item, None, VOTE, value) if value else None


def _question(row: Row, path: Path, line: int) -> Question:
    if "a" in row or "b" in row:
        pair = candidate_of(row, path, line)
        return Question(Item(pair.prompt, pair.a), Item(pair.prompt, pair.b))
    if "text" not in row:
        raise UserError("missing column", "give text, or a and b", file=path, line=line, field="text")
    return Question(item_of(row, path, line))


def _preferred(row: Row, path: Path, line: int) -> int:
    if "y" not in row:
        if "preferred" in row:
            return preferred_of(row, ("a", "b"), path, line)
        raise UserError("missing column", "1 if a is preferred, -1 if b is", file=path, line=line, field="y")
    y = row["y"]
    y = {"1": 1, "-1": -1}.get(y, y) if isinstance(y, str) else y  # a CSV file has texts only
    if isinstance(y, bool) or not isinstance(y, (int, float)) or y not in (1, -1):
        raise UserError("must be 1 (a is preferred) or -1 (b is)", file=path, line=line, field="y")
    return int(y)


def _vote(row: Row, path: Path, line: int) -> float:
    """+1, -1, or 0 for a pass; a ``label`` of 0 is a no, as a class of two has it."""
    field = "label" if "label" in row else "vote"
    if field not in row:
        remedy = "give label (true or false), vote (1 or -1) or rating"
        raise UserError("missing column", remedy, file=path, line=line, field="label")
    truth = truth_of(row, field)
    if truth is not None:
        return 1.0 if truth else -1.0
    value = number_of(row, field, path, line)
    if value not in (-1, 0, 1):
        raise UserError("must be true or false, or 1 or -1", "correct it", file=path, line=line, field=field)
    return -1.0 if field == "label" and value == 0 else value
