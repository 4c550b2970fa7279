"""The pairs of a pool as tokens, for the methods that train the language model itself.

Prepared once, beside the features: `methods.base.Pool` holds it and a client's batch says which rows are meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fedvpa.backbone.choice import choice_texts
from fedvpa.backbone.extract import Item
from fedvpa.backbone.tokens import Renderer, Text
from fedvpa.preferences.schema import Pair

Form = Literal["responses", "choice"]
"""``responses``: a and b, each behind the prompt; ``choice``: the choice prompt with a shown first, and with b."""


@dataclass(frozen=True)
class PairTexts:
    """n pairs, two texts each: texts 2 i and 2 i + 1 are pair i's.

    Attributes:
        items: (2 n) what each text was made of, by which it is found in a cache; texts: (2 n) tokens.
    """

    items: tuple[Item, ...]
    texts: tuple[Text, ...]

    def __len__(self) -> int:
        return len(self.texts) // 2

    def take(self, rows: Tensor | Iterable[int]) -> PairTexts:
        """The pairs at positions `rows` (m,), in that order."""
        at = [2 * int(i) + k for i in rows for k in (0, 1)]
        return PairTexts(tuple(self.items[i] for i in at), tuple(self.texts[i] for i in at))

    def batches(self, batch_tokens: int) -> list[list[int]]:
        """Positions of pairs of similar length, each pair in one batch, at most `batch_tokens` tokens with padding."""
        sizes = [self._size(i) for i in range(len(self))]
        found: list[list[int]] = []
        for i in sorted(range(len(self)), key=lambda i: (sizes[i], i)):
            if not found or sizes[i] * (len(found[-1]) + 1) > batch_tokens:
                found.append([])
            found[-1].append(i)
        return found

    def _size(self, pair: int) -> int:
        """Tokens of a pair, its two texts in one row where they share a prompt."""
        one, two = self.texts[2 * pair : 2 * pair + 2]
        shared = len(one.prompt) if one.prompt == two.prompt else 0
        return sum(len(t.prompt) + len(t.response) for t in (one, two)) - shared


def pair_texts(renderer: Renderer, form: Form, pairs: Sequence[Pair], max_tokens: int) -> PairTexts:
    """Tokenises pairs; how a text that is too long is cut is `Renderer.completions`'s, or `Renderer.tokenize`'s."""
    if form == "choice":
        shown = tuple(Item(p.prompt, order) for p in pairs for order in ((p.a, p.b), (p.b, p.a)))
        return PairTexts(shown, tuple(choice_texts(renderer, shown, max_tokens)))
    items = tuple(Item(p.prompt, (r,)) for p in pairs for r in (p.a, p.b))
    texts = renderer.completions([(i.prompt, i.responses[0]) for i in items], max_tokens)
    return PairTexts(items, tuple(texts))
