"""Layouts are known by their columns; a bad table is one line with file, row, field and remedy."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from fedvpa.config import DataConfig, parse_config
from fedvpa.errors import UserError
from fedvpa.preferences.reading import read_people
from fedvpa.preferences.schema import CHOICE, RATING, VOTE, Item, Message
from fedvpa.preferences.sources import load_preferences

ASK = (Message("user", "Which?"),)


def write(path, *rows):
    if path.suffix == ".csv":
        path.write_text("\n".join(rows) + "\n")
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def read(path, **data):
    return read_people(DataConfig(name="table", path=str(path), **data))


def told(people):
    """Each judgement as user, first text, second text (or None), value."""
    j = people.judgements
    text = [*(i.text for i in people.items), None]
    rows = zip(people.user.tolist(), j.first.tolist(), j.second.tolist(), j.value.tolist(), strict=True)
    return [(people.users[u], text[a], text[b], v) for u, a, b, v in rows]


def test_a_csv_of_choices_is_read_as_its_json_lines(tmp_path):
    rows = [
        {"user_id": f"u{i % 6}", "prompt": f"p, {i}?", "chosen": f"a\n{i}", "rejected": "b", "group": "g"}
        for i in range(60)
    ]
    write(tmp_path / "x.jsonl", *rows)
    pd.DataFrame(rows).rename(columns={"user_id": "Worker ID", "chosen": "good"}).to_csv(
        tmp_path / "x.csv", index=False
    )
    made = [
        load_preferences(parse_config({"data": {"name": "jsonl", "path": str(tmp_path / "x.jsonl")}})),
        load_preferences(
            parse_config({"data": {"name": "table", "path": str(tmp_path / "x.csv"), "columns": {"chosen": "good"}}})
        ),
    ]
    assert made[0].pairs == made[1].pairs
    assert made[0].counts == made[1].counts
    for one, two in zip(made[0].clients["seen"], made[1].clients["seen"], strict=True):
        assert one.client_id == two.client_id
        assert torch.equal(one.train.y, two.train.y)


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("a", 1),
        ("1", 1),
        ("first", 1),
        ("Response A", 1),
        ("model_b", -1),
        ("2", -1),
        ("second", -1),
        ("equal", 0),
        ("tie (both bad)", 0),
    ],
)
def test_two_responses_and_which_was_preferred(tmp_path, said, value):
    rows = ["annotator,Question,Response A,Response B,winner", f"ann,Which?,A,B,{said}", "ann,Which?,C,D,a"]
    people = read(write(tmp_path / "x.csv", *rows))
    assert told(people) == [*([("ann", "A", "B", value)] if value else []), ("ann", "C", "D", 1)]
    assert people.counts.get("ties", 0) == (value == 0)
    assert people.items[0].prompt == ASK
    assert people.columns == (
        f"{tmp_path / 'x.csv'}: choices between two responses (user=annotator, a=Response A, b=Response B, "
        "preferred=winner, prompt=Question)"
    )


def items(tmp_path, *more):
    return write(tmp_path / "items.csv", "item,prompt,text", "i1,Which?,A", "i2,Which?,B", "3.0,Which?,C", *more)


def test_choices_between_items_of_another_table(tmp_path):
    items(tmp_path, "i4,Which?,A")
    path = write(
        tmp_path / "choices.csv",
        "user,first,second,preferred",
        "u,i1,i2,second",
        "u,i2,3,i2",
        "u,i1,3,equal",
        "u,i1,i4,first",
    )
    people = read(path)
    assert told(people) == [("u", "A", "B", -1), ("u", "B", "C", 1)]
    assert set(people.judgements.kind.tolist()) == {CHOICE}
    assert people.counts == {"ties": 1, "choices between equal texts": 1}
    assert told(read(tmp_path)) == told(people)  # the folder


def test_strengths_are_divided_by_their_mean_and_none_is_a_tie(tmp_path):
    row = {"prompt": "Which?", "chosen": "A", "rejected": "B", "user": "u"}
    path = write(
        tmp_path / "x.jsonl",
        {**row, "margin": 1},
        {**row, "margin": 3},
        {**row, "margin": 0},
        {**row, "score_chosen": 9, "score_rejected": 7},
        row,
    )
    people = read(path)
    assert people.judgements.weight.tolist() == [0.5, 1.5, 1.0, 1.0]
    assert people.counts == {"ties": 1}


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["1", "-1", "0"], VOTE, [1, -1]),
        (["true", "False", "true"], VOTE, [1, -1, 1]),
        (["1", "2.5", "-1"], RATING, [1, 2.5, -1]),
        (["1", "0", "1"], RATING, [1, 0, 1]),
    ],
)
def test_ratings_and_votes(tmp_path, values, kind, expected):
    items(tmp_path)
    rows = [f"ann,{item},{value}" for item, value in zip(("i1", "i2", "3"), values, strict=True)]
    people = read(write(tmp_path / "ratings.csv", "voter,item,rating", *rows))
    assert people.judgements.kind.tolist() == [kind] * len(expected)
    assert people.judgements.value.tolist() == expected
    assert people.judgements.second.tolist() == [-1] * len(expected)
    assert people.counts.get("passes", 0) == 3 - len(expected)


def test_ratings_with_their_texts_in_one_table(tmp_path):
    path = write(tmp_path / "x.csv", "user,item,stars,body", "1.0,7,5,A", "1.0,8,2,B", "2.0,7.0,1,A")
    people = read(path)
    assert told(people) == [("1", "A", None, 5), ("1", "B", None, 2), ("2", "A", None, 1)]


@pytest.mark.parametrize(("yes", "no"), [(True, False), (1, 0)])
def test_trl_unpaired_rows_are_votes(tmp_path, yes, no):
    rows = [
        {"prompt": "Which?", "completion": "A", "label": yes, "user_id": "u"},
        {
            "prompt": [{"role": "user", "content": "Which?"}],
            "completion": [{"role": "assistant", "content": "B"}],
            "label": no,
            "user_id": "u",
        },
    ]
    people = read(write(tmp_path / "x.jsonl", *rows))
    assert people.items == (Item(ASK, "A"), Item(ASK, "B"))
    assert people.judgements.value.tolist() == [1, -1]
    assert people.judgements.kind.tolist() == [VOTE, VOTE]


def test_repeated_and_contradictory_ratings(tmp_path):
    items(tmp_path)
    rows = ["user,item,rating", "u,i1,1", "u,i1,1", "u,i2,5", "u,3,2", "v,i1,3", "u,i2,4"]
    path = write(tmp_path / "ratings.csv", *rows)
    with pytest.raises(UserError) as e:
        read(path)
    assert str(e.value).startswith(f"{path}:7: rating: user 'u' rated this item 5 on row 4, here 4; keep one")
    people = read(path, on_invalid="skip")
    assert told(people) == [("u", "A", None, 1), ("u", "C", None, 2), ("v", "A", None, 3)]
    assert people.counts == {
        "rows": 6,
        "repeated rows": 1,
        "contradictory ratings": 1,
        "users with one judgement": 1,
    }


BAD_RATINGS = [
    ("u,i1,good", ":3: rating: must be a number, not 'good'"),
    ("u,i1,nan", ":3: rating: must be a finite number, not 'nan'"),
    ("u,i1,inf", ":3: rating: must be a finite number"),
    ("u,i1,1e999", ":3: rating: must be a finite number"),
    ("u,i1,", ":3: rating: is empty"),
    (",i1,2", ":3: user: is empty"),
    ("u,i9,2", ":3: item: no item 'i9' in "),
    ("u,i1,true", ":2: rating: is a number, but row 3 has true or false"),
]


@pytest.mark.parametrize(("row", "message"), BAD_RATINGS)
def test_a_bad_rating_names_row_and_field(tmp_path, row, message):
    items(tmp_path)
    path = write(tmp_path / "ratings.csv", "user,item,rating", "u,i2,1", row, "u,3,5")
    with pytest.raises(UserError) as e:
        read(path)
    assert str(e.value).startswith(f"{path}{message}")
    assert ";" in str(e.value)
    assert "\n" not in str(e.value)
    if ":3:" in message:
        people = read(path, on_invalid="skip")
        assert people.counts["invalid rows"] == 1
        assert people.judgements.value.tolist() == [1, 5]


def test_numbers_that_json_can_hold(tmp_path):
    row = {"user": "u", "item": 1, "prompt": "Which?", "text": "A"}
    for value, problem in (
        (float("nan"), "a finite number"),
        (float("inf"), "a finite number"),
        ([], "a number, not a li"),
    ):
        path = write(tmp_path / "x.jsonl", {**row, "rating": value})
        with pytest.raises(UserError, match=f":1: rating: must be {problem}"):
            read(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["user,itm,rating", "u,i1,3"],
            ":1: item: missing column; there are user, itm, rating; name it with data.columns.item=itm",
        ),
        (["x,y", "1,2"], ":1: user_id: missing column; there are x, y"),
        (["user,item,rating", "u,i1,3", "u,i2,3"], ": rating: all ratings are equal"),
        (["user,item,rating", "u,i1,3", "v,i2,4"], ": user: no user with 2 ratings or more is left"),
        (["user,item,rating"], ": the file is empty"),
        (["user,first,second,preferred", "u,i1,i2,perhaps"], ":2: preferred: must be a, b, 1, 2"),
        (["user,first,second,preferred", "u,i1,i2,tie"], ": every row is a tie"),
    ],
)
def test_bad_tables(tmp_path, rows, message):
    items(tmp_path)
    path = write(tmp_path / "r.csv", *rows)
    with pytest.raises(UserError) as e:
        read(path)
    assert str(e.value).startswith(f"{path}{message}")


def test_bad_tables_of_items(tmp_path):
    path = write(tmp_path / "ratings.csv", "user,item,rating", "u,i1,1", "u,i2,2")
    with pytest.raises(UserError, match="has ids of items, but no texts; add columns prompt and text"):
        read(path)
    made = items(tmp_path, "i5,Which?,")
    with pytest.raises(UserError, match=r"items\.csv:5: text: is empty"):
        read(path)
    assert read(path, on_invalid="skip").counts["invalid rows"] == 1
    items(tmp_path, "i1,Which?,Z")
    with pytest.raises(UserError, match=r"items\.csv:5: item: item 'i1' has another prompt or text on row 2"):
        read(path)
    made.rename(tmp_path / "texts.csv")
    with pytest.raises(UserError, match=r"nowhere\.csv: no such file"):
        read(path, items=str(tmp_path / "nowhere.csv"))


def test_a_folder_needs_one_table(tmp_path):
    with pytest.raises(UserError, match="no table in the folder"):
        read(tmp_path)
    for name in "xy":
        write(tmp_path / f"{name}.csv", "user,item,rating,text", "u,1,1,A", "u,2,2,B")
    with pytest.raises(UserError, match=r"holds several tables \(x\.csv, y\.csv\)"):
        read(tmp_path)


def test_a_column_that_is_named_must_be_there(tmp_path):
    path = write(tmp_path / "x.csv", "wer,prompt,chosen,rejected", "u,Which?,A,B")
    assert read(path, columns={"user": "wer"}).users == read(path, user_column="wer").users == ("u",)
    with pytest.raises(UserError) as e:
        read(path, columns={"user": "werr"})
    problem = "data.columns.user: no column 'werr' among wer, prompt, chosen, rejected; did you mean wer?"
    assert str(e.value) == f"{path}: {problem}"


def test_errors_name_the_tables_own_columns(tmp_path):
    path = write(tmp_path / "x.csv", "user,prompt,good,bad", "u,Which?,A,A")
    with pytest.raises(UserError, match=":2: bad: equals chosen"):
        read(path, columns={"chosen": "good", "rejected": "bad"})


ROW = {"user_id": 3.0, "group": 1, "prompt": "Which?", "chosen": "A", "rejected": "B"}


def turn(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("change", "prompt"),
    [
        ({}, ASK),
        ({"prompt": [turn("user", [{"type": "text", "text": "Wh"}, {"type": "text", "text": "ich?"}])]}, ASK),
        ({"prompt": [turn("system", ""), turn("user", "Which?")]}, ASK),
        ({"prompt": [turn("developer", "Be nice."), turn("user", "Which?")]}, (Message("system", "Be nice."), *ASK)),
        ({"prompt": [{"from": "human", "value": "Which?"}]}, ASK),
        ({"prompt": json.dumps([turn("user", "Which?")])}, ASK),
        ({"prompt": str([turn("user", "Which?")])}, ASK),
        ({"chosen": "Which? A", "rejected": "Which?\nB"}, ASK),
        (
            {
                "prompt": "\n\nHuman: Which?\n\nAssistant:",
                "chosen": "\n\nHuman: Which?\n\nAssistant: A",
                "rejected": "\n\nHuman: Which?\n\nAssistant: B",
            },
            ASK,
        ),
        (
            {
                "chosen": [turn("system", "Be brief."), turn("user", "Which?"), turn("assistant", "A")],
                "rejected": [turn("system", "Be brief."), turn("user", "Which?"), turn("assistant", "B")],
            },
            (Message("system", "Be brief."), *ASK),
        ),
    ],
)
def test_dialogues_in_many_forms_are_one(tmp_path, change, prompt):
    people = read(write(tmp_path / "x.jsonl", ROW | change))
    assert people.items == (Item(prompt, "A"), Item(prompt, "B"))
    assert people.users == ("3",)
    assert people.groups == {"3": "1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"prompt": [turn("user", "Which?"), turn("tool", "42")]},
            "prompt[1]: is a tool's turn, and only texts are read; leave",
        ),
        (
            {"prompt": '[{"role": "user", "content": '},
            "prompt: looks like a list of turns, but is not valid JSON; write it",
        ),
        (
            {"prompt": [turn("user", [{"type": "image"}])]},
            "prompt[0].content: holds a part that is not text; leave such rows",
        ),
        ({"rejected": "A "}, "rejected: equals chosen but for white space; remove the row"),
        ({"user_id": 3.5}, "user_id: must be text, not a number"),
        ({"margin": -1}, "margin: is below 0"),
    ],
)
def test_dialogues_that_cannot_be_read(tmp_path, change, message):
    path = write(tmp_path / "x.jsonl", ROW | change)
    with pytest.raises(UserError) as e:
        read(path)
    assert str(e.value).startswith(f"{path}:1: {message}")


def test_a_response_that_begins_like_its_prompt_by_chance_stays_whole(tmp_path):
    people = read(write(tmp_path / "x.jsonl", ROW | {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hiya"}))
    assert [i.text for i in people.items] == ["Hi there", "Hiya"]
