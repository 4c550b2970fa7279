"""HH-RLHF (Bai et al. 2022, arXiv 2204.05862) as three benchmarks of method.md, section 11.

``hh-attributes``: rule-based users on real responses. ``hh-objectives``: users who label for helpfulness or for
harmlessness on both subsets. ``hh-subsets``: crowd labels, helpful-base users and harmless-base users. The rows come
from `hh_files`; this module turns them into pools.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import torch
from torch import Tensor

from fedvpa.config import DataConfig
from fedvpa.errors import UserError
from fedvpa.preferences.attributes import known_names, opposites, rule_labels, rule_names
from fedvpa.preferences.hh_files import HHRow, find_source, read_objectives, read_subset, source_notes
from fedvpa.preferences.schema import LabelledPool, Split, prompt_key

OBJECTIVES = ("helpful", "harmless")
VALIDATION_PERCENT = 10
WARNING = "The dialogues of HH-RLHF may be offensive or upsetting."
SUBSETS_NOTE = (
    "The groups' prompts differ in topic (helpful-base against harmless-base), so latents that separate the groups "
    "prove little here."
)
OBJECTIVES_NOTE = "The objective labels are GPT-3.5's (Siththaranjan et al., arXiv 2312.08358) and noisy."
MIXED_NOTE = "The subsets come from models of different strength: base ones are mixed with online or rejection-sampled."


def attributes_pool(data: DataConfig) -> LabelledPool:
    """Real responses, labelled by rules (`attributes.RULES`); only exact ties are left without a label.

    Raises:
        UserError: data that cannot be found or read, or an unknown group.
    """
    groups = rule_names(data.groups or ("longer", "shorter"))
    rows, counts, notes = _rows(data, data.subsets or ("helpful-base",))
    return _pool(rows, groups, rule_labels((r.pair for r in rows), groups), counts, notes)


def subsets_pool(data: DataConfig) -> LabelledPool:
    """Crowd labels; a group per subset, which labels the rows of its subset only.

    Raises:
        UserError: data that cannot be found or read, or fewer than two subsets.
    """
    subsets = data.subsets or ("helpful-base", "harmless-base")
    groups = known_names(data.groups or subsets, tuple(subsets))
    if len(groups) < 2:
        raise UserError("hh-subsets needs two subsets, one per group", "name two subsets", field="data.subsets")
    rows, counts, notes = _rows(data, groups)
    labels = torch.zeros(len(groups), len(rows), dtype=torch.int8)
    for i, row in enumerate(rows):
        labels[groups.index(row.subset), i] = row.y
    return _pool(rows, groups, labels, counts, (*notes, SUBSETS_NOTE))


def objectives_pool(data: DataConfig) -> LabelledPool:
    """A group per objective, which labels the rows (of every subset) that were judged by its objective.

    Test rows judged by the objective that is not their subset's own, with a verdict against the crowd's, make the
    switching labels: the verdict for the objective's group, the crowd's label for the subset's own group.

    Raises:
        UserError: data or labels that cannot be found or read, or labels that do not belong to the rows.
    """
    groups = known_names(data.groups or OBJECTIVES, OBJECTIVES)
    subsets = data.subsets or ("helpful-base", "harmless-base")
    for subset in subsets:
        if subset.split("-")[0] not in OBJECTIVES:
            raise UserError(
                f"subset {subset!r} has no objective of its own", "use helpful-* and harmless-*", field="data.subsets"
            )
    rows, counts, notes = _rows(data, subsets)
    verdicts = read_objectives(find_source(data.path), subsets, rows, data.on_invalid, counts)
    labels = torch.zeros(len(groups), len(rows), dtype=torch.int8)
    switching = torch.zeros_like(labels)
    for i, row in enumerate(rows):
        objective, preferred = verdicts.get(row.place, ("", 0))
        own = row.subset.split("-")[0]
        if objective in groups:
            labels[groups.index(objective), i] = row.y * preferred
        if objective not in ("", own):
            conflict = preferred < 0
            counts[f"{row.subset} {row.file_split}: cross rows"] += 1
            counts[f"{row.subset} {row.file_split}: conflicting cross rows"] += conflict
            if conflict and row.file_split == "test" and {objective, own} <= set(groups):
                switching[groups.index(objective), i] = -row.y
                switching[groups.index(own), i] = row.y
    return _pool(rows, groups, labels, counts, (*notes, OBJECTIVES_NOTE), switching)


def split_of(file_split: str, key: str) -> Split:
    """Test rows stay test rows; a tenth of the training prompts, by a hash of the first turn, is for validation."""
    if file_split == "test":
        return "test"
    bucket = int(hashlib.sha256(f"validation {key}".encode()).hexdigest(), 16) % 100
    return "validation" if bucket < VALIDATION_PERCENT else "train"


def _rows(data: DataConfig, subsets: tuple[str, ...]) -> tuple[list[HHRow], Counter[str], tuple[str, ...]]:
    """The distinct valid rows of the subsets, without training rows whose prompt is in a test file."""
    source = find_source(data.path)
    counts: Counter[str] = Counter()
    rows = [
        row
        for subset in dict.fromkeys(subsets)
        for file_split in ("train", "test")
        for row in read_subset(source, subset, file_split, data.on_invalid, counts)
    ]
    tested = {prompt_key(r.pair.prompt) for r in rows if r.file_split == "test"}
    kept: dict[object, HHRow] = {}
    for row in rows:
        if row.file_split == "train" and prompt_key(row.pair.prompt) in tested:
            counts["training rows whose prompt is in a test file"] += 1
        elif row.pair in kept:
            counts["duplicate rows"] += 1
        else:
            kept[row.pair] = row
    notes = [WARNING, *source_notes(source)]
    if len({subset.endswith("-base") for subset in subsets}) > 1:
        notes.append(MIXED_NOTE)
    return list(kept.values()), counts, tuple(notes)


def _pool(
    rows: list[HHRow],
    groups: tuple[str, ...],
    labels: Tensor,
    counts: Counter[str],
    notes: tuple[str, ...],
    switching: Tensor | None = None,
) -> LabelledPool:
    """The pool of the rows that some group labels."""
    keep = labels.ne(0).any(0) if switching is None else (labels.ne(0) | switching.ne(0)).any(0)
    counts["pairs that no group labels"] += int((~keep).sum())
    counts["pairs"] += int(keep.sum())
    rows = [row for row, kept in zip(rows, keep.tolist(), strict=True) if kept]
    return LabelledPool(
        pairs=tuple(row.pair for row in rows),
        split=tuple(split_of(row.file_split, prompt_key(row.pair.prompt)) for row in rows),
        groups=groups,
        opposite=opposites(groups),
        group_labels=labels[:, keep],
        counts=dict(counts),
        notes=notes,
        switching_labels=None if switching is None else switching[:, keep],
    )
