"""Public prompts: held by no client, disjoint, short enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedvpa.alignment.config import PolicyConfig, PromptsConfig
from fedvpa.alignment.language import LanguageModel
from fedvpa.alignment.prompts import held_keys, public_prompts
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Client, FederatedPreferences, LabelledPairs, Message, Pair, prompt_key


@pytest.fixture(scope="module")
def model(chatty: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel.load(PolicyConfig(model=str(chatty), dtype="float32"), tmp_path_factory.mktemp("cache"))


@pytest.fixture
def data() -> FederatedPreferences:
    """Twenty prompts; the even ones up to 8 are held, of which 4 for testing only. 11 differs from 2 in case only."""
    texts = [f"Question number {i}?" for i in range(20)]
    texts[11] = "QUESTION number 2"
    pairs = tuple(Pair((Message("user", t),), "a", "b") for t in texts)

    def held(*rows: int) -> LabelledPairs:
        return LabelledPairs.of(rows, [1] * len(rows))

    clients = {
        "seen": (Client("s", 0, held(0, 2), held(4)),),
        "validation": (Client("v", 0, held(6), held()),),
        "unseen": (Client("u", 0, held(8), held(4)),),
    }
    return FederatedPreferences(pairs, ("train",) * 20, (), (), torch.zeros(0, 20, dtype=torch.int8), clients)


def test_no_client_holds_them(data: FederatedPreferences, model: LanguageModel) -> None:
    assert len(held_keys(data)) == 5
    found = public_prompts(PromptsConfig(training=9, judging=5), 0, [data], model)
    keys = [prompt_key(p) for p in (*found.training, *found.judging)]
    assert len(set(keys)) == 14
    assert not set(keys) & held_keys(data)
    assert (len(found.training), len(found.judging)) == (9, 5)
    assert found == public_prompts(PromptsConfig(training=9, judging=5), 0, [data], model)
    assert found.judging == public_prompts(PromptsConfig(training=2, judging=5), 0, [data], model).judging
    assert found.judging != public_prompts(PromptsConfig(training=9, judging=5), 1, [data], model).judging


def test_too_few(data: FederatedPreferences, model: LanguageModel) -> None:
    with pytest.raises(UserError, match=r"15 prompts are wanted; .* 19, of which no client holds 14"):
        public_prompts(PromptsConfig(training=10, judging=5), 0, [data], model)


def test_from_a_file_and_short(data: FederatedPreferences, model: LanguageModel, tmp_path: Path) -> None:
    rows = [{"prompt": "Question number 2?"}, {"prompt": "x" * 100}, {"prompt": [{"role": "user", "content": "Hi"}]}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, {"prompt": "Bye"}]))
    found = public_prompts(PromptsConfig(path=str(path), training=1, judging=1, max_tokens=60), 0, [data], model)
    assert {p[0].content for p in (*found.training, *found.judging)} == {"Hi", "Bye"}
    path.write_text('{"question": "Hi"}\n')
    with pytest.raises(UserError, match=r"prompts.jsonl:1: prompt: missing column"):
        public_prompts(PromptsConfig(path=str(path)), 0, [data], model)


def test_from_subsets_of_hh_rlhf(data: FederatedPreferences, model: LanguageModel, tmp_path: Path) -> None:
    """Other subsets' prompts join the run's own, unless a client holds them."""
    (tmp_path / "helpful-online").mkdir()
    for split, texts in (("train", ("Question number 2?", "New one?")), ("test", ("Another?",))):
        rows = [{k: f"\n\nHuman: {t}\n\nAssistant: {k}" for k in ("chosen", "rejected")} for t in texts]
        (tmp_path / "helpful-online" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = PromptsConfig(subsets=("helpful-online",), training=15, judging=1)
    found = public_prompts(config, 0, [data], model, str(tmp_path))
    texts = {p[0].content for p in (*found.training, *found.judging)}
    assert {"New one?", "Another?"} < texts
    assert "Question number 2?" not in texts
