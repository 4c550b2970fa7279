"""`fedvpa personalize` with every kind of judgement, and `fedvpa ask`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Cli
from fedvpa import Selector, User
from fedvpa.apps import asking, using
from fedvpa.apps.runs import read_config
from fedvpa.preferences.examples import Question, read_questions

LONG, SHORT = "Answer 50, at some length and with care.", "No 50."


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    """Somebody who likes longer answers."""
    path = tmp_path / "votes.csv"
    rows = [f'Topic {k}?,"Answer {k}, at some length and with care.",true\nTopic {k}?,No {k}.,false' for k in range(3)]
    path.write_text("prompt,completion,label\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.csv"
    path.write_text(
        "prompt,text,a,b\n"
        'Question 51?,"Answer 51, at some length and with care.",,\n'
        "Question 52?,No 52.,,\n"
        'Question 53?,,"Answer 53, at some length and with care.",No 53.\n'
    )
    return path


def test_a_csv_file_of_votes_makes_a_user(judged_run: Path, votes: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("personalize", judged_run, "--examples", votes, "--out", tmp_path / "me.json")
    assert done.code == 0, done.err
    assert "inferred from 6 judgements (" in done.out
    me = User.load(tmp_path / "me.json")
    assert Selector.from_pretrained(judged_run).prefer("Question 50?", LONG, SHORT, me) > 0.6


def test_further_judgements_update_the_file(judged_run: Path, votes: Path, tmp_path: Path, cli: Cli) -> None:
    me = tmp_path / "me.json"
    cli("personalize", judged_run, "--examples", votes, "--out", me)
    before = User.load(me)
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "Q?", "chosen": LONG, "rejected": SHORT}) + "\n")
    done = cli("personalize", judged_run, "--user", me, "--examples", tmp_path / "more.jsonl", "--out", me)
    assert "inferred from 7 judgements" in done.out
    selector = Selector.from_pretrained(judged_run)
    p, q = (selector.prefer("Question 50?", LONG, SHORT, u) for u in (before, User.load(me)))
    assert q > p
    refused = cli("personalize", judged_run, "--user", me, "--examples", votes, "--inference", "mixture", "--out", me)
    assert refused.code == 2
    assert "--inference: has been chosen when the user was made" in refused.err


def test_a_user_of_another_method_is_not_updated(finished: Path, votes: Path, tmp_path: Path, cli: Cli) -> None:
    me = tmp_path / "me.json"
    assert "inferred from 3 pairs" in cli("personalize", finished, "--examples", votes, "--out", me).out
    done = cli("personalize", finished, "--user", me, "--examples", votes, "--out", me)
    assert done.code == 2
    assert "cannot be updated; infer the user again, from all answers together" in done.err


def test_without_a_terminal_the_questionnaire_is_printed(
    judged_run: Path, pool: Path, tmp_path: Path, cli: Cli
) -> None:
    done = cli("ask", judged_run, "--pool", pool, "--questions", 2)
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert len(rows) == 2
    assert 1 >= rows[0]["bits"] > 0.02 > rows[1]["bits"] >= 0, "all three are about length: one answer says it all"
    every = [json.loads(x) for x in cli("ask", judged_run, "--pool", pool, "--questions", 3).out.splitlines()]
    assert every[:2] == rows
    (pair,) = [row for row in every if row["row"] == 3]
    assert pair["a"].startswith("Answer 53")
    assert cli("ask", judged_run, "--pool", pool, "--questions", 2, "--json", tmp_path / "q.json").code == 0
    assert json.loads((tmp_path / "q.json").read_text()) == rows
    assert "--out: there are no answers to write" in cli("ask", judged_run, "--pool", pool, "--out", "x.json").err


def test_in_a_terminal_the_user_is_asked(
    judged_run: Path, pool: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        if len(asked) == 1:
            return "perhaps"  # is asked again
        return "a" if prompt.startswith("a or b") else "y"

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    me = tmp_path / "me.json"
    done = cli("ask", judged_run, "--pool", pool, "--questions", 2, "--out", me)
    assert done.code == 0, done.err
    assert len(asked) == 3
    assert asked[0] == asked[1]
    assert "inferred from 2 judgements" in done.out
    again = cli("ask", judged_run, "--pool", pool, "--user", me, "--questions", 1, "--out", me)
    assert "inferred from 3 judgements" in again.out


def said(*words: str) -> Iterator[str]:
    yield from words


@pytest.mark.parametrize(
    ("words", "answers"),
    [(("s", "s", "s"), 0), (("q",), 0), (("no", "q"), 1), (("", "1", "2"), 2)],
)
def test_skipping_and_stopping(judged_run: Path, words: tuple[str, ...], answers: int, tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    rows = [{"prompt": f"Q{k}?", "a": f"Answer {k}, at some length.", "b": f"No {k}."} for k in range(3)]
    yes_or_no = [{"prompt": "Q?", "text": f"Answer {k}, at some length."} for k in range(3)]
    path.write_text("\n".join(map(json.dumps, rows if "1" in words else yes_or_no)))
    pool: list[Question] = read_questions(path)
    spoken, shown = said(*words), list[str]()
    user = asking.interview(Selector.from_pretrained(judged_run), None, pool, 3, lambda _: next(spoken), shown.append)
    assert user.pairs == answers
    assert all("Q" in line for line in shown)


def test_the_end_of_the_input_stops(judged_run: Path, pool: Path) -> None:
    def ended(_: str) -> str:
        raise EOFError

    user = asking.interview(Selector.from_pretrained(judged_run), None, read_questions(pool), 3, ended, lambda _: None)
    assert user.pairs == 0


def test_it_is_measured_as_in_training(judged_run: Path) -> None:
    selector, config = Selector.from_pretrained(judged_run), read_config(judged_run)
    again = using.evaluate(selector, config, config)["rows"]
    rows = json.loads((judged_run / "results.json").read_text())["rows"]
    key = ("population", "context_size", "inference", "default", "accuracy")
    assert [[r[k] for k in key] for r in again] == [[r[k] for k in key] for r in rows]
