"""The smaller commands: evaluate, personalize, score, encode, config, doctor, report, help."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import Cli, preference_lines
from fedvpa.apps import doctor
from fedvpa.config import valid_keys
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import read_results


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "me.jsonl"
    path.write_text("\n".join(preference_lines(1, 5)) + "\n")
    return path


def test_evaluate_on_its_own_data_repeats_the_run(finished: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("evaluate", finished, "--json", tmp_path / "t.json")
    assert done.code == 0
    assert "Report:" not in done.out
    mine = {
        (r["context_size"], r["population"]): r["mean"]
        for r in json.loads((tmp_path / "t.json").read_text())["context_sizes"]
    }
    summary = [e for e in read_results(finished / "results.json")["summary"] if e["default"]]
    assert mine == {(e["context_size"], e["population"]): pytest.approx(e["mean"], abs=1e-9) for e in summary}


def test_evaluate_on_other_data(finished: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "other.jsonl").write_text("\n".join(preference_lines(3, 8)) + "\n")
    done = cli("evaluate", finished, f"data.path={tmp_path / 'other.jsonl'}", "--json", tmp_path / "t.json")
    assert done.code == 0, done.err
    assert "all users are reported as unseen" in " ".join(done.out.split())
    rows = json.loads((tmp_path / "t.json").read_text())["context_sizes"]
    assert {r["population"] for r in rows} == {"unseen"}


def test_evaluate_without_queries(finished: Path, tmp_path: Path, cli: Cli) -> None:
    row = json.loads(preference_lines(1, 1)[0])
    lines = [json.dumps({**row, "chosen": f"answer {i}"}) for i in range(3)]
    (tmp_path / "one.jsonl").write_text("\n".join(lines))
    done = cli("evaluate", finished, f"data.path={tmp_path / 'one.jsonl'}")
    assert done.code == 2
    assert "no user has a pair for a query" in done.err


def test_personalize_then_score(finished: Path, examples: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("personalize", finished, "--examples", examples, "--out", tmp_path / "me.json")
    assert done.code == 0
    assert "inferred from 5 pairs" in done.out
    user = json.loads((tmp_path / "me.json").read_text())
    assert {"mean", "log_var", "pairs", "model_hash"} <= set(user)
    assert user["pairs"] == 5
    assert user["model_hash"] == json.loads((finished / "model.json").read_text())["model_hash"]

    pairs = tmp_path / "pairs.jsonl.gz"
    lines = ['{"id": 1, "prompt": "Hi", "a": "Hello", "b": "Ü"}', "", '{"prompt": "Hi", "a": "Ü", "b": "Hello"}']
    pairs.write_bytes(gzip.compress("\n".join(lines).encode()))
    printed = cli("score", finished, "--user", tmp_path / "me.json", "--pairs", pairs)
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert rows[0]["id"] == 1
    assert rows[0]["b"] == "Ü"
    assert rows[0]["p_a"] + rows[1]["p_a"] == pytest.approx(1, abs=1e-6)
    options = ["--user", tmp_path / "me.json", "--pairs", pairs, "--out", tmp_path / "scored.jsonl"]
    assert cli("score", finished, *options).out == ""
    assert (tmp_path / "scored.jsonl").read_text() == printed.out
    anybody = cli("score", finished, "--pairs", pairs)
    assert anybody.code == 0
    assert anybody.out != printed.out


def test_a_user_of_another_model_is_refused(finished: Path, examples: Path, tmp_path: Path, cli: Cli) -> None:
    cli("personalize", finished, "--examples", examples, "--out", tmp_path / "me.json")
    user = json.loads((tmp_path / "me.json").read_text())
    (tmp_path / "me.json").write_text(json.dumps({**user, "model_hash": "0" * 64}))
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hi", "a": "x", "b": "y"}\n')
    done = cli("score", finished, "--user", tmp_path / "me.json", "--pairs", tmp_path / "p.jsonl")
    assert done.code == 2
    assert "inferred with another model (000000000000, not " in done.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "me.json: "),
        ("[]", "me.json: "),
        ('{"mean": [1], "log_var": [], "pairs": 1, "model_hash": "x"}', "mean and log_var differ"),
        ('{"mean": [1], "log_var": [1], "pairs": "many", "model_hash": "x"}', "pairs: "),
        ('{"mean": [1], "log_var": [1], "pairs": 1, "model_hash": "x", "weights": [1]}', "belong together"),
    ],
)
def test_a_bad_user_file(content: str, message: str, finished: Path, examples: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "me.json").write_text(content)
    done = cli("score", finished, "--user", tmp_path / "me.json", "--pairs", examples)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1


def test_unknown_inference(finished: Path, examples: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("personalize", finished, "--examples", examples, "--out", tmp_path / "u", "--inference", "magic")
    assert done.code == 2
    assert "inference: unknown value 'magic'; choose from amortised, mixture, refined" in done.err
    assert not (tmp_path / "u").exists()


def test_encode(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    options = [f"output.cache={tmp_path / 'cache'}", "--json", tmp_path / "f.json"]
    assert cli("encode", experiment, *options).code == 0
    first = json.loads((tmp_path / "f.json").read_text())
    assert cli("encode", experiment, *options).code == 0
    second = json.loads((tmp_path / "f.json").read_text())
    assert first["computed now"] == first["pairs"] == second["from the cache"] > 0
    assert second["computed now"] == 0


def test_keys_and_json(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("config", "--keys", "--json", tmp_path / "k.json")
    assert done.code == 0
    rows = json.loads((tmp_path / "k.json").read_text())
    assert [r["key"] for r in rows] == valid_keys()
    assert all(r["meaning"] for r in rows)
    cli("config", experiment, "method.beta=0.1", "--json", tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["method"]["beta"] == 0.1


def test_report_is_built_again(finished: Path, tmp_path: Path, cli: Cli) -> None:
    run = shutil.copytree(finished, tmp_path / "r")
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert cli("report", run).code == 0
    assert (run / "report.html").read_text() == before


def test_doctor(experiment: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVPA_CACHE", str(experiment.parent / "cache"))
    monkeypatch.setenv("FEDVPA_HH_RLHF", str(tmp_path / "nowhere"))
    monkeypatch.setattr(doctor, "TIMEOUT", 0.01)
    monkeypatch.setattr(doctor, "_installed", lambda name: name != "hypothesis")
    monkeypatch.setattr(doctor, "ENOUGH_GB", 1e9)
    code = cli("doctor", "--json", tmp_path / "d.json").code
    found = {f["name"]: f for f in json.loads((tmp_path / "d.json").read_text())}
    assert code == any(f["state"] == "missing" for f in found.values())
    assert found["cache"]["found"].startswith(str(experiment.parent / "cache"))
    assert found["HH-RLHF"]["state"] == "note"
    assert found["free disk"]["remedy"]
    assert found["extra test"] == {
        "name": "extra test",
        "state": "note",
        "found": "missing: hypothesis",
        "remedy": "pip install -e '.[test]'",
    }


def test_doctor_without_the_embedded_model(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise UserError("not installed", "install it")

    monkeypatch.setattr(doctor, "embedded_wheel", absent)
    monkeypatch.setattr(doctor, "encoder_wheel", absent)
    monkeypatch.setattr(doctor.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("FEDVPA_CACHE", str(tmp_path / "none"))
    done = cli("doctor", "--json", tmp_path / "d.json")
    assert done.code == 1
    found = {f["name"]: f for f in json.loads((tmp_path / "d.json").read_text())}
    assert found["embedded model"]["state"] == "missing"
    assert (found["sentence encoder"]["state"], found["sentence encoder"]["remedy"]) == ("note", "install it")
    assert "HF_HUB_OFFLINE" in found["Hub"]["found"]
    assert "made at the first use" in found["cache"]["found"]


@pytest.mark.parametrize(
    "command",
    ["train", "compare", "evaluate", "personalize", "score", "encode", "config", "doctor", "report", "studio"],
)
def test_every_command_has_an_example(command: str, cli: Cli) -> None:
    done = cli(command, "--help")
    assert done.code == 0
    assert f"fedvpa {command}" in done.out.split("Examples:")[1]


@pytest.mark.parametrize(
    ("command", "meaning"), [("train", "A YAML file"), ("score", "The folder of a run"), ("align", "key=value")]
)
def test_help_says_what_an_argument_is(command: str, meaning: str, cli: Cli) -> None:
    assert meaning in " ".join(cli(command, "--help").out.split())


def test_help_without_arguments(cli: Cli) -> None:
    done = cli()
    assert done.code == 0
    assert "personalize" in done.out
