"""The readers under fuzz: a row is read alike in every layout, and what is broken is refused in one line.

`layouts` writes a judgement in the forms that public preference sets have; `junk` and `damaged` break rows and files.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedvpa.config import DataConfig
from fedvpa.errors import UserError
from fedvpa.preferences.arguments import read_item, read_pair, read_prompt
from fedvpa.preferences.examples import examples_of, questions_of
from fedvpa.preferences.people import PeopleTable
from fedvpa.preferences.reading import read_people

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
NIGHTLY = settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))

SIGNS = "abcdefghij XYZ 0123456789 .,;:!?'\"()[]{}<>|/\\*_#$%&@~`^=+-\n\täöüßéñ漢字ひらمرحبا🙂\u200d\u0301"


def texts(start: str) -> st.SearchStrategy[str]:
    """Texts that begin with a word which no other text begins with, so that no form is ambiguous."""
    return st.text(SIGNS, max_size=40).map(lambda rest: f"{start} {rest}".strip())


@st.composite
def judgements(draw: Any) -> dict[str, Any]:
    """One person's choice: who, the turns before it, what was preferred over what."""
    turns = draw(st.integers(0, 1)) * 2 + 1
    prompt = [{"role": "assistant" if i % 2 else "user", "content": draw(texts(f"Turn{i}"))} for i in range(turns)]
    system = draw(st.booleans()) and {"role": "system", "content": draw(texts("Be"))}
    user = draw(st.sampled_from(["ada", "3", "u-7", "Ünal", "0"]))
    return {
        "user": user,
        "prompt": ([system] if system else []) + prompt,
        "chosen": draw(texts("Yes")),
        "rejected": draw(texts("No")),
    }


def turn(role: str, text: str, form: str) -> dict[str, Any]:
    if form == "sharegpt":
        return {"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text}
    if form == "parts":
        return {"role": role, "content": [{"type": "text", "text": text[:5]}, {"type": "text", "text": text[5:]}]}
    if form == "developer":
        role = "developer" if role == "system" else role
    return {"role": role, "content": text}


def hh(prompt: Sequence[dict[str, str]]) -> str:
    return "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in prompt)


@st.composite
def layouts(draw: Any, judged: dict[str, Any]) -> dict[str, Any]:
    """The row of a judgement in one of the forms in which it may come."""
    prompt, chosen, rejected = judged["prompt"], judged["chosen"], judged["rejected"]
    form = draw(st.sampled_from(["role", "sharegpt", "parts", "developer"]))
    ways = ["messages", "responses as turns", "prompt in both", "whole dialogues", "JSON text"]
    if all(m["role"] != "system" for m in prompt):
        ways += ["HH prompt", "HH dialogues", "HH everywhere"]
        if len(prompt) == 1:
            ways += ["text", "prefix", "prefix alone"]
    way = draw(st.sampled_from(ways))
    turns = [turn(m["role"], m["content"], form) for m in prompt]
    answers = {k: [turn("assistant", v, form)] for k, v in (("chosen", chosen), ("rejected", rejected))}
    if draw(st.booleans()) and way in ("messages", "prompt in both", "whole dialogues"):
        turns = turns if prompt[0]["role"] == "system" else [turn("system", "", "role"), *turns]  # an empty one
    row: dict[str, Any] = {"prompt": turns, "chosen": chosen, "rejected": rejected}
    if way == "responses as turns":
        row |= answers
    elif way == "prompt in both":
        row |= {k: turns + v for k, v in answers.items()}
    elif way == "whole dialogues":
        row = {k: turns + v for k, v in answers.items()}
    elif way == "JSON text":
        row |= {"prompt": json.dumps(turns)}
    elif way == "HH prompt":
        row |= {"prompt": hh(prompt) + "\n\nAssistant:"}
    elif way == "HH dialogues":
        row = {k: f"{hh(prompt)}\n\nAssistant: {judged[k]}" for k in ("chosen", "rejected")}
    elif way == "HH everywhere":
        head = hh(prompt) + "\n\nAssistant:"
        row = {"prompt": head, **{k: f"{head} {judged[k]}" for k in ("chosen", "rejected")}}
    elif way in ("text", "prefix", "prefix alone"):
        text = prompt[0]["content"]
        row |= {"prompt": text}
        if way != "text":
            row |= {k: f"{text}\n{judged[k]}" for k in ("chosen", "rejected")}
        if way == "prefix alone":
            del row["prompt"]
    user = judged["user"]
    number = user.isdecimal() and draw(st.sampled_from([int(user), float(user)]))
    name = draw(st.sampled_from(["user_id", "annotator", "User ID"]))
    return {name: user if number is False else number, **row}


FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "gz")


def written(rows: Sequence[dict[str, Any]], form: str, folder: Path) -> Path:
    """A file of rows; a form that cannot hold them is exchanged for JSON Lines."""
    path = folder / f"d.{form}"
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if form in ("csv", "tsv"):
        cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
        path.write_text(pd.DataFrame(cells).to_csv(index=False, sep="\t" if form == "tsv" else ","), encoding="utf-8")
    elif form == "parquet":
        with contextlib.suppress(pa.ArrowException):
            pa.parquet.write_table(pa.Table.from_pylist(list(rows)), path)
            return path
        path = folder / "d.jsonl"
        path.write_bytes(lines)
    elif form == "json":
        path.write_text(json.dumps(list(rows)))
    else:
        path.write_bytes(gzip.compress(lines) if form == "gz" else lines)
    return path


def read(path: Path) -> PeopleTable:
    return read_people(DataConfig(name="table", path=str(path)))


def content(people: PeopleTable) -> list[tuple[Any, ...]]:
    """Who prefers what over what, whatever the order in which items are kept."""
    j, found = people.judgements, []
    for who, first, second, value in zip(
        people.user.tolist(), j.first.tolist(), j.second.tolist(), j.value.tolist(), strict=True
    ):
        better, worse = (first, second) if value > 0 else (second, first)
        found.append((people.users[who], people.items[better], people.items[worse]))
    return sorted(found)


@st.composite
def files(draw: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """The plain rows, the same judgements in another layout, and a format."""
    judged = draw(st.lists(judgements(), min_size=1, max_size=3, unique_by=lambda j: json.dumps(j["prompt"])))
    plain = [{"user_id": j["user"], **{k: j[k] for k in ("prompt", "chosen", "rejected")}} for j in judged]
    rows = [draw(layouts(j)) for j in judged]
    names = {frozenset(row) for row in rows}
    return plain, rows if len(names) == 1 else rows[:1], draw(st.sampled_from(FORMATS))


def same(case: tuple[list[dict[str, Any]], list[dict[str, Any]], str]) -> None:
    plain, rows, form = case
    with tempfile.TemporaryDirectory() as folder:
        expected = content(read(written(plain[: len(rows)], "jsonl", Path(folder))))
        assert content(read(written(rows, form, Path(folder)))) == expected


NESTED: Any = "x"
for _ in range(200):
    NESTED = [NESTED]
JUNK: list[Any] = [
    *(None, "", " \n", 0, -1, 3.5, 10**400, True, float("nan"), float("inf"), "\ud800", "\0", "a" * 3000, NESTED),
    *([], {}, [1], [None], [[]], [{}], [{"role": "user"}], [{"content": "x"}], {"role": "user", "content": "x"}),
    *([{"role": 3, "content": "x"}], [{"role": "robot", "content": "x"}], [{"role": "user", "content": None}]),
    *([{"role": "user", "content": []}], [{"role": "user", "content": [{"type": "image_url"}]}]),
    *([{"role": "user", "content": [{"type": "text", "text": 3}]}], [{"from": "human", "value": None}]),
    *([{"from": ["human"], "value": "x"}], [{"role": "tool", "content": "x"}], [{"role": "assistant", "content": ""}]),
    *([{"role": "assistant", "tool_calls": [1], "content": None}], [{"role": {}, "content": {}}]),
    *(
        '[{"role": "user"',
        "[{'role': 'user', 'content': __import__('os')}]",
        "\n\nHuman:",
        "\n\nHuman: x\n\nAssistant:",
    ),
    *("\n\nAssistant: x", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"),
]
junk = st.sampled_from(JUNK) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=6,
)
COLUMNS = (
    *("user_id", "prompt", "chosen", "rejected", "a", "b", "preferred", "y", "text", "completion", "label", "vote"),
    *("rating", "margin", "score_chosen", "score_rejected", "group", "item", "first", "second", "messages"),
)


@st.composite
def broken(draw: Any) -> dict[str, Any]:
    """A row with some cells exchanged, lost or added."""
    row = draw(judgements().flatmap(layouts))
    for name in draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=4)):
        if draw(st.booleans()):
            row.pop(name, None)
        else:
            row[name] = draw(junk)
    return row


def one_line(ask: Callable[[], Any]) -> None:
    """It works, or it is refused in one line; anything else fails."""
    refused: UserError | None = None
    try:
        ask()
    except UserError as e:
        refused = e
    assert refused is None or len(str(refused).splitlines()) == 1


def refused_in_a_line(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.jsonl"
        path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        one_line(lambda: read(path))
        one_line(lambda: read_people(DataConfig(name="table", path=str(path), on_invalid="skip")))
    one_line(lambda: examples_of(rows, Path("examples")))
    one_line(lambda: questions_of(rows, Path("pool")))
    for row in rows:
        one_line(lambda row=row: read_prompt(row.get("prompt")))  # type: ignore[misc]
        one_line(lambda row=row: read_item(row.get("prompt"), row.get("chosen")))  # type: ignore[misc]
        one_line(lambda row=row: read_pair(row.get("prompt"), row.get("chosen"), row.get("rejected")))  # type: ignore[misc]


@st.composite
def damaged(draw: Any) -> tuple[str, bytes]:
    """A whole file of a format, with bytes lost, exchanged or put in."""
    _, rows, form = draw(files())
    with tempfile.TemporaryDirectory() as folder:
        path = written(rows, form, Path(folder))
        data, name = bytearray(path.read_bytes()), path.name
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(["cut", "flip", "insert", "lose"]))
        if how == "cut":
            del data[at:]
        elif how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=6) | st.sampled_from([b'"', b",", b"\n", b"\xff", b"{"]))
        else:
            del data[at : at + draw(st.integers(1, 8))]
    return name, bytes(data)


def survives(case: tuple[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / case[0]
        path.write_bytes(case[1])
        with contextlib.redirect_stderr(io.StringIO()):
            one_line(lambda: read(path))


CASES = {
    "layouts": (files(), same),
    "rows": (st.lists(broken(), min_size=1, max_size=3), refused_in_a_line),
    "files": (damaged(), survives),
}


def fuzzed(name: str, how: settings) -> None:
    strategy, check = CASES[name]

    @how
    @given(strategy)
    def run(case: Any) -> None:
        check(case)

    run()


@pytest.mark.parametrize("name", CASES)
def test_a_hundred_cases(name: str) -> None:
    fuzzed(name, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ten_thousand_cases(name: str) -> None:
    fuzzed(name, NIGHTLY)
