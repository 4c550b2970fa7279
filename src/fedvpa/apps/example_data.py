"""`fedvpa example-data`: a small data set in the layout of one's own, to try every command on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedvpa.config import parse_config
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import write_text
from fedvpa.preferences.schema import Client, FederatedPreferences
from fedvpa.preferences.sources import load_preferences

EXAMPLES = 8
CANDIDATES = 12


class Written(NamedTuple):
    """The three files of `write`."""

    pairs: Path
    examples: Path
    candidates: Path


def write(folder: Path, users: int, pairs: int, overwrite: bool = False) -> Written:
    """Writes generated users with conflicting wishes (source `synthetic`).

    ``pairs.jsonl`` holds `users` users with `pairs` labelled pairs each, and their groups; ``ada.jsonl`` a further
    user's few examples; ``candidates.jsonl`` pairs of that user without a label.

    Raises:
        UserError: one of the files is there already.
    """
    files = Written(*(folder / name for name in ("pairs.jsonl", "ada.jsonl", "candidates.jsonl")))
    for file in files:
        if file.exists() and not overwrite:
            raise UserError("is there already", "choose another folder, or use --overwrite", file=file)
    tree = {
        "data": {"name": "synthetic", "pairs_per_client": pairs},
        "federation": {"clients": users, "sampled_clients": 1, "unseen_clients": 1, "validation_clients": 0},
    }
    data = load_preferences(parse_config(tree))
    ada = data.clients["unseen"][0]
    labelled = [
        {"user_id": f"user-{i + 1}", "group": data.groups[client.group or 0], **row}
        for i, client in enumerate(data.clients["seen"])
        for row in _preferences(data, client, pairs)
    ]
    asked = [data.pairs[i] for i in ada.test.index[:CANDIDATES].tolist()]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(files.pairs, _lines(labelled))
    write_text(files.examples, _lines(_preferences(data, ada, EXAMPLES)))
    write_text(files.candidates, _lines({"prompt": p.prompt[0].content, "a": p.a, "b": p.b} for p in asked))
    return files


def _preferences(data: FederatedPreferences, client: Client, most: int) -> list[dict[str, str]]:
    """A client's first training pairs as rows ``prompt, chosen, rejected``."""
    rows = []
    for i, y in zip(client.train.index[:most].tolist(), client.train.y[:most].tolist(), strict=True):
        pair = data.pairs[i]
        chosen, rejected = (pair.a, pair.b) if y > 0 else (pair.b, pair.a)
        rows.append({"prompt": pair.prompt[0].content, "chosen": chosen, "rejected": rejected})
    return rows


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
