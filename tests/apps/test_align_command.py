"""`fedvpa align` and `fedvpa generate` from end to end with a tiny model, also when killed in every phase."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from rich.console import Console
from transformers import TrainerCallback

from conftest import Cli
from fedvpa import UserError
from fedvpa.alignment import dpo
from fedvpa.alignment.config import AlignmentConfig, load_alignment
from fedvpa.alignment.language import LanguageModel
from fedvpa.apps import aligning
from fedvpa.apps.cli import main

SETTINGS = {
    "prompts": {"training": 6, "judging": 5, "max_tokens": 64},
    "policy": {"device": "cpu"},
    "candidates": {"number": 3, "max_new_tokens": 12, "batch": 6, "demonstrations": [[], ["What is zeal?", "Haste."]]},
    "labels": {"users": 2, "context_pairs": 4, "pairs": 16},
    "training": {"batch": 4, "micro_batch": 2, "checkpoint_every": 1, "lora_rank": 2},
    "judging": {
        "users": 2,
        "context_pairs": 4,
        "best_of": 2,
        "best_of_prompts": 4,
        "blend": [0.0, 1.0],
        "blend_prompts": 3,
        "bootstrap": 100,
    },
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    rows = [json.dumps({"prompt": f"What about thing {i}?"}) for i in range(30)]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    tree = {**SETTINGS, "prompts": {**SETTINGS["prompts"], "path": str(folder / "prompts.jsonl")}}
    (folder / "align.yaml").write_text(yaml.safe_dump(tree))
    return folder / "align.yaml"


@pytest.fixture(scope="module")
def monolithic(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "fedbt"
    assert main(["train", str(experiment), "method.name=fedbt", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def aligned(finished: Path, monolithic: Path, asked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("aligned") / "policy"
    arguments = ["align", finished, "--config", asked, "--baseline", monolithic, "--out", out]
    assert main([str(a) for a in arguments]) == 0
    return out


def test_what_it_leaves(aligned: Path) -> None:
    result = json.loads((aligned / "alignment.json").read_text())
    rows = {(c["kind"], c["latent"]) for c in result["switching"]}
    assert rows == {
        ("policy", "longer"),
        ("policy", "shorter"),
        ("baseline", None),
        ("best of 2", "longer"),
        ("best of 2", "shorter"),
        ("base model, again", None),
    }
    assert {c["criterion"] for c in result["switching"]} == {"longer", "shorter"}
    for cell in result["switching"]:
        assert cell["prompts"] == (5 if cell["kind"] in ("policy", "baseline") else 4)
        assert cell["low"] <= cell["rate"] <= cell["high"]
        assert cell["inconsistent"] == 0
        assert 0 <= cell["capped"] <= 1
    pairs = [(c["rate"], d["rate"]) for c, d in zip(result["switching"][::2], result["switching"][1::2], strict=True)]
    assert all(a + b == pytest.approx(1) for a, b in pairs), "longer and shorter are opposites"
    best = {(c["latent"], c["criterion"]): c for c in result["switching"] if c["kind"] == "best of 2"}
    assert best["longer", "longer"]["words"] >= best["shorter", "longer"]["words"]
    assert {c["criterion"]: c["against"] for c in result["exchanged"]} == {"longer": "shorter", "shorter": "longer"}
    assert 0 <= result["labels"]["conflict_share"] <= 1
    assert result["labels"]["pairs"] == 16
    assert result["training"]["steps"] == 4
    assert result["baseline"]["labels"]["conflict_share"] is None
    assert all(p["attempts"] == 1 and p["done"] and p["seconds"] > 0 for p in result["phases"].values())
    assert len(result["phases"]) == 6
    assert 0.1 < result["peak_gib"]["memory"] < 64
    assert [b["share"] for b in result["blend"]] in ([], [0.0, 1.0])
    page = (aligned / "report.html").read_text()
    assert "Switching table" in page
    assert "best of 2" in page
    judged = [json.loads(line) for line in (aligned / "judged.jsonl").read_text().splitlines()]
    assert len(judged) == 3 * 5 + 3 * 4


def test_demonstrations_stand_before_candidates_only(asked: Path, aligned: Path) -> None:
    config = load_alignment(asked).candidates
    assert [[m.content for m in config.before(k)] for k in range(3)] == [[], ["What is zeal?", "Haste."], []]
    (pairs,) = (aligned / "training").glob("pairs-*")
    prompts = datasets.load_from_disk(str(pairs))["prompt"]
    assert all("thing" in p and "zeal" not in p for p in prompts)


def test_the_card_is_the_hubs(aligned: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(aligned / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.license == "apache-2.0"
    assert {e.metric_type for e in card.data.eval_results} == {"win_rate"}
    for part in ("Base model", "Data", "Method", "Metrics", "Limits", "Licence"):
        assert f"## {part}" in card.text
    assert "| policy | longer |" in card.text
    assert "likelihood (weight 1.0)" in card.text


def test_generate(aligned: Path, finished: Path, cli: Cli, tmp_path: Path) -> None:
    def text(folder: Path, *options: Any) -> str:
        ended = cli("generate", folder, "--prompt", "What is a fox?", *options)
        assert ended.code == 0, ended.err
        return ended.out

    assert text(aligned, "--prototype", 0) == text(aligned, "--prototype", 0) == text(aligned, "--blend", "0:1")
    examples = tmp_path / "me.jsonl"
    examples.write_text('{"prompt": "Hi", "chosen": "Hello there, my friend.", "rejected": "No."}\n')
    assert cli("personalize", aligned / "selector", "--examples", examples, "--out", tmp_path / "me.json").code == 0
    assert text(aligned, "--user", tmp_path / "me.json", "--best-of", 2)
    assert text(finished, "--user", tmp_path / "me.json", "--best-of", 2)
    ended = cli("generate", aligned, "--prompt", "Hi", "--prototype", 9)
    assert (ended.code, "no prototype 9" in ended.err) == (2, True)


def test_again_and_otherwise(aligned: Path, finished: Path, monolithic: Path, asked: Path, cli: Cli) -> None:
    arguments = ["align", finished, "--config", asked, "--baseline", monolithic, "--out", aligned]
    before = (aligned / "alignment.json").stat().st_mtime_ns
    ended = cli(*arguments)
    assert (ended.code, "nothing to do" in ended.err) == (0, True)
    assert "Switching table" in ended.out
    assert (aligned / "alignment.json").stat().st_mtime_ns == before
    ended = cli(*arguments, "training.beta=0.3")
    assert ended.code == 2
    assert "training.beta: the alignment there has 0.1, this one 0.3" in ended.err
    ended = cli("align", monolithic, "--config", asked, "--out", aligned.parent / "other")
    assert (ended.code, "fedbt has no latent to switch" in ended.err) == (2, True)
    ended = cli("align", finished, "--config", asked, "trainig.beta=1", "--out", aligned.parent / "other")
    assert (ended.code, "did you mean training.beta?" in ended.err) == (2, True)
    ended = cli("align", finished, "--config", asked, "--out", finished)
    assert (ended.code, "holds files but no alignment" in ended.err) == (2, True)


class Killed(BaseException):
    """What no code of the package catches."""


def test_killed_in_every_phase(finished: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed alignment goes on, phase after phase, and ends like one that was not."""
    config = load_alignment(asked)

    def work(out: Path, config: AlignmentConfig = config) -> dict[str, Any]:
        return aligning.align(finished, out, config, Console(file=io.StringIO()))

    whole, out = work(tmp_path / "whole"), tmp_path / "killed"

    def after(calls: int, real: Any) -> Any:
        left = [calls]

        def dying(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*arguments, **options)

        return dying

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise Killed

    def trainer(*arguments: Any) -> Any:
        made = plain(*arguments)
        made.add_callback(Kill())
        return made

    plain = dpo._trainer
    kills = [
        (LanguageModel, "write", after(2, LanguageModel.write)),
        (aligning, "label", after(0, aligning.label)),
        (dpo, "_trainer", trainer),
        (LanguageModel, "write", after(2, LanguageModel.write)),
    ]
    for place, name, dying in kills:
        with monkeypatch.context() as patched:
            patched.setattr(place, name, dying)
            with pytest.raises(Killed):
                work(out)
    again = work(out)
    attempts = {name: p["attempts"] for name, p in again["phases"].items()}
    assert attempts == {"candidates": 2, "labels": 2, "training": 2, "judging": 2}
    for key in ("switching", "exchanged", "blend", "labels"):
        assert again[key] == whole[key], key
    for key in ("adapter_model.safetensors", "judged.jsonl"):
        assert (out / key).read_bytes() == (tmp_path / "whole" / key).read_bytes(), key


def test_without_the_extra(finished: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.startswith(("fedvpa.alignment", "fedvpa.apps.aligning"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "fedvpa.apps.generating", raising=False)
    monkeypatch.setitem(sys.modules, "peft", None)
    ended = cli("align", finished, "--out", tmp_path / "x")
    assert (ended.code, 'pip install "fedvpa[align]"' in ended.err) == (2, True)
    ended = cli("generate", finished, "--prompt", "Hi")
    assert (ended.code, 'pip install "fedvpa[align]"' in ended.err) == (2, True)


def test_groups_without_rules_are_not_judged(finished: Path, asked: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    data = Path(config["data"]["path"]).read_text().replace('"group": "longer"', '"group": "wordy"')
    (tmp_path / "data.jsonl").write_text(data)
    info = json.loads((run / "model.json").read_text())
    info["config"]["data"]["path"] = str(tmp_path / "data.jsonl")
    (run / "model.json").write_text(json.dumps(info))
    result = aligning.align(run, tmp_path / "out", load_alignment(asked), Console(file=io.StringIO()))
    assert result["switching"] == []
    assert "Not judged" in (tmp_path / "out" / "README.md").read_text()


def test_mistakes_in_the_configuration() -> None:
    with pytest.raises(UserError, match="a demonstration ends with the assistant's turn"):
        load_alignment(None, ["candidates.demonstrations=[[What?]]"])
    with pytest.raises(UserError, match="micro_batch must divide batch"):
        load_alignment(None, ["training.micro_batch=3"])
    with pytest.raises(UserError, match=r"conditioning.tokens must be 1"):
        load_alignment(None, ["conditioning.kind=added", "conditioning.tokens=2"])
