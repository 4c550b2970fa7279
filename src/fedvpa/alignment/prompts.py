"""Public prompts to align on: none that a client of the selector's run holds, and those to judge on apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fedvpa.alignment.config import PromptsConfig
from fedvpa.alignment.language import LanguageModel, digest
from fedvpa.errors import UserError
from fedvpa.preferences.jsonl import prompt_of
from fedvpa.preferences.lines import read_rows
from fedvpa.preferences.schema import FederatedPreferences, Prompt, prompt_key

_REMEDY = "give others as JSON Lines with prompts.path, or lower prompts.training or prompts.judging"


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
    config: PromptsConfig, seed: int, data: Sequence[FederatedPreferences], model: LanguageModel
) -> Prompts:
    """Draws the prompts; those to judge on are drawn first, so that their number alone decides which they are.

    Args:
        data: of the selector's run, whose prompts these are, and of others whose clients' prompts are avoided.
        model: its tokenizer measures the prompts.

    Raises:
        UserError: too few prompts that no client holds, or an unreadable ``prompts.path``.
    """
    if config.path is None:
        found: Iterable[Prompt] = (pair.prompt for pair in data[0].pairs)
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
        place = "the run's data" if config.path is None else config.path
        problem = (
            f"{wanted} prompts are wanted; {place} has {len(unique)}, of which no client holds {len(free)}, of which "
            f"{len(chosen)} have at most {config.max_tokens} tokens"
        )
        raise UserError(problem, _REMEDY, field="prompts")
    return Prompts(tuple(chosen[config.judging :]), tuple(chosen[: config.judging]))


def _short(prompts: Sequence[Prompt], limit: int, model: LanguageModel, wanted: int) -> list[Prompt]:
    """The first prompts of at most ``limit`` tokens."""
    found: list[Prompt] = []
    for start in range(0, len(prompts), 256):
        some = prompts[start : start + 256]
        found += [p for p, ids in zip(some, model.encode(some), strict=True) if len(ids) <= limit]
        if len(found) >= wanted:
            break
    return found[:wanted]
