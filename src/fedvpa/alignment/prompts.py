"""Public prompts to align on: none that a client of the selector's run holds, and those to judge on apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fedvpa.alignment.config import PromptsConfig
from fedvpa.alignment.language import LanguageModel, digest
from fedvpa.errors import UserError
from fedvpa.preferences.hh_files import find_source, read_subset
from fedvpa.preferences.jsonl import prompt_of
from fedvpa.preferences.lines import read_rows
from fedvpa.preferences.schema import FederatedPreferences, Prompt, prompt_key

_REMEDY = (
    "raise prompts.max_tokens, lower prompts.training or prompts.judging, or give others: prompts.path (JSON Lines) "
    "or prompts.subsets (of HH-RLHF)"
)


class Prompts(NamedTuple):
    """training, judging: disjoint, also in what `prompt_key` counts as one prompt."""

    training: tuple[Prompt, ...]
    judging: tuple[Prompt, ...]


def held_keys(data: FederatedPreferences) -> frozenset[str]:
    """`prompt_key` of every prompt that some client holds, for training or for testing."""
    clients = [c for population in data.clients.values() for c in population] + list(data.switching)
    parts = {id(part): part for c in clients for part in (c.train, c.test)}
    rows = {i for part in parts.values() for i in part.index.tolist()}
    return frozenset(prompt_key(data.pairs[i].prompt) for i in rows)


def public_prompts(
    config: PromptsConfig,
    seed: int,
    data: Sequence[FederatedPreferences],
    model: LanguageModel,
    hh_path: str | None = None,
) -> Prompts:
    """Draws the prompts; those to judge on are drawn first, so that their number alone decides which they are.

    Args:
        data: of the selector's run, whose prompts these are, and of others whose clients' prompts are avoided.
        model: its tokenizer measures the prompts.
        hh_path: the run's ``data.path``, where ``subsets`` are looked for.

    Raises:
        UserError: too few prompts that no client holds, or an unreadable ``prompts.path``.
    """
    found: Iterable[Prompt]
    if config.path is None:
        found = [*(pair.prompt for pair in data[0].pairs), *_of_subsets(config.subsets, hh_path)]
    else:
        found = read_rows(config.path, prompt_of)
    held = frozenset[str]().union(*map(held_keys, data))
    unique: dict[str, Prompt] = {}
    for prompt in found:
        unique.setdefault(prompt_key(prompt), prompt)
    free = {key: prompt for key, prompt in unique.items() if key not in held}
    order = sorted(free, key=lambda key: digest(seed, "public prompts", key))
    wanted = config.training + config.judging
    chosen = _short([free[key] for key in order], config.max_tokens, model, wanted)
    if len(chosen) < wanted:
        place = config.path or " and ".join(["the run's data", *config.subsets])
        problem = (
            f"{wanted} prompts are wanted; {place} has {len(unique)}, of which no client holds {len(free)}, of which "
            f"{len(chosen)} have at most {config.max_tokens} tokens"
        )
        raise UserError(problem, _REMEDY, field="prompts")
    return Prompts(tuple(chosen[config.judging :]), tuple(chosen[: config.judging]))


def _of_subsets(subsets: Sequence[str], path: str | None) -> list[Prompt]:
    """Prompts of HH-RLHF's training and test files; rows that are no comparison are left out, as ever."""
    counts: Counter[str] = Counter()
    return [
        row.pair.prompt
        for subset in subsets
        for split in ("train", "test")
        for row in read_subset(find_source(path), subset, split, "error", counts)
    ]


def _short(prompts: Sequence[Prompt], limit: int, model: LanguageModel, wanted: int) -> list[Prompt]:
    """The first prompts of at most ``limit`` tokens."""
    found: list[Prompt] = []
    for start in range(0, len(prompts), 256):
        some = prompts[start : start + 256]
        found += [p for p, ids in zip(some, model.encode(some), strict=True) if len(ids) <= limit]
        if len(found) >= wanted:
            break
    return found[:wanted]
