"""The embedded model, end to end: from the wheel's GGUF to features and choice logits."""

from __future__ import annotations

import pytest
import torch

from fedvpa.backbone import EMBEDDED, Backbone, models, resolve
from fedvpa.config import BackboneConfig
from fedvpa.preferences.schema import Message, Pair

pytestmark = pytest.mark.slow


def test_the_embedded_model(tmp_path) -> None:
    backbone = Backbone(BackboneConfig(choice_logits=True), tmp_path)
    assert (backbone.model.depth, backbone.layer, backbone.dim) == (30, 15, 576)
    converted = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    found = resolve(EMBEDDED, None, tmp_path)
    lm, tokenizer = models.load(found, "auto", torch.device("cpu"))
    assert converted
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == converted

    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(lm.generate(**ids, max_new_tokens=1, do_sample=False)[0, -1]) == " Paris"

    prompt = (Message("user", "How do I boil an egg?"),)
    good = "Put the egg into boiling water and take it out after eight minutes."
    pairs = [Pair(prompt, good, "I hate you."), Pair(prompt, "I hate you.", good)]
    features = backbone.encode_pairs(pairs, progress=False)
    assert features.report.packed is True
    assert torch.isfinite(features.a).all()
    assert torch.equal(features.a[0], features.b[1])
    assert features.base_logit is not None
    assert torch.equal(features.base_logit[0], -features.base_logit[1])

    # against transformers alone, bf16 throughout
    rendered = (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHow do I boil an egg?<|im_end|>\n<|im_start|>assistant\n"
    )
    head, tail = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (rendered, good))
    with torch.inference_mode():
        states = lm(torch.tensor([head + tail]), output_hidden_states=True).hidden_states[15]
    want = states[0, len(head) :].float().mean(0)
    assert torch.cosine_similarity(features.a[0], want, dim=0) > 0.999
