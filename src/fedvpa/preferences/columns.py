"""Which column of a table plays which role, and from that its layout."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedvpa.config import DataConfig
from fedvpa.errors import UserError
from fedvpa.preferences.tables import Table

USUAL: Mapping[str, tuple[str, ...]] = {
    "user": (
        *("user_id", "user", "userid", "annotator_id", "annotator", "worker_id", "worker", "voter_id", "voter"),
        *("rater_id", "rater", "labeler", "labeller", "judge", "judge_id", "participant_id", "participant", "person"),
        *("evaluator", "username", "user_name"),
    ),
    "prompt": (
        "prompt",
        "question",
        "instruction",
        "query",
        "context",
        "input",
        "user_prompt",
        "post",
        "topic",
        "conversations",
        "conversation",
        "messages",
    ),
    "chosen": ("chosen", "chosen_response", "preferred_response", "winner_response"),
    "rejected": ("rejected", "rejected_response", "dispreferred_response", "loser_response"),
    "a": (
        *("a", "response_a", "answer_a", "option_a", "completion_a", "output_a", "text_a", "conversation_a"),
        *("response_1", "answer_1", "output_1", "completion_1", "response1", "answer1", "output1"),
    ),
    "b": (
        *("b", "response_b", "answer_b", "option_b", "completion_b", "output_b", "text_b", "conversation_b"),
        *("response_2", "answer_2", "output_2", "completion_2", "response2", "answer2", "output2"),
    ),
    "preferred": ("preferred", "preference", "winner", "choice", "better", "label", "annotation"),
    "item": (
        *("item", "item_id", "itemid", "statement_id", "statement", "comment_id", "response_id", "joke_id", "joke"),
        *("movie_id", "product_id"),
    ),
    "first": ("first", "first_item", "first_id", "item_a", "item_1", "id_a", "a_id", "left"),
    "second": ("second", "second_item", "second_id", "item_b", "item_2", "id_b", "b_id", "right"),
    "rating": ("rating", "score", "vote", "stars", "grade", "value"),
    "text": (
        *("text", "completion", "response", "body", "statement", "comment_body", "comment", "answer", "content"),
        *("output", "item_text", "statement_text", "joke"),
    ),
    "label": ("label", "liked", "thumbs_up", "accepted"),
    "margin": ("margin", "strength"),
    "score_chosen": ("score_chosen", "chosen_score", "chosen_rating"),
    "score_rejected": ("score_rejected", "rejected_score", "rejected_rating"),
    "group": ("group",),
}
"""The usual names of each role's column, the likeliest first; case, hyphens, dots and spaces do not count."""


@dataclass(frozen=True)
class Layout:
    """A form of a table: what it holds, the roles that it needs, and those that it may have."""

    what: str
    needs: tuple[str, ...]
    may: tuple[str, ...] = ("group",)


CHOICES = Layout(
    "choices, the preferred response first",
    ("user", "chosen", "rejected"),
    ("prompt", "margin", "score_chosen", "score_rejected", "group"),
)
PAIRS = Layout("choices between two responses", ("user", "a", "b", "preferred"), ("prompt", "margin", "group"))
ITEM_CHOICES = Layout("choices between two items", ("user", "first", "second", "preferred"), ("margin", "group"))
RATINGS = Layout("ratings of items", ("user", "item", "rating"), ("prompt", "text", "group"))
LABELS = Layout("likes and dislikes of responses", ("user", "text", "label"), ("prompt", "group"))
TEXT_RATINGS = Layout("ratings of responses", ("user", "text", "rating"), ("prompt", "group"))
LAYOUTS = (CHOICES, PAIRS, ITEM_CHOICES, RATINGS, LABELS, TEXT_RATINGS)
ITEMS = Layout("items", ("item", "text"), ("prompt",))


def recognise(table: Table, data: DataConfig, layouts: Sequence[Layout] = LAYOUTS) -> tuple[Layout, dict[str, str]]:
    """The first layout that a table has all columns of, and the column of each of its roles.

    Raises:
        UserError: a column that the configuration names is not there, or no layout fits; it names the columns that are
            there and the nearest one.
    """
    if not table.columns:
        return layouts[0], {}  # no row could be read: parsing says why
    wanted = {role: name for role, name in data.columns.model_dump().items() if name is not None}
    if data.user_column != "user_id":
        wanted.setdefault("user", data.user_column)
    found = _by_name(table, {r: n for r, n in wanted.items() if any(r in (*x.needs, *x.may) for x in layouts)})
    layout = min(layouts, key=lambda x: sum(role not in found for role in x.needs))
    for role in layout.needs:
        if role not in found:
            raise _missing(table, role)
    taken: dict[str, str] = {}
    for role in (*layout.needs, *layout.may):
        if role in found and found[role] not in taken.values():
            taken[role] = found[role]
    return layout, taken


def described(table: Table, layout: Layout, columns: Mapping[str, str]) -> str:
    """One line that says what a table was taken for."""
    roles = ", ".join(f"{role}={name}" for role, name in columns.items())
    return f"{table.path}: {layout.what} ({roles})"


def _by_name(table: Table, wanted: Mapping[str, str]) -> dict[str, str]:
    for role, name in wanted.items():
        if name not in table.columns:
            near = difflib.get_close_matches(name, table.columns, n=1, cutoff=0.4)
            remedy = f"did you mean {near[0]}?" if near else "name one of them"
            problem = f"no column {name!r} among {_list(table)}"
            raise UserError(problem, remedy, file=table.path, field=f"data.columns.{role}")
    free = {plain_name(c): c for c in reversed(table.columns) if c not in wanted.values()}
    found = {
        role: next(free[name] for name in names if name in free)
        for role, names in USUAL.items()
        if role not in wanted and any(name in free for name in names)
    }
    return {**found, **wanted}


def _missing(table: Table, role: str) -> UserError:
    plain = {plain_name(c): c for c in table.columns}
    near = next((m for name in USUAL[role] for m in difflib.get_close_matches(name, plain, n=1, cutoff=0.7)), None)
    known = f"{role}={plain[near]}" if near else f"{role}=COLUMN"
    problem = f"missing column; there are {_list(table)}"
    line = table.rows[0][0] if table.typed else 1
    return UserError(problem, f"name it with data.columns.{known}", file=table.path, line=line, field=USUAL[role][0])


def _list(table: Table) -> str:
    shown = ", ".join(table.columns[:12])
    return shown if len(table.columns) <= 12 else f"{shown} and {len(table.columns) - 12} more"


def plain_name(name: str) -> str:
    """A column's name as it is compared: lower case, other signs than letters and digits as one underscore."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
