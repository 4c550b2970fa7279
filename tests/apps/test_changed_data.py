"""A run never goes on with other data, or other features, under the same name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from conftest import Cli, preference_lines
from fedvpa.apps import fingerprints, using
from fedvpa.config import load_config
from fedvpa.federation import checkpoint
from fedvpa.preferences.fingerprint import fingerprint_of
from fedvpa.preferences.sources import load_preferences
from fedvpa.selector import Selector
from tiny_model import save_llama

Lines = list[str]


def exchanged(lines: Lines) -> Lines:
    rows = [json.loads(line) for line in lines]
    return [json.dumps({**r, "chosen": r["rejected"], "rejected": r["chosen"]}) for r in rows]


CHANGES: dict[str, tuple[Callable[[Lines], Lines], str]] = {
    "users added": (lambda _: preference_lines(14), "the people in the data are others"),
    "rows removed": (lambda lines: [x for i, x in enumerate(lines) if i % 3], "the texts in the data are others"),
    "a label removed": (lambda lines: lines[:-1], "people say something else"),
    "labels exchanged": (exchanged, "people say something else"),
    "a word changed": (lambda lines: [x.replace("with care", "with cares") for x in lines], "the texts"),
    "a group renamed": (lambda lines: [x.replace('"longer"', '"long"') for x in lines], "the people"),
    "rows in another order": (lambda lines: lines[::-1], "another order"),
}


@pytest.fixture
def started(experiment: Path, finished: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A run that has not come to its end, its configuration and its data, to be changed."""
    data, config, run = tmp_path / "data.jsonl", tmp_path / "tiny.yaml", tmp_path / "run"
    tree = yaml.safe_load(experiment.read_text())
    shutil.copy(tree["data"]["path"], data)
    config.write_text(yaml.safe_dump({**tree, "data": {**tree["data"], "path": str(data)}}))
    shutil.copytree(finished, run)
    stored = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**stored, "data": {**stored["data"], "path": str(data)}}))
    for name in ("results.json", "report.html"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints/round-000008")
    return config, data, run


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_go_on_with_changed_data(started: tuple[Path, Path, Path], cli: Cli, change: str) -> None:
    config, data, run = started
    make, problem = CHANGES[change]
    lines = data.read_text().splitlines()
    data.write_text("\n".join(make(lines)) + "\n")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    done = cli("train", config, "--out", run, "--resume")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert problem in done.err
    assert "put the former ones back" in done.err
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    data.write_text("\n".join(lines) + "\n")
    assert cli("train", config, "--out", run, "--resume").code == 0


def test_a_finished_run_is_not_that_of_changed_data(experiment: Path, finished: Path, cli: Cli) -> None:
    data = Path(yaml.safe_load(experiment.read_text())["data"]["path"])
    text = data.read_text()
    assert "nothing to do" in cli("train", experiment, "--out", finished, "--resume").err
    try:
        data.write_text("\n".join(exchanged(text.splitlines())) + "\n")
        done = cli("train", experiment, "--out", finished, "--resume")
        assert (done.code, "people say something else" in done.err) == (2, True)
        done = cli("evaluate", finished)
        assert (done.code, "the data have changed since" in done.err) == (2, True)
    finally:
        data.write_text(text)


def test_a_run_does_not_go_on_with_another_backbone_of_the_same_name(
    experiment: Path, tmp_path: Path, cli: Cli
) -> None:
    model, run = save_llama(tmp_path / "llama"), tmp_path / "run"
    settings = [f"backbone.model={model}", "federation.rounds=2", "output.checkpoint_every=1"]
    assert cli("train", experiment, *settings, "--out", run).code == 0
    for name in ("results.json", "report.html"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints/round-000002")
    shutil.rmtree(model)
    save_llama(model, initializer_range=0.31)
    done = cli("train", experiment, *settings, "--out", run, "--resume")
    assert (done.code, "backbone.model: the backbone's files" in done.err) == (2, True)
    done = cli("evaluate", run)
    assert (done.code, "the backbone here differs" in done.err) == (2, True)


def test_every_checkpoint_run_and_export_says_what_it_was_made_of(experiment: Path, finished: Path) -> None:
    config = load_config(experiment)
    known = fingerprints.fingerprint(config, load_preferences(config))
    assert set(known) == {"people", "texts", "labels", "order", "trained", "features"}
    assert json.loads((finished / "fingerprint.json").read_text()) == {"format": 1, **known}
    assert Selector.from_pretrained(finished).info.fingerprint == known
    found = checkpoint.load(finished / "checkpoints")
    assert found is not None
    assert found[1]["fingerprint"] == known


def test_a_checkpoint_of_an_earlier_format_is_named(started: tuple[Path, Path, Path], cli: Cli) -> None:
    config, _, run = started
    for path in run.glob("checkpoints/*/state.json"):
        path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    done = cli("train", config, "--out", run, "--resume")
    assert (done.code, "format 1, this version reads 2" in done.err) == (2, True)


def test_a_run_without_a_fingerprint_does_not_go_on(started: tuple[Path, Path, Path], cli: Cli) -> None:
    config, _, run = started
    (run / "fingerprint.json").unlink()
    done = cli("train", config, "--out", run, "--resume")
    assert (done.code, "does not say which data" in done.err) == (2, True)


def test_compare_does_not_go_on_with_changed_data(started: tuple[Path, Path, Path], tmp_path: Path, cli: Cli) -> None:
    config, data, _ = started
    arguments = ["compare", config, "--methods", "fedbt", "federation.rounds=2", "--jobs", "1"]
    assert cli(*arguments, "--out", tmp_path / "c").code == 0
    data.write_text("\n".join(exchanged(data.read_text().splitlines())) + "\n")
    done = cli(*arguments, "--out", tmp_path / "c", "--resume")
    assert (done.code, "people say something else" in done.err) == (2, True)


def test_the_people_who_trained_are_known_under_another_name(
    experiment: Path, finished: Path, tmp_path: Path, cli: Cli
) -> None:
    data = Path(yaml.safe_load(experiment.read_text())["data"]["path"])
    shutil.copy(data, tmp_path / "copy.jsonl")
    own = load_config(experiment)
    results = using.evaluate(
        Selector.from_pretrained(finished), load_config(experiment, [f"data.path={tmp_path / 'copy.jsonl'}"]), own
    )
    assert {row["population"] for row in results["rows"]} == {"seen", "unseen"}
    assert not any("reported as unseen" in note for note in results["notes"])
    done = cli("evaluate", finished, "federation.unseen_clients=0")
    assert (done.code, "other people would count as seen" in done.err) == (2, True)


def test_the_order_alone_is_told_apart_from_the_rest(experiment: Path, tmp_path: Path) -> None:
    config = load_config(experiment)
    data = Path(str(config.data.path))
    (tmp_path / "data.jsonl").write_text("\n".join(data.read_text().splitlines()[::-1]) + "\n")
    one, two = (
        fingerprint_of(load_preferences(load_config(experiment, [f"data.path={p}"])))
        for p in (data, tmp_path / "data.jsonl")
    )
    assert {part for part in one if one[part] != two[part]} == {"order"}


def test_a_split_that_can_test_nothing_names_one_that_can(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    """The case of shared/inputs/each_client_a_single_prompt_3.jsonl."""
    texts = [f"Answer {k}, {'at length' if k % 2 else 'short'}." for k in range(12)]
    rows = [
        {"user_id": f"u{u}", "prompt": f"Question {u % 3}?", "chosen": texts[k], "rejected": texts[(k + 5) % 12]}
        for u in range(10)
        for k in range(12)
    ]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = cli("train", experiment, f"data.path={tmp_path / 'one.jsonl'}", "--out", tmp_path / "r")
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert "nothing can be tested with by-prompt" in last
    assert "set evaluation.queries=" in last
    named = last.split("set evaluation.queries=")[1].split()[0]
    options = [f"data.path={tmp_path / 'one.jsonl'}", f"evaluation.queries={named}", "federation.rounds=1"]
    assert cli("train", experiment, *options, "--out", tmp_path / "r").code == 0
