"""The `synthetic` source: everyday questions with two answers each, written by a template generator.

Each answer has three latent attributes: its register (formal or casual), its stance (encouraging or cautious) and, in
one answer of an agreed pair, a flaw. The labels are exact functions of them (`label`):

- *conflicting* pairs (70 %): the answers differ in register and in stance, neither is flawed. The groups of a couple
  (formal against casual, encouraging against cautious) always disagree, so that a selector without a latent is at 0.5;
- *agreed* pairs (30 %): one answer has one of several flaws, styles are random, and every group prefers the other one.

Topics, questions and phrasings are divided between the splits: whoever has learnt words fails on test pairs, whoever
has learnt what they have in common does not.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from fedvpa.errors import UserError
from fedvpa.preferences import synthetic_text as text
from fedvpa.preferences.schema import LabelledPool, Pair, Split, as_prompt
from fedvpa.preferences.seeding import derive_seed

T = TypeVar("T")

GROUPS = ("formal", "casual", "encouraging", "cautious")
SIZES: dict[Split, int] = {"train": 900, "validation": 140, "test": 300}
SHARES: dict[Split, float] = {"train": 0.6, "validation": 0.16, "test": 0.24}
AGREED = 0.3
FLAWS = ("off-topic", "rude", "refusal", "contradiction", "scrambled", "loop", "garbled")


@dataclass(frozen=True, slots=True)
class Attributes:
    """What the generator decided about one answer; nothing else enters a label.

    Attributes:
        formal: +1 for formal, -1 for casual.
        encouraging: +1 for encouraging, -1 for cautious.
        flaw: one of `FLAWS`, or empty.
    """

    formal: int
    encouraging: int
    flaw: str = ""


@dataclass(frozen=True, slots=True)
class Specimen:
    """A generated pair with the attributes of both answers."""

    pair: Pair
    split: Split
    a: Attributes
    b: Attributes


def label(group: str, a: Attributes, b: Attributes) -> int:
    """The label of a noise-free user of ``group``: +1 prefers ``a``, -1 prefers ``b``, 0 has no preference."""
    if bool(a.flaw) != bool(b.flaw):
        return -1 if a.flaw else 1
    couple, sign = divmod(GROUPS.index(group), 2)
    difference = (a.encouraging - b.encouraging) if couple else (a.formal - b.formal)
    return (difference > 0) - (difference < 0) if sign == 0 else (difference < 0) - (difference > 0)


def generate(seed: int, groups: Sequence[str] | None = None) -> LabelledPool:
    """Generates the pool of pairs with the labels of each group.

    Args:
        seed: texts, order, attributes and the division of the phrase banks derive from it.
        groups: names out of `GROUPS`; None or empty: all four.

    Raises:
        UserError: an unknown or repeated group.
    """
    names = _checked(groups)
    specimens = specimens_of(seed)
    labels = [[label(name, s.a, s.b) for s in specimens] for name in names]
    agreed = sum(1 for s in specimens if s.a.flaw or s.b.flaw)
    return LabelledPool(
        pairs=tuple(s.pair for s in specimens),
        split=tuple(s.split for s in specimens),
        groups=names,
        opposite=tuple(_opposite(i, names) for i in range(len(names))),
        group_labels=torch.tensor(labels, dtype=torch.int8),
        counts={"pairs": len(specimens), "agreed": agreed, "conflicting": len(specimens) - agreed},
        notes=("Synthetic text: figures show that a method works, not how well it does on human preferences.",),
    )


def specimens_of(seed: int) -> list[Specimen]:
    """All pairs of a seed with their attributes, split after split; no pair occurs twice, in either order."""
    specimens: list[Specimen] = []
    for split, size in SIZES.items():
        writer = _Writer(seed, split)
        seen: set[frozenset[str]] = set()
        kinds = [i < round(AGREED * size) for i in range(size)]
        agreed = _shuffled(kinds, derive_seed(seed, "synthetic", "agreed", split))
        while len(seen) < size:
            specimen = writer.specimen(agreed[len(seen)])
            texts = frozenset((specimen.pair.prompt[0].content, specimen.pair.a, specimen.pair.b))
            if texts not in seen:
                seen.add(texts)
                specimens.append(specimen)
    return specimens


class _Writer:
    """Writes pairs of one split from that split's part of every bank."""

    def __init__(self, seed: int, split: Split) -> None:
        def bank(name: str) -> list[str]:
            return _part(getattr(text, name), split, derive_seed(seed, "synthetic", name))

        self.split = split
        self.random = random.Random(derive_seed(seed, "synthetic", "pairs", split))
        self.topics = [line.split(" | ") for line in bank("TOPICS")]
        self.questions, self.neutral = bank("QUESTIONS"), bank("NEUTRAL")
        self.register = {1: bank("FORMAL"), -1: bank("CASUAL")}
        self.stance = {1: bank("ENCOURAGING"), -1: bank("CAUTIOUS")}
        self.rude, self.refusal = bank("RUDE"), bank("REFUSAL")
        self.contradiction, self.trivia = bank("CONTRADICTION"), bank("TRIVIA")

    def specimen(self, agreed: bool) -> Specimen:
        goal, *advice = self.random.choice(self.topics)
        question = self.random.choice(self.questions).format(goal=goal)
        first = Attributes(self._sign(), self._sign())
        if agreed:
            second = Attributes(self._sign(), self._sign(), self.random.choice(FLAWS))
        else:
            second = Attributes(-first.formal, -first.encouraging)
        if self._sign() < 0:
            first, second = second, first
        a, b = self.answer(first, advice), self.answer(second, advice)
        return Specimen(Pair(as_prompt(question), a, b), self.split, first, second)

    def answer(self, attributes: Attributes, advice: Sequence[str]) -> str:
        """Advice in a phrasing of the register, a remark of the stance and sometimes small talk, in any order."""
        pick = self.random.choice
        vp = pick(advice)
        sentences = [pick(self.register[attributes.formal]).format(vp=vp), pick(self.stance[attributes.encouraging])]
        if attributes.flaw == "refusal":
            sentences[:1] = self._some(self.refusal)
        elif attributes.flaw == "off-topic":
            sentences[:1] = self._some(self.trivia)
        elif attributes.flaw == "rude":
            sentences += self._some(self.rude)
        elif self.random.random() < 0.4:
            sentences.append(pick(self.neutral))
        self.random.shuffle(sentences)
        if attributes.flaw == "contradiction":
            sentences.append(pick(self.contradiction).format(vp=vp))
        return self._broken(" ".join(sentences), attributes.flaw)

    def _broken(self, answer: str, flaw: str) -> str:
        """The answer as it stands or, for some flaws, damaged; it begins with a capital letter either way."""
        words = answer.split()
        if flaw == "scrambled":
            self.random.shuffle(words)
        elif flaw == "loop":
            start = self.random.randrange(len(words) - 3)
            words[start:] = words[start : start + self.random.randint(2, 3)] * self.random.randint(3, 5)
        elif flaw == "garbled":
            words = [self._garbled(w) if self.random.random() < 0.6 else w for w in words]
        broken = " ".join(words).lstrip("'.,:;?!")
        return broken[0].upper() + broken[1:]

    def _garbled(self, word: str) -> str:
        letters = list(word)
        self.random.shuffle(letters)
        letters[self.random.randrange(len(letters))] = self.random.choice("qxzjkvwy")
        return "".join(letters)

    def _some(self, bank: Sequence[str]) -> list[str]:
        return self.random.sample(bank, self.random.randint(1, 2))

    def _sign(self) -> int:
        return self.random.choice((1, -1))


def _part(bank: Sequence[T], split: Split, seed: int) -> list[T]:
    """The part of a bank that belongs to a split, in the proportions of `SHARES`."""
    items = _shuffled(bank, seed)
    start, total = 0.0, len(items)
    for name, share in SHARES.items():
        if name == split:
            return items[round(start * total) : round((start + share) * total)]
        start += share
    raise AssertionError(split)


def _shuffled(items: Sequence[T], seed: int) -> list[T]:
    return random.Random(seed).sample(list(items), len(items))


def _checked(groups: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(groups) if groups else GROUPS
    for name in names:
        if name not in GROUPS:
            near = difflib.get_close_matches(name, GROUPS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"unknown group {name!r}", f"{hint}choose from {', '.join(GROUPS)}", field="data.groups")
    if len(set(names)) < len(names):
        raise UserError("a group is named twice", "name each group once", field="data.groups")
    return names


def _opposite(i: int, names: Sequence[str]) -> int:
    """The other group of the couple, or the next group where that one is not taken."""
    other = GROUPS[GROUPS.index(names[i]) ^ 1]
    return names.index(other) if other in names else (i + 1) % len(names)
