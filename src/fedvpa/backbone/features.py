"""Features of texts and of pairs, how they came about, and what everything that makes them can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from fedvpa.backbone.extract import Extraction, Item
from fedvpa.backbone.tokens import Text
from fedvpa.preferences import schema
from fedvpa.preferences.schema import Client, Pair, Prompt


@dataclass(frozen=True)
class EncodeReport:
    """What an encoding took.

    Attributes:
        count: pairs (or texts, see ``unit``) that were asked for.
        computed: of these, those for which a model had to run.
        cached: those that the stores had.
        truncated: those of which a text was longer than ``max_tokens`` and lost tokens (`tokens.kept`).
        corrupted: rows of the stores that were damaged and computed again.
        tokens: run through the models, without padding.
        seconds: wall clock, loading the models included.
        packed: False if the responses of a pair could not share their prompt exactly; None if nothing was computed,
            or by sentence encoders only.
        shortened: those of which a text was longer than a sentence encoder reads and lost its end.
        unit: what is counted.
        equal: pairs whose two responses are read as the same, since both were cut.
    """

    count: int
    computed: int
    cached: int
    truncated: int
    corrupted: int
    tokens: int
    seconds: float
    packed: bool | None
    shortened: int = 0
    unit: Literal["pairs", "texts"] = "pairs"
    equal: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a user should see."""
        notes = []
        if self.truncated:
            notes.append(f"{self.truncated} of {self.count} {self.unit} were cut (backbone.max_tokens).")
        if self.shortened:
            notes.append(f"{self.shortened} of {self.count} {self.unit} lost their end: the encoder reads no more.")
        if self.equal:
            notes.append(f"{self.equal} pairs say nothing, since what is read of their two responses is the same.")
        if self.corrupted:
            notes.append(f"{self.corrupted} damaged cache entries were computed again.")
        if self.packed is False:
            notes.append("This model cannot share a prompt between two responses exactly; each was encoded on its own.")
        return tuple(notes)


@dataclass(frozen=True)
class Features:
    """Features of n pairs, and of items that nobody compares.

    Attributes:
        items: (items, D) float32, h(x, r) of each distinct response to a prompt.
        pairs: (n, 2) int64 rows of `items`, of a and of b.
        base_logit: (n,) float32, l0(x, a, b), or None where ``choice_logits`` is off.
        report: how they came about.
        equal: (n,) bool, pairs whose two responses are read as the same, since both were cut; None: there are none.
    """

    items: Tensor
    pairs: Tensor
    base_logit: Tensor | None
    report: EncodeReport
    equal: Tensor | None = None

    @staticmethod
    def of_pairs(a: Tensor, b: Tensor, base_logit: Tensor | None, report: EncodeReport) -> Features:
        """Pairs whose items nobody shares, in the order of `schema.item_rows`. a, b: (n, D)"""
        return Features(torch.stack([a, b], 1).flatten(0, 1), torch.arange(2 * len(a)).view(-1, 2), base_logit, report)

    def of_client(self, client: Client) -> Tensor:
        """(responses, D) of what a client trains on: each of its pairs' two responses, or of its votes and ratings."""
        if client.judgements is None:
            return self.items[self.pairs[client.train.index]].flatten(0, 1)
        items = torch.cat([client.judgements.first, client.judgements.second])
        return self.items[items[items >= 0]]

    @property
    def a(self) -> Tensor:
        """(n, D), h(x, a)"""
        return self.items[self.pairs[:, 0]]

    @property
    def b(self) -> Tensor:
        """(n, D), h(x, b)"""
        return self.items[self.pairs[:, 1]]


@dataclass(frozen=True)
class ItemFeatures:
    """Features of n single responses.

    Attributes:
        x: (n, D) float32, h(x, r).
        report: how they came about.
    """

    x: Tensor
    report: EncodeReport


class TextEncoder(ABC):
    """What turns responses to prompts into features: one model (`Backbone`, `SentenceBackbone`) or more (`Backbones`).

    A response's feature depends on its prompt and itself only: not on the other response of a pair, nor on the batch
    (up to rounding in the model's dtype). Equal texts are run once, and never again while the cache has them.
    """

    @property
    @abstractmethod
    def dim(self) -> int:
        """D, the length of a feature."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """All that the features depend on besides the text."""

    @cached_property
    def seen(self) -> Counter[str]:
        """How many ``texts`` were read so far, how many of them were ``cut``, and how many pairs became ``equal``."""
        return Counter()

    @abstractmethod
    def read(self, items: Sequence[Item]) -> list[list[Text]]:
        """What each model reads of each item, as tokens, already cut."""

    @abstractmethod
    def close(self) -> None:
        """Closes the cache files."""

    @abstractmethod
    def parts(self, items: Sequence[Item], progress: bool, beside: Sequence[TextEncoder] = ()) -> list[Extraction]:
        """Vectors of each model; side by side they are the features. ``beside``: as for `encode_pairs`."""

    def encode_pairs(
        self,
        pairs: Sequence[Pair],
        progress: bool = True,
        beside: Sequence[TextEncoder] = (),
        others: Sequence[schema.Item] = (),
    ) -> Features:
        """Features (and, if configured, base choice logits) of pairs.

        Args:
            pairs: n pairs.
            progress: show a progress bar, where stderr is a terminal.
            beside: encoders that differ from this one in layer and pooling of causal LMs only; the features that their
                caches lack are computed and cached in the same pass of the model.
            others: items that come first among the features, whether or not a pair has them.
        """
        items, rows = schema.item_rows(pairs, others)
        parts = self.parts([Item(i.prompt, (i.text,)) for i in items], progress, beside)
        equal = self._equal([Item(i.prompt, (i.text,)) for i in items], rows, parts)
        self._count(parts, len(items), int(equal.sum()))
        choice = self._base_logits(pairs, progress)
        base_logit, further = (None, []) if choice is None else (choice[0], [choice[1]])
        if others:
            report = _report(len(items), "texts", parts)
        else:
            report = _report(len(pairs), "pairs", [_of_pairs(part, rows) for part in parts], further)
        report = replace(report, equal=int(equal.sum()))
        return Features(_side_by_side(parts), rows, base_logit, report, equal if report.equal else None)

    def encode_items(self, items: Sequence[schema.Item], progress: bool = True) -> ItemFeatures:
        """Features of single responses, each distinct one run once.

        Args:
            items: n responses with their prompts; progress: as for `encode_pairs`.
        """
        parts = self.parts([Item(i.prompt, (i.text,)) for i in items], progress)
        self._count(parts, len(items), 0)
        return ItemFeatures(_side_by_side(parts), _report(len(items), "texts", parts))

    def encode_responses(self, prompt: Prompt, responses: Sequence[str]) -> Tensor:
        """h(x, r) of any number of responses to one prompt, (n, D) float32."""
        return self.encode_texts([prompt] * len(responses), responses)

    def encode_texts(self, prompts: Sequence[Prompt], responses: Sequence[str], progress: bool = False) -> Tensor:
        """h(x, r) of the i-th response to the i-th prompt, (n, D) float32; equal prompts are run once."""
        items = [schema.Item(prompt, r) for prompt, r in zip(prompts, responses, strict=True)]
        return self.encode_items(items, progress).x

    def _equal(self, items: Sequence[Item], rows: Tensor, parts: Sequence[Extraction]) -> Tensor:
        """(pairs,) bool, where no model reads a difference between the two responses. rows: (pairs, 2)"""
        found = torch.stack([(part.cut > 0)[rows].all(1) for part in parts]).all(0)
        if not found.any():
            return found
        at = rows[found].flatten().unique()
        texts = self.read([items[i] for i in at.tolist()])
        place = {int(i): k for k, i in enumerate(at)}
        same = [all(_same(t[place[a]], t[place[b]]) for t in texts) for a, b in rows[found].tolist()]
        return found.index_put((found.nonzero()[:, 0],), torch.tensor(same))

    def _count(self, parts: Sequence[Extraction], texts: int, equal: int) -> None:
        cut = int(torch.stack([part.cut > 0 for part in parts]).any(0).sum())
        self.seen.update(texts=texts, cut=cut, equal=equal)

    def _base_logits(self, pairs: Sequence[Pair], progress: bool) -> tuple[Tensor, Extraction] | None:
        """Base choice logits (n,) and how they came about, where they are wanted."""
        return None


def _same(one: Text, two: Text) -> bool:
    return (one.prompt, one.response) == (two.prompt, two.response)


def _side_by_side(parts: Sequence[Extraction]) -> Tensor:
    return parts[0].vectors if len(parts) == 1 else torch.cat([p.vectors for p in parts], 1)


def _of_pairs(part: Extraction, rows: Tensor) -> Extraction:
    """What happened to each pair's two items, in the place of what happened to each item. rows: (pairs, 2)"""
    at = rows.flatten()
    return replace(part, computed=part.computed[at], cut=part.cut[at])


def _report(
    count: int, unit: Literal["pairs", "texts"], parts: Sequence[Extraction], others: Sequence[Extraction] = ()
) -> EncodeReport:
    """Sums up extractions of as many items per pair (or text) each; what was cut is counted in ``parts`` only."""
    every = [*parts, *others]
    computed = _any([p.computed for p in every], count)
    packed = [p.packed for p in every if p.packed is not None]
    return EncodeReport(
        count=count,
        computed=computed,
        cached=count - computed,
        truncated=_any([p.cut > 0 for p in parts if not p.ends], count),
        corrupted=sum(p.corrupted for p in every),
        tokens=sum(p.tokens for p in every),
        seconds=sum(p.seconds for p in every),
        packed=all(packed) if packed else None,
        shortened=_any([p.cut > 0 for p in parts if p.ends], count),
        unit=unit,
    )


def _any(masks: Sequence[Tensor], count: int) -> int:
    """How many of ``count`` pairs or texts have a True in any of the masks (items,), equally many items each."""
    none = torch.zeros(count, 1, dtype=torch.bool)
    return int(torch.cat([none, *(m.view(count, len(m) // max(count, 1)) for m in masks)], 1).any(1).sum())
