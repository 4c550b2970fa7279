"""What users get wrong: one line that names the place and the remedy, exit code 2, and nothing written."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from conftest import Cli, preference_lines

GOOD = preference_lines(1, 1)[0]


def broken(**changes: object) -> str:
    row = {**json.loads(GOOD), **changes}
    return json.dumps({k: v for k, v in row.items() if v is not None})


@pytest.mark.parametrize(
    ("content", "place", "problem"),
    [
        (GOOD + '\n{"prompt": ', ":2: ", "not valid JSON"),
        (GOOD + "\n[1]", ":2: ", "an object"),
        (broken(chosen=None), ":1: chosen: ", "missing column"),
        (broken(user_id=None), ":1: user_id: ", "missing column"),
        (broken(chosen="x", rejected="x"), ":1: rejected: ", "equals chosen"),
        (broken(rejected=" "), ":1: rejected: ", "is empty"),
        ("", ": ", "the file is empty"),
        (b"\x89PNG\r\n\x00\xff\xfe", ":1: ", "not text"),
        (b"\x1f\x8bnot gzip", ": ", "not a complete gzip file"),
        (GOOD, ": user_id: ", "no user with 2 pairs"),
    ],
)
def test_data(content: str | bytes, place: str, problem: str, experiment: Path, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    done = cli("train", experiment, f"data.path={path}", "--out", tmp_path / "r")
    assert done.code == 2
    assert done.err.startswith(f"error: {path}{place}")
    assert problem in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""
    assert not (tmp_path / "r").exists()


def test_invalid_rows_can_be_skipped_and_single_pairs_are_counted(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    lonely = broken(user_id="lonely")
    (tmp_path / "d.jsonl").write_text("\n".join([*preference_lines(), lonely, "rubbish"]) + "\n")
    options = [f"data.path={tmp_path / 'd.jsonl'}", "data.on_invalid=skip", "federation.rounds=1"]
    assert cli("train", experiment, *options, "--out", tmp_path / "r").code == 0
    data = json.loads((tmp_path / "r/results.json").read_text())["data"]
    assert data["invalid rows"] == 1
    assert data["users with fewer than 2 pairs"] == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.name=fedvpa_gp", "method.name: unknown value 'fedvpa_gp'; did you mean fedvpa-gp?"),
        ("federation.round=3", "federation.round: unknown key; did you mean federation.rounds?"),
        ("method.beta=-1", "method.beta: "),
        ("method.beta", "write key=value"),
        ("backbone.model=./nowhere", "backbone.model: no such model folder"),
        ("backbone.layer=99", "backbone.layer: layer 99"),
        ("data.path=nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("federation.sampled_clients=9", "sampled_clients (9) exceeds"),
    ],
)
def test_configuration(override: str, message: str, experiment: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("train", experiment, override, "--out", tmp_path / "r")
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml: no such configuration"),
        (["train"], "Missing argument"),
        (["trian", "x"], "No such command"),
        (["train", "x", "--fast"], "No such option"),
        (["compare", "{experiment}", "--seeds", "none"], "Invalid value for '--seeds'"),
        (["compare", "{experiment}", "--seeds", "0"], "Invalid value for '--seeds'"),
        (["compare", "{experiment}", "--methods", "fedvpa_gp,fedbt"], "did you mean fedvpa-gp?"),
        (["compare", "{experiment}", "--methods", " , "], "no method given"),
        (["evaluate", "nowhere"], "nowhere: no such run"),
        (["evaluate", "{tmp}"], "not a run"),
        (["report", "nowhere"], "nowhere: no such run"),
        (["personalize", "nowhere", "--examples", "x", "--out", "y"], "nowhere: no such run"),
        (["config"], "no configuration given"),
        (["train", "{experiment}", "--out", "{file}"], "is a file"),
        (["train", "{experiment}", "--out", "{file}/x"], "x: "),
        (["train", "{experiment}", "--out", "{tmp}/new", "--resume"], "no run to resume"),
        (["train", "{experiment}", "--out", "{tmp}"], "the folder is not empty; choose another --out"),
        (["train", "{experiment}", "--out", "{tmp}", "--overwrite"], "holds files but no run"),
        (["train", "{experiment}", "--out", "{tmp}", "--overwrite", "--resume"], "exclude each other"),
        (["compare", "{experiment}", "--out", "{finished}", "--resume"], "made by `fedvpa train`"),
        (["evaluate", "{finished}", "method.beta=1"], "method.beta: is fixed by the trained selector"),
        (["evaluate", "{finished}", "data.path={file}"], "not valid JSON"),
    ],
)
def test_arguments(
    arguments: list[str], message: str, experiment: Path, finished: Path, tmp_path: Path, cli: Cli
) -> None:
    file = tmp_path / "file.txt"
    file.write_text("something")
    places = {"experiment": experiment, "tmp": tmp_path, "file": file, "finished": finished}
    done = cli(*(a.format(**places) for a in arguments))
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.txt"]


def test_damaged_run(experiment: Path, finished: Path, tmp_path: Path, cli: Cli) -> None:
    def after(name: str, content: bytes) -> str:
        run = shutil.copytree(finished, tmp_path / "r", dirs_exist_ok=True)
        (run / name).write_bytes(content)
        done = cli("score", run, "--pairs", experiment)
        assert done.code == 2
        assert done.err.count("\n") == 1
        return done.err

    weights = (finished / "model.safetensors").read_bytes()
    assert "damaged, its sha256 is not model_hash" in after("model.safetensors", weights[:-1] + b"\0")
    assert "not a selector's description" in after("model.json", b"{}")
    assert "not a selector's description" in after("model.json", b"\xff")
    model = json.loads((finished / "model.json").read_bytes())
    assert "format 999" in after("model.json", json.dumps({**model, "format": 999}).encode())
    other = {**model["config"], "model": {**model["config"]["model"], "hidden_dim": 13}}
    assert "the parameters are not those" in after("model.json", json.dumps({**model, "config": other}).encode())
    run = shutil.copytree(finished, tmp_path / "r", dirs_exist_ok=True)
    (run / "config.yaml").write_text("a: [")
    assert "config.yaml: not valid YAML" in cli("evaluate", run).err
    (run / "model.json").unlink()
    assert "no trained selector here" in cli("score", run, "--pairs", experiment).err


def test_a_damaged_cache_entry_is_computed_again_and_said_so(
    experiment: Path, finished: Path, tmp_path: Path, cli: Cli
) -> None:
    cache = tmp_path / "cache"
    (cache / "features").mkdir(parents=True)
    for file in (experiment.parent / "cache/features").glob("*.sqlite"):
        # SQLite copies it: a plain copy, on closing the file, would end every lock that this process holds on it, and
        # with these the cache of all tests that follow.
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(cache / "features" / file.name)) as copy:
            source.backup(copy)
            copy.execute("UPDATE vectors SET value = zeroblob(7) WHERE rowid IN (SELECT min(rowid) FROM vectors)")
            copy.commit()
    done = cli("train", experiment, f"output.cache={cache}", "--out", tmp_path / "r")
    assert done.code == 0
    notes = json.loads((tmp_path / "r/results.json").read_text())["notes"]
    assert any("damaged cache entr" in note for note in notes)
    assert (tmp_path / "r/model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
