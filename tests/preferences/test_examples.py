"""One person's judgements from objects and tables: every kind, mistakes, and the pairs that they make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedvpa.errors import UserError
from fedvpa.preferences.examples import Question, as_judgements, as_pairs, examples_of, read_examples, read_questions
from fedvpa.preferences.schema import CHOICE, RATING, VOTE, Item, as_prompt

HERE = Path("examples")


def item(text: str, prompt: str = "p") -> Item:
    return Item(as_prompt(prompt), text)


def votes(**liked: bool) -> list[dict[str, Any]]:
    return [{"prompt": "p", "text": text, "label": label} for text, label in liked.items()]


def test_a_csv_file_of_votes(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("Prompt,completion,label\np,good,true\np,bad,False\np,fine,1\np,poor,0\n")
    found = read_examples(path)
    assert [(e.first.text, e.kind, e.value) for e in found] == [
        ("good", VOTE, 1),
        ("bad", VOTE, -1),
        ("fine", VOTE, 1),
        ("poor", VOTE, -1),
    ]


def test_a_table_with_blank_cells_mixes_kinds(tmp_path: Path) -> None:
    path = tmp_path / "mixed.csv"
    path.write_text(
        "prompt,text,rating,vote,a,b,preferred\np,x,4.5,,,,\np,y,,-1,,,\np,,,,v,w,b\np,z,,0,,,\np,,,,v,u,tie\n"
    )
    found = read_examples(path)
    assert [(e.kind, e.value) for e in found] == [(RATING, 4.5), (VOTE, -1), (CHOICE, -1)]
    assert found[2].second == item("w")


def test_a_file_of_passes_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "p", "text": "x", "vote": 0}\n')
    with pytest.raises(UserError, match="every row is a tie or a pass"):
        read_examples(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p"}, "chosen: missing column; give chosen and rejected, or a and b with preferred, or text with"),
        ({"prompt": "p", "text": "x"}, "label: missing column; give label"),
        ({"prompt": "p", "text": "x", "vote": 2}, "vote: must be true or false, or 1 or -1"),
        ({"prompt": "p", "completion": "", "label": True}, "completion: is empty"),
        ({"prompt": "p", "text": "x", "rating": "good"}, "rating: must be a number, not 'good'"),
        ({"prompt": "p", "text": "x", "rating": float("inf")}, "rating: must be a finite number"),
        ({"prompt": "p", "a": "x", "b": "y", "preferred": "c"}, "preferred: must be a, b"),
        ({"prompt": "p", "chosen": "x", "rejected": "y", "margin": -1}, "margin: is below 0"),
    ],
)
def test_mistakes_name_the_field(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as e:
        examples_of([*votes(good=True), row], HERE)
    assert str(e.value).startswith(f"examples:2: {message}")


def test_what_is_no_object() -> None:
    with pytest.raises(UserError, match="examples:1: must be an object"):
        examples_of(["good"], HERE)  # type: ignore[list-item]


def test_ratings_and_strengths_are_scaled() -> None:
    rows = [
        {"prompt": "p", "text": "x", "rating": 5},
        {"prompt": "p", "chosen": "x", "rejected": "y", "margin": 1},
        {"prompt": "p", "chosen": "x", "rejected": "z", "margin": 3},
        {"prompt": "p", "chosen": "y", "rejected": "z"},
        {"prompt": "p", "chosen": "u", "rejected": "z", "margin": 0},
    ]
    items, own = as_judgements(examples_of(rows, HERE), True)
    assert items == (item("x"), item("y"), item("z"))
    assert own.value.tolist() == [5, 1, 1, 1]
    assert own.weight.tolist() == [1, 0.5, 1.5, 1]
    assert own.first.tolist() == [0, 0, 0, 1]
    assert own.second.tolist() == [-1, 1, 2, 2]


def test_pairs_of_votes_stay_in_their_prompt() -> None:
    rows = [*votes(a=True, b=False, c=True), {"prompt": "q", "text": "d", "label": False}]
    rows += [{"prompt": "p", "text": "e", "rating": r} for r in (2,)] + [{"prompt": "p", "text": "f", "rating": 2}]
    found = as_pairs(examples_of(rows, HERE))
    assert {(pair.a, pair.b, y) for pair, y in found} == {("a", "b", 1), ("c", "b", 1)}
    assert found == as_pairs(examples_of(rows, HERE))
    assert as_pairs([]) == []


def test_questions(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    rows = [{"prompt": "p", "text": "x"}, {"prompt": "p", "a": "x", "b": "y"}, {"comment": "z"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_questions(path)
    assert found[:2] == [Question(item("x")), Question(item("x"), item("y"))]
    assert found[2].first.text == "z"
    path.write_text('{"prompt": "p"}')
    with pytest.raises(UserError, match=r"pool.jsonl:1: text: missing column; give text, or a and b"):
        read_questions(path)
