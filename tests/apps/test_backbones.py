"""A causal LM and a sentence encoder together, from a command to a served selector."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conftest import Cli
from fedvpa import Selector, UserError
from fedvpa.alignment.language import writer_of
from fedvpa.apps.cli import main
from fedvpa.apps.server.work import Compare, Scorer
from fedvpa.config import load_config
from fedvpa.evaluation.encoding import encode, warm
from fedvpa.preferences.schema import Pair, as_prompt
from fedvpa.preferences.sources import load_preferences
from tiny_encoder import save_encoder

PAIRS = [Pair(as_prompt(f"Topic {k}?"), f"Topic {k} with much care.", f"{k}, no.") for k in range(5)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def models(experiment: Path, encoder: Path) -> str:
    return f"backbone.model=[{load_config(experiment).backbone.model},{encoder}]"


@pytest.fixture(scope="module")
def run(experiment: Path, models: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "both"
    assert main(["train", str(experiment), models, "federation.rounds=2", "--out", str(folder)]) == 0
    return folder


def test_a_selector_of_two_models_is_read_again_and_served(run: Path) -> None:
    selector = Selector.from_pretrained(run)
    assert selector.info.features == selector.backbone.dim == 32 + 16
    user = selector.blend({0: 1.0})
    scorer = Scorer(Selector.from_pretrained(run), 2**20, 10_000)
    work = Compare(tuple(PAIRS), user)
    assert scorer.cost(work) > 0
    (found,) = scorer([work])
    assert found == pytest.approx(selector.prefer_pairs(PAIRS, user).tolist(), abs=1e-4)
    assert scorer.cost(work) == 0
    assert [store.dim for store in scorer.stores] == [32, 16]
    assert sum(store.limit for store in scorer.stores) == 2**20


def test_a_changed_encoder_is_noticed(run: Path, encoder: Path, tmp_path: Path) -> None:
    selector = Selector.from_pretrained(run)
    other = save_encoder(tmp_path, pooling="cls")
    backbone = selector.info.config.backbone
    changed = backbone.model_copy(update={"model": (backbone.models[0], str(other))})
    config = selector.info.config.model_copy(update={"backbone": changed})
    selector.info = selector.info.model_copy(update={"config": config})
    with pytest.raises(UserError, match="the backbone here differs"):
        selector.open_backbone()
    with pytest.raises(UserError, match=r"policy\.model"):
        writer_of(changed)


def test_encode_prints_what_was_cut(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    model = f"backbone.model={save_encoder(tmp_path, limit=30)}"
    assert cli("encode", experiment, model, f"output.cache={tmp_path}", "--json", tmp_path / "e.json").code == 0
    figures = json.loads((tmp_path / "e.json").read_text())
    assert (
        figures["cut at the end (the encoder's limit)"] == figures["pairs"] > 0
    )  # the longer answers are longer than the encoder reads
    assert figures["cut (backbone.max_tokens)"] == 0


def test_several_layers_are_cached_ahead(experiment: Path, models: str, tmp_path: Path) -> None:
    made = {n: load_config(experiment, [models, f"output.cache={tmp_path}", f"backbone.layer={n}"]) for n in (1, 2, 99)}
    data = load_preferences(made[1])
    failed = warm(made, data)
    assert list(failed) == [99]
    found = {n: encode(made[n], data, progress=False) for n in (1, 2)}
    assert [f.report.computed for f in found.values()] == [0, 0]
    assert not torch.equal(found[1].a[:, :32], found[2].a[:, :32])
    assert torch.equal(found[1].a[:, 32:], found[2].a[:, 32:])
