from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedvpa.config import DataConfig
from fedvpa.errors import UserError
from fedvpa.preferences.dialogues import parse_dialogue
from fedvpa.preferences.examples import Example, read_examples
from fedvpa.preferences.jsonl import read_candidates
from fedvpa.preferences.reading import read_people
from fedvpa.preferences.schema import Message, Pair
from fedvpa.preferences.sources import preference_rows

ROW = {"prompt": "Hi?", "chosen": "Hello there", "rejected": "What", "user_id": "ann"}


def turn(role, content):
    return {"role": role, "content": content}


def write(path, *rows, newline="\n"):
    path.write_bytes(newline.join(r if isinstance(r, str) else json.dumps(r) for r in rows).encode())
    return path


def read_preference_rows(path, on_invalid="error", counts=None):
    people = read_people(DataConfig(name="jsonl", path=str(path), on_invalid=on_invalid))
    if counts is not None:
        counts.update(people.counts)
    return preference_rows(people)


def texts(path):
    """Per row: user, prompt messages as tuples, preferred and other response."""
    rows = read_preference_rows(path)
    return [(r.user, [tuple(m) for m in r.pair.prompt], *((r.pair.a, r.pair.b)[:: r.y])) for r in rows]


def test_standard_rows(tmp_path):
    path = write(tmp_path / "x.jsonl", ROW, {**ROW, "user_id": 7, "chosen": "What", "rejected": "Hello there"})
    assert texts(path) == [
        ("ann", [("user", "Hi?")], "Hello there", "What"),
        ("7", [("user", "Hi?")], "What", "Hello there"),
    ]
    one, two = read_preference_rows(path)
    assert one.pair == two.pair
    assert one.y == -two.y


def test_conversational_rows(tmp_path):
    prompt = [turn("system", "Be brief."), turn("user", "Hi?")]
    answer, other = [turn("assistant", "Hello")], [turn("assistant", "No")]
    path = write(
        tmp_path / "x.jsonl",
        {"prompt": prompt, "chosen": answer, "rejected": other, "user_id": "u"},  # explicit prompt
        {"chosen": prompt + answer, "rejected": prompt + other, "user_id": "u"},  # implicit prompt
        {"prompt": "Hi?", "chosen": prompt[1:] + answer, "rejected": prompt[1:] + other, "user_id": "u"},  # repeated
    )
    one, two, three = texts(path)
    assert one == two == ("u", [("system", "Be brief."), ("user", "Hi?")], "Hello", "No")
    assert three == ("u", [("user", "Hi?")], "Hello", "No")


def test_turns_after_the_prompt_belong_to_the_prompt(tmp_path):
    more = [turn("assistant", "Yes?"), turn("user", "Why?")]
    row = {"prompt": "Hi?", "chosen": [*more, turn("assistant", "A")], "rejected": [*more, turn("assistant", "B")]}
    path = write(tmp_path / "x.jsonl", {**row, "user_id": "u"})
    assert texts(path) == [("u", [("user", "Hi?"), ("assistant", "Yes?"), ("user", "Why?")], "A", "B")]


def test_implicit_prompt_of_texts(tmp_path):
    path = write(
        tmp_path / "x.jsonl",
        {"chosen": "The sky is blue today", "rejected": "The sky is black", "user_id": "u"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c", "user_id": "u"},
        {"chosen": "one two", "rejected": "one two three", "user_id": "u"},
    )
    assert texts(path) == [
        ("u", [("user", "The sky is")], "blue today", "black"),
        ("u", [("user", "a")], "b", "c"),
        ("u", [("user", "one")], "two", "two three"),
    ]


def test_dialogues_of_hh():
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d\n"
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert parse_dialogue(text) == (turns, "d")
    for bad in ("", "Human: a\n\nAssistant: b", "\n\nHuman: a", text + "\n\nHuman: e"):
        assert parse_dialogue(bad) is None


def test_bom_crlf_blank_lines_and_gzip(tmp_path):
    plain = write(tmp_path / "x.jsonl", ROW, "", {**ROW, "prompt": "line\u2028separator"}, "", newline="\r\n")
    data = b"\xef\xbb\xbf" + plain.read_bytes()
    zipped = tmp_path / "y.jsonl.gz"
    zipped.write_bytes(gzip.compress(data))
    plain.write_bytes(data)
    assert texts(plain) == texts(zipped)
    assert [r[1] for r in texts(plain)] == [[("user", "Hi?")], [("user", "line\u2028separator")]]


def without(key):
    return {k: v for k, v in ROW.items() if k != key}


MISTAKES = [
    ("{", "{p}:2: not valid JSON (Expecting property name"),
    ("[1]", "{p}:2: is a list, not an object"),
    ("9" * 5000, "{p}:2: not valid JSON"),
    ("[" * 100_000, "{p}:2: not valid JSON"),
    (without("prompt") | {"chosen": "x"}, "{p}:2: prompt: missing column, and chosen and rejected do not begin"),
    (without("chosen"), "{p}:2: chosen: missing column; give every row a 'chosen'"),
    (without("rejected"), "{p}:2: rejected: missing column"),
    (without("user_id"), "{p}:2: user_id: missing column"),
    ({**ROW, "user_id": True}, "{p}:2: user_id: must be text, not a boolean"),
    ({**ROW, "user_id": " "}, "{p}:2: user_id: is empty"),
    ({**ROW, "group": 3.5}, "{p}:2: group: must be text, not a number"),
    ({**ROW, "group": "x"}, "{p}:2: group: user 'ann' is in group None on an earlier row, here in 'x'"),
    ({**ROW, "prompt": ""}, "{p}:2: prompt: is empty"),
    ({**ROW, "prompt": {}}, "{p}:2: prompt: must be text, not an object"),
    ({**ROW, "prompt": []}, "{p}:2: prompt: is empty"),
    ({**ROW, "chosen": " \n"}, "{p}:2: chosen: is empty; fill it in or remove the row"),
    ({**ROW, "chosen": None}, "{p}:2: rejected: is text, but chosen is null"),
    ({**ROW, "chosen": 1, "rejected": 2}, "{p}:2: chosen: must be text or messages, not a number"),
    ({**ROW, "chosen": "What"}, "{p}:2: rejected: equals chosen; remove the row"),
    (without("prompt") | {"chosen": "a b", "rejected": "a b"}, "{p}:2: rejected: equals chosen"),
    ('{"prompt": "\\ud800", "chosen": "a", "rejected": "b", "user_id": "u"}', "{p}:2: prompt: holds half of a surr"),
    (
        {**ROW, "chosen": ["x"], "rejected": ["y"]},
        "{p}:2: chosen[0]: must be a message with role and content, not text",
    ),
    ({**ROW, "chosen": [turn("bot", "x")], "rejected": [turn("bot", "y")]}, "{p}:2: chosen[0].role: must be one of"),
    (
        {**ROW, "chosen": [turn("user", "x")], "rejected": [turn("user", "y")]},
        "{p}:2: chosen: ends in a turn of 'user'",
    ),
    ({**ROW, "chosen": [turn("assistant", "")], "rejected": []}, "{p}:2: chosen[0].content: is empty"),
    (
        {
            **ROW,
            "chosen": [turn("user", "p"), turn("assistant", "x")],
            "rejected": [turn("user", "q"), turn("assistant", "y")],
        },
        "{p}:2: rejected: differs from chosen before the last assistant turn",
    ),
    (
        without("prompt") | {"chosen": [turn("assistant", "x")], "rejected": [turn("assistant", "y")]},
        "{p}:2: prompt: missing column",
    ),
]


@pytest.mark.parametrize(("row", "message"), MISTAKES)
def test_a_mistake_in_a_row_names_line_and_field(tmp_path, row, message):
    path = write(tmp_path / "x.jsonl", ROW, row)
    with pytest.raises(UserError) as e:
        read_preference_rows(path)
    assert str(e.value).startswith(message.format(p=path))
    assert "\n" not in str(e.value)
    counts = Counter()
    assert len(read_preference_rows(path, "skip", counts)) == 1
    assert counts == {"invalid rows": 1}


def test_mistakes_of_whole_files(tmp_path):
    def fails(path, message):
        with pytest.raises(UserError) as e:
            read_preference_rows(path, "skip")
        assert str(e.value).startswith(f"{path}: {message}")

    fails(tmp_path / "none.jsonl", "no such file")
    fails(tmp_path, "no table in the folder")
    fails("bad\0name", "cannot be read")
    empty = tmp_path / "empty.jsonl"
    for content in (b"", b"\xef\xbb\xbf", b"\r\n \n"):
        empty.write_bytes(content)
        fails(empty, "the file is empty")
    rubbish = tmp_path / "x.bin"
    rubbish.write_bytes(bytes(range(256)) * 4)
    fails(rubbish, "none of the")
    with pytest.raises(UserError, match=r"x\.bin:1: not (text|valid JSON)"):
        read_preference_rows(rubbish)
    for content in (gzip.compress(b"x" * 1000)[:-12], b"\x1f\x8b", b"\x1f\x8b\x08" + bytes(40)):
        rubbish.write_bytes(content)
        fails(rubbish, "not a complete gzip file")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_are_read_or_refused(tmp_path, data):
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    for read in (read_preference_rows, read_examples, read_candidates):
        with pytest.raises(UserError) as e:
            read(path)
        assert str(path) in str(e.value)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "a", "b c"])
    | st.sampled_from(["user", "assistant"]),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), v, max_size=3),
    max_leaves=6,
)
ROWS = st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "user_id", "group", "a", "b", "y"]), VALUES)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(ROWS)
def test_any_object_is_a_valid_row_or_a_user_error_on_its_line(tmp_path, row):
    path = write(tmp_path / "x.jsonl", row)
    for read in (read_preference_rows, read_examples, read_candidates):
        try:
            assert len(read(path)) == 1
        except UserError as e:
            if (e.file, e.line) != (path, 1):
                raise


def test_examples_of_one_user(tmp_path):
    path = write(
        tmp_path / "x.jsonl", without("user_id"), {"prompt": "p", "a": "A", "b": "B", "y": -1}, {**ROW, "user_id": None}
    )
    hello = Example.choice(Pair((Message("user", "Hi?"),), "Hello there", "What"), 1)
    other = Example.choice(Pair((Message("user", "p"),), "A", "B"), -1)
    assert read_examples(path) == [hello, other, hello]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "a": "A", "b": "B"}, "y: missing column; 1 if a is preferred"),
        ({"prompt": "p", "a": "A", "b": "B", "y": 0}, "y: must be 1"),
        ({"prompt": "p", "a": "A", "b": "B", "y": True}, "y: must be 1"),
        ({"a": "A", "b": "B", "y": 1}, "prompt: missing column"),
        ({"prompt": "p", "a": "A", "y": 1}, "b: missing column"),
        ({"prompt": "p", "a": "A", "b": "A", "y": 1}, "b: equals a"),
    ],
)
def test_mistakes_in_examples(tmp_path, row, message):
    path = write(tmp_path / "x.jsonl", row)
    with pytest.raises(UserError) as e:
        read_examples(path)
    assert str(e.value).startswith(f"{path}:1: {message}")


def test_candidates_keep_their_order(tmp_path):
    rows = [{"prompt": "p", "a": str(i), "b": "x"} for i in range(5)]
    assert [p.a for p in read_candidates(write(tmp_path / "x.jsonl", *rows))] == list("01234")
    messages = {"prompt": [turn("user", "p")], "a": [turn("assistant", "A")], "b": [turn("assistant", "B")]}
    assert read_candidates(write(tmp_path / "y.jsonl", messages)) == [Pair((Message("user", "p"),), "A", "B")]
