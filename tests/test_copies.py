"""A used selector and what was made with it are copied, pickled and sent to other processes; and what stays on disk."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.fingerprint import Hasher

from fedvpa import Selector, User, UserError
from fedvpa.client import Client
from serving import listening
from test_selector_api import EXAMPLES, PROMPT, A, B


@pytest.fixture
def used(finished: Path) -> Selector:
    selector = Selector.from_pretrained(finished)
    selector.prefer(PROMPT, A, B)
    return selector


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy])
def test_a_copy_says_the_same(used: Selector, copied: Callable[[Any], Any]) -> None:
    ada = used.infer_user(EXAMPLES)
    other = copied(used)
    assert other.prefer(PROMPT, A, B, ada) == used.prefer(PROMPT, A, B, ada)
    assert other.info == used.info
    reward = used.reward_function(ada)
    assert copied(reward)([PROMPT], [A]) == pytest.approx(reward([PROMPT], [A]), abs=1e-5)
    assert copied(reward).__name__ == reward.__name__
    both = used.reward_function(users={"ada": ada, "x": 1})
    columns = {"user_id": ["ada", "x"]}
    expected = pytest.approx(both([PROMPT] * 2, [A, A], **columns), abs=1e-5)
    assert copied(both)([PROMPT] * 2, [A, A], **columns) == expected


def test_a_user_leaves_its_selector_behind(used: Selector) -> None:
    ada = used.infer_user(EXAMPLES)
    assert len(pickle.dumps(ada)) < 10_000 < len(pickle.dumps(used))
    assert pickle.loads(pickle.dumps(ada)) == copy.deepcopy(ada) == ada


def preferences(selector: Selector, user: User) -> float:
    return selector.prefer(PROMPT, A, B, user)


@pytest.mark.slow
def test_a_pool_of_new_processes(used: Selector) -> None:
    ada = used.infer_user(EXAMPLES)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(preferences, [used] * 2, [ada] * 2))
    assert found == pytest.approx([used.prefer(PROMPT, A, B, ada)] * 2, abs=1e-6)


def test_it_maps_over_a_dataset(used: Selector, finished: Path) -> None:
    """`datasets` hashes the function to know its result again: use must not change the hash."""
    rows = datasets.Dataset.from_list([{"prompt": PROMPT, "a": A, "b": B}, {"prompt": "Hi", "a": B, "b": A}])
    found = rows.map(lambda row: {"p": used.prefer(row["prompt"], row["a"], row["b"])})
    assert found["p"] == pytest.approx(used.score(rows), abs=1e-6)
    batched = rows.map(lambda r: {"p": used.prefer(r["prompt"], r["a"], r["b"])}, batched=True)
    assert batched["p"] == pytest.approx(found["p"], abs=1e-6)
    assert Hasher.hash(used) == Hasher.hash(Selector.from_pretrained(finished))


def test_a_client_is_pickled_without_its_connections(finished: Path) -> None:
    with listening(finished, token="a token of ours") as live, Client(live.url, "a token of ours") as client:
        other = pickle.loads(pickle.dumps(client))
        assert other.prefer(PROMPT, A, B) == client.prefer(PROMPT, A, B)
        reward = pickle.loads(pickle.dumps(client.reward_function(1)))
        assert reward([PROMPT], [A]) == client.reward_function(1)([PROMPT], [A])
        other.close()


def on_disk(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*.sqlite*") if f.is_file())


def test_completions_do_not_fill_the_disk(finished: Path, tmp_path: Path) -> None:
    cache = Path(Selector.from_pretrained(finished).info.config.output.cache or "")
    stored = sorted((f, f.stat().st_size) for f in cache.rglob("*.sqlite"))
    assert stored
    texts = [f"Completion {i} of a trainer." for i in range(20)]
    selector = Selector.from_pretrained(finished)
    first = selector.reward_function()([PROMPT] * 20, texts)
    assert sorted((f, f.stat().st_size) for f in cache.rglob("*.sqlite")) == stored
    kept = Selector.from_pretrained(finished, cache=tmp_path / "c", device="cpu")
    assert kept.reward_function()([PROMPT] * 20, texts) == pytest.approx(first, abs=1e-5)
    assert on_disk(tmp_path / "c") > 20 * 4 * kept.info.features


def test_what_the_cache_has_is_not_computed_again(finished: Path, experiment: Path) -> None:
    selector = Selector.from_pretrained(finished)
    row = json.loads((experiment.parent / "data.jsonl").read_text().splitlines()[0])
    pair = {"prompt": row["prompt"], "a": row["chosen"], "b": row["rejected"]}
    selector.score(pair)
    from fedvpa.preferences.arguments import read_pair

    pairs = [read_pair(**pair), read_pair(PROMPT, "New 1.", "New 2.")]
    report = selector.backbone.encode_pairs(pairs).report
    assert (report.cached, report.computed) == (1, 1)
    assert selector.backbone.encode_pairs(pairs).report.cached == 2


# Where a selector lies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["tests/typo", "runs/typo", "./typo", "a/b/c", "typo", "/nowhere/typo", "~/typo/x", "x/"]
)
def test_a_path_is_never_asked_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    asked: list[str] = []
    monkeypatch.setattr("fedvpa.selector.hf_hub_download", lambda name, *_, **__: asked.append(name))
    with pytest.raises(UserError, match="no such run"):
        Selector.from_pretrained(name)
    assert asked == []


def test_a_selectors_files_name_no_place_of_the_machine(
    used: Selector, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def places(folder: Path) -> list[str]:
        text = (folder / "model.json").read_text()
        return [part for part in text.split('"') if part.startswith(("/", "~"))]

    assert places(finished) == []
    used.save_pretrained(tmp_path / "saved")
    assert places(tmp_path / "saved") == []
    assert Selector.from_pretrained(tmp_path / "saved").info == used.info
    monkeypatch.chdir(tmp_path)
    assert Selector.from_pretrained("saved").prefer(PROMPT, A, B) == used.prefer(PROMPT, A, B)


def test_a_pushed_selector_names_the_backbone_only(
    used: Selector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    pushed: dict[str, str] = {}

    class Created:
        repo_id = "me/selector"

    def upload(self: HfApi, *, folder_path: Path, **_: object) -> str:
        for file in Path(folder_path).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        pushed["card"] = (tmp_path / "README.md").read_text()
        return "url"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **_: Created())
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert used.push_to_hub("me/selector") == "url"
    place = Path(used.info.config.backbone.single_model)
    whole = (tmp_path / "model.json").read_text() + pushed["card"]
    assert str(place.parent) not in whole
    assert place.parent.name not in whole
    assert "`fedvpa-gp`" in pushed["card"]
    assert place.name in pushed["card"]
    with pytest.raises(UserError, match="no such model folder"):
        Selector.from_pretrained(tmp_path).prefer(PROMPT, A, B)
    there = Selector.from_pretrained(tmp_path, backbone=place)
    assert there.prefer(PROMPT, A, B) == pytest.approx(used.prefer(PROMPT, A, B), abs=1e-6)
