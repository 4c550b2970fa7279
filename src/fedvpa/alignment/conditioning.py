"""How a latent z enters a language model: reserved token ids whose embedding is a projection of z.

A sequence that begins with the virtual tokens of slot k is conditioned on the k-th latent of a table. So z travels with
the input ids, and whatever trains or runs the model (TRL's trainers, `generate`) needs to know nothing of it. Two kinds
(method.md, section 8):

- ``soft-prompt``: m virtual tokens, each with its own projection of z;
- ``added``: one virtual token, whose projection is added to *every* input embedding of its sequence, also to the
  tokens that are generated later with a key-value cache.

The projection is the only part that is trained. As PEFT's ``modules_to_save`` it is saved with the adapter and is off
under ``disable_adapter``; what is left then is the frozen model, with neutral tokens in front.

It starts at random, small (`start`): a shift of a fifth of the embeddings' size changes what a model says little, and
yet the adapter can read off it at once who is meant. From zero the adapter would have nothing to go by until the
projection had grown, along a gradient that is mostly noise.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedvpa.errors import UserError

Kind = Literal["soft-prompt", "added"]
PROJECTION = "latent_projection"
"""Name of the trained module, for PEFT's ``modules_to_save``."""


class LatentTokens:
    """The virtual tokens of a tokenizer: ``<|latent-K-J|>``, the J-th of m tokens of slot K. Added on construction.

    Args:
        tokenizer: gets the tokens, as special ones.
        slots: how many latents can be told apart in text.
        tokens: m, per latent.

    Attributes:
        first: the id of slot 0's first token; the others follow in order.

    Raises:
        UserError: the tokenizer does not give new tokens the ids behind its own.
    """

    def __init__(self, tokenizer: Any, slots: int, tokens: int) -> None:
        self.tokenizer, self.slots, self.tokens = tokenizer, slots, tokens
        names = [f"<|latent-{k}-{j}|>" for k in range(slots) for j in range(tokens)]
        tokenizer.add_special_tokens({"additional_special_tokens": names}, replace_extra_special_tokens=False)
        ids = tokenizer.convert_tokens_to_ids(names)
        self.first: int = ids[0]
        if ids != list(range(self.first, self.first + len(ids))):
            raise UserError("the tokenizer takes no new tokens", "choose another language model", field="model")

    def text(self, slot: int) -> str:
        """What stands in front of a prompt that is conditioned on the latent in a slot."""
        return "".join(f"<|latent-{slot}-{j}|>" for j in range(self.tokens))

    def ids(self, slot: int) -> list[int]:
        """The same as token ids; a slot beyond `slots` has ids too, only no text."""
        start = self.first + slot * self.tokens
        return list(range(start, start + self.tokens))

    @staticmethod
    def mentioned(text: str) -> bool:
        """Whether a text contains what would be read as a virtual token."""
        return re.search(r"<\|latent-\d+-\d+\|>", text) is not None


class LatentProjection(nn.Module):
    """z (..., d) -> (..., m, hidden), linear; all zero until `start`.

    Args:
        latent: d; tokens: m; hidden: width of the embeddings.
        scale: factor on z, which brings its components to about unit size.
        gain: factor on the output: the size of the model's embeddings, so that the weights are of order one.
    """

    def __init__(self, latent: int, tokens: int, hidden: int, scale: float, gain: float) -> None:
        super().__init__()
        self.shape, self.scale, self.gain = (tokens, hidden), scale, gain
        self.weight = nn.Parameter(torch.zeros(tokens * hidden, latent))
        self.bias = nn.Parameter(torch.zeros(tokens * hidden))

    @torch.no_grad()
    def start(self, size: float, generator: torch.Generator) -> None:
        """Random weights under which a typical latent's output has ``size`` times the size of the embeddings."""
        fresh = torch.randn(self.weight.shape, generator=generator) * (size / math.sqrt(self.weight.shape[-1]))
        self.weight.copy_(fresh)

    def forward(self, z: Tensor) -> Tensor:
        out = nn.functional.linear(self.scale * z.to(self.weight.dtype), self.weight, self.bias)
        return self.gain * out.unflatten(-1, self.shape)


class ConditionedEmbedding(nn.Module):
    """Input embeddings that know virtual tokens; made by `condition`.

    Ordinary ids go through the model's own frozen table, whose ``weight`` stays visible (an output layer may be tied to
    it). The vocabulary of the output is not enlarged.

    Args:
        base: the model's table; first: id of the first virtual token; neutral: id whose embedding a virtual token has
            besides its projection.
        kind, tokens, latent, kappa, gain: see `condition`.
    """

    latents: Tensor

    def __init__(
        self,
        base: nn.Embedding,
        first: int,
        neutral: int,
        kind: Kind,
        tokens: int,
        latent: int,
        kappa: float,
        gain: float,
    ) -> None:
        super().__init__()
        self.base, self.first, self.neutral, self.kind, self.tokens = base, first, neutral, kind, tokens
        size = float(base.weight.detach().float().pow(2).mean().sqrt())
        projection = LatentProjection(latent, tokens, base.embedding_dim, math.sqrt(latent) / kappa, gain * size)
        self.add_module(PROJECTION, projection)
        self.register_buffer("latents", torch.zeros(0, latent), persistent=False)
        self._shifts: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()  # per cache, what its sequences carry
        self._carried: Tensor | None = None
        self._shift: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def num_embeddings(self) -> int:
        return self.base.num_embeddings

    @property
    def embedding_dim(self) -> int:
        return self.base.embedding_dim

    @contextlib.contextmanager
    def with_latents(self, z: Tensor) -> Iterator[None]:
        """While open, slot k means the k-th row of z (slots, d)."""
        before = self.latents
        self.latents = z.to(before.device, torch.float32)
        try:
            yield
        finally:
            self.latents = before

    def forward(self, ids: Tensor) -> Tensor:
        """ids (batch, length) -> (batch, length, hidden)"""
        virtual = (ids >= self.first) & (ids < self.first + len(self.latents) * self.tokens)
        x = self.base(ids.masked_fill(virtual, self.neutral))
        if self.kind == "added":
            return self._added(ids, virtual, x)
        if not virtual.any():
            return x
        slot, token = self._place(ids[virtual])
        rows = self._project(slot)[torch.arange(len(slot), device=slot.device), token]
        return x.index_put((virtual,), rows.to(x.dtype), accumulate=True)

    def start(self, size: float, generator: torch.Generator) -> None:
        """Gives the projection that is trained random weights, see `LatentProjection.start`.

        PEFT's copy of it only: what stands in its place under ``disable_adapter`` stays zero.
        """
        projection = getattr(self, PROJECTION)
        getattr(projection, "modules_to_save", {"default": projection})["default"].start(size, generator)

    def select(self, cache: Any, rows: Tensor) -> None:
        """Keeps the latents of some rows of a batch, when a cache keeps these rows only."""
        if cache in self._shifts:
            self._shifts[cache] = self._shifts[cache][rows]

    def _added(self, ids: Tensor, virtual: Tensor, x: Tensor) -> Tensor:
        shift = self._carried
        if virtual.any():
            there = virtual.any(-1)
            slot, _ = self._place(ids[there, virtual[there].int().argmax(-1)])
            fresh = x.new_zeros(len(ids), x.shape[-1]).index_put((there,), self._project(slot)[:, 0].to(x.dtype))
            shift = fresh if shift is None else torch.where(there.unsqueeze(-1), fresh, shift)
        self._shift = shift
        return x if shift is None else x + shift.unsqueeze(1)

    def _place(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Slot and number of virtual tokens."""
        return (ids - self.first) // self.tokens, (ids - self.first) % self.tokens

    def _project(self, slot: Tensor) -> Tensor:
        return cast(Tensor, getattr(self, PROJECTION)(self.latents[slot]))

    # A sequence's latent is known from its first token on; when the model goes on from a cache, it is the cache by
    # which the sequences are known again.

    def _before(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        self._carried = None if cache is None else self._shifts.get(cache)

    def _after(self, _module: nn.Module, _args: Any, _kwargs: dict[str, Any], out: Any) -> None:
        cache = getattr(out, "past_key_values", None)
        if cache is not None and self._shift is not None:
            self._shifts[cache] = self._shift
        self._carried = self._shift = None


def condition(
    lm: Any, tokens: LatentTokens, kind: Kind, latent: int, kappa: float = 5.0, gain: float = 1.0
) -> ConditionedEmbedding:
    """Puts a `ConditionedEmbedding` in the place of a causal LM's input embeddings; before PEFT wraps the model.

    Args:
        lm: from transformers, changed in place.
        tokens: the virtual tokens.
        kind: ``added`` needs one token per latent.
        latent: d.
        kappa: norm of a typical latent (of the selector's prototypes); it becomes unit size per component.
        gain: strength of the projection under one and the same learning rate, in units of the embeddings' size.

    Raises:
        UserError: ``added`` with several tokens.
    """
    if kind == "added" and tokens.tokens != 1:
        raise UserError("added takes one token per latent", "set conditioning.tokens=1", field="conditioning.tokens")
    base, known = lm.get_input_embeddings(), tokens.tokenizer
    neutral = next((i for i in (known.bos_token_id, known.eos_token_id) if i is not None), 0)
    embedding = ConditionedEmbedding(base, tokens.first, neutral, kind, tokens.tokens, latent, kappa, gain)
    lm.set_input_embeddings(embedding.to(base.weight.device))
    if kind == "added":
        lm.base_model.register_forward_pre_hook(embedding._before, with_kwargs=True)
        lm.base_model.register_forward_hook(embedding._after, with_kwargs=True)
    return embedding
