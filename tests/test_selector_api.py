"""The Python API: a selector from a run, users, preferences, rankings, and the Hub's conventions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi

import fedvpa
from conftest import preference_lines
from fedvpa import Selector, User, UserError
from fedvpa.apps.cli import main

EXAMPLES = [json.loads(line) for line in preference_lines(1, 6)]
PROMPT, A, B = "How are you?", "Fine.", "Fine, thank you very much for asking me."


@pytest.fixture(scope="module")
def selector(finished: Path) -> Selector:
    return Selector.from_pretrained(finished)


@pytest.mark.parametrize("inference", ["amortised", "mixture", "refined"])
def test_a_saved_user_predicts_the_same(selector: Selector, tmp_path: Path, inference: str) -> None:
    user = selector.infer_user(EXAMPLES, inference)
    assert (user.pairs, user.inference, len(user.mean), len(user.log_var)) == (6, inference, 4, 4)
    assert User.load(user.save(tmp_path / "u.json")) == user
    p = selector.prefer(PROMPT, A, B, user)
    assert 0 < p < 1
    assert selector.prefer(PROMPT, A, B, User.load(tmp_path / "u.json")) == p
    assert selector.prefer(PROMPT, B, A, user) == pytest.approx(1 - p, abs=1e-6)


def test_the_mean_alone_is_the_amortised_inference(selector: Selector) -> None:
    user = selector.infer_user(EXAMPLES, "amortised")
    bare = user.model_copy(update={"particles": None, "weights": None})
    assert selector.prefer(PROMPT, A, B, bare) == pytest.approx(selector.prefer(PROMPT, A, B, user), abs=1e-7)


def test_opposite_examples_mirror_the_mean(selector: Selector) -> None:
    turned = [{**e, "chosen": e["rejected"], "rejected": e["chosen"]} for e in EXAMPLES]
    one, two = selector.infer_user(EXAMPLES), selector.infer_user(turned)
    assert one.mean == pytest.approx([-m for m in two.mean], abs=1e-6)
    assert any(abs(m) > 1e-3 for m in one.mean)


def test_nobody_is_the_empty_context(selector: Selector) -> None:
    nobody = selector.infer_user([])
    assert nobody.mean == [0.0] * 4
    assert nobody.log_var == [0.0] * 4
    assert selector.prefer(PROMPT, A, B) == selector.prefer(PROMPT, A, B, nobody)


def test_it_predicts_as_the_run_measured(selector: Selector, finished: Path) -> None:
    """The default inference of each size is the one of the rows."""
    rows = json.loads((finished / "results.json").read_text())["rows"]
    for row in rows:
        if row["default"]:
            assert selector.inference_for(row["context_size"]) == row["inference"]
    assert selector.inference_for(3) == selector.inference_for(2)
    assert selector.inference_for(100) == selector.inference_for(16)


def test_rank(selector: Selector) -> None:
    user = selector.infer_user(EXAMPLES)
    ranked = selector.rank(PROMPT, [A, B, "Go away."], user)
    assert {r for r, _ in ranked} == {A, B, "Go away."}
    scores = [s for _, s in ranked]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1.5, abs=1e-6)
    best, other = (r for r, _ in selector.rank(PROMPT, [A, B], user))
    assert selector.prefer(PROMPT, best, other, user) >= 0.5
    assert selector.rank(PROMPT, [A], user) == [(A, 0.5)]
    assert selector.rank(PROMPT, [], user) == []
    conversation = [{"role": "user", "content": PROMPT}]
    assert selector.rank(conversation, [A, B, "Go away."], user) == ranked


def test_bad_examples(selector: Selector) -> None:
    with pytest.raises(UserError, match="examples:1: rejected: missing column"):
        selector.infer_user([{"prompt": "x", "chosen": "y"}])
    with pytest.raises(UserError, match="unknown value 'magic'"):
        selector.infer_user(EXAMPLES, "magic")


def test_without_a_latent(experiment: Path, tmp_path: Path) -> None:
    assert main(["train", str(experiment), "method.name=fedbt", "--out", str(tmp_path / "bt")]) == 0
    selector = Selector.from_pretrained(tmp_path / "bt")
    user = selector.infer_user(EXAMPLES)
    assert user.mean == []
    assert selector.prefer(PROMPT, A, B, user) == selector.prefer(PROMPT, A, B)


def test_save_and_load(selector: Selector, tmp_path: Path) -> None:
    selector.save_pretrained(tmp_path / "s")
    assert {"model.safetensors", "model.json", "README.md"} <= {p.name for p in (tmp_path / "s").iterdir()}
    again = Selector.from_pretrained(tmp_path / "s")
    assert again.info == selector.info
    assert again.prefer(PROMPT, A, B) == selector.prefer(PROMPT, A, B)


def test_push_to_hub(selector: Selector, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []

    class Created:
        repo_id = "me/selector"

    def upload(self: HfApi, *, folder_path: Path, **_: object) -> str:
        pushed.extend(sorted(p.name for p in Path(folder_path).iterdir()))
        return "url"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **_: Created())
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert selector.push_to_hub("me/selector") == "url"
    assert {"README.md", "model.json", "model.safetensors"} <= set(pushed)


def test_from_the_hub(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def download(repo: str, name: str, *, revision: str | None, **_: object) -> str:
        asked.append((repo, name, revision))
        return str(finished / name)

    monkeypatch.setattr("fedvpa.selector.hf_hub_download", download)
    found = Selector.from_pretrained("me/selector", revision="v1")
    assert asked == [("me/selector", "model.safetensors", "v1"), ("me/selector", "model.json", "v1")]
    assert found.info.method == "fedvpa-gp"


def test_an_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("fedvpa.selector.hf_hub_download", download)
    with pytest.raises(UserError, match="no such run, nor a selector 'me/selector' on the Hub"):
        Selector.from_pretrained("me/selector")


def test_another_language_model_is_refused(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "r")
    model = json.loads((run / "model.json").read_text())
    model["backbone"]["model"] = "another"
    model["config"]["output"]["cache"] = str(tmp_path / "gone")
    (run / "model.json").write_text(json.dumps(model))
    with pytest.raises(UserError, match="the backbone here differs"):
        Selector.from_pretrained(run).prefer(PROMPT, A, B)


def test_public_names() -> None:
    assert all(hasattr(fedvpa, name) for name in fedvpa.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = fedvpa.nothing
