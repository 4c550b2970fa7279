"""The Python API takes what people have: texts, messages, rows, tables, one or many. One line says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from fedvpa import Selector, User, UserError
from fedvpa.client import Client
from serving import listening
from test_selector_api import EXAMPLES, PROMPT, A, B

PAIR = {"prompt": PROMPT, "a": A, "b": B}
TURNS = [{"role": "user", "content": PROMPT}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture(scope="module")
def selector(finished: Path) -> Selector:
    return Selector.from_pretrained(finished)


@pytest.fixture(scope="module")
def judging(judged_run: Path) -> Selector:
    return Selector.from_pretrained(judged_run)


@pytest.fixture(scope="module")
def client(finished: Path) -> Iterator[Client]:
    with listening(finished) as live, Client(live.url) as client:
        yield client


@pytest.fixture(params=["here", "over HTTP"])
def either(request: pytest.FixtureRequest, selector: Selector, client: Client) -> Selector | Client:
    return selector if request.param == "here" else client


@pytest.mark.parametrize(
    "table",
    [
        EXAMPLES,
        tuple(EXAMPLES),
        iter(EXAMPLES),
        pd.DataFrame(EXAMPLES),
        pd.DataFrame(EXAMPLES).assign(margin=float("nan")),
        datasets.Dataset.from_list(EXAMPLES),
        pa.Table.from_pylist(EXAMPLES),
        [{**e, "prompt": np.array([{"role": "user", "content": e["prompt"]}], dtype=object)} for e in EXAMPLES],
    ],
    ids=["list", "tuple", "generator", "DataFrame", "NaN", "Dataset", "arrow", "arrays of messages"],
)
def test_rows_come_in_every_form(either: Any, selector: Selector, table: Any) -> None:
    if hasattr(table, "__next__"):
        table = iter(EXAMPLES)  # each run of the test goes through it anew
    assert either.infer_user(table).mean == pytest.approx(selector.infer_user(EXAMPLES).mean, abs=1e-5)


def test_one_row_is_a_table_of_one(either: Any, selector: Selector) -> None:
    assert either.infer_user(EXAMPLES[0]).pairs == 1
    assert either.score(PAIR) == pytest.approx([selector.prefer(PROMPT, A, B)], abs=1e-5)


def test_many_pairs_at_once(either: Any, selector: Selector) -> None:
    ada, other = selector.infer_user(EXAMPLES), "Question 3 of many?"
    expected = [selector.prefer(p, x, y, ada) for p, x, y in ((PROMPT, A, B), (other, B, A))]
    for prompts in ([PROMPT, other], pd.Series([PROMPT, other]), [TURNS, other]):
        assert either.prefer(prompts, [A, B], [B, A], ada) == pytest.approx(expected, abs=1e-5)
    assert either.prefer(PROMPT, [A, B], (B, A), ada)[0] == pytest.approx(expected[0], abs=1e-5)
    rows = pd.DataFrame({"prompt": [PROMPT, other], "a": [A, B], "b": [B, A], "id": [1, 2]})
    assert either.score(rows, ada) == pytest.approx(expected, abs=1e-5)
    assert either.prefer(PROMPT, [], []) == either.score([]) == []


def test_messages_are_the_text_that_they_hold(selector: Selector) -> None:
    p = selector.prefer(PROMPT, A, B)
    assert selector.prefer(TURNS, A, B) == p
    assert selector.prefer(TURNS, answer(A), answer(B)) == p
    assert selector.prefer([{"role": "human", "content": PROMPT}], A, B) == p  # as training reads it
    assert selector.prefer(f"\n\nHuman: {PROMPT}\n\nAssistant:", A, B) == p
    assert selector.prefer(PROMPT, A, A) == pytest.approx(0.5, abs=1e-6)
    assert selector.rank(PROMPT, pd.Series([A, B])) == selector.rank(TURNS, (x for x in (A, B)))
    assert selector.rank(TURNS, [answer(A), answer(B)])[0][1] == selector.rank(PROMPT, [A, B])[0][1]


def test_rewards_take_texts(either: Any, selector: Selector) -> None:
    expected = selector.rewards([PROMPT, PROMPT], [A, B]).tolist()
    for prompts in (PROMPT, TURNS, [PROMPT, TURNS], pd.Series([PROMPT] * 2)):
        assert list(either.rewards(prompts, [A, B])) == pytest.approx(expected, abs=1e-4)
    assert len(either.rewards([], [])) == 0


def test_one_user_is_good_for_both(selector: Selector, client: Client, tmp_path: Path) -> None:
    here, there = selector.infer_user(EXAMPLES), client.infer_user(EXAMPLES)
    assert type(here) is type(there) is User
    assert selector.prefer(PROMPT, A, B, there) == pytest.approx(client.prefer(PROMPT, A, B, here), abs=1e-5)
    stored = client.infer_user(EXAMPLES, store=True)
    assert stored.id is not None
    assert User.load(stored.save(tmp_path / "u.json")) == stored.model_copy(update={"id": None})


@pytest.mark.parametrize("user", [1, np.int64(1), {1: 1.0}, {np.int64(1): 1}])
def test_a_prototype_is_a_user(either: Any, selector: Selector, user: Any) -> None:
    expected = selector.prefer(PROMPT, A, B, selector.blend({1: 1.0}))
    assert either.prefer(PROMPT, A, B, user) == pytest.approx(expected, abs=1e-5)


def test_a_user_is_updated_where_it_came_from(judging: Selector, judged_run: Path, tmp_path: Path) -> None:
    vote = {"prompt": "Question 3 of many?", "completion": "No 3.", "label": True}
    bob = judging.infer_user(EXAMPLES[:3])
    assert bob.update(vote) == judging.update_user(bob, [vote])
    assert bob.update(vote).update(vote).pairs == 5
    assert judging.blend({0: 1.0}).update(vote).pairs == 1
    with listening(judged_run) as live, Client(live.url) as there:
        remote = there.infer_user(EXAMPLES[:3], store=True)
        assert remote.update(vote).mean == pytest.approx(bob.update(vote).mean, abs=1e-4)
        assert remote.id is not None
        assert there.stored_user(remote.id).pairs == 4
    with pytest.raises(UserError, match="knows no selector; call update_user"):
        User.load(bob.save(tmp_path / "bob.json")).update(vote)


WRONG: list[tuple[str, Callable[[Any], Any], str]] = [
    ("no prompt", lambda s: s.prefer("", A, B), "prompt"),
    ("no messages", lambda s: s.prefer([], A, B), "prompt"),
    ("None", lambda s: s.prefer(None, A, B), "prompt"),
    ("a role", lambda s: s.prefer([{"role": "robot", "content": PROMPT}], A, B), r"prompt.*role"),
    ("no content", lambda s: s.prefer([{"role": "user"}], A, B), r"prompt.*content"),
    ("a number", lambda s: s.prefer(PROMPT, 3, B), "a"),
    ("white space", lambda s: s.prefer(PROMPT, " ", B), "a"),
    ("other lengths", lambda s: s.prefer(PROMPT, [A, B], [B]), "b: 1 for 2 in a"),
    ("other prompts", lambda s: s.prefer([PROMPT] * 3, [A, B], [B, A]), "prompt: 3 for 2 responses"),
    ("an empty one of many", lambda s: s.prefer(PROMPT, [A, ""], [B, A]), r"a"),
    ("a column less", lambda s: s.score([{"prompt": PROMPT, "a": A}]), "b"),
    ("letters", lambda s: s.rank("x", "abc"), r"responses: must be a list, not str \('abc'\)"),
    ("numbers", lambda s: s.rank(PROMPT, [3]), r"responses\[0\]"),
    ("an empty response", lambda s: s.rank(PROMPT, [A, ""]), r"responses\[1\]"),
    ("text as rows", lambda s: s.infer_user("abc"), "examples: must be a list"),
    ("None as rows", lambda s: s.infer_user(None), "examples: must be a list, not None"),
    ("numbers as rows", lambda s: s.infer_user([1]), "examples:1: must be an object"),
    ("a row without a column", lambda s: s.infer_user([{"prompt": "x", "chosen": "y"}]), "rejected"),
    ("no such inference", lambda s: s.infer_user(EXAMPLES, "magic"), "inference"),
    ("a list as inference", lambda s: s.infer_user(EXAMPLES, ["x"]), "inference"),
    ("no question", lambda s: s.ask(user=None, pool=PAIR, n=0), "n: must be a whole number from 1 on"),
    ("a text as number", lambda s: s.ask(user=None, pool=PAIR, n="x"), "n: must be a whole number"),
    ("text as pool", lambda s: s.ask(user=None, pool="abc"), "pool: must be a list"),
    ("one reward's letters", lambda s: s.rewards(PROMPT, "abc"), "responses: must be a list"),
    ("a reward of nothing", lambda s: s.rewards(PROMPT, [""]), "response"),
    ("prompts too many", lambda s: s.rewards([PROMPT] * 3, [A, B]), "prompts: 3 for 2 responses"),
    ("a list as user", lambda s: s.prefer(PROMPT, A, B, [0.1]), "user: is list"),
    ("a truth as user", lambda s: s.prefer(PROMPT, A, B, True), "user: is bool"),
    ("no such prototype", lambda s: s.prefer(PROMPT, A, B, 99), "prototype: no prototype 99"),
    ("a blend of letters", lambda s: s.prefer(PROMPT, A, B, {"a": 1}), "is dict"),
    ("a blend of too much", lambda s: s.prefer(PROMPT, A, B, {0: 1.0, 1: 1.0}), "sum to 1"),
    ("a batch that is a text", lambda s: s.reward_function()("Hi", ["x"]), "prompts: must be a list"),
    ("users of nothing", lambda s: s.reward_function(users={}), "users"),
    ("user and users", lambda s: s.reward_function(1, users={"a": 0}), "users: user and users exclude"),
]


@pytest.mark.parametrize(("call", "match"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_what_is_wrong_has_a_remedy(either: Any, call: Callable[[Any], Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as e:
        call(either)
    assert "\n" not in str(e.value)
    assert e.value.remedy


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda s: s.prefer(PROMPT, A, B, "ada"), r"user: is str \('ada'\)"),
        (lambda s: s.blend([0.5, 0.5]), "blend: is list"),
        (lambda s: s.blend({0: float("nan"), 1: 1.0}), "blend: weights"),
        (lambda s: s.ask([PAIR], s.infer_user(EXAMPLES)), "pool: must be a list"),
        (lambda s: s.update_user("x", EXAMPLES), "user: is str"),
        (lambda s: s.infer_user(EXAMPLES).update(EXAMPLES), "fedvpa-gp cannot be updated"),
        (lambda s: s.infer_users(EXAMPLES, "judge"), "users:1: judge: missing column"),
        (lambda s: s.reward_function(users=EXAMPLES, column=None), "column"),
        (lambda s: Selector.from_pretrained(None), "pretrained_model_name_or_path: is None"),
        (lambda s: Selector.from_pretrained(""), "pretrained_model_name_or_path"),
        (lambda s: Selector(s.parameters, s.info, device="gpu"), "device: is str"),
        (lambda s: Selector(s.parameters, s.info, cache=3), "cache: is int"),
        (lambda s: User.load(3), "path: is int"),
    ],
)
def test_what_is_wrong_here(selector: Selector, call: Callable[[Selector], Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as e:
        call(selector)
    assert e.value.remedy


def test_names_are_short(judging: Selector, client: Client) -> None:
    shown = [repr(judging), repr(judging.infer_user(EXAMPLES)), str(judging.infer_user(EXAMPLES)), repr(client)]
    shown += [repr(judging.reward_function()), repr(judging.parameters)]
    assert max(len(text) for text in shown) < 130
    assert "tensor(" not in "".join(shown)
