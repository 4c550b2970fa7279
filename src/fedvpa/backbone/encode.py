"""Features of preference pairs: a frozen LM's hidden states, pooled over the response (method.md, section 2)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedvpa.backbone.choice import ChoiceExtractor
from fedvpa.backbone.extract import Extraction, Extractor, Item, View, extract
from fedvpa.backbone.forward import FrozenLM, pool
from fedvpa.backbone.models import ResolvedModel, choose_device, choose_dtype, layer_index, resolve
from fedvpa.backbone.packing import Batch
from fedvpa.backbone.store import OpenStore, Store, Vectors
from fedvpa.backbone.tokens import Text
from fedvpa.config import BackboneConfig
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Pair, Prompt

_TEMPLATE = "chat-template, empty system, else HH; prompt and response tokenised apart; v1"


@dataclass(frozen=True)
class EncodeReport:
    """What an encoding took.

    Attributes:
        pairs: asked for.
        computed: pairs for which the model had to run.
        cached: pairs that the stores had.
        truncated: pairs of which a text was longer than ``max_tokens`` and lost tokens on its left.
        corrupted: rows of the stores that were damaged and computed again.
        tokens: run through the model, without padding.
        seconds: wall clock, loading the model included.
        packed: False if the responses of a pair could not share their prompt exactly; None if nothing was computed.
    """

    pairs: int
    computed: int
    cached: int
    truncated: int
    corrupted: int
    tokens: int
    seconds: float
    packed: bool | None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a user should see."""
        notes = []
        if self.truncated:
            notes.append(f"{self.truncated} of {self.pairs} pairs were cut from the left (backbone.max_tokens).")
        if self.corrupted:
            notes.append(f"{self.corrupted} damaged cache entries were computed again.")
        if self.packed is False:
            notes.append("This model cannot share a prompt between two responses exactly; each was encoded on its own.")
        return tuple(notes)


@dataclass(frozen=True)
class Features:
    """Features of n pairs.

    Attributes:
        a: (n, D) float32, h(x, a).
        b: (n, D) float32, h(x, b).
        base_logit: (n,) float32, l0(x, a, b), or None where ``choice_logits`` is off.
        report: how they came about.
    """

    a: Tensor
    b: Tensor
    base_logit: Tensor | None
    report: EncodeReport


def base_identity(model: ResolvedModel, dtype: torch.dtype, max_tokens: int) -> dict[str, Any]:
    """What everything depends on that a model computes from texts."""
    named = str(dtype).removeprefix("torch.")
    return {"model": model.fingerprint, "dtype": named, "max_tokens": max_tokens, "format": _TEMPLATE}


class Backbone:
    """A frozen causal LM as a feature extractor with a cache; the model is loaded when something is not cached.

    A response's feature depends on its prompt and itself only: not on the other response, nor on the batch (up to
    rounding in the model's dtype).

    Args:
        config: the ``backbone`` section.
        cache: the cache folder (see `models.cache_dir`).
        device: ``auto``, ``cpu`` or ``cuda``.
        open_store: what keeps the vectors; by default files in the cache folder.

    Raises:
        UserError: no such model, no such layer; later also whatever `models.load` and `store.Store` raise.

    Example:
        >>> backbone = Backbone(BackboneConfig(), Path("~/.cache/fedvpa").expanduser())  # doctest: +SKIP
        >>> backbone.encode_pairs([Pair((Message("user", "Hi"),), "Hello!", "Go away.")]).a.shape  # doctest: +SKIP
        torch.Size([1, 576])
    """

    def __init__(
        self, config: BackboneConfig, cache: Path, device: str = "auto", open_store: OpenStore = Store
    ) -> None:
        self.config, self.cache, self.device = config, cache, choose_device(device)
        self.model: ResolvedModel = resolve(config.model, config.revision, cache)
        self.layer = layer_index(config.layer, self.model.depth)
        self.max_tokens = min(config.max_tokens, self.model.max_positions or config.max_tokens)
        self._open_store = open_store
        self._lock = threading.RLock()
        self._stores: dict[str, Vectors] = {}
        self._models: dict[frozenset[int | None], FrozenLM] = {}

    @property
    def dim(self) -> int:
        """D, the length of a feature."""
        return self.model.dim

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that the features depend on besides the text."""
        return {**self._base_identity, "kind": "features", "layer": self.layer, "pooling": self.config.pooling}

    def encode_pairs(self, pairs: Sequence[Pair], progress: bool = True, beside: Sequence[Backbone] = ()) -> Features:
        """Features (and, if configured, base choice logits) of pairs.

        Args:
            pairs: n pairs.
            progress: show a progress bar, where stderr is a terminal.
            beside: backbones that differ from this one in layer and pooling only; the features that their caches lack
                are computed and cached in the same pass of the model.
        """
        assert all(other._base_identity == self._base_identity for other in beside)  # else their caches would be spoilt
        views = [other._view(other._features) for other in beside]
        done = self._run(self._features, [Item(p.prompt, (r,)) for p in pairs for r in (p.a, p.b)], progress, views)
        vectors, parts = done.vectors.view(len(pairs), 2, self.dim), [done]
        base_logit = None
        if self.config.choice_logits:
            orders = [Item(p.prompt, order) for p in pairs for order in ((p.a, p.b), (p.b, p.a))]
            parts.append(self._run(self._choice, orders, progress))
            shown = parts[1].vectors.view(len(pairs), 2)
            base_logit = (shown[:, 0] - shown[:, 1]) / 2
        return Features(vectors[:, 0].contiguous(), vectors[:, 1].contiguous(), base_logit, _report(len(pairs), parts))

    def encode_responses(self, prompt: Prompt, responses: Sequence[str]) -> Tensor:
        """h(x, r) of any number of responses to one prompt, (n, D) float32."""
        return self.encode_texts([prompt] * len(responses), responses)

    def encode_texts(self, prompts: Sequence[Prompt], responses: Sequence[str], progress: bool = False) -> Tensor:
        """h(x, r) of the i-th response to the i-th prompt, (n, D) float32; equal prompts are run once."""
        items = [Item(prompt, (r,)) for prompt, r in zip(prompts, responses, strict=True)]
        return self._run(self._features, items, progress).vectors

    def close(self) -> None:
        """Closes the cache files."""
        with self._lock:
            for store in self._stores.values():
                store.close()
            self._stores.clear()

    @property
    def _base_identity(self) -> Mapping[str, Any]:
        return base_identity(self.model, choose_dtype(self.config.dtype, self.device), self.max_tokens)

    def _run(self, extractor: Extractor, items: list[Item], progress: bool, beside: Sequence[View] = ()) -> Extraction:
        for item in items:
            if not all(item.responses):
                raise UserError("an empty response", "remove it, or give it some text", field="response")
        with self._lock:
            return extract(items, self._view(extractor), self.config.batch_tokens, progress, beside)

    def _view(self, extractor: Extractor) -> View:
        with self._lock:
            if extractor.label not in self._stores:
                folder = self.cache / extractor.label.replace(" ", "-")
                self._stores[extractor.label] = self._open_store(folder, extractor.identity, extractor.dim)
            return View(extractor, self._stores[extractor.label])

    def _load(self, layers: frozenset[int | None]) -> FrozenLM:
        if layers not in self._models:
            self._models[layers] = FrozenLM(self.model, self.config.dtype, self.device, layers, self.max_tokens)
        return self._models[layers]

    @cached_property
    def _features(self) -> Extractor:
        return FeatureExtractor(self._load, self.max_tokens, self.identity, self.layer, self.config.pooling, self.dim)

    @cached_property
    def _choice(self) -> Extractor:
        return ChoiceExtractor(self._load, self.max_tokens, self._base_identity)


@dataclass(frozen=True)
class FeatureExtractor:
    """h(x, r): hidden states at one layer, pooled over the response's tokens."""

    load: Callable[[frozenset[int | None]], FrozenLM]
    max_tokens: int
    identity: Mapping[str, Any]
    layer: int
    pooling: Any
    dim: int
    label: str = "features"

    def texts(self, lm: FrozenLM, items: Sequence[Item]) -> list[Text]:
        return lm.renderer.responses([(i.prompt, i.responses[0]) for i in items], self.max_tokens)

    def vectors(self, lm: FrozenLM, hidden: Tensor, batch: Batch) -> Tensor:
        return pool(hidden, batch.spans, self.pooling)


def _report(pairs: int, parts: Sequence[Extraction]) -> EncodeReport:
    """Sums up extractions of two items per pair each."""
    computed = torch.stack([p.computed.view(pairs, 2).any(1) for p in parts]).any(0).sum().item()
    packed = [p.packed for p in parts if p.packed is not None]
    return EncodeReport(
        pairs=pairs,
        computed=int(computed),
        cached=pairs - int(computed),
        truncated=int((parts[0].cut.view(pairs, 2) > 0).any(1).sum()),
        corrupted=sum(p.corrupted for p in parts),
        tokens=sum(p.tokens for p in parts),
        seconds=sum(p.seconds for p in parts),
        packed=all(packed) if packed else None,
    )
