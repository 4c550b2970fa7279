"""The one loop that turns texts into vectors: what the store has is read, the rest is computed, batch by batch."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text as RichText
from torch import Tensor

from fedvpa.backbone.packing import Batch, Row, make_batches, make_rows
from fedvpa.backbone.store import Entry, Vectors
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


class Model(Protocol):
    """What runs on batches: a `FrozenLM` or a `sentence.FrozenEncoder`.

    ``packed``: whether texts of one prompt share a row; ``hidden``: per layer what the vectors are made of.
    """

    packed: bool

    def collate(self, rows: Sequence[Row]) -> Batch: ...
    def hidden(self, batch: Batch) -> Mapping[int | None, Tensor]: ...


M = TypeVar("M")


class Extractor(Protocol[M]):
    """One kind of vector: features of one layer and pooling, sentence embeddings, choice logits, log-probabilities.

    ``M`` is a `Model`. ``layer`` is as for `FrozenLM`; ``load`` gets the layers of all that is computed in the pass.
    """

    @property
    def label(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def identity(self) -> Mapping[str, Any]: ...
    @property
    def layer(self) -> int | None: ...
    def load(self, layers: frozenset[int | None]) -> M: ...
    def texts(self, lm: M, items: Sequence[Item]) -> list[Text]: ...
    def vectors(self, lm: M, hidden: Tensor, batch: Batch) -> Tensor: ...


class View(NamedTuple):
    """One kind of vector and the store that keeps it."""

    extractor: Extractor[Any]
    store: Vectors


@dataclass(frozen=True)
class Extraction:
    """The outcome of `extract`.

    Attributes:
        vectors: (items, dim) float32.
        computed: (items,) bool, False where the stores had it.
        cut: (items,) int64, tokens cut from each text; ends: whether at its end, else on its left.
        corrupted: damaged rows of the stores that were computed again.
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
    ends: bool = False


def extract(
    items: Sequence[Item],
    view: View,
    batch_tokens: int,
    progress: bool,
    beside: Sequence[View] = (),
) -> Extraction:
    """Returns one vector per item, from the store where it has it.

    Every batch is stored before the next begins: an interruption (also SIGINT) loses one batch at most.

    Args:
        beside: other views of the same texts by the same model; what their stores lack is computed in the same pass.
    """
    began = time.perf_counter()
    keys = [item.key for item in items]
    unique = dict(zip(keys, items, strict=True))
    lacking, corrupted = [], 0
    for one in (*beside, view):  # the view asked for is the last: its vectors stay in memory, the others' do not
        known, damaged = one.store.get(list(unique))
        corrupted += damaged
        if lack := unique.keys() - known.keys():
            lacking.append((one, lack))
    missing = {k: item for k, item in unique.items() if any(k in lack for _, lack in lacking)}
    tokens, packed = 0, None
    if missing:
        lm = view.extractor.load(frozenset(one.extractor.layer for one, _ in lacking))
        packed = lm.packed
        todo, texts = list(missing), view.extractor.texts(lm, list(missing.values()))
        longest = max(len(t.prompt) + len(t.response) for t in texts)
        batches = make_batches(make_rows(texts, lm.packed, longest), batch_tokens)
        with _bar(view.extractor.label, sum(r.tokens for b in batches for r in b), progress) as advance:
            for rows in batches:
                batch = lm.collate(rows)
                hidden = lm.hidden(batch)
                for (extractor, store), lack in lacking:
                    if not (spans := [s for s in batch.spans if todo[s[0]] in lack]):
                        continue
                    part = replace(batch, spans=spans)
                    vectors = extractor.vectors(lm, hidden[extractor.layer], part).cpu().numpy()
                    new = {todo[s[0]]: Entry(v, texts[s[0]].cut) for s, v in zip(spans, vectors, strict=True)}
                    store.put(new)
                    if store is view.store:
                        known |= new
                tokens += batch.tokens
                advance(batch.tokens)
    values = np.stack([known[k].value for k in keys]) if keys else np.zeros((0, view.extractor.dim), np.float32)
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
