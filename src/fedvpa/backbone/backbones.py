"""The backbone that a configuration means: one model, or several whose features stand side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fedvpa.backbone.encode import Backbone
from fedvpa.backbone.extract import Extraction, Item
from fedvpa.backbone.features import TextEncoder
from fedvpa.backbone.models import choose_dtype, locate
from fedvpa.backbone.sentence import SentenceBackbone, sentence_dtype
from fedvpa.backbone.store import OpenStore, Store
from fedvpa.backbone.tokens import Text
from fedvpa.config import BackboneConfig
from fedvpa.errors import UserError


class Backbones(TextEncoder):
    """Several models: a feature is the concatenation of theirs, in their order.

    Each model's vectors are cached in a store of their own, whatever list it is named in. A selector standardises each
    coordinate by itself, so that no model outweighs another by the scale of its features.
    """

    def __init__(self, blocks: Sequence[TextEncoder]) -> None:
        self.blocks = tuple(blocks)

    @property
    def dim(self) -> int:
        return sum(block.dim for block in self.blocks)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"blocks": [dict(block.identity) for block in self.blocks]}

    def parts(self, items: Sequence[Item], progress: bool, beside: Sequence[TextEncoder] = ()) -> list[Extraction]:
        others = [other.blocks for other in beside if isinstance(other, Backbones)]
        found = []
        for i, block in enumerate(self.blocks):
            found += block.parts(items, progress, [blocks[i] for blocks in others])
        return found

    def read(self, items: Sequence[Item]) -> list[list[Text]]:
        return [texts for block in self.blocks for texts in block.read(items)]

    def close(self) -> None:
        for block in self.blocks:
            block.close()


def open_backbone(
    config: BackboneConfig, cache: Path, device: str = "auto", open_store: OpenStore = Store
) -> TextEncoder:
    """The backbone of a configuration.

    Args:
        config: the ``backbone`` section.
        cache: the cache folder (see `models.cache_dir`).
        device: ``auto``, ``cpu`` or ``cuda``.
        open_store: what keeps the vectors, called once for each model; by default files in the cache folder.

    Raises:
        UserError: as `Backbone` and `SentenceBackbone`; or choice logits of a sentence encoder are asked for.
    """
    blocks: list[TextEncoder] = []
    for name in config.models:
        one = config.model_copy(update={"model": name})
        sentences = locate(name, config.revision, cache).encodes_sentences
        if sentences and config.choice_logits:
            problem = f"{name!r} is a sentence encoder, which has no choice logits"
            raise UserError(problem, "set it to false, or choose a causal LM", field="backbone.choice_logits")
        kind = SentenceBackbone if sentences else Backbone
        blocks.append(kind(one, cache, device, open_store))
    return blocks[0] if len(blocks) == 1 else Backbones(blocks)


def feature_dtypes(config: BackboneConfig, cache: Path, device: torch.device) -> list[str]:
    """In which floating-point formats the backbone's models compute, each once, such as ``bfloat16``."""
    found: dict[str, None] = {}
    for name in config.models:
        sentences = config.dtype == "auto" and locate(name, config.revision, cache).encodes_sentences
        dtype = (sentence_dtype if sentences else choose_dtype)(config.dtype, device)
        found[str(dtype).removeprefix("torch.")] = None
    return list(found)
