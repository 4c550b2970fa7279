"""What the worker does with a batch: the texts of all requests are encoded together, then compared together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedvpa.backbone.extract import Item
from fedvpa.backbone.memory import MemoryStore
from fedvpa.latents import latent_of, stack_users
from fedvpa.methods.base import Pool
from fedvpa.preferences.examples import Example, Question
from fedvpa.preferences.schema import Pair, Prompt
from fedvpa.rewards import log_odds
from fedvpa.selector import Selector
from fedvpa.user import User

CELLS = 2**16
"""Users times pairs of one product: a product asks every user about every pair, also about the others'."""
SMALL = 2**12
"""Users times pairs of a product that one thread computes sooner than it can wake the others."""


@dataclass(frozen=True, eq=False)
class Compare:
    """p(a > b) of pairs for a user."""

    pairs: tuple[Pair, ...]
    user: User

    @property
    def texts(self) -> Iterator[tuple[Prompt, str]]:
        return ((p.prompt, r) for p in self.pairs for r in (p.a, p.b))


@dataclass(frozen=True, eq=False)
class Reward:
    """A user's rewards of responses."""

    prompts: tuple[Prompt, ...]
    responses: tuple[str, ...]
    user: User

    @property
    def texts(self) -> Iterator[tuple[Prompt, str]]:
        return zip(self.prompts, self.responses, strict=True)


@dataclass(frozen=True, eq=False)
class Infer:
    """A user from judgements; of a known user, the one after them."""

    examples: tuple[Example, ...]
    inference: str | None
    user: User | None = None

    @property
    def texts(self) -> Iterator[tuple[Prompt, str]]:
        return _judged_texts(self.examples)


@dataclass(frozen=True, eq=False)
class Choose:
    """The n questions of a pool that tell most about a user."""

    pool: tuple[Question, ...]
    user: User
    n: int

    @property
    def texts(self) -> Iterator[tuple[Prompt, str]]:
        return _judged_texts(self.pool)


Work = Compare | Reward | Infer | Choose


def _judged_texts(judged: Sequence[Example | Question]) -> Iterator[tuple[Prompt, str]]:
    return ((item.prompt, item.text) for j in judged for item in (j.first, j.second) if item is not None)


class Abandoned(Exception):
    """Nobody waits for the batch any more."""


class Scorer:
    """A selector whose features live in memory, for the one thread that uses it.

    Args:
        selector: the trained selector; memory: bytes of features that are kept.
        chunk_chars: texts are encoded in pieces of about so many characters, between which work can be abandoned.
        threads: of torch for what is large (default: as many as torch has). The calling thread does what is small by
            itself: the others would wait for more of it at full speed, in the way of the event loop and of the callers.
    """

    def __init__(self, selector: Selector, memory: int, chunk_chars: int, threads: int | None = None) -> None:
        self.selector, self.chunk_chars = selector, chunk_chars
        self.threads = threads or torch.get_num_threads()
        self.stores: list[MemoryStore] = []
        self.models = len(selector.info.config.backbone.models)

        def open_store(_folder: Any, _identity: Mapping[str, Any], dim: int) -> MemoryStore:
            self.stores.append(MemoryStore(dim, memory // self.models))
            return self.stores[-1]

        selector.backbone = selector.open_backbone(open_store)

    def warm(self) -> None:
        """Loads the backbone's models."""
        with self._all_threads():
            self.selector.backbone.encode_texts([()], ["x"])

    def cost(self, work: Work) -> int:
        """Characters of the work's texts that are not encoded yet."""
        stores = self.stores[: self.models]  # one per model, then that of the choice logits
        new = {Item(prompt, (r,)).key: _chars(prompt, r) for prompt, r in work.texts}
        return sum(chars for key, chars in new.items() if not stores or any(key not in known for known in stores))

    def __call__(self, works: Sequence[Work], wanted: Callable[[], bool] = lambda: True) -> list[Any]:
        """One result per work: probabilities, rewards, a `User`, or questions.

        Args:
            wanted: asked between pieces, whether anybody still waits.

        Raises:
            UserError: a text that the model's tokenizer or template refuses, an unknown inference.
            Abandoned: nobody waits any more.
        """
        texts = list(dict.fromkeys(t for work in works for t in work.texts))
        row = {text: i for i, text in enumerate(texts)}
        x = self._features(texts, wanted)
        found: dict[int, Any] = {}
        compare = [(i, w) for i, w in enumerate(works) if isinstance(w, Compare)]
        for group in _groups(compare):
            found |= self._compare(group, x, row)
        for user, rewards in _by_user([(i, w) for i, w in enumerate(works) if isinstance(w, Reward)]):
            found |= self._reward(user, rewards, x, row)
        for i, work in enumerate(works):
            if isinstance(work, Infer | Choose):
                with self._all_threads():
                    found[i] = self._judged(work)
        return [found[i] for i in range(len(works))]

    def _judged(self, work: Infer | Choose) -> Any:
        if isinstance(work, Choose):
            return self.selector.ask_questions(work.user, work.pool, work.n)
        if work.user is None:
            return self.selector.infer(work.examples, work.inference)
        return self.selector.update(work.user, work.examples)

    @contextlib.contextmanager
    def _all_threads(self) -> Iterator[None]:
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(1)

    def _features(self, texts: Sequence[tuple[Prompt, str]], wanted: Callable[[], bool]) -> Tensor:
        """Standardised features (texts, D)."""
        parts = []
        for chunk in _chunks(texts, self.chunk_chars):
            if not wanted():
                raise Abandoned
            with self._all_threads():
                parts.append(self.selector.backbone.encode_texts([p for p, _ in chunk], [r for _, r in chunk]))
        return self.selector.parameters.standardizer(torch.cat(parts)).to(self.selector.dtype)

    def _compare(
        self, group: Sequence[tuple[User, list[tuple[int, Compare]]]], x: Tensor, row: Mapping[tuple[Prompt, str], int]
    ) -> dict[int, Any]:
        pairs = [p for _, works in group for _, work in works for p in work.pairs]
        sides = torch.tensor([[row[p.prompt, p.a], row[p.prompt, p.b]] for p in pairs])
        base = None
        if self.selector.info.config.backbone.choice_logits:
            with self._all_threads():
                base = self.selector.backbone.encode_pairs(pairs, progress=False).base_logit
            base = None if base is None else base.to(self.selector.dtype)
        counts = [sum(len(work.pairs) for _, work in works) for _, works in group]
        index = torch.zeros(len(group), max(counts), dtype=torch.int64)
        for u, (first, n) in enumerate(zip(_starts(counts), counts, strict=True)):
            index[u, :n] = torch.arange(first, first + n)
        latents = stack_users([user for user, _ in group], self.selector.dtype)
        with self._all_threads() if len(group) * len(pairs) > SMALL else contextlib.nullcontext():
            p = self.selector.predictor(Pool(x, sides, base)).predict(latents, index)
        found = {}
        for u, (_, works) in enumerate(group):
            lengths = [len(work.pairs) for _, work in works]
            for (i, _), part in zip(works, p[u, : counts[u]].split(lengths), strict=True):
                found[i] = part.tolist()
        return found

    def _reward(
        self, user: User, works: Sequence[tuple[int, Reward]], x: Tensor, row: Mapping[tuple[Prompt, str], int]
    ) -> dict[int, Any]:
        rows = torch.tensor([row[t] for _, work in works for t in work.texts])
        found = log_odds(self.selector.predictor, x[rows], latent_of(user, self.selector.dtype))
        lengths = [len(work.responses) for _, work in works]
        return {i: part.tolist() for (i, _), part in zip(works, found.split(lengths), strict=True)}


def _by_user(works: Sequence[tuple[int, Any]]) -> list[tuple[User, list[tuple[int, Any]]]]:
    """Works of one user object together."""
    found: dict[int, tuple[User, list[tuple[int, Any]]]] = {}
    for i, work in works:
        found.setdefault(id(work.user), (work.user, []))[1].append((i, work))
    return list(found.values())


def _groups(
    works: Sequence[tuple[int, Compare]],
) -> Iterator[list[tuple[User, list[tuple[int, Compare]]]]]:
    """Users in groups whose product of users and pairs stays below `CELLS`."""
    group: list[tuple[User, list[tuple[int, Compare]]]] = []
    pairs = 0
    for user, own in _by_user(works):
        more = sum(len(work.pairs) for _, work in own)
        if group and (len(group) + 1) * (pairs + more) > CELLS:
            yield group
            group, pairs = [], 0
        group.append((user, own))
        pairs += more
    if group:
        yield group


def _chunks(texts: Sequence[tuple[Prompt, str]], chars: int) -> Iterator[list[tuple[Prompt, str]]]:
    chunk: list[tuple[Prompt, str]] = []
    size = 0
    for prompt, response in texts:
        more = _chars(prompt, response)
        if chunk and size + more > chars:
            yield chunk
            chunk, size = [], 0
        chunk.append((prompt, response))
        size += more
    yield chunk


def _chars(prompt: Prompt, response: str) -> int:
    return sum(len(m.content) for m in prompt) + len(response)


def _starts(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:i]) for i in range(len(counts))]
