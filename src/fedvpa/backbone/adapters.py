"""A frozen language model with the places of one LoRA adapter (Hu et al. 2021, arXiv 2106.09685; PEFT).

The adapter's tensors belong to nobody here: they are plain mappings that are lent for one forward (`functional_call`).
So one base model in memory serves every client, nothing of a client stays behind in it, and whoever holds an adapter
can average, clip, send or store it like the parameters of any other model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedvpa.backbone.choice import answer_logits
from fedvpa.backbone.encode import base_identity
from fedvpa.backbone.extract import View, extract
from fedvpa.backbone.forward import CAP, OTHER_LOGITS, FrozenLM
from fedvpa.backbone.logprobs import LogProbExtractor, log_probs
from fedvpa.backbone.models import cache_dir, choose_device, resolve
from fedvpa.backbone.packing import Batch, make_rows
from fedvpa.backbone.pairs import PairTexts
from fedvpa.backbone.store import Store
from fedvpa.backbone.tokens import Text
from fedvpa.config import BackboneConfig, ExperimentConfig, LoRAConfig
from fedvpa.errors import MissingExtra, UserError

Adapter = Mapping[str, Tensor]
"""LoRA tensors by PEFT's names, ``layers.0.self_attn.q_proj.lora_A.weight`` (rank, in) and ``..lora_B.weight``."""
_NAME = "default"


class AdaptedLM:
    """A causal LM whose log-probabilities and answers can be asked for under an adapter, or under none.

    Args:
        lm: the whole model (layers ``{None}``), frozen; it gets PEFT's layers, whose own adapter changes nothing.
        lora: rank, alpha, dropout, targets.
        max_tokens: longest prompt plus response; batch_tokens: tokens in one batch.
        identity: what the frozen model's log-probabilities depend on besides the text; cache: where they are kept.

    Attributes:
        shapes: of an adapter's tensors, by name.

    Raises:
        UserError: PEFT is not installed, or knows no layers to adapt in this model, or its logits are scaled.
    """

    def __init__(
        self,
        lm: FrozenLM,
        lora: LoRAConfig,
        max_tokens: int,
        batch_tokens: int,
        identity: Mapping[str, Any],
        cache: Path,
    ) -> None:
        self.lm, self.max_tokens, self.batch_tokens = lm, max_tokens, batch_tokens
        odd = [name for name in OTHER_LOGITS if name != CAP and getattr(lm.config, name, None)]
        if odd:
            problem = f"the logits of this model are scaled ({odd[0]}), which training it here does not know"
            raise UserError(problem, "choose another model", field="backbone.model")
        extractor = LogProbExtractor(lambda _: lm, max_tokens, identity)
        self._kept = View(extractor, Store(cache / extractor.label, extractor.identity, extractor.dim))
        _inject(lm.base, lora)
        self._dropouts = [m for n, m in lm.base.named_modules() if n.endswith(f"lora_dropout.{_NAME}")]
        self._own = {n: p for n, p in lm.base.named_parameters() if ".lora_" in n}
        for p in self._own.values():
            p.requires_grad_(False)
        lm.base.eval()
        self.shapes = {_plain(n): p.shape for n, p in self._own.items()}

    def start(self, generator: torch.Generator) -> dict[str, Tensor]:
        """A new adapter, which changes nothing yet: A uniform within 1 / sqrt(in), as PEFT draws it, and B = 0."""
        found = {}
        for name, shape in self.shapes.items():
            bound = 1 / math.sqrt(shape[1]) if ".lora_A." in name else 0.0
            found[name] = (2 * torch.rand(shape, generator=generator) - 1) * bound
        return found

    def log_probs(self, texts: Sequence[Text], adapter: Adapter) -> Tensor:
        """log pi(r | x) of each text (texts,), float32, on the model's device; differentiable in the adapter."""
        return self._read(texts, adapter, log_probs)

    def answers(self, texts: Sequence[Text], adapter: Adapter) -> Tensor:
        """logit("A") - logit("B") behind each choice prompt (texts,), float32; differentiable in the adapter."""
        return self._read(texts, adapter, answer_logits)

    def reference(self, pairs: PairTexts) -> Tensor:
        """log pi_ref(r | x), (pairs, 2) float32 on the CPU: of the frozen model, computed once per text and stored."""
        found = extract(list(pairs.items), self._kept, self.batch_tokens, progress=False)
        return found.vectors.reshape(len(pairs), 2)

    @contextlib.contextmanager
    def dropout(self, seed: int) -> Iterator[None]:
        """While open, the adapter's input is dropped out, by draws from `seed` alone."""
        cuda = [self.lm.device.index or 0] if self.lm.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):
            torch.manual_seed(seed)
            for module in self._dropouts:
                module.train()
            try:
                yield
            finally:
                for module in self._dropouts:
                    module.eval()

    def _read(self, texts: Sequence[Text], adapter: Adapter, of: Callable[[FrozenLM, Tensor, Batch], Tensor]) -> Tensor:
        batch = self.lm.collate(make_rows(texts, self.lm.packed, self.max_tokens))
        lent = {n: adapter[_plain(n)].to(self.lm.device) for n in self._own}
        values = of(self.lm, self.lm.states(batch, lent)[None], batch)
        order = torch.tensor([item for item, *_ in batch.spans], device=values.device)
        return torch.zeros_like(values).index_copy(0, order, values)


def adapted(config: ExperimentConfig) -> AdaptedLM:
    """The experiment's language model with places for an adapter; one in memory, however many clients there are.

    Raises:
        UserError: as `models.resolve`, `models.load` and `AdaptedLM`; or several models are named.
    """
    return _adapted(config.backbone, config.lora, cache_dir(config), config.federation.device)


@lru_cache(maxsize=1)
def _adapted(backbone: BackboneConfig, lora: LoRAConfig, cache: Path, device: str) -> AdaptedLM:
    where = choose_device(device)
    model = resolve(backbone.single_model, backbone.revision, cache)
    longest = min(lora.max_tokens, backbone.max_tokens, model.max_positions or backbone.max_tokens)
    lm = FrozenLM(model, backbone.dtype, where, {None}, longest)
    return AdaptedLM(lm, lora, longest, backbone.batch_tokens, base_identity(model, lm.dtype, longest), cache)


def _inject(base: nn.Module, lora: LoRAConfig) -> None:
    """Puts PEFT's LoRA layers in the place of the linear layers that get an adapter."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingExtra("peft (for training the language model)", "align") from None
    settings: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    try:
        inject_adapter_in_model(
            LoraConfig(target_modules=list(lora.targets) or None, **settings), base, adapter_name=_NAME
        )
    except ValueError as e:
        problem = f"no layer of this model gets an adapter ({str(e).splitlines()[0][:200]})"
        raise UserError(problem, "name linear layers, such as [q_proj, v_proj]", field="lora.targets") from None


def _plain(name: str) -> str:
    """A parameter's name as PEFT writes it to a file, without the adapter's own."""
    return name.replace(f".{_NAME}.", ".")
