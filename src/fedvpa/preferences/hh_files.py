"""HH-RLHF's rows: from a folder in the official layout (``SUBSET/{train,test}.jsonl.gz``) or from the Hub."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedvpa.errors import UserError
from fedvpa.preferences.dialogues import parse_dialogue
from fedvpa.preferences.hub import is_hub_id, load_hub_rows
from fedvpa.preferences.lines import OnInvalid, Row, read_rows, text_field
from fedvpa.preferences.schema import Pair

HUB_ID = "Anthropic/hh-rlhf"
FOLDERS = ("data/hh-rlhf", "../shared/data/hh-rlhf")
PARTITION = "trained on a partition of HH-RLHF's official test files"
_REMEDY = f"set data.path or $FEDVPA_HH_RLHF to a folder with SUBSET/train.jsonl.gz and test.jsonl.gz, or to {HUB_ID}"


class HHRow(NamedTuple):
    """One valid row: the crowd prefers ``pair.a`` if ``y`` is +1. ``digest`` identifies the row's two texts."""

    subset: str
    file_split: str
    row: int
    digest: str
    pair: Pair
    y: int

    @property
    def place(self) -> tuple[str, str, int]:
        """Subset, file and 0-based line."""
        return self.subset, self.file_split, self.row


def find_source(path: str | None) -> Path | str:
    """The folder, or the dataset id on the Hub, that `data.path` means; see `DataConfig.path` for the search.

    Raises:
        UserError: a path that is neither a folder nor a dataset id.
    """
    named = path or os.environ.get("FEDVPA_HH_RLHF")
    if named:
        if Path(named).expanduser().is_dir():
            return Path(named).expanduser()
        if is_hub_id(named):
            return named
        problem = "is a file, not a folder" if Path(named).exists() else "no such folder"
        raise UserError(problem, _REMEDY, file=named, field="data.path" if path else "$FEDVPA_HH_RLHF")
    return next((Path(folder) for folder in FOLDERS if Path(folder).is_dir()), HUB_ID)


def read_subset(
    source: Path | str, subset: str, file_split: str, on_invalid: OnInvalid, counts: Counter[str]
) -> list[HHRow]:
    """The valid rows of one file.

    The official files hold some rows that are no comparison of two responses to one prompt; they are left out and
    counted by reason, whatever ``on_invalid`` says. It decides about malformed lines and missing columns.

    Raises:
        UserError: a missing or unreadable file, a malformed row, or a Hub that does not answer.
    """

    def parse(row: Row, path: Path, line: int) -> HHRow | str:
        chosen, rejected = text_field(row, "chosen", path, line), text_field(row, "rejected", path, line)
        return _comparison(subset, file_split, line - 1, chosen, rejected)

    if isinstance(source, Path):
        rows = read_rows(_subset_file(source, subset, file_split), parse, on_invalid, counts)
    else:
        raw = load_hub_rows(source, file_split, _REMEDY, data_dir=subset)
        place = Path(source) / subset / file_split
        rows = [parse(row, place, line) for line, row in enumerate(raw, start=1)]
    counts[f"{subset} {file_split}: rows"] += len(rows)
    good = [row for row in rows if isinstance(row, HHRow)]
    for reason in (row for row in rows if isinstance(row, str)):
        counts[f"{subset} {file_split}: {reason}"] += 1
    if not good:
        raise UserError(f"{subset} {file_split} holds no comparison", _REMEDY, file=source)
    return good


def _comparison(subset: str, file_split: str, row: int, chosen: str, rejected: str) -> HHRow | str:
    """The row, or the reason why it is no comparison of two responses to one prompt."""
    one, two = parse_dialogue(chosen), parse_dialogue(rejected)
    if one is None or two is None:
        return "not a dialogue that ends in an Assistant turn"
    if one[0] != two[0]:
        return "dialogues differ before the last Assistant turn"
    if not one[1] or not two[1]:
        return "empty response"
    if one[1] == two[1]:
        return "chosen equals rejected"
    digest = hashlib.sha256(f"{chosen}\0{rejected}".encode()).hexdigest()[:16]
    return HHRow(subset, file_split, row, digest, *Pair.canonical(one[0], one[1], two[1]))


def _subset_file(folder: Path, subset: str, name: str) -> Path:
    for suffix in (".jsonl.gz", ".jsonl"):
        path = folder / subset / f"{name}{suffix}"
        if path.is_file():
            return path
    found = sorted(p.parent.name for p in folder.glob("*/train.jsonl*"))
    problem = f"no {name}.jsonl.gz or {name}.jsonl in subset {subset!r}"
    raise UserError(problem, f"choose from {', '.join(found)}" if found else _REMEDY, file=folder, field="data.subsets")


def read_objectives(
    source: Path | str, subsets: Sequence[str], rows: Iterable[HHRow], on_invalid: OnInvalid, counts: Counter[str]
) -> Mapping[tuple[str, str, int], tuple[str, int]]:
    """Per row's place the objective by which it was judged, and +1 if the verdict is the row's chosen, else -1.

    Reads ``objective-labels/SUBSET/{train,test}.jsonl.gz``: ``row``, ``pair`` (the digest), ``objective`` and
    ``preferred``. Labels of rows that were left out are left out too.

    Raises:
        UserError: no such labels beside the data, a malformed row, or a label whose digest is another pair's.
    """
    if not isinstance(source, Path):
        problem = "the Hub's release has no objective labels"
        raise UserError(problem, "set data.path to a folder with objective-labels/", field="data.path")
    if not (source / "objective-labels").is_dir():
        raise UserError("no folder objective-labels/", "give a folder that has it", file=source, field="data.path")
    digests = {row.place: row.digest for row in rows}
    verdicts = {}
    for subset in dict.fromkeys(subsets):
        for name in ("train", "test"):

            def parse(row: Row, path: Path, line: int, place: tuple[str, str] = (subset, name)) -> tuple[int, str, int]:
                number, objective, preferred = _verdict(row, path, line)
                if digests.get((*place, number), row.get("pair")) != row.get("pair"):
                    problem = f"is not the digest of row {number} of {place[0]}/{place[1]}"
                    raise UserError(problem, "fetch labels and data together", file=path, line=line, field="pair")
                return number, objective, preferred

            file = _subset_file(source / "objective-labels", subset, name)
            for number, objective, preferred in read_rows(file, parse, on_invalid, counts):
                if (subset, name, number) in digests:
                    verdicts[subset, name, number] = objective, preferred
    return verdicts


def _verdict(row: Row, path: Path, line: int) -> tuple[int, str, int]:
    number = row.get("row")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise UserError("must be a row number from 0", file=path, line=line, field="row")
    text_field(row, "pair", path, line)
    objective, preferred = (text_field(row, field, path, line) for field in ("objective", "preferred"))
    if objective not in ("helpful", "harmless"):
        raise UserError("must be helpful or harmless", file=path, line=line, field="objective")
    if preferred not in ("chosen", "rejected"):
        raise UserError("must be chosen or rejected", file=path, line=line, field="preferred")
    return number, objective, 1 if preferred == "chosen" else -1


def source_notes(source: Path | str) -> tuple[str, ...]:
    """What the folder's README wants said beside every result."""
    readme = source / "README.md" if isinstance(source, Path) else None
    if readme is None or not readme.is_file():
        return ()
    text = " ".join(readme.read_text(encoding="utf-8", errors="replace").split())
    return (f"Models were {PARTITION}.",) if PARTITION in text else ()
