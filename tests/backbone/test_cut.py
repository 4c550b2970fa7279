"""Texts longer than a backbone reads: what stays of them, and pairs that the cut makes equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from conftest import Cli
from fedvpa.backbone import open_backbone
from fedvpa.backbone.choice import choice_texts
from fedvpa.backbone.extract import Item
from fedvpa.backbone.tokens import Renderer, kept
from fedvpa.config import BackboneConfig, load_config
from fedvpa.evaluation.encoding import readable
from fedvpa.preferences.schema import Message, Pair
from fedvpa.preferences.sources import load_preferences
from tiny_encoder import LIMIT, save_encoder

ASK = (Message("user", "q" * 30 + "?"),)
TAIL = " and so on, for a long time" * 8


@given(st.integers(0, 300), st.integers(1, 300), st.integers(2, 200))
def test_what_stays(prompt: int, response: int, most: int) -> None:
    before, behind = kept(prompt, response, most)
    assert before + behind == min(prompt + response, most)
    assert 0 <= before <= prompt
    assert 1 <= behind <= response
    assert before == prompt or before >= most // 2 or behind == response
    assert behind == response or behind >= most // 2


def test_responses_that_differ_at_their_head_stay_different(tiny: Path, backbone_of: Any) -> None:
    """The case of shared/inputs/long_train.jsonl: from the first words on the responses are equal."""
    found = backbone_of(tiny, max_tokens=64).encode_pairs([Pair(ASK, f"Yes.{TAIL}", f"No.{TAIL}")], progress=False)
    assert found.equal is None
    assert not torch.equal(found.a, found.b)
    assert (found.report.truncated, found.report.equal) == (1, 0)


def test_pairs_made_equal_are_known_and_counted(tiny: Path, backbone_of: Any) -> None:
    pairs = [Pair(ASK, f"{TAIL} yes", f"{TAIL} no"), Pair(ASK, "yes", "no"), Pair(ASK, f"x{TAIL}", f"y{TAIL}")]
    for _ in range(2):  # the second time from the cache
        backbone = backbone_of(tiny, max_tokens=64)
        found = backbone.encode_pairs(pairs, progress=False)
        assert found.equal is not None
        assert found.equal.tolist() == [True, False, False]
        assert found.report.notes == (
            "2 of 3 pairs were cut (backbone.max_tokens).",
            "1 pairs say nothing, since what is read of their two responses is the same.",
        )
        assert backbone.seen == {"texts": 6, "cut": 4, "equal": 1}


def test_several_backbones_tell_a_pair_apart_if_one_does(tiny: Path, tmp_path: Path) -> None:
    pair = Pair(ASK, f"{'z' * 20} yes", f"{'z' * 20} no")
    encoder = save_encoder(tmp_path)

    def equal(*models: Path, **options: Any) -> Any:
        config = BackboneConfig(model=tuple(map(str, models)), dtype="float32", **options)
        return open_backbone(config, tmp_path / "cache", "cpu").encode_pairs([pair], progress=False).equal

    assert equal(tiny, max_tokens=32) is not None
    assert equal(encoder) is None
    assert equal(tiny, encoder, max_tokens=32) is None


@pytest.mark.parametrize("length", [5, 35, 400])
def test_a_sentence_encoder_reads_the_responses_head_whatever_the_prompt(tmp_path: Path, length: int) -> None:
    prompt = (Message("user", "w " * length),)
    pairs = [Pair(prompt, f"Yes, it is.{TAIL}", f"No, it is not.{TAIL}"), Pair(prompt, "Yes, it is.", "No.")]
    config = BackboneConfig(model=str(save_encoder(tmp_path)), text="prompt+response")
    backbone = open_backbone(config, tmp_path / "cache", "cpu")
    found = backbone.encode_pairs(pairs, progress=False)
    assert found.equal is None
    assert found.report.shortened == 1 + (length > 10)
    (texts,) = backbone.read([Item(p.prompt, (p.a,)) for p in pairs])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bert")
    for text in texts:
        shown = tokenizer.decode(text.response)
        assert len(text.response) <= LIMIT
        assert "w " in shown
        assert "Yes, it is." in shown


def test_a_choice_prompt_keeps_its_question_and_both_responses_heads(chatty: Path) -> None:
    renderer = Renderer(AutoTokenizer.from_pretrained(chatty))
    item = Item((Message("user", "q" * 500 + " the end?"),), ("A first" + "a" * 300, "B second" + "b" * 300))
    (text,) = choice_texts(renderer, [item], 320)
    shown = renderer.tokenizer.decode((*text.prompt, *text.response))
    assert len(text.prompt) + len(text.response) == 320
    assert "Human: " not in shown
    assert "the end?" in shown
    assert "Response A: A first" in shown
    assert "Response B: B second" in shown
    assert shown.endswith("Answer with A or B.</s>\n<s>assistant\n")
    short = Item(item.prompt, ("short", "B second" + "b" * 300))
    (text,) = choice_texts(renderer, [short], 320)
    assert "Response A: short\n" in renderer.tokenizer.decode(text.response)


@pytest.fixture
def partly_equal(experiment: Path, tmp_path: Path) -> list[str]:
    """Settings under which a row in two is long, and one in four equal after the cut."""
    rows = [json.loads(line) for line in Path(str(load_config(experiment).data.path)).read_text().splitlines()]
    for i, row in enumerate(rows):
        if i % 4 == 0:
            row["chosen"], row["rejected"] = (f"{TAIL}{row[k]}" for k in ("chosen", "rejected"))
        elif i % 4 == 2:
            row["chosen"], row["rejected"] = (f"{row[k]}{TAIL}" for k in ("chosen", "rejected"))
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return [f"data.path={tmp_path / 'long.jsonl'}", "backbone.max_tokens=96"]


def test_equal_pairs_are_left_out_of_training_and_queries(experiment: Path, partly_equal: list[str]) -> None:
    config = load_config(experiment, partly_equal)
    data = load_preferences(config)
    left, features = readable(config, data)
    assert features.equal is not None
    gone = int(features.equal.sum())
    assert 0 < gone < len(data.pairs) / 2
    assert left.counts["pairs made equal by the cut"] == gone
    assert (left.pairs, left.split) == (data.pairs, data.split)
    for population in left.clients.values():
        for client in population:
            assert not features.equal[client.train.index].any()
            assert not features.equal[client.test.index].any()
    assert not left.group_labels[:, features.equal].any()
    held = [sum(len(c.train) for c in d.clients["seen"]) for d in (data, left)]
    assert held[1] < held[0]


def test_every_command_counts_what_was_cut(experiment: Path, partly_equal: list[str], tmp_path: Path, cli: Cli) -> None:
    done = cli("train", experiment, *partly_equal, "federation.rounds=1", "--out", tmp_path / "r")
    assert done.code == 0
    assert "pairs were cut (backbone.max_tokens)." in done.err
    assert "pairs say nothing" in done.err
    rows = [json.loads(line) for line in (tmp_path / "long.jsonl").read_text().splitlines()[:8]]
    (tmp_path / "me.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = cli("personalize", tmp_path / "r", "--examples", tmp_path / "me.jsonl", "--out", tmp_path / "me.json")
    said = "8 of 16 texts were cut (backbone.max_tokens, or the encoder's limit); what is read of 2 pairs is the same"
    assert (done.code, said in done.err) == (0, True)
    pairs = [{"prompt": r["prompt"], "a": r["chosen"], "b": r["rejected"]} for r in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in pairs))
    done = cli("score", tmp_path / "r", "--pairs", tmp_path / "pairs.jsonl")
    assert (done.code, said in done.err) == (0, True)
    p = [json.loads(line)["p_a"] for line in done.out.splitlines()]
    assert [p[0], p[4]] == [0.5, 0.5]
