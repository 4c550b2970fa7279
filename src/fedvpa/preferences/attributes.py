"""The rules of `hh-attributes` (method.md, section 11): pure functions from a response's text to a score.

A rule's user prefers the response with the higher score; only exact ties are left without a label. The same
functions serve as judges of generated text.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fedvpa.errors import UserError
from fedvpa.preferences.schema import Pair

Rule = Callable[[str], float]

HEDGES = frozenset(
    re.findall(
        r"\w+",
        """
    almost apparently appear appears arguably assume assumed basically could doubt doubtful fairly generally guess
    hopefully likely mainly may maybe might mostly normally often partly perhaps possible possibly presumably
    probable probably quite rather relatively roughly seem seemed seemingly seems somehow sometimes somewhat suggest
    suggests suppose supposedly tend tends think typically uncertain unclear unlikely unsure usually
    """,
    )
)
"""The words that count as a hedge."""

FIRST_PERSON = frozenset({"i", "i'm", "i've", "i'd", "i'll", "me", "my", "mine", "myself"})
"""The words that count as first person."""

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


def length(text: str) -> float:
    """Number of whitespace-separated words."""
    return float(len(text.split()))


def question_marks(text: str) -> float:
    """Number of question marks."""
    return float(text.count("?"))


def hedging(text: str) -> float:
    """Hits of `HEDGES` per word."""
    return _share(text, HEDGES)


def first_person(text: str) -> float:
    """Hits of `FIRST_PERSON` per word."""
    return _share(text, FIRST_PERSON)


def _share(text: str, words: frozenset[str]) -> float:
    found = _WORD.findall(text.lower().replace("’", "'"))
    return sum(w in words for w in found) / len(found) if found else 0.0


def _negated(rule: Rule) -> Rule:
    return lambda text: -rule(text)


_AXES: tuple[tuple[str, str, Rule], ...] = (
    ("longer", "shorter", length),
    ("asks-back", "does-not-ask", question_marks),
    ("hedges", "does-not-hedge", hedging),
    ("first-person", "no-first-person", first_person),
)
RULES: Mapping[str, Rule] = {
    name: rule for yes, no, axis in _AXES for name, rule in ((yes, axis), (no, _negated(axis)))
}
"""Per group the score that its users maximise."""
OPPOSITES: Mapping[str, str] = {a: b for yes, no, _ in _AXES for a, b in ((yes, no), (no, yes))}
"""Per group the group with the opposite wish."""


def rule_names(names: Iterable[str]) -> tuple[str, ...]:
    """The groups' canonical names; underscores and spaces may stand for hyphens.

    Raises:
        UserError: a name that is no rule, or one given twice.
    """
    return known_names([re.sub(r"[\s_]+", "-", name.strip().lower()) for name in names], tuple(RULES))


def known_names(names: Iterable[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """``names`` as a tuple, each one of ``known`` and none twice, as `data.groups` demands."""
    names = tuple(names)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            remedy = f"{hint}choose from {', '.join(known)}"
            raise UserError(f"unknown group {name!r}", remedy, field="data.groups")
    if len(set(names)) < len(names) or not names:
        raise UserError(
            "needs groups that differ" if names else "is empty", "name each group once", field="data.groups"
        )
    return names


def opposites(names: tuple[str, ...]) -> tuple[int, ...]:
    """Per group the index of its opposite if that is among ``names``, else of the next group."""
    return tuple(
        names.index(OPPOSITES[name]) if OPPOSITES.get(name) in names else (i + 1) % len(names)
        for i, name in enumerate(names)
    )


def rule_labels(pairs: Iterable[Pair], names: tuple[str, ...]) -> Tensor:
    """(groups, pairs) int8 labels of users who follow the rules ``names``; 0 at an exact tie."""
    pairs = tuple(pairs)
    rows = [[_sign(rule(p.a), rule(p.b)) for p in pairs] for rule in (RULES[name] for name in names)]
    return torch.tensor(rows, dtype=torch.int8).reshape(len(names), len(pairs))


def _sign(a: float, b: float) -> int:
    return (a > b) - (a < b)
