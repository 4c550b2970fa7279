"""The types that preference data has inside the package.

A *pair* is a prompt with two responses and carries no label: users who disagree label the same pair differently.
A label is ``y = +1`` if the user prefers ``a`` and ``-1`` if the user prefers ``b`` (method.md, section 1).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Split = Literal["train", "validation", "test"]
POPULATIONS = ("seen", "validation", "unseen")


class Message(NamedTuple):
    """One turn of a dialogue: ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


Prompt = tuple[Message, ...]
"""A dialogue that ends before the response. A plain-text prompt is one user turn."""


def as_prompt(prompt: str | Sequence[Mapping[str, str]]) -> Prompt:
    """Turns TRL's standard (text) or conversational (messages) prompt into a `Prompt`."""
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    return tuple(Message(m["role"], m["content"]) for m in prompt)


def prompt_key(prompt: Prompt) -> str:
    """What counts as one prompt when splits are made: the first user turn, lower-cased, non-word runs as one space.

    Dialogues that begin alike lie in one split. Without a user turn it is the whole text.
    """
    turns = [m.content for m in prompt if m.role == "user"][:1] or [m.content for m in prompt]
    text = "\n".join(turns)
    return re.sub(r"\W+", " ", text.lower()).strip() or text


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and two responses, without a label."""

    prompt: Prompt
    a: str
    b: str

    @property
    def key(self) -> str:
        """16 hex digits that depend on the texts only (sha256)."""
        return _digest(self.prompt, self.a, self.b)[:16]

    @staticmethod
    def canonical(prompt: Prompt, first: str, second: str) -> tuple[Pair, int]:
        """The pair in the order that a hash of the texts decides, so that the order tells nothing about a label.

        Returns:
            The pair, and +1 if ``first`` is its ``a``, -1 if ``first`` is its ``b``: the label of whoever prefers
            ``first``. Either order of the two responses gives the same pair.
        """
        if _digest(prompt, first) <= _digest(prompt, second):
            return Pair(prompt, first, second), 1
        return Pair(prompt, second, first), -1


def _digest(prompt: Prompt, *responses: str) -> str:
    text = json.dumps([[list(m) for m in prompt], *responses], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Item(NamedTuple):
    """One response to a prompt, which a person judges alone (a vote, a rating) or against another one (a choice)."""

    prompt: Prompt
    text: str

    @property
    def digest(self) -> str:
        """64 hex digits; of two items of a prompt the one with the smaller digest is `Pair.a` (`Pair.canonical`)."""
        return _digest(self.prompt, self.text)


CHOICE, VOTE, RATING = 0, 1, 2
"""Kinds of a judgement: of two items, yes or no to one item, a number for one item."""
NO_RATINGS = (0.0, 1.0)
"""Mean and standard deviation (`federation.moments.rating_scale`) where nobody rated."""


@dataclass(frozen=True)
class Judgements:
    """One person's judgements as they were given. Each is an observation that is linear in the person's latent.

    Attributes:
        first: (n,) int64 rows of `FederatedPreferences.items`.
        second: (n,) int64 the other item of a choice, -1 for a vote or a rating.
        value: (n,) float32. A choice: +1 if ``first`` is preferred, else -1. A vote: +1 yes, -1 no. A rating: as the
            person gave it (`methods.base.padded_judgements` standardises it).
        kind: (n,) int8, `CHOICE`, `VOTE` or `RATING`.
        weight: (n,) float32, the strength of a choice; 1 where none is given.
    """

    first: Tensor
    second: Tensor
    value: Tensor
    kind: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: Tensor | slice) -> Judgements:
        return Judgements(self.first[rows], self.second[rows], self.value[rows], self.kind[rows], self.weight[rows])

    @staticmethod
    def choices(items: Tensor, y: Tensor) -> Judgements:
        """Choices between the items (n, 2) with labels y (n,)."""
        one = torch.ones(len(y))
        return Judgements(items[:, 0], items[:, 1], y.float(), torch.full_like(y, CHOICE, dtype=torch.int8), one)


class RatingSums(NamedTuple):
    """Number, sum and sum of squares of ratings, which say their mean and deviation."""

    number: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    @staticmethod
    def of(own: Judgements) -> RatingSums:
        """Of the ratings among judgements."""
        ratings = own.value[own.kind == RATING].double()
        return RatingSums(float(len(ratings)), float(ratings.sum()), float((ratings**2).sum()))


def joined(parts: Sequence[Judgements]) -> Judgements:
    """The judgements of one or more people, one after another."""
    return Judgements(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Judgements)))


NOTHING_RATED = RatingSums()


@dataclass(frozen=True)
class LabelledPairs:
    """One user's labels on pairs of a pool.

    Attributes:
        index: (n,) int64 rows in `FederatedPreferences.pairs`.
        y: (n,) int8, +1 where the user prefers ``a`` and -1 where the user prefers ``b``.
    """

    index: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.index)

    @staticmethod
    def of(index: Iterable[int], y: Iterable[int]) -> LabelledPairs:
        return LabelledPairs(torch.tensor(list(index), dtype=torch.int64), torch.tensor(list(y), dtype=torch.int8))


@dataclass(frozen=True)
class Client:
    """One user.

    Attributes:
        client_id: unique name.
        group: index into `FederatedPreferences.groups`, or None where it is not known. Only the data generators,
            the evaluation and the oracles may look at it.
        train: the labelled pairs that training uses and that contexts are drawn from.
        test: the labelled pairs that are predicted; where else their texts occur, `evaluation.queries` says.
        judgements: what the person said, where people gave votes, ratings or choices of different strength. Of
            somebody who never trains they are in the order in which contexts take them, and so is ``train``: its first
            n / 2 pairs are made from the first n judgements. None where people gave plain choices: they are ``train``
            itself.
        ratings: of all ratings that may be learnt from, before `data.label_noise`; `judgements` are some of them.
    """

    client_id: str
    group: int | None
    train: LabelledPairs
    test: LabelledPairs
    judgements: Judgements | None = None
    ratings: RatingSums = NOTHING_RATED


@dataclass(frozen=True)
class FederatedPreferences:
    """Everything that a run knows about preferences; the texts are needed by the backbone only.

    Attributes:
        pairs: the pool; all indices refer to it. No (prompt, a, b) occurs twice; in either order only under
            ``data.order: chosen-first`` (`order.chosen_first`).
        split: (pairs,) the split of each pair. Under `evaluation.queries: by-prompt` a prompt lies in exactly one.
            Otherwise a pair is ``train`` where anybody trains on it or has it in a context (under ``known-items`` it
            may then be asked of somebody else), ``validation`` where only validation people are asked, else ``test``.
        groups: the groups' names, empty where they are not known.
        opposite: per group the index of the group with the opposite wish; where there is none, the next group.
        group_labels: (groups, pairs) int8 labels of a noise-free user of each group, 0 where that group has none
            (a tie, or a row that the group does not label). The oracles train on it; conflicting pairs come from it.
        clients: per population (`POPULATIONS`) its clients. ``seen`` take part in training, ``validation`` are for
            choices, ``unseen`` for reporting; the latter two are never trained on.
        switching: extra clients for a switching test (the same pairs with opposite labels), often empty.
        counts: what was read, dropped and why, for the report.
        notes: sentences that must be shown wherever a result of this data is shown.
        items: the texts that are judged, where a source lists them; `item_rows` has those of the pairs as well.
        matched: (pairs,) bool, pairs of two items that are about equally popular among the training people
            (`evaluation.matched`); None where popularity is not known.
    """

    pairs: tuple[Pair, ...]
    split: tuple[Split, ...]
    groups: tuple[str, ...]
    opposite: tuple[int, ...]
    group_labels: Tensor
    clients: Mapping[str, tuple[Client, ...]]
    switching: tuple[Client, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    items: tuple[Item, ...] = ()
    matched: Tensor | None = None

    @cached_property
    def item_rows(self) -> tuple[tuple[Item, ...], Tensor]:
        """All distinct items, `items` first, and the rows (pairs, 2) of each pair's a and b among them."""
        return item_rows(self.pairs, self.items)

    def without_pairs(self, gone: Tensor) -> FederatedPreferences:
        """The same, but nobody trains on the pairs `gone` (pairs,) bool, or is asked them; the pool keeps its rows.

        A choice that is one of them goes, too. Clients that have nothing left to train on (or, held out, nothing to be
        asked) are left out.
        """
        _, rows = self.item_rows
        twins = {frozenset(ends) for ends in rows[gone].tolist()}
        clients = {}
        for population, own in self.clients.items():
            left = [_without(c, gone, twins) for c in own]
            clients[population] = tuple(c for c in left if len(c.train) and (population == "seen" or len(c.test)))
        switching = tuple(_without(c, gone, twins) for c in self.switching)
        labels = self.group_labels.masked_fill(gone, 0)
        counts = {**self.counts, "pairs made equal by the cut": int(gone.sum())}
        return replace(self, clients=clients, switching=switching, group_labels=labels, counts=counts)

    def conflicting(self) -> Tensor:
        """(pairs,) bool: True where at least two groups label the pair and disagree."""
        if not len(self.groups):
            return torch.zeros(len(self.pairs), dtype=torch.bool)
        return (self.group_labels == 1).any(0) & (self.group_labels == -1).any(0)


def _without(client: Client, gone: Tensor, twins: set[frozenset[int]]) -> Client:
    train, test = (
        LabelledPairs(own.index[keep], own.y[keep])
        for own in (client.train, client.test)
        for keep in [~gone[own.index]]
    )
    judged = client.judgements
    if judged is not None:
        both = zip(judged.first.tolist(), judged.second.tolist(), strict=True)
        judged = judged[torch.tensor([frozenset(ends) not in twins for ends in both], dtype=torch.bool)]
    return replace(client, train=train, test=test, judgements=judged)


def item_rows(pairs: Sequence[Pair], items: Sequence[Item] = ()) -> tuple[tuple[Item, ...], Tensor]:
    """The distinct items of pairs after `items`, in the order of occurrence; and (pairs, 2) the rows of a and b."""
    place = {item: i for i, item in enumerate(items)}
    rows = [place.setdefault(Item(p.prompt, text), len(place)) for p in pairs for text in (p.a, p.b)]
    return tuple(place), torch.tensor(rows, dtype=torch.int64).view(len(pairs), 2)


@dataclass(frozen=True)
class LabelledPool:
    """What a source makes and `clients.partition` divides among clients: pairs with each group's labels.

    Attributes:
        pairs, split, groups, opposite, group_labels, counts, notes: as in `FederatedPreferences`; the order of ``a``
            and ``b`` in a pair tells nothing about its label (`Pair.canonical`, or a random order).
        switching_labels: (groups, pairs) int8 labels of the switching test, 0 where a pair has no part in it; None
            where the source has no such test.
    """

    pairs: tuple[Pair, ...]
    split: tuple[Split, ...]
    groups: tuple[str, ...]
    opposite: tuple[int, ...]
    group_labels: Tensor
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    switching_labels: Tensor | None = None
