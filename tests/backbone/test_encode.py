"""Features are those of a plain run of the whole model, whatever shares a row, a batch or the cache."""

from __future__ import annotations

import dataclasses
import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig, MambaForCausalLM

from fedvpa.backbone import EncodeReport
from fedvpa.backbone.extract import Item
from fedvpa.backbone.forward import FrozenLM
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Message, Pair
from tiny_model import save_llama, save_tokenizer


def reference(folder: Path, rendered: str, response: str, layer: int, pooling: str = "mean") -> torch.Tensor:
    """One text alone through the whole model, by way of transformers only."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    head = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    tail = tokenizer(response, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        states = lm(input_ids=torch.tensor([head + tail]), output_hidden_states=True).hidden_states[layer]
    span = states[0, len(head) :]
    return span.mean(0) if pooling == "mean" else span[-1]


def plain(pair: Pair) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[m.role]}: {m.content}" for m in pair.prompt) + "\n\nAssistant:"


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize(("layer", "index"), [(1, 1), (0.5, 2), (3, 3), (0.7, 3)])
def test_features_equal_those_of_the_whole_model_run_alone(tiny, backbone_of, pairs, pooling, layer, index) -> None:
    backbone = backbone_of(tiny, layer=layer, pooling=pooling)
    found = backbone.encode_pairs(pairs, progress=False)
    assert found.report.packed is True
    assert found.a.shape == found.b.shape == (4, backbone.dim) == (4, 32)
    assert found.a.dtype == torch.float32
    for i, pair in enumerate(pairs):
        for got, response in ((found.a[i], pair.a), (found.b[i], pair.b)):
            want = reference(tiny, plain(pair), " " + response, index, pooling)
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_the_last_layer_is_the_last_blocks_output_before_the_final_norm(tiny, backbone_of, pairs) -> None:
    got = backbone_of(tiny, layer=1.0, pooling="last").encode_pairs(pairs[:1], progress=False).a[0]
    lm = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    want = reference(tiny, plain(pairs[0]), " " + pairs[0].a, 4, "last")  # transformers gives it after the norm
    torch.testing.assert_close(lm.model.norm(got), want, atol=1e-5, rtol=1e-4)


def test_packed_equals_separate(tiny, backbone_of, pairs, tmp_path, monkeypatch) -> None:
    together = backbone_of(tiny).encode_pairs(pairs, progress=False)
    monkeypatch.setattr(FrozenLM, "_packing_is_exact", lambda self: False)
    apart = backbone_of(tiny, tmp_path / "other").encode_pairs(pairs, progress=False)
    assert (together.report.packed, apart.report.packed) == (True, False)
    assert together.report.tokens < apart.report.tokens
    assert any("cannot share" in note for note in apart.report.notes)
    torch.testing.assert_close(together.a, apart.a, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.b, apart.b, atol=1e-5, rtol=1e-5)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.text("ab c?é", min_size=1, max_size=30), min_size=4, max_size=8, unique=True),
    batch_tokens=st.integers(64, 400),
)
def test_the_company_in_a_batch_does_not_matter(tiny, backbone_of, tmp_path_factory, words, batch_tokens) -> None:
    prompt, *responses = words
    company = backbone_of(tiny, tmp_path_factory.mktemp("a"), batch_tokens=batch_tokens)
    alone = backbone_of(tiny, tmp_path_factory.mktemp("b"))
    found = company.encode_responses((Message("user", prompt),), responses)
    for i, response in enumerate(responses):
        torch.testing.assert_close(
            found[i], alone.encode_responses((Message("user", prompt),), [response])[0], atol=1e-5, rtol=1e-4
        )


def test_a_swapped_pair_and_a_single_response_come_from_the_same_cache(tiny, backbone_of, pairs) -> None:
    backbone = backbone_of(tiny)
    first = backbone.encode_pairs(pairs, progress=False)
    second = backbone.encode_pairs([Pair(p.prompt, p.b, p.a) for p in pairs], progress=False)
    assert (first.report.computed, first.report.cached) == (4, 0)
    assert (second.report.computed, second.report.cached, second.report.tokens) == (0, 4, 0)
    assert torch.equal(first.a, second.b)
    assert torch.equal(first.b, second.a)
    assert torch.equal(backbone.encode_responses(pairs[0].prompt, [pairs[0].b])[0], first.b[0])


def test_a_cached_run_needs_no_model(tiny, backbone_of, pairs, monkeypatch) -> None:
    first = backbone_of(tiny).encode_pairs(pairs, progress=False)
    monkeypatch.setattr(FrozenLM, "__init__", lambda *_: pytest.fail("the model was loaded"))
    second = backbone_of(tiny).encode_pairs(pairs, progress=False)
    assert torch.equal(first.a, second.a)
    assert second.report.packed is None


@pytest.mark.parametrize("other", [{"layer": 3}, {"pooling": "last"}, {"dtype": "bfloat16"}, {"max_tokens": 40}])
def test_another_identity_shares_nothing(tiny, backbone_of, pairs, other) -> None:
    backbone_of(tiny).encode_pairs(pairs, progress=False)
    backbone = backbone_of(tiny, **other)
    assert backbone.identity != backbone_of(tiny).identity
    assert backbone.encode_pairs(pairs, progress=False).report.computed == 4


def test_long_texts_keep_the_prompts_end_and_the_responses_head_and_are_counted(tiny, backbone_of) -> None:
    long = Pair((Message("user", "x" * 60 + "the end?"),), "short", "a longer answer")
    huge = Pair((Message("user", "hi"),), "start" + "y" * 50, "z")
    fits = Pair((Message("user", "hi"),), "a", "b")
    backbone = backbone_of(tiny, max_tokens=40, pooling="last", layer=2)
    found = backbone.encode_pairs([long, huge, fits], progress=False)
    assert found.report.truncated == 2
    assert "2 of 3 pairs" in found.report.notes[0]
    for got, response in ((found.a[0], " short"), (found.b[0], " a longer answer")):
        kept = plain(long)[-(40 - len(response)) :]
        torch.testing.assert_close(got, reference(tiny, kept, response, 2, "last"), atol=1e-5, rtol=1e-4)
    prompt, response = plain(huge)[-20:], " start" + "y" * 14
    torch.testing.assert_close(found.a[1], reference(tiny, prompt, response, 2, "last"), atol=1e-5, rtol=1e-4)
    assert backbone.encode_pairs([long, huge, fits], progress=False).report.truncated == 2  # also from the cache


def test_positions_limit_the_length(tmp_path, backbone_of) -> None:
    assert backbone_of(save_llama(tmp_path / "m", max_position_embeddings=64)).max_tokens == 64


def test_chat_template_without_the_default_system_prompt(chatty, backbone_of, pairs) -> None:
    found = backbone_of(chatty, layer=2).encode_pairs(pairs[:1], progress=False)
    rendered = "<s>system\n</s>\n<s>user\nWhat is a fox?</s>\n<s>assistant\n"
    torch.testing.assert_close(found.a[0], reference(chatty, rendered, pairs[0].a, 2), atol=1e-5, rtol=1e-4)


def test_a_damaged_row_is_computed_again_and_counted(tiny, backbone_of, pairs) -> None:
    backbone = backbone_of(tiny)
    first = backbone.encode_pairs(pairs, progress=False)
    (file,) = (backbone.cache / "features").glob("*.sqlite")
    backbone.close()
    with sqlite3.connect(file) as db:
        key = db.execute("SELECT key FROM vectors LIMIT 1").fetchone()
        db.execute("UPDATE vectors SET value = zeroblob(128) WHERE key = ?", key)
    again = backbone.encode_pairs(pairs, progress=False)
    assert (again.report.corrupted, again.report.computed) == (1, 1)
    assert again.report.notes == ("1 damaged cache entries were computed again.",)
    torch.testing.assert_close(again.a, first.a, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(again.b, first.b, atol=1e-5, rtol=1e-4)
    assert backbone.encode_pairs(pairs, progress=False).report.corrupted == 0


def test_an_interrupted_run_resumes(tiny, backbone_of, pairs, monkeypatch) -> None:
    whole = FrozenLM.hidden
    calls = []

    def interrupted(self, batch):
        calls.append(batch)
        if len(calls) == 5:  # two calls compare packed with separate rows, two batches pass
            raise KeyboardInterrupt
        return whole(self, batch)

    monkeypatch.setattr(FrozenLM, "hidden", interrupted)
    with pytest.raises(KeyboardInterrupt):
        backbone_of(tiny, batch_tokens=64).encode_pairs(pairs, progress=False)
    monkeypatch.setattr(FrozenLM, "hidden", whole)
    resumed = backbone_of(tiny, batch_tokens=64).encode_pairs(pairs, progress=False)
    assert 0 < resumed.report.computed < 4
    assert resumed.report.computed + resumed.report.cached == 4


@pytest.mark.slow
def test_two_processes_may_encode_at_once(tiny, pairs, tmp_path, backbone_of) -> None:
    script = (
        "import sys; from pathlib import Path; from fedvpa.backbone import Backbone;"
        "from fedvpa.config import BackboneConfig;"
        "from fedvpa.preferences.schema import Message, Pair;"
        "pairs = [Pair((Message('user', f'q{i}'),), f'a{i}', f'b{i}') for i in range(12)];"
        "b = Backbone(BackboneConfig(model=sys.argv[1], dtype='float32', batch_tokens=64), Path(sys.argv[2]), 'cpu');"
        "print(b.encode_pairs(pairs).a.sum().item())"
    )
    command = [sys.executable, "-c", script, str(tiny), str(tmp_path / "cache")]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=alone) for _ in range(2)]
    sums = [float(run.communicate(timeout=120)[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert math.isclose(sums[0], sums[1], abs_tol=1e-3)
    more = [Pair((Message("user", f"q{i}"),), f"a{i}", f"b{i}") for i in range(12)]
    assert backbone_of(tiny).encode_pairs(more, progress=False).report.cached == 12


def test_a_state_space_model_falls_back_to_separate_rows(tmp_path, backbone_of, pairs) -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=258, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    save_tokenizer(tmp_path / "mamba")
    found = backbone_of(tmp_path / "mamba", layer=1).encode_pairs(pairs, progress=False)
    assert found.report.packed is False
    want = reference(tmp_path / "mamba", plain(pairs[1]), " " + pairs[1].b, 0)  # transformers leaves the embeddings out
    torch.testing.assert_close(found.b[1], want, atol=1e-4, rtol=1e-3)


def test_a_short_attention_window_is_not_packed(tiny, backbone_of) -> None:
    backbone = backbone_of(tiny)
    narrow = dataclasses.replace(backbone.model, window=8)
    assert not FrozenLM(narrow, "float32", backbone.device, {2}, 40).packed
    assert FrozenLM(narrow, "float32", backbone.device, {2}, 8).packed


def test_an_empty_response_is_refused(tiny, backbone_of) -> None:
    with pytest.raises(UserError, match="an empty response"):
        backbone_of(tiny).encode_responses((Message("user", "q"),), ["", "a"])


def test_nothing_to_encode(tiny, backbone_of) -> None:
    found = backbone_of(tiny, choice_logits=True).encode_pairs([], progress=False)
    assert found.a.shape == (0, 32)
    assert found.base_logit is not None
    assert found.base_logit.shape == (0,)
    assert found.report.notes == ()


def test_out_of_memory_is_explained(tiny, backbone_of, pairs, monkeypatch) -> None:
    backbone = backbone_of(tiny)
    lm = backbone._load(frozenset({backbone.layer}))

    def full(**_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(lm, "base", full)
    with pytest.raises(UserError, match=r"backbone\.batch_tokens"):
        backbone.encode_pairs(pairs, progress=False)


def test_the_bar_shows_on_a_terminal_only(tiny, backbone_of, pairs, tmp_path, capsys, monkeypatch) -> None:
    backbone_of(tiny).encode_pairs(pairs)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    backbone_of(tiny, tmp_path / "other").encode_pairs(pairs)
    shown = capsys.readouterr().err
    assert "features" in shown
    assert "tokens/s" in shown


def test_keys_tell_texts_apart() -> None:
    prompt = (Message("user", "q"),)
    keys = {
        Item(prompt, ("a",)).key,
        Item(prompt, ("b",)).key,
        Item(prompt, ("a", "b")).key,
        Item(prompt, ("b", "a")).key,
    }
    keys |= {Item((Message("system", "q"),), ("a",)).key, Item((Message("user", "q "),), ("a",)).key}
    assert len(keys) == 6


def test_reports_are_plain_values() -> None:
    report = EncodeReport(1, 1, 0, 0, 0, 10, 0.5, True)
    assert dataclasses.asdict(report)["tokens"] == 10
