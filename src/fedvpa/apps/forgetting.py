"""`fedvpa forget`: what a run folder holds about one user, removed everywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from fedvpa.apps import runs
from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import read_metrics, read_results, write_results, write_text
from fedvpa.federation import checkpoint
from fedvpa.federation.forgetting import forget_client
from fedvpa.preferences.sources import load_preferences
from fedvpa.reporting.html import write_report

REMAINS = (
    "Not undone: the selector's parameters (theta, prototypes, cluster centroids), the moments and the accuracies were "
    "made with this user's pairs; only a training without the user removes that. Remove the user from the data too, or "
    "the next training, and --resume, meets the pairs again. Copies elsewhere (files of `fedvpa personalize`, a "
    "published selector, what peers received) are not reached."
)


class Forgotten(NamedTuple):
    """Where something was removed: the files, and those of them that were unreadable and therefore deleted whole."""

    files: tuple[Path, ...]
    deleted: tuple[Path, ...]


def forget(run: Path, user: str) -> Forgotten:
    """Removes a user's posterior, private state and figures from a run of `train` or `compare`.

    Args:
        user: the user's id, as in the data.

    Raises:
        UserError: no run there, it is being written to, or nobody of that name took part or is shown in it.
    """
    config = runs.read_config(run)
    with runs.locked(run):
        saved = checkpoint.checkpoints(run / runs.CHECKPOINTS)
        client = _position(config, user) if saved else None
        shown = [p for p in _results(run) if _mentions(p, user)]
        if client is None and not shown:
            raise UserError(f"nothing is kept about {user!r}", "check the user's id", file=run, field="USER")
        files, deleted = list(shown), []
        for path in saved if client is not None else ():
            files.append(path)
            if not checkpoint.rewrite(path, lambda state: forget_client(state, client)):  # type: ignore[arg-type]
                shutil.rmtree(path)
                deleted.append(path)
        for path in shown:
            _strip(path, user)
        if run / runs.RESULTS in shown:
            metrics = read_metrics(run / runs.METRICS) if (run / runs.METRICS).is_file() else []
            files.append(write_report(run, read_results(run / runs.RESULTS), metrics, config.to_yaml()))
    return Forgotten(tuple(files), tuple(deleted))


def _position(config: ExperimentConfig, user: str) -> int | None:
    """The user's position among the training clients of the run's data; None where there is no such client."""
    names = [c.client_id for c in load_preferences(config).clients["seen"]]
    return names.index(user) if user in names else None


def _results(run: Path) -> list[Path]:
    """The JSON files of a run that may hold figures."""
    return [p for p in (run / runs.RESULTS, *sorted((run / runs.CELLS).glob("*.json"))) if p.is_file()]


def _figures(tree: Any) -> list[dict[str, Any]]:
    """The users' figures in a ``results.json`` (per method) or in a cell's file."""
    return [f for f in (tree.get("figures"), *tree.get("diagnostics", {}).values()) if f]


def _mentions(path: Path, user: str) -> bool:
    return any(
        part is not None and user in part["ids"]
        for figures in _figures(_read(path))
        for part in (figures.get("latents"), figures.get("prior_weights"))
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise UserError("not valid JSON", "remove the file, or run again", file=path) from None


def _strip(path: Path, user: str) -> None:
    """Takes the user out of a file's figures: its row of every list, and its column of the prior's weights."""
    tree = _read(path)
    for figures in _figures(tree):
        for part in (figures.get("latents"), figures.get("prior_weights")):
            if part is None or user not in part["ids"]:
                continue
            at, n = part["ids"].index(user), len(part["ids"])
            for values in part.values():
                del values[at]
            for row in part.get("weights", ()):
                if len(row) == n:
                    del row[at]
    if "rows" in tree and "sha256" not in tree:
        write_results(path, tree)
    else:
        write_text(path, json.dumps(tree, allow_nan=False) + "\n")
