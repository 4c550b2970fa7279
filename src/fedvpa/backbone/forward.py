"""The frozen language model, cut off behind the last layer that is needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fedvpa.backbone.models import ResolvedModel, load
from fedvpa.backbone.packing import Batch, collate, make_rows
from fedvpa.backbone.tokens import Renderer, Text
from fedvpa.errors import UserError

CAP = "final_logit_softcapping"
OTHER_LOGITS = (
    CAP,
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
    "output_router_logits",
)
"""Settings of models whose logits are more than a projection of the final states."""

_TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-3}


class FrozenLM:
    """A causal LM that is only ever run forward.

    Args:
        model: from `resolve`.
        dtype: see `load`.
        device: where it runs.
        layers: the blocks whose outputs are wanted, from 1; those behind the last of them are not run. ``{None}`` runs
            all of the model, the final norm included.
        max_tokens: longest prompt plus continuation that will come.

    Attributes:
        base: the model without its head; renderer: its dialogue format and tokenizer.
        packed: whether continuations can share a row (checked on a small example; not so for state-space models and
            for attention windows shorter than ``max_tokens``).
        head: the output embeddings, (D) -> (vocabulary); only where all of it is run.
    """

    def __init__(
        self,
        model: ResolvedModel,
        dtype: str,
        device: torch.device,
        layers: Collection[int | None],
        max_tokens: int,
    ) -> None:
        lm, tokenizer = load(model, dtype, device)
        self.renderer = Renderer(tokenizer)
        self.config = lm.config.get_text_config()
        self.head = lm.get_output_embeddings() if None in layers else None
        self.base = lm.base_model
        self._captured: dict[int | None, Tensor] = {}
        if None not in layers:
            self._cut(sorted(n for n in layers if n is not None), model.depth)
        self.dtype, self.device = next(self.base.parameters()).dtype, device
        self.packed = (model.window is None or model.window >= max_tokens) and self._packing_is_exact()

    @torch.inference_mode()
    def hidden(self, batch: Batch) -> dict[int | None, Tensor]:
        """`states`, without what a gradient would need."""
        return self.states(batch)

    def states(self, batch: Batch, lent: Mapping[str, Tensor] | None = None) -> dict[int | None, Tensor]:
        """Hidden states (rows, length, D) at the output of each of the layers.

        Args:
            lent: parameters that stand in for the model's own of the same names, in this call only.

        Raises:
            UserError: the accelerator's memory does not hold the batch.
        """
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        if batch.position_ids is not None:
            given["position_ids"] = batch.position_ids
        try:
            out = functional_call(self.base, dict(lent), kwargs=given) if lent else self.base(**given)
        except torch.OutOfMemoryError:
            raise UserError("a batch does not fit into memory", "lower it", field="backbone.batch_tokens") from None
        captured, self._captured = self._captured, {}
        return captured or {None: out.last_hidden_state}

    def logits(self, states: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
        """Logits (n, tokens) of the next token behind each of n final states (n, D); of the whole vocabulary for None.

        In float32: the difference of two bfloat16 logits would be a multiple of 1/8 or so.
        """
        assert self.head is not None
        weight, bias = self.head.weight, getattr(self.head, "bias", None)
        if tokens is not None:
            weight, bias = weight[tokens], None if bias is None else bias[tokens]
        found = functional.linear(states.float(), weight.float(), None if bias is None else bias.float())
        cap = getattr(self.config, CAP, None)
        return found if cap is None else cap * torch.tanh(found / cap)

    @property
    def plain_head(self) -> bool:
        """Whether the vocabulary's logits are a projection of the final states, and nothing else."""
        scaled = any(getattr(self.config, name, None) for name in OTHER_LOGITS)
        return not scaled and getattr(self.head, "bias", None) is None

    def collate(self, rows: Sequence[Any]) -> Batch:
        return collate(rows, self.packed, self.dtype, self.device)

    def _cut(self, layers: Sequence[int], depth: int) -> None:
        """Drops the blocks behind the last of ``layers`` and catches the output of each, before the final norm."""
        for parent in self.base.modules():
            for name, blocks in parent.named_children():
                if isinstance(blocks, nn.ModuleList) and len(blocks) == depth:
                    setattr(parent, name, blocks[: layers[-1]])
                    self.config.num_hidden_layers = layers[-1]
                    for layer in layers:
                        blocks[layer - 1].register_forward_hook(partial(self._capture, layer))
                    return
        raise UserError("the model's blocks were not found", "choose another backbone.model", field="backbone.model")

    def _capture(self, layer: int, _module: nn.Module, _args: Any, out: Any) -> None:
        self._captured[layer] = out[0] if isinstance(out, tuple) else out

    def _packing_is_exact(self) -> bool:
        """Compares a packed row with separate ones, token by token, on a small example."""
        vocabulary = self.base.get_input_embeddings().num_embeddings
        g = torch.Generator().manual_seed(0)
        prompt, a, b = (tuple(torch.randint(vocabulary, (n,), generator=g).tolist()) for n in (9, 6, 7))
        texts = [Text(prompt, a, 0), Text(prompt, b, 0)]
        (row,) = make_rows(texts, packed=True, longest=0)
        try:
            together = self._states(collate([row], True, self.dtype, self.device))
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
            return False  # an architecture that takes no positions, or no mask per pair of tokens
        apart = self._states(collate(make_rows(texts, False, 0), False, self.dtype, self.device))
        worst = max(float((together[i] - apart[i]).norm() / apart[i].norm()) for i in apart)
        return worst <= _TOLERANCE[self.dtype]

    def _states(self, batch: Batch) -> dict[tuple[int | None, int], Tensor]:
        return {
            (layer, item): hidden[r, start:stop].float()
            for layer, hidden in self.hidden(batch).items()
            for item, r, start, stop in batch.spans
        }


def pool(hidden: Tensor, spans: Sequence[tuple[int, int, int, int]], pooling: Literal["mean", "last"]) -> Tensor:
    """Pools (rows, length, D) over each span; returns (spans, D) float32."""
    if pooling == "last":
        return torch.stack([hidden[r, stop - 1] for _, r, _, stop in spans]).float()
    return torch.stack([hidden[r, start:stop].float().mean(0) for _, r, start, stop in spans])
