"""The frozen language model, cut off behind the last layer that is needed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedvpa.backbone.models import ResolvedModel, load
from fedvpa.backbone.packing import Batch, collate, make_rows
from fedvpa.backbone.tokens import Renderer, Text
from fedvpa.errors import UserError

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
        renderer: its dialogue format and tokenizer.
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
        self._base = lm.base_model
        self._captured: dict[int | None, Tensor] = {}
        if None not in layers:
            self._cut(sorted(n for n in layers if n is not None), model.depth)
        self.dtype, self.device = next(self._base.parameters()).dtype, device
        self.packed = (model.window is None or model.window >= max_tokens) and self._packing_is_exact()

    @torch.inference_mode()
    def hidden(self, batch: Batch) -> dict[int | None, Tensor]:
        """Hidden states (rows, length, D) at the output of each of the layers.

        Raises:
            UserError: the accelerator's memory does not hold the batch.
        """
        positions = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
        try:
            out = self._base(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **positions
            )
        except torch.OutOfMemoryError:
            raise UserError("a batch does not fit into memory", "lower it", field="backbone.batch_tokens") from None
        captured, self._captured = self._captured, {}
        return captured or {None: out.last_hidden_state}

    def collate(self, rows: Sequence[Any]) -> Batch:
        return collate(rows, self.packed, self.dtype, self.device)

    def _cut(self, layers: Sequence[int], depth: int) -> None:
        """Drops the blocks behind the last of ``layers`` and catches the output of each, before the final norm."""
        for parent in self._base.modules():
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
        vocabulary = self._base.get_input_embeddings().num_embeddings
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
