"""Sampling of responses: every response has random numbers of its own, and finished ones leave the batch.

``generate`` of transformers draws from one generator per batch, so that a response depends on its neighbours, and runs
every sequence until the longest has ended. Here a response is a function of its prompt and of its own uniform numbers
(up to rounding), whatever the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from fedvpa.alignment.conditioning import ConditionedEmbedding

_COMPACT = 0.25  # share of finished sequences at which they are taken out of the batch


class Sampling(NamedTuple):
    """temperature: 0 takes the likeliest token; top_k, top_p: from how many of them (0, 1: from all)."""

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0


class Sampled(NamedTuple):
    """ids: a response's tokens without the one that ends it; capped: whether it was cut at the longest length."""

    ids: list[int]
    capped: bool


def next_tokens(logits: Tensor, u: Tensor, how: Sampling) -> Tensor:
    """One token per row by inversion of the distribution function over tokens in order of probability.

    Args:
        logits: (rows, vocabulary); u: (rows,) uniform in [0, 1).

    Returns:
        (rows,)
    """
    if how.temperature == 0:
        return logits.argmax(-1)
    size = logits.shape[-1]
    top, order = logits.float().topk(min(how.top_k or size, size), dim=-1)
    p = (top / how.temperature).softmax(-1)
    below = p.cumsum(-1) - p
    p = p.masked_fill(below >= how.top_p, 0.0)  # the likeliest token always stays
    cumulative = p.cumsum(-1)
    chosen = (cumulative <= u.to(p).unsqueeze(-1) * cumulative[:, -1:]).sum(-1)
    return order.gather(-1, chosen.clamp(max=top.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)


@torch.inference_mode()
def sample(
    lm: Any,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    how: Sampling,
    end: frozenset[int],
    pad: int,
    on_tokens: Callable[[int], None] = lambda n: None,
) -> list[Sampled]:
    """One response to each of a batch of prompts.

    Args:
        lm: a causal LM of transformers, with or without PEFT around it.
        prompts: token ids, which may begin with virtual tokens; equal ones are read once.
        uniforms: (prompts, longest response) the random numbers; their second size bounds the responses.
        end: ids that end a response; pad: id with which shorter prompts are filled up on the left.
        on_tokens: is told how many tokens were added.
    """
    device, unique = lm.device, {tuple(p): i for i, p in enumerate(dict.fromkeys(map(tuple, prompts)))}
    longest = max(map(len, unique))
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in unique], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in unique], device=device)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    uniforms, stops = uniforms.to(device), torch.tensor(sorted(end), device=device)
    found: list[list[int]] = [[] for _ in prompts]
    capped = [True] * len(prompts)
    alive = torch.arange(len(prompts), device=device)  # rows of the batch, as numbers of prompts
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    cache = DynamicCache()

    def keep(rows: Tensor) -> None:
        cache.batch_select_indices(rows)
        if isinstance(embedding := lm.get_input_embeddings(), ConditionedEmbedding):
            embedding.select(cache, rows)

    for step in range(uniforms.shape[1]):
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position}
        logits = lm(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        if step == 0:  # equal prompts are read once
            rows = torch.tensor([unique[tuple(p)] for p in prompts], device=device)
            if len(unique) < len(prompts):
                keep(rows)
            logits, mask, position = logits[rows], mask[rows], position[rows]
        token = next_tokens(logits, uniforms[alive, step], how)
        ended = torch.isin(token, stops)
        for row, (number, value, stop, over) in enumerate(
            zip(alive.tolist(), token.tolist(), ended.tolist(), done.tolist(), strict=True)
        ):
            if not over and stop:
                capped[number], done[row] = False, True
            elif not over:
                found[number].append(value)
        on_tokens(int((~done).sum()))
        if done.all():
            break
        ids, position = token.unsqueeze(-1), position[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        if done.float().mean() >= _COMPACT:
            rows = (~done).nonzero().flatten()
            ids, position, mask, alive, done = ids[rows], position[rows], mask[rows], alive[rows], done[rows]
            keep(rows)
    return [Sampled(f, c) for f, c in zip(found, capped, strict=True)]
