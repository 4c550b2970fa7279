"""`fedvpa example-data`: its files are what the other commands read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedvpa.config import DataConfig
from fedvpa.preferences.examples import read_examples
from fedvpa.preferences.jsonl import read_candidates
from fedvpa.preferences.reading import read_people
from fedvpa.preferences.sources import preference_rows


def test_the_files_are_valid_and_users_disagree(cli: Callable[..., Any], tmp_path: Path) -> None:
    done = cli("example-data", tmp_path / "new", "--users", 8, "--pairs", 10)
    assert done.code == 0, done.err
    pairs, examples, candidates = map(Path, done.out.split())
    rows = preference_rows(read_people(DataConfig(name="jsonl", path=str(pairs))))
    assert set(Counter(r.user for r in rows).values()) == {10}
    assert Counter(r.group for r in rows) == {"formal": 20, "casual": 20, "encouraging": 20, "cautious": 20}
    assert len(read_examples(examples)) == 8
    assert len(read_candidates(candidates)) == 12
    asked = {json.loads(line)["prompt"] for line in candidates.read_text().splitlines()}
    assert not asked & {json.loads(line)["prompt"] for line in pairs.read_text().splitlines()}


def test_nothing_is_replaced_unasked(cli: Callable[..., Any], tmp_path: Path) -> None:
    assert cli("example-data", tmp_path, "--users", 5, "--pairs", 2).code == 0
    before = (tmp_path / "ada.jsonl").read_text()
    done = cli("example-data", tmp_path, "--users", 6)
    assert done.code == 2
    assert done.err == (
        f"error: {tmp_path / 'pairs.jsonl'}: is there already; choose another folder, or use --overwrite\n"
    )
    assert cli("example-data", tmp_path, "--users", 6, "--overwrite").code == 0
    assert (tmp_path / "ada.jsonl").read_text() == before


def test_a_selector_is_trained_on_it(cli: Callable[..., Any], experiment: Path, tmp_path: Path) -> None:
    assert cli("example-data", tmp_path, "--users", 12, "--pairs", 6).code == 0
    done = cli("train", experiment, f"data.path={tmp_path / 'pairs.jsonl'}", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    done = cli("personalize", tmp_path / "run", "--examples", tmp_path / "ada.jsonl", "--out", tmp_path / "ada.json")
    assert done.code == 0, done.err
    scored = cli("score", tmp_path / "run", "--user", tmp_path / "ada.json", "--pairs", tmp_path / "candidates.jsonl")
    assert all(0 < json.loads(line)["p_a"] < 1 for line in scored.out.splitlines())
    assert len(scored.out.splitlines()) == 12
