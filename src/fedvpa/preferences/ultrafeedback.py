"""`ultrafeedback-p`: UltraFeedback (Cui et al., arXiv 2310.01377) as single-attribute raters (VPL, arXiv 2408.10075).

Each group prefers the response with the higher rating on its attribute. As in VPL only pairs on which at least two
groups disagree are kept. UF-P-2 has the groups helpfulness and honesty, UF-P-4 all four attributes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from fedvpa.config import DataConfig
from fedvpa.errors import UserError
from fedvpa.preferences.attributes import known_names, opposites
from fedvpa.preferences.hub import is_hub_id, load_hub_rows
from fedvpa.preferences.lines import Row, checked_text, read_rows, text_field, type_name
from fedvpa.preferences.schema import LabelledPool, Message, Pair, Split, prompt_key

HUB_ID = "openbmb/UltraFeedback"
ATTRIBUTES = ("helpfulness", "honesty", "instruction_following", "truthfulness")
PRESETS = {"uf-p-2": ATTRIBUTES[:2], "uf-p-4": ATTRIBUTES}
VALIDATION_PERCENT, TEST_PERCENT = 8, 12
_REMEDY = f"set data.path to a JSON Lines file or folder in UltraFeedback's layout, or to {HUB_ID}"

Answer = tuple[str, Mapping[str, float]]
"""A response and its rating per attribute; an attribute without a rating is missing."""


def ultrafeedback_pool(data: DataConfig) -> LabelledPool:
    """One pair per prompt, the first in a hash's order among those on which two groups disagree.

    Args:
        data: `groups` are attributes, or one of ``uf-p-2`` (default) and ``uf-p-4``; `path` a JSON Lines file, a
            folder of them, or a dataset id on the Hub (default openbmb/UltraFeedback).

    Raises:
        UserError: data that cannot be found or read, an unknown group, or no pair on which groups disagree.
    """
    groups = _groups(data.groups)
    counts: Counter[str] = Counter()
    pairs: dict[Pair, tuple[int, ...]] = {}
    prompts: set[str] = set()
    for prompt, answers in _rows(data, counts):
        counts["prompts"] += 1
        if prompt in prompts:
            counts["repeated prompts"] += 1
            continue
        prompts.add(prompt)
        if found := _disagreement(prompt, answers, groups):
            pairs[found[0]] = found[1]
        else:
            counts["prompts without a disagreement"] += 1
    if not pairs:
        raise UserError(
            "no pair on which two groups disagree", "give more data or other groups", file=data.path or HUB_ID
        )
    counts["pairs"] += len(pairs)
    return LabelledPool(
        pairs=tuple(pairs),
        split=tuple(_split(prompt_key(p.prompt)) for p in pairs),
        groups=groups,
        opposite=opposites(groups),
        group_labels=torch.tensor(list(pairs.values()), dtype=torch.int8).T.contiguous(),
        counts=dict(counts),
        notes=("The ratings are GPT-4's, on four attributes that go together more often than not.",),
    )


def _groups(names: tuple[str, ...] | None) -> tuple[str, ...]:
    names = tuple(n.strip().lower().replace(" ", "_") for n in names or ("uf-p-2",))
    if len(names) == 1 and names[0] in PRESETS:
        return PRESETS[names[0]]
    groups = known_names([n.replace("-", "_") for n in names], ATTRIBUTES)
    if len(groups) < 2:
        raise UserError("needs two groups at least", "name two attributes, uf-p-2 or uf-p-4", field="data.groups")
    return groups


def _rows(data: DataConfig, counts: Counter[str]) -> Iterable[tuple[str, list[Answer]]]:
    name = data.path or HUB_ID
    path = Path(name).expanduser()
    if data.path is None or (is_hub_id(name) and not path.exists()):
        rows = enumerate(load_hub_rows(name, "train", _REMEDY), start=1)
        return (_parse(row, Path(name), number) for number, row in rows)
    files = sorted(f for f in path.glob("*.jsonl*") if f.is_file()) if path.is_dir() else [path]
    if not files:
        raise UserError("no .jsonl or .jsonl.gz file in the folder", _REMEDY, file=path, field="data.path")
    return (row for file in files for row in read_rows(file, _parse, data.on_invalid, counts))


def _parse(row: Row, path: Path, line: int) -> tuple[str, list[Answer]]:
    instruction = text_field(row, "instruction", path, line)
    completions = row.get("completions")
    if not isinstance(completions, list):
        problem = "missing column" if "completions" not in row else f"must be a list, not {type_name(completions)}"
        raise UserError(problem, "keep UltraFeedback's layout", file=path, line=line, field="completions")
    answers: list[Answer] = []
    for i, item in enumerate(completions):
        field = f"completions[{i}]"
        if not isinstance(item, dict) or not isinstance(item.get("annotations"), dict):
            problem = "must be an object with response and annotations"
            raise UserError(problem, "keep UltraFeedback's layout", file=path, line=line, field=field)
        response = item.get("response")
        if isinstance(response, str) and not response.strip():
            continue  # some models answered nothing
        ratings = {a: _rating(item["annotations"].get(a), f"{field}.annotations.{a}", path, line) for a in ATTRIBUTES}
        known = {a: r for a, r in ratings.items() if r is not None}
        answers.append((checked_text(response, f"{field}.response", path, line), known))
    return instruction, answers


def _rating(annotation: Any, field: str, path: Path, line: int) -> float | None:
    """The rating as a number; None where the rater gave none (``N/A`` in the official files)."""
    if annotation is None:
        return None
    value = annotation.get("Rating") if isinstance(annotation, dict) else annotation
    if value is None or value == "N/A":
        return None
    try:
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise ValueError
        return float(value)
    except (ValueError, OverflowError):
        raise UserError("must be a number or N/A", file=path, line=line, field=f"{field}.Rating") from None


def _disagreement(prompt: str, answers: list[Answer], groups: tuple[str, ...]) -> tuple[Pair, tuple[int, ...]] | None:
    found = {}
    for (one, first), (two, second) in combinations(answers, 2):
        if one.strip() == two.strip():
            continue
        pair, sign = Pair.canonical((Message("user", prompt),), one, two)
        labels = tuple(sign * _preferred(first.get(g), second.get(g)) for g in groups)
        if {1, -1} <= set(labels):
            found[pair] = labels
    return min(found.items(), key=lambda item: item[0].key) if found else None


def _preferred(first: float | None, second: float | None) -> int:
    if first is None or second is None:
        return 0
    return (first > second) - (first < second)


def _split(key: str) -> Split:
    bucket = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 100
    if bucket < VALIDATION_PERCENT:
        return "validation"
    return "test" if bucket < VALIDATION_PERCENT + TEST_PERCENT else "train"
