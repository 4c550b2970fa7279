"""Rows and batches: one prompt and its continuations share a row, and no continuation sees another.

A row is ``[prompt, continuation 1, continuation 2, ...]``. The positions of every continuation begin where the prompt
ends, and the attention mask lets it see the prompt and itself only, so each hidden state is the one that the separate
sequence ``[prompt, continuation]`` would have, while the prompt is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedvpa.backbone.tokens import Text

_BUSY = 8  # an eighth of batch_tokens is a batch worth running
_SIMILAR = 0.85  # rows shorter than this share of the longest go into the next batch


class Row(NamedTuple):
    """A prompt and the continuations that share it; ``items`` are their indices in the caller's list."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    items: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


@dataclass(frozen=True)
class Batch:
    """What the model gets, and where the continuations lie in it.

    Attributes:
        input_ids: (rows, length) int64, padded on the right.
        position_ids: (rows, length) int64, or None for plain rows (one continuation each, nothing to restart).
        attention_mask: (rows, 1, length, length) additive for packed rows, (rows, length) int64 for plain ones.
        spans: per continuation (item, row, first position, position after the last).
        tokens: without padding.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    attention_mask: Tensor
    spans: list[tuple[int, int, int, int]]
    tokens: int


def make_rows(texts: Sequence[Text], packed: bool, longest: int) -> list[Row]:
    """Groups continuations of equal (cut) prompts into rows.

    Args:
        packed: False puts every continuation into a row of its own.
        longest: a row takes two continuations in any case, and more only up to this many tokens: attention is
            quadratic in the row.
    """
    shared: dict[tuple[int, ...], list[int]] = {}
    for i, text in enumerate(texts):
        shared.setdefault(text.prompt, []).append(i)
    rows = []
    for prompt, items in shared.items():
        group: list[int] = []
        size = len(prompt)
        for i in sorted(items, key=lambda i: (-len(texts[i].response), i)):
            more = len(texts[i].response)
            if group and (not packed or (len(group) > 1 and size + more > longest)):
                rows.append(_row(prompt, group, texts))
                group, size = [], len(prompt)
            group.append(i)
            size += more
        rows.append(_row(prompt, group, texts))
    return rows


def make_batches(rows: Sequence[Row], batch_tokens: int) -> list[list[Row]]:
    """Length-sorted batches, longest first, of at most ``batch_tokens`` tokens with padding (at least one row).

    A batch that is large enough to keep the processor busy also ends where the next row would be mostly padding.
    """
    batches: list[list[Row]] = []
    longest = 0
    for row in sorted(rows, key=lambda r: (-r.tokens, r.items)):
        size = len(batches[-1]) * longest if batches else 0
        wasteful = size * _BUSY >= batch_tokens and row.tokens < _SIMILAR * longest
        if not batches or size + longest > batch_tokens or wasteful:
            batches.append([])
            longest = row.tokens
        batches[-1].append(row)
    return batches


def collate(rows: Sequence[Row], packed: bool, dtype: torch.dtype, device: torch.device) -> Batch:
    """Pads rows into one `Batch`; padding is token 0 behind the text, where causal attention never looks."""
    length = max(r.tokens for r in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    position = torch.zeros(len(rows), length, dtype=torch.int64)
    segment = torch.full((len(rows), length), -1)  # 0: prompt, 1, 2, ...: continuations, -1: padding
    spans = []
    for r, row in enumerate(rows):
        start = len(row.prompt)
        ids[r, : row.tokens] = torch.tensor([t for part in (row.prompt, *row.responses) for t in part])
        position[r, :start] = torch.arange(start)
        segment[r, :start] = 0
        for s, (item, response) in enumerate(zip(row.items, row.responses, strict=True), start=1):
            stop = start + len(response)
            position[r, start:stop] = torch.arange(len(row.prompt), len(row.prompt) + len(response))
            segment[r, start:stop] = s
            spans.append((item, r, start, stop))
            start = stop
    tokens = sum(r.tokens for r in rows)
    if not packed:
        return Batch(ids.to(device), None, (segment >= 0).long().to(device), spans, tokens)
    segment = segment.to(device)
    seen = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
    hidden = ~(seen & torch.ones(length, length, dtype=torch.bool, device=device).tril())
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)
    return Batch(ids.to(device), position.to(device), mask[:, None], spans, tokens)


def _row(prompt: tuple[int, ...], group: Sequence[int], texts: Sequence[Text]) -> Row:
    return Row(prompt, tuple(texts[i].response for i in group), tuple(group))
