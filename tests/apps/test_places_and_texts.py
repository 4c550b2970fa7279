"""Paths and values as people type them, from any folder, in any locale; places that cannot be used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Cli
from fedvpa.apps.deploy import init
from fedvpa.backbone import models
from fedvpa.config import absolute_paths, load_config, read_overrides
from fedvpa.errors import UserError

SHORT = ("federation.rounds=2", "output.checkpoint_every=1", "method.name=fedbt")


@pytest.fixture
def moved(experiment: Path, tmp_path: Path) -> Path:
    """A folder whose name would be markup, with a configuration that names everything relative to it."""
    folder = tmp_path / "[bold]my [runs] :smile: #1"
    tree = yaml.safe_load(experiment.read_text())
    folder.mkdir()
    shutil.copy(tree["data"]["path"], folder / "data [x] ${HOME}.jsonl")
    shutil.copytree(tree["backbone"]["model"], folder / "llama")
    tree["data"]["path"] = "data [x] ${HOME}.jsonl"
    tree["backbone"]["model"], tree["output"]["cache"] = "./llama", "cache"
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return folder


def test_a_run_goes_on_and_is_used_from_another_folder(
    moved: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(moved)
    done = cli("train", "tiny.yaml", *SHORT, "--out", "[r] 1")
    assert done.code == 0
    assert "Report: [r] 1/report.html" in done.out
    run = moved / "[r] 1"
    for name in ("results.json", "report.html"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints/round-000002")
    assert cli("train", "tiny.yaml", *SHORT, "--out", "[r] 1", "--resume").code == 0
    monkeypatch.chdir(tmp_path)
    assert cli("evaluate", run).code == 0
    done = cli("forget", run, "u3")
    if done.code:
        done = cli("forget", run, "u4")
    assert done.code == 0
    assert f"{run}/checkpoints/round-000002: rewritten without the user" in done.out
    assert (run / "checkpoints/round-000002").is_dir()


def test_forget_finds_data_that_have_moved(moved: Path, tmp_path: Path, cli: Cli, monkeypatch: Any) -> None:
    monkeypatch.chdir(moved)
    assert cli("train", "tiny.yaml", *SHORT, "--out", "r").code == 0
    (moved / "data [x] ${HOME}.jsonl").rename(moved / "elsewhere.jsonl")
    seen = [cli("forget", "r", f"u{i}", "data.path=elsewhere.jsonl").code for i in range(12)]
    assert seen.count(0) == 8
    assert "no such file" in cli("forget", "r", "u1").err
    done = cli("forget", "r", "u1", "seed=3")
    assert (done.code, "give data.path or data.items only" in done.err) == (2, True)


def test_home_is_known_in_every_path(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(moved))
    config = absolute_paths(
        load_config(moved / "tiny.yaml", ["data.path=~/tiny.yaml", "backbone.model=~/llama", "output.cache=~/c"])
    )
    assert config.data.path == str(moved / "tiny.yaml")
    assert config.backbone.model == str(moved / "llama")
    assert config.output.cache == str(moved / "c")


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("data.path=${HOME}/x", "data", "path", "${HOME}/x"),
        ("data.path=a #1.csv", "data", "path", "a #1.csv"),
        ("data.path=a: b", "data", "path", "a: b"),
        ("data.path=[x].csv", "data", "path", "[x].csv"),
        ("data.path=1", "data", "path", "1"),
        ("data.path=a=b", "data", "path", "a=b"),
        ("data.path='a b'", "data", "path", "a b"),
        ("data.path=null", "data", "path", None),
        ("data.path=", "data", "path", None),
        ("data.user_column=1", "data", "user_column", "1"),
        ("data.user_column=true", "data", "user_column", "true"),
        ("data.columns.user=3", "data", "columns", {"user": "3"}),
        ("backbone.model=[a,b]", "backbone", "model", ["a", "b"]),
        ("backbone.model=1", "backbone", "model", "1"),
        ("federation.learning_rate=1e-3", "federation", "learning_rate", 1e-3),
        ("federation.rounds=7", "federation", "rounds", 7),
        ("data.groups=[a,b]", "data", "groups", ["a", "b"]),
        ("method.tau_final=null", "method", "tau_final", None),
        ("output.tensorboard=false", "output", "tensorboard", False),
    ],
)
def test_a_text_is_what_was_typed_and_all_else_is_yaml(override: str, section: str, key: str, value: Any) -> None:
    assert read_overrides([override]) == {section: {key: value}}


@pytest.mark.parametrize(
    "override", ["data.pairs_per_client=[", "data=1", "data.path", "=1", "data.path.x=1", "x=${y}"]
)
def test_an_override_that_cannot_be_is_one_line(experiment: Path, cli: Cli, override: str) -> None:
    done = cli("config", experiment, override)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_json_lines_are_utf_8_in_every_locale(finished: Path, tmp_path: Path, encoding: str) -> None:
    rows = [{"prompt": "héé", "a": "日本", "b": "x 👩‍👩‍👧"}]
    (tmp_path / "u.jsonl").write_text(json.dumps(rows[0], ensure_ascii=False) + "\n", encoding="utf-8")
    command = "import sys; from fedvpa.apps.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", command, "score", str(finished), "--pairs", str(tmp_path / "u.jsonl")],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.decode("utf-8").splitlines()
    assert {k: v for k, v in json.loads(line).items() if k != "p_a"} == rows[0]
    assert "日本" in line


def test_texts_that_a_locale_does_not_have_give_no_traceback(tmp_path: Path) -> None:
    command = "import sys; from fedvpa.apps.cli import main; sys.exit(main(sys.argv[1:]))"
    for arguments in (["evaluate", "日本"], ["config", "--keys"], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-c", command, *arguments],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            cwd=tmp_path,
            capture_output=True,
            timeout=300,
        )
        assert b"Traceback" not in done.stderr
        assert done.returncode in (0, 2)


def test_places_that_cannot_be_made_are_one_line(experiment: Path, finished: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "file").write_text("x")
    for arguments in (
        ["evaluate", finished, "--json", tmp_path / "file" / "t.json"],
        ["evaluate", finished, "--json", tmp_path / "none" / "t.json"],
        ["train", experiment, *SHORT, "--out", tmp_path / "file" / "run"],
        ["train", experiment, *SHORT, "--out", tmp_path / ("x" * 300)],
        ["deploy", "init", tmp_path / "file" / "d", "--nodes", "1", "--host", "localhost"],
    ):
        done = cli(*arguments)
        assert done.code == 2, arguments
        assert done.err.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in done.err


def test_a_full_disk_while_the_embedded_model_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "embedded_wheel", lambda: tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"x")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(models.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    monkeypatch.setattr(models, "_convert", lambda *_: pytest.fail("there is no room for it"))
    with pytest.raises(UserError, match=r"the cache cannot be written \(1 MiB free, 320 are needed\); free some space"):
        models.locate(models.EMBEDDED, None, tmp_path / "cache")

    def full(*_: Any) -> None:
        raise models.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(models.shutil, "disk_usage", lambda _: usage._replace(free=2**40))
    monkeypatch.setattr(models, "_convert", full)
    with pytest.raises(UserError, match=r"No space left on device"):
        models.locate(models.EMBEDDED, None, tmp_path / "cache")


@pytest.mark.parametrize("host", ["::1", "[::1]", "2001:db8::7", "fe80::1"])
def test_an_ipv6_address_is_refused_when_a_deployment_is_made(tmp_path: Path, host: str) -> None:
    with pytest.raises(UserError, match=r"--host: .* is an IPv6 address, .*; give a name that stands for it"):
        init(tmp_path / "d", 1, (host,), 9091, None)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("name", ["./none", "runs/none", "a/b/c", "/none", "x/", "~/none"])
def test_a_name_that_looks_like_a_folder_is_never_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(models, "snapshot_download", lambda *_, **__: pytest.fail("the Hub was asked"))
    with pytest.raises(UserError, match="no such model folder"):
        models.locate(name, None, tmp_path / "cache")


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("method", ["fedvpa-gp", "fedbt", "fedvpa-laplace"])
def test_one_client_gives_no_warning(experiment: Path, tmp_path: Path, cli: Cli, method: str) -> None:
    alone = ("federation.clients=1", "federation.sampled_clients=1", "laplace.rounds=4", "laplace.components=2")
    assert cli("train", experiment, *SHORT[:2], f"method.name={method}", *alone, "--out", tmp_path / "r").code == 0
