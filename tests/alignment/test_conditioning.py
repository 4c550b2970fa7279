"""A latent enters through virtual tokens: with a cache and without, with an adapter and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fedvpa.alignment.conditioning import PROJECTION, ConditionedEmbedding, LatentTokens, condition
from fedvpa.alignment.sampling import Sampling, next_tokens, sample
from fedvpa.errors import UserError

KINDS = [("soft-prompt", 3), ("added", 1)]
D = 5


def base(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def conditioned(folder: Path, kind: str, m: int) -> tuple[Any, ConditionedEmbedding, LatentTokens]:
    """A model with a random projection and two latents, as after training."""
    lm, tokenizer = base(folder)
    tokens = LatentTokens(tokenizer, 2, m)
    embedding = condition(lm, tokens, kind, D, kappa=2.0)
    torch.manual_seed(1)
    for p in getattr(embedding, PROJECTION).parameters():
        torch.nn.init.normal_(p)
    embedding.latents = torch.randn(2, D)
    return lm, embedding, tokens


@pytest.mark.parametrize(("kind", "m"), KINDS)
def test_what_the_embedding_is(chatty: Path, kind: str, m: int) -> None:
    lm, embedding, tokens = conditioned(chatty, kind, m)
    ids = torch.tensor([[*tokens.ids(1), 7, 8, 9], [5, 6, 7, 8, 9, 10][: m + 3]])
    x = embedding(ids)
    table = embedding.base.weight
    projection = getattr(embedding, PROJECTION)
    size = table.pow(2).mean().sqrt()
    by_hand = (projection.weight @ (embedding.latents[1] * D**0.5 / 2.0) + projection.bias).view(m, -1) * size
    torch.testing.assert_close(x[0, :m], table[0] + by_hand)
    plain = table[ids[0, m:]]
    torch.testing.assert_close(x[0, m:], plain + by_hand if kind == "added" else plain)
    torch.testing.assert_close(x[1], table[ids[1]])
    assert lm.get_output_embeddings().weight.shape[0] == table.shape[0] == 258


@pytest.mark.parametrize(("kind", "m"), KINDS)
def test_untrained_it_is_the_base_model_behind_neutral_tokens(chatty: Path, kind: str, m: int) -> None:
    plain, _ = base(chatty)
    lm, tokenizer = base(chatty)
    tokens = LatentTokens(tokenizer, 2, m)
    condition(lm, tokens, kind, D).latents = torch.randn(2, D)
    text = [7, 8, 9, 10]
    with torch.no_grad():
        ours = lm(torch.tensor([tokens.ids(0) + text])).logits
        theirs = plain(torch.tensor([[tokenizer.bos_token_id] * m + text])).logits
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("kind", "m"), KINDS)
def test_text_and_ids_agree(chatty: Path, kind: str, m: int) -> None:
    _, tokenizer = base(chatty)
    tokens = LatentTokens(tokenizer, 3, m)
    ids = tokenizer(tokens.text(2) + "hi")["input_ids"]
    assert ids[:m] == tokens.ids(2)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hi"
    assert tokens.mentioned("a " + tokens.text(2))
    assert not tokens.mentioned("a latent-1")


@pytest.mark.parametrize(("kind", "m"), KINDS)
def test_latents_can_be_exchanged(chatty: Path, kind: str, m: int) -> None:
    lm, embedding, tokens = conditioned(chatty, kind, m)
    texts = [torch.tensor([[*tokens.ids(k), 7, 8, 9]]) for k in (0, 1)]

    def logits() -> list[torch.Tensor]:
        with torch.no_grad():
            return [lm(t).logits[0, -1] for t in texts]

    first, second = logits()
    assert not torch.allclose(first, second, atol=1e-3)
    with embedding.with_latents(embedding.latents.flip(0)):
        second_, first_ = logits()
    torch.testing.assert_close(first_, first)
    torch.testing.assert_close(second_, second)


@pytest.mark.parametrize(("kind", "m"), KINDS)
def test_with_a_cache_it_is_the_same(chatty: Path, kind: str, m: int) -> None:
    """Token by token from a cache, in one go, and by transformers' own `generate`: the same greedy responses."""
    lm, _, tokens = conditioned(chatty, kind, m)
    prompts = [[*tokens.ids(0), 20, 30, 40, 50], [*tokens.ids(1), 20, 30], [20, 30, 40]]
    greedy = sample(lm, prompts, torch.zeros(3, 8), Sampling(0), frozenset(), pad=1)
    assert len({tuple(s.ids) for s in greedy}) == 3
    for prompt, response in zip(prompts, greedy, strict=True):
        assert response.capped
        whole = list(prompt)
        for token in response.ids:
            with torch.no_grad():
                assert int(lm(torch.tensor([whole]), use_cache=False).logits[0, -1].argmax()) == token
            whole.append(token)
        config = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=1)
        theirs = lm.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :]
        assert theirs.tolist() == response.ids


@pytest.mark.parametrize(("kind", "m"), KINDS)
def test_finished_rows_leave_the_batch(chatty: Path, kind: str, m: int) -> None:
    """A response does not depend on its neighbours, although those that end are taken out."""
    lm, _, tokens = conditioned(chatty, kind, m)
    prompts = [[*tokens.ids(i % 2), 20 + i, 30 + i, 40] for i in (0, 1, 2, 2, 1, 3)]
    u = torch.rand(6, 30, generator=torch.Generator().manual_seed(0))
    end = frozenset(range(0, 258, 20))
    together = sample(lm, prompts, u, Sampling(), end, pad=1)
    alone = [sample(lm, [p], u[i : i + 1], Sampling(), end, pad=1)[0] for i, p in enumerate(prompts)]
    assert together == alone
    assert len({len(s.ids) for s in together}) > 2
    assert all(not s.capped and not end & set(s.ids) for s in together if len(s.ids) < 30)


def test_an_unconditioned_sequence_carries_nothing_over(chatty: Path) -> None:
    lm, _, tokens = conditioned(chatty, "added", 1)
    plain, _ = base(chatty)
    text = torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        out = lm(torch.tensor([[*tokens.ids(0), 7, 8]]), use_cache=True)  # the model makes its cache itself
        next_ = lm(torch.tensor([[9]]), past_key_values=out.past_key_values).logits
        whole = lm(torch.tensor([[*tokens.ids(0), 7, 8, 9]])).logits[:, -1:]
        torch.testing.assert_close(next_, whole)
        torch.testing.assert_close(lm(text).logits, plain(text).logits)


@pytest.mark.parametrize(("kind", "m"), KINDS)
def test_peft_trains_saves_and_disables_the_projection(chatty: Path, tmp_path: Path, kind: str, m: int) -> None:
    lm, tokenizer = base(chatty)
    tokens = LatentTokens(tokenizer, 2, m)
    embedding = condition(lm, tokens, kind, D)
    embedding.latents = latents = torch.randn(2, D)
    model = get_peft_model(lm, LoraConfig(target_modules="all-linear", modules_to_save=[PROJECTION], r=2))
    ids = torch.tensor([[*tokens.ids(0), 7, 8, 9, 10], [*tokens.ids(1), 7, 8, 9, 10]])
    with torch.no_grad():
        before = model(ids).logits
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and PROJECTION in n) == m * 32 * (
        D + 1
    )
    optimizer = torch.optim.Adam(trained, 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(ids, labels=ids.clamp(max=257)).loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = model.eval()(ids).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(ids).logits, before)
    assert not torch.allclose(after[0, -1], after[1, -1], atol=1e-3)
    model.save_pretrained(tmp_path)
    again, tokenizer = base(chatty)
    condition(again, LatentTokens(tokenizer, 2, m), kind, D).latents = latents
    loaded = PeftModel.from_pretrained(again, tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, after)


def test_added_is_one_token(chatty: Path) -> None:
    lm, tokenizer = base(chatty)
    with pytest.raises(UserError, match="one token"):
        condition(lm, LatentTokens(tokenizer, 2, 3), "added", D)


def test_tokens_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]]).expand(20_000, 4)
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0))

    def frequencies(how: Sampling) -> torch.Tensor:
        return next_tokens(logits, u, how).bincount(minlength=4) / 20_000

    p = (logits[0] / 0.7).softmax(-1)
    torch.testing.assert_close(frequencies(Sampling(0.7, 0, 1.0)), p, atol=0.012, rtol=0)
    top = p.clone()
    top[[0, 3]] = 0
    torch.testing.assert_close(frequencies(Sampling(0.7, 2, 1.0)), top / top.sum(), atol=0.012, rtol=0)
    nucleus = logits[0].softmax(-1)
    assert nucleus[1] < 0.7 < nucleus[1] + nucleus[2]
    nucleus[[0, 3]] = 0
    torch.testing.assert_close(frequencies(Sampling(1.0, 0, 0.7)), nucleus / nucleus.sum(), atol=0.012, rtol=0)
