"""The criteria of `synthetic` users, read off a text: which of the generator's sentences it is made of.

On the generator's own answers this is exact: `prefers` gives every group's label. A text of other origin is judged by
the generator's sentences that it holds; whatever else it holds counts as the flaw ``unknown``.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from fedvpa.preferences import synthetic_text as banks
from fedvpa.preferences.synthetic import Attributes, label

_KINDS = {
    "formal": banks.FORMAL,
    "casual": banks.CASUAL,
    "encouraging": banks.ENCOURAGING,
    "cautious": banks.CAUTIOUS,
    "neutral": banks.NEUTRAL,
    "rude": banks.RUDE,
    "refusal": banks.REFUSAL,
    "contradiction": banks.CONTRADICTION,
    "trivia": banks.TRIVIA,
}
_FLAWS = {"rude": "rude", "refusal": "refusal", "contradiction": "contradiction", "trivia": "off-topic"}
_LEADING = "'.,:;?!"  # the generator cuts these off an answer's beginning


class Reading(NamedTuple):
    """A text's attributes, and how many of the generator's sentences were found in it.

    ``formal`` and ``encouraging`` are 0 where a text has as many sentences of the one kind as of the other.
    """

    attributes: Attributes
    sentences: int


def read_attributes(text: str) -> Reading:
    """Finds the generator's sentences in a text, from left to right."""
    found: dict[str, int] = dict.fromkeys(_KINDS, 0)
    rest, unknown = text.strip(), False
    while rest:
        sentence = _sentence().match(rest)
        if sentence is None:
            unknown = True
            rest = rest.split(maxsplit=1)[1] if len(rest.split(maxsplit=1)) > 1 else ""
        else:
            found[str(sentence.lastgroup)] += 1
            rest = rest[sentence.end() :]
    flaw = next((_FLAWS[kind] for kind in _FLAWS if found[kind]), "unknown" if unknown else "")
    formal, stance = found["formal"] - found["casual"], found["encouraging"] - found["cautious"]
    return Reading(Attributes(_sign(formal), _sign(stance), flaw), sum(found.values()))


def prefers(group: str, a: str, b: str) -> int:
    """The label of a noise-free user of ``group``: +1 prefers ``a``, -1 prefers ``b``, 0 has no preference."""
    return label(group, read_attributes(a).attributes, read_attributes(b).attributes)


@cache
def _sentence() -> re.Pattern[str]:
    """One sentence of any bank with the white space behind it, a group per kind."""
    kinds = ("|".join(_template(t) for t in bank) for bank in _KINDS.values())
    either = "|".join(f"(?P<{kind}>{sentences})" for kind, sentences in zip(_KINDS, kinds, strict=True))
    return re.compile(rf"(?:{either})(?:\s+|$)")


def _template(sentence: str) -> str:
    """A template as a pattern; an answer begins with a capital letter and without punctuation."""
    head = sentence.lstrip(_LEADING)
    lead = f"(?:{re.escape(sentence[: -len(head)])})?" if head != sentence else ""
    first = rf"(?i:{re.escape(head[0])})" if head[0].isalpha() else re.escape(head[0])
    advice = r"[^.?!]{1,80}?"
    if head.startswith("{vp}"):
        return lead + advice + re.escape(head[4:])
    return lead + first + advice.join(re.escape(part) for part in head[1:].split("{vp}"))


def _sign(x: int) -> int:
    return (x > 0) - (x < 0)
