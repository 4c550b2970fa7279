"""A causal LM as a backbone: its hidden states, pooled over the response (method.md, section 2), with a cache."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedvpa.backbone.choice import ChoiceExtractor
from fedvpa.backbone.extract import Extraction, Extractor, Item, View, extract
from fedvpa.backbone.features import EncodeReport, Features, ItemFeatures, TextEncoder
from fedvpa.backbone.forward import FrozenLM, pool
from fedvpa.backbone.models import ResolvedModel, choose_device, choose_dtype, layer_index, load_tokenizer, resolve
from fedvpa.backbone.packing import Batch
from fedvpa.backbone.store import OpenStore, Store, Vectors
from fedvpa.backbone.tokens import Renderer, Text
from fedvpa.config import BackboneConfig
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Pair

__all__ = ["Backbone", "EncodeReport", "FeatureExtractor", "Features", "ItemFeatures", "OneModel", "base_identity"]

_TEMPLATE = "chat-template, empty system, else HH; prompt and response tokenised apart; v2"


def base_identity(model: ResolvedModel, dtype: torch.dtype, max_tokens: int) -> dict[str, Any]:
    """What everything depends on that a model computes from texts."""
    named = str(dtype).removeprefix("torch.")
    return {"model": model.fingerprint, "dtype": named, "max_tokens": max_tokens, "format": _TEMPLATE}


class OneModel(TextEncoder):
    """A frozen model with a cache; the model is loaded when something is not cached.

    Args:
        config: the ``backbone`` section.
        cache: the cache folder (see `models.cache_dir`).
        device: ``auto``, ``cpu`` or ``cuda``.
        open_store: what keeps the vectors; by default files in the cache folder.
    """

    def __init__(
        self, config: BackboneConfig, cache: Path, device: str = "auto", open_store: OpenStore = Store
    ) -> None:
        self.config, self.cache, self.device = config, cache, choose_device(device)
        self._open_store = open_store
        self._lock = threading.RLock()
        self._stores: dict[str, Vectors] = {}

    def parts(self, items: Sequence[Item], progress: bool, beside: Sequence[TextEncoder] = ()) -> list[Extraction]:
        return [self._run(self._features, items, progress)]

    def close(self) -> None:
        with self._lock:
            for store in self._stores.values():
                store.close()
            self._stores.clear()

    def read(self, items: Sequence[Item]) -> list[list[Text]]:
        return [self._tokens(items)]

    @abstractmethod
    def _tokens(self, items: Sequence[Item]) -> list[Text]:
        """What the model reads of each item."""

    @property
    @abstractmethod
    def _features(self) -> Extractor[Any]: ...

    def _run(
        self, extractor: Extractor[Any], items: Sequence[Item], progress: bool, beside: Sequence[View] = ()
    ) -> Extraction:
        for item in items:
            if not all(item.responses):
                raise UserError("an empty response", "remove it, or give it some text", field="response")
        with self._lock:
            return extract(items, self._view(extractor), self.config.batch_tokens, progress, beside)

    def _view(self, extractor: Extractor[Any]) -> View:
        with self._lock:
            if extractor.label not in self._stores:
                folder = self.cache / extractor.label.replace(" ", "-")
                self._stores[extractor.label] = self._open_store(folder, extractor.identity, extractor.dim)
            return View(extractor, self._stores[extractor.label])


class Backbone(OneModel):
    """A frozen causal LM.

    Args:
        config, cache, device, open_store: as for `OneModel`.

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
        super().__init__(config, cache, device, open_store)
        self.model: ResolvedModel = resolve(config.single_model, config.revision, cache)
        self.layer = layer_index(config.layer, self.model.depth)
        self.max_tokens = min(config.max_tokens, self.model.max_positions or config.max_tokens)
        self._models: dict[frozenset[int | None], FrozenLM] = {}

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**self._base_identity, "kind": "features", "layer": self.layer, "pooling": self.config.pooling}

    def parts(self, items: Sequence[Item], progress: bool, beside: Sequence[TextEncoder] = ()) -> list[Extraction]:
        views = []
        for other in beside:
            assert isinstance(other, Backbone)
            assert other._base_identity == self._base_identity  # else its cache would be spoilt
            views.append(other._view(other._features))
        return [self._run(self._features, items, progress, views)]

    def _tokens(self, items: Sequence[Item]) -> list[Text]:
        return self._renderer.responses([(i.prompt, i.responses[0]) for i in items], self.max_tokens)

    def _base_logits(self, pairs: Sequence[Pair], progress: bool) -> tuple[Tensor, Extraction] | None:
        if not self.config.choice_logits:
            return None
        orders = [Item(p.prompt, order) for p in pairs for order in ((p.a, p.b), (p.b, p.a))]
        done = self._run(self._choice, orders, progress)
        shown = done.vectors.view(len(pairs), 2)
        return (shown[:, 0] - shown[:, 1]) / 2, done

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(load_tokenizer(self.model))

    @property
    def _base_identity(self) -> Mapping[str, Any]:
        return base_identity(self.model, choose_dtype(self.config.dtype, self.device), self.max_tokens)

    def _load(self, layers: frozenset[int | None]) -> FrozenLM:
        if layers not in self._models:
            self._models[layers] = FrozenLM(self.model, self.config.dtype, self.device, layers, self.max_tokens)
        return self._models[layers]

    @cached_property
    def _features(self) -> Extractor[FrozenLM]:
        return FeatureExtractor(self._load, self.max_tokens, self.identity, self.layer, self.config.pooling, self.dim)

    @cached_property
    def _choice(self) -> Extractor[FrozenLM]:
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
