"""Log-probabilities and answers under a lent adapter: what they are, and that nothing of an adapter stays."""

from __future__ import annotations

import builtins
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from fedvpa.backbone import adapters
from fedvpa.backbone.adapters import AdaptedLM, adapted
from fedvpa.backbone.pairs import PairTexts, pair_texts
from fedvpa.config import ExperimentConfig, parse_config
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Message, Pair
from tiny_language import some_adapter


@pytest.fixture
def settings(tiny: Path, tmp_path: Path) -> Any:
    def make(**lora: Any) -> ExperimentConfig:
        tree = {
            "backbone": {"model": str(tiny), "dtype": "float32"},
            "lora": {"rank": 2, "alpha": 8, **lora},
            "federation": {"device": "cpu"},
            "output": {"cache": str(tmp_path / "cache")},
        }
        return parse_config(tree).for_method("feddpo")

    return make


@pytest.fixture
def lm(settings: Any) -> AdaptedLM:
    return adapted(settings())


def digest(lm: AdaptedLM) -> str:
    """Of every tensor of the model, the adapter's own places among them."""
    whole = hashlib.sha256()
    for name, value in sorted(lm.lm.base.state_dict().items()):
        whole.update(name.encode() + value.numpy().tobytes())
    return whole.hexdigest()


def by_peft(tiny: Path, adapter: dict[str, torch.Tensor]) -> Any:
    """The whole model with PEFT's own adapter set to these values."""
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=8, task_type="CAUSAL_LM"))
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in adapter.items():
            own[f"base_model.model.model.{name}".replace(".weight", ".default.weight")].copy_(value)
    return model.eval()


def test_a_response_is_as_likely_as_token_by_token_with_peft(tiny: Path, lm: AdaptedLM, pairs: list[Pair]) -> None:
    """Packed rows, shared prompts and lent tensors give what one plain row after another gives."""
    adapter = some_adapter(lm)
    texts = pair_texts(lm.lm.renderer, "responses", pairs, 256)
    assert texts.texts[0].response[-1] == lm.lm.renderer.tokenizer.eos_token_id
    found = lm.log_probs(texts.texts, adapter)
    model = by_peft(tiny, adapter)
    for text, value in zip(texts.texts, found.tolist(), strict=True):
        ids, start = torch.tensor([[*text.prompt, *text.response]]), len(text.prompt)
        with torch.no_grad():
            each = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        assert value == pytest.approx(float(each[start - 1 :].sum()), abs=1e-3)
    assert (found - lm.reference(texts).flatten()).abs().min() > 0.01


def test_the_gradient_is_pefts(tiny: Path, lm: AdaptedLM, pairs: list[Pair]) -> None:
    adapter = {k: v.requires_grad_(True) for k, v in some_adapter(lm).items()}
    text = pair_texts(lm.lm.renderer, "responses", pairs, 256).texts[3]
    lm.log_probs([text], adapter).sum().backward()
    model = by_peft(tiny, adapter)
    ids, start = torch.tensor([[*text.prompt, *text.response]]), len(text.prompt)
    each = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    each[start - 1 :].sum().backward()
    own = dict(model.named_parameters())
    for name, value in adapter.items():
        expected = own[f"base_model.model.model.{name}".replace(".weight", ".default.weight")].grad
        torch.testing.assert_close(value.grad, expected, atol=1e-3, rtol=1e-3)


def test_a_new_adapter_changes_nothing_and_is_drawn_from_the_generator(lm: AdaptedLM, pairs: list[Pair]) -> None:
    texts = pair_texts(lm.lm.renderer, "responses", pairs, 256)
    new, again = (lm.start(torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(new[k], again[k]) for k in new)
    assert all(v.abs().max() > 0 for k, v in new.items() if ".lora_A." in k)
    torch.testing.assert_close(lm.log_probs(texts.texts, new).reshape(-1, 2), lm.reference(texts), atol=1e-4, rtol=0)


def test_nothing_of_an_adapter_stays_behind(lm: AdaptedLM, pairs: list[Pair]) -> None:
    """Whoever asked before, with whatever adapter and dropout: the answers and the base model are the same."""
    texts = pair_texts(lm.lm.renderer, "responses", pairs, 256)
    mine, other = some_adapter(lm, seed=1), {k: v.requires_grad_(True) for k, v in some_adapter(lm, 2.0, 2).items()}
    before, state = lm.log_probs(texts.texts, mine), torch.get_rng_state()
    unchanged = digest(lm)
    with lm.dropout(7):
        lm.log_probs(texts.texts, other).sum().backward()
    assert torch.equal(lm.log_probs(texts.texts, mine), before)
    assert digest(lm) == unchanged
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in lm.lm.base.parameters())


def test_dropout_depends_on_its_seed_alone(settings: Any, pairs: list[Pair]) -> None:
    lm = adapted(settings(dropout=0.5))
    texts, adapter = pair_texts(lm.lm.renderer, "responses", pairs[:2], 256).texts, some_adapter(lm)
    found = []
    for seed in (1, 1, 2):
        torch.rand(5)
        with lm.dropout(seed):
            found.append(lm.log_probs(texts, adapter))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], lm.log_probs(texts, adapter))


def test_the_reference_is_computed_once(settings: Any, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    first = adapted(settings())
    texts = pair_texts(first.lm.renderer, "responses", pairs, 256)
    expected = first.reference(texts)
    adapters._adapted.cache_clear()
    again = adapted(settings(alpha=32))  # another adapter, the same frozen model
    monkeypatch.setattr(again.lm, "hidden", lambda batch: pytest.fail("asked again"))
    assert torch.equal(again.reference(texts), expected)


def test_answers_are_the_choice_logits(lm: AdaptedLM, pairs: list[Pair], backbone_of: Any, tiny: Path) -> None:
    """Under a new adapter they are l0's own, and one order of a pair is the other's with A and B exchanged."""
    texts = pair_texts(lm.lm.renderer, "choice", pairs, 512)
    shown = lm.answers(texts.texts, lm.start(torch.Generator())).reshape(-1, 2)
    frozen = backbone_of(tiny, choice_logits=True, max_tokens=512).encode_pairs(pairs, progress=False).base_logit
    torch.testing.assert_close((shown[:, 0] - shown[:, 1]) / 2, frozen, atol=1e-4, rtol=0)


def test_pairs_stay_whole_in_batches_that_fit(lm: AdaptedLM, pairs: list[Pair]) -> None:
    texts = pair_texts(lm.lm.renderer, "responses", pairs * 5, 256)
    batches = texts.batches(300)
    assert sorted(i for b in batches for i in b) == list(range(20))
    sizes = [[texts._size(i) for i in b] for b in batches]
    assert all(max(s) * len(s) <= 300 for s in sizes)
    assert len(batches) > 1
    assert texts.take([7, 2]) == PairTexts(
        (*texts.items[14:16], *texts.items[4:6]), (*texts.texts[14:16], *texts.texts[4:6])
    )


def test_two_responses_have_one_prompt_however_much_is_cut(lm: AdaptedLM) -> None:
    long = Pair((Message("user", "q" * 50 + "?"),), "a" * 60, "b" * 10)
    one, two = pair_texts(lm.lm.renderer, "responses", [long], 40).texts
    decode, end = lm.lm.renderer.tokenizer.decode, lm.lm.renderer.tokenizer.eos_token_id
    assert one.prompt == two.prompt
    assert decode(one.prompt) == "qqqqqqq?\n\nAssistant:"[-20:]
    assert decode(one.response) == " " + "a" * 19
    assert one.response[-1] != end
    assert decode(two.response) == " " + "b" * 10 + "</s>"
    assert (one.cut, two.response[-1]) == (len("\n\nHuman: " + "q" * 43) + 42, end)


def test_what_cannot_be_is_explained(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"lora\.targets"):
        adapted(settings(targets=["no_such_layer"]))
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    adapters._adapted.cache_clear()
    with pytest.raises(UserError, match=r"fedvpa\[align\]"):
        adapted(settings())
