"""The fingerprint of a run: of its data and of its features, kept in the run folder, its checkpoints and its selector,
and compared wherever the run goes on or its selector is evaluated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedvpa.backbone.backbones import open_backbone
from fedvpa.backbone.files import content_hash
from fedvpa.backbone.models import cache_dir
from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import write_text
from fedvpa.preferences.fingerprint import difference, fingerprint_of
from fedvpa.preferences.schema import FederatedPreferences
from fedvpa.preferences.sources import source_files

FILE = "fingerprint.json"
FEATURES = "features"
_FORMAT = 1
_CHANGED = {
    "data": "the files of the data have another content",
    "people": "the people in the data are others",
    "texts": "the texts in the data are others",
    "labels": "people say something else in the data",
    "order": "the rows of the data have another order",
    FEATURES: "the backbone's files (or how texts are read) are others",
}


def fingerprint(config: ExperimentConfig, data: FederatedPreferences | None) -> dict[str, str]:
    """Digests of the parts of the data (`preferences.fingerprint`), where there are any here, and of the features.

    Raises:
        UserError: as `open_backbone`.
    """
    found = {} if data is None else fingerprint_of(data)
    return {**found, FEATURES: features_fingerprint(config)}


def features_fingerprint(config: ExperimentConfig) -> str:
    """16 hex digits of all that features depend on: the content of the backbone's files, not their names."""
    return _digest(_identity(config))


def shared_features(config: ExperimentConfig) -> str:
    """`features_fingerprint` without the floating-point format, which may differ between the machines of a network."""
    identity = _identity(config)
    parts = [dict(part) for part in identity.get("blocks", [identity])]
    return _digest([{k: v for k, v in part.items() if k != "dtype"} for part in parts])


def _identity(config: ExperimentConfig) -> Mapping[str, Any]:
    backbone = open_backbone(config.backbone, cache_dir(config), config.federation.device)
    backbone.close()
    return backbone.identity


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def of_files(config: ExperimentConfig) -> dict[str, str]:
    """Digests that cost nothing where files have not changed: of the content of the files that the data come from
    (empty: not from files), and of the features.

    Raises:
        UserError: as `open_backbone`.
    """
    cache, files = cache_dir(config), source_files(config.data)
    return {"data": content_hash(files, cache)[:16] if files else "", FEATURES: features_fingerprint(config)}


def write(folder: Path, found: Mapping[str, str]) -> None:
    """Keeps a run's fingerprint in its folder."""
    write_text(folder / FILE, json.dumps({"format": _FORMAT, **found}, indent=1) + "\n")


def check_run(folder: Path, found: Mapping[str, str]) -> None:
    """Refuses to go on with a run whose data or features were others.

    Raises:
        UserError: they were, or it is not known: the run was made by an earlier version.
    """
    path = folder / FILE
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problem = "the run does not say which data it was begun with (made by an earlier version)"
        raise UserError(problem, "choose another folder, or use --overwrite", file=folder) from None
    except ValueError:
        raise UserError("not valid JSON", "choose another folder, or use --overwrite", file=path) from None
    check(before, found, folder)


def check(before: Mapping[str, Any], found: Mapping[str, str], place: Path) -> None:
    """Raises `UserError` where a fingerprint differs from the one of a run in `place`."""
    if (part := difference(before, found)) is not None:
        problem = f"{_CHANGED.get(part, part)} than when this run began"
        field = "backbone.model" if part == FEATURES else "data"
        remedy = "put the former ones back, choose another folder, or use --overwrite"
        raise UserError(problem, remedy, file=place, field=field)
