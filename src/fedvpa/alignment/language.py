"""The language model of stage 2: texts in, texts out, under a latent or under none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedvpa.alignment.conditioning import ConditionedEmbedding, Kind, LatentTokens, condition
from fedvpa.alignment.config import ConditioningConfig, PolicyConfig
from fedvpa.alignment.sampling import Sampling, sample
from fedvpa.backbone.models import choose_device, load, resolve
from fedvpa.backbone.tokens import Renderer
from fedvpa.config import BackboneConfig
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Prompt


class Response(NamedTuple):
    """text: what the model wrote; tokens: how many; capped: whether it was cut at the longest length."""

    text: str
    tokens: int
    capped: bool


@dataclass(frozen=True)
class Conditioned:
    """How a model is conditioned; enough, with the adapter, to make it again.

    Attributes:
        kind, tokens, gain: as in `ConditioningConfig`; latent: d; kappa: norm of a typical latent.
        slots: latents that can be told apart in text, which training needs.
    """

    kind: Kind
    tokens: int
    gain: float
    latent: int
    kappa: float
    slots: int

    @staticmethod
    def of(config: ConditioningConfig, latents: Tensor) -> Conditioned:
        """For latents (slots, d)."""
        kappa = float(latents.norm(dim=-1).mean()) or 1.0
        return Conditioned(config.kind, config.tokens, config.gain, latents.shape[-1], kappa, len(latents))


@dataclass(frozen=True)
class LanguageModel:
    """A causal LM that writes responses.

    Attributes:
        lm: from transformers, perhaps with PEFT around it; tokenizer: its own, with the virtual tokens.
        identity: what its responses depend on besides prompt, latent and sampling.
        tokens, embedding: the virtual tokens; None for a model that knows no latent.
    """

    lm: Any
    tokenizer: Any
    identity: str
    tokens: LatentTokens | None = None
    embedding: ConditionedEmbedding | None = None

    @staticmethod
    def load(config: PolicyConfig, cache: Path, how: Conditioned | None = None) -> LanguageModel:
        """A frozen base model, conditioned if `how` is given; `config.model` names it.

        Raises:
            UserError: as `backbone.models.resolve` and `load`.
        """
        assert config.model is not None
        found = resolve(config.model, config.revision, cache)
        lm, tokenizer = load(found, config.dtype, choose_device(config.device))
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token", "choose another model", field="policy.model")
        plain = LanguageModel(lm, tokenizer, f"{found.fingerprint} {lm.dtype}")
        if how is None:
            return plain
        tokens = LatentTokens(tokenizer, how.slots, how.tokens)
        embedding = condition(lm, tokens, how.kind, how.latent, how.kappa, how.gain)
        return replace(plain, tokens=tokens, embedding=embedding)

    def render(self, prompt: Prompt, slot: int | None = None) -> str:
        """The dialogue as text up to where the response begins, with the virtual tokens of a slot in front.

        The tokenizer's own beginning is left out: it puts it there itself.

        Raises:
            UserError: the dialogue contains what would be read as a virtual token.
        """
        text = Renderer(self.tokenizer).prompt(prompt)
        if LatentTokens.mentioned(text):
            raise UserError("contains a virtual token", "remove <|latent-...|> from it", field="prompt")
        begin = self.tokenizer.bos_token
        if begin and text.startswith(begin) and self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]:
            text = text.removeprefix(begin)
        return text if slot is None or self.tokens is None else self.tokens.text(slot) + text

    def encode(self, prompts: Sequence[Prompt], conditioned: bool = False) -> list[list[int]]:
        """Token ids per prompt; ``conditioned`` puts the virtual tokens of slot 0 in front."""
        end = self.tokenizer.eos_token_id
        texts = [self.render(p, 0 if conditioned else None) for p in prompts]
        ids = self.tokenizer(texts, verbose=False)["input_ids"] if texts else []
        return [
            i[:-1] if len(i) > 1 and i[-1] == end and not t.endswith(self.tokenizer.eos_token) else i
            for i, t in zip(ids, texts, strict=True)
        ]

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        latents: Tensor | None,
        uniforms: Tensor,
        how: Sampling,
        on_tokens: Callable[[int], None] = lambda n: None,
    ) -> list[Response]:
        """Responses to a batch of encoded prompts.

        Args:
            prompts: from `encode`, with ``conditioned`` where latents are given.
            latents: (prompts, d) or None.
            uniforms: (prompts, longest response), see `sampling.sample`.
        """
        ends = self.lm.generation_config.eos_token_id
        end = frozenset({self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})
        pad = self.tokenizer.pad_token_id
        if latents is None:
            found = sample(self.lm, prompts, uniforms, how, end, pad, on_tokens)
        else:
            assert self.embedding is not None
            slots, place = torch.unique(latents, dim=0, return_inverse=True)
            with self.embedding.with_latents(slots):
                ids = [self._moved(p, k) for p, k in zip(prompts, place.tolist(), strict=True)]
                found = sample(self.lm, ids, uniforms, how, end, pad, on_tokens)
        texts = self.tokenizer.batch_decode([f.ids for f in found], skip_special_tokens=True)
        return [Response(t.strip(), len(f.ids), f.capped) for t, f in zip(texts, found, strict=True)]

    def _moved(self, ids: Sequence[int], slot: int) -> list[int]:
        """The same ids with the virtual tokens of another slot than 0."""
        assert self.tokens is not None
        first, m = self.tokens.first, self.tokens.tokens
        return [i + slot * m if first <= i < first + m else i for i in ids]


def digest(*parts: Any) -> str:
    """sha256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def writer_of(backbone: BackboneConfig) -> str:
    """The model that writes where no policy is named: the selector's own backbone.

    Raises:
        UserError: the selector has several; a sentence encoder is refused later, by `backbone.models.resolve`.
    """
    if len(backbone.models) > 1:
        raise UserError("the selector has several backbones", "name the causal LM that writes", field="policy.model")
    return backbone.single_model
