"""The one loop that turns texts into vectors: what the store has is read, the rest is computed, batch by batch."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text as RichText
from torch import Tensor

from fedvpa.backbone.forward import FrozenLM
from fedvpa.backbone.packing import Batch, make_batches, make_rows
from fedvpa.backbone.store import Entry, Store
from fedvpa.backbone.tokens import Text
from fedvpa.preferences.schema import Prompt


class Item(NamedTuple):
    """What one vector is computed from: a prompt and one or (for the choice logits) two responses."""

    prompt: Prompt
    responses: tuple[str, ...]

    @property
    def key(self) -> bytes:
        text = json.dumps([[list(m) for m in self.prompt], *self.responses], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class Extractor(Protocol):
    """One kind of vector: features, choice logits or log-probabilities."""

    @property
    def label(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def identity(self) -> Mapping[str, Any]: ...
    def load(self) -> FrozenLM: ...
    def texts(self, lm: FrozenLM, items: Sequence[Item]) -> list[Text]: ...
    def vectors(self, lm: FrozenLM, hidden: Tensor, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class Extraction:
    """The outcome of `extract`.

    Attributes:
        vectors: (items, dim) float32.
        computed: (items,) bool, False where the store had it.
        cut: (items,) int64, tokens cut from each text.
        corrupted: damaged rows of the store that were computed again.
        tokens: run through the model now, without padding.
        seconds: wall clock, loading included.
        packed: whether rows were shared; None if nothing was computed.
    """

    vectors: Tensor
    computed: Tensor
    cut: Tensor
    corrupted: int
    tokens: int
    seconds: float
    packed: bool | None


def extract(
    items: Sequence[Item],
    extractor: Extractor,
    store: Store,
    batch_tokens: int,
    progress: bool,
) -> Extraction:
    """Returns one vector per item, from the store where it has it.

    Every batch is stored before the next begins: an interruption (also SIGINT) loses one batch at most.
    """
    began = time.perf_counter()
    keys = [item.key for item in items]
    unique = dict(zip(keys, items, strict=True))
    known, corrupted = store.get(list(unique))
    missing = {k: item for k, item in unique.items() if k not in known}
    tokens, packed = 0, None
    if missing:
        lm = extractor.load()
        packed = lm.packed
        todo, texts = list(missing), extractor.texts(lm, list(missing.values()))
        longest = max(len(t.prompt) + len(t.response) for t in texts)
        batches = make_batches(make_rows(texts, lm.packed, longest), batch_tokens)
        with _bar(extractor.label, sum(r.tokens for b in batches for r in b), progress) as advance:
            for rows in batches:
                batch = lm.collate(rows)
                vectors = extractor.vectors(lm, lm.hidden(batch), batch).cpu().numpy()
                new = {todo[s[0]]: Entry(v, texts[s[0]].cut) for s, v in zip(batch.spans, vectors, strict=True)}
                store.put(new)
                known |= new
                tokens += batch.tokens
                advance(batch.tokens)
    values = np.stack([known[k].value for k in keys]) if keys else np.zeros((0, extractor.dim), np.float32)
    return Extraction(
        vectors=torch.from_numpy(values),
        computed=torch.tensor([k in missing for k in keys], dtype=torch.bool),
        cut=torch.tensor([known[k].cut for k in keys], dtype=torch.int64),
        corrupted=corrupted,
        tokens=tokens,
        seconds=time.perf_counter() - began,
        packed=packed,
    )


class _Speed(ProgressColumn):
    def render(self, task: Task) -> RichText:
        speed = task.completed / task.elapsed if task.elapsed else 0.0
        return RichText(f"{speed:,.0f} tokens/s", style="progress.data.speed")


class _bar:
    """A progress bar over tokens on stderr; silent where ``shown`` is False or stderr is no terminal."""

    def __init__(self, label: str, total: int, shown: bool) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), _Speed(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not (shown and console.is_terminal))
        self._task = self._progress.add_task(label, total=total)

    def __enter__(self) -> Callable[[int], None]:
        self._progress.start()
        return lambda tokens: self._progress.advance(self._task, tokens)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
