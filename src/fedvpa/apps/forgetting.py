"""`fedvpa forget`: what a run folder, or a SuperNode's state folder, holds about one user, removed everywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fedvpa.apps import runs
from fedvpa.config import ExperimentConfig, load_config
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import read_metrics, read_results, write_results, write_text
from fedvpa.federation import checkpoint
from fedvpa.federation.forgetting import forget_client
from fedvpa.network.faults import Faults
from fedvpa.network.session import FOLDER, PRIVATE, SESSION, Session
from fedvpa.network.state import forget_user, is_state_folder
from fedvpa.preferences.sources import load_preferences
from fedvpa.preferences.users import is_pseudonym, pseudonym
from fedvpa.reporting.html import write_report
from fedvpa.selector import WEIGHTS, Selector

REMAINS = (
    "Not undone: the selector's parameters (theta, prototypes, the clusters' shares), the moments and the accuracies "
    "were made with this user's pairs; only a training without the user removes that. Remove the user from the data "
    "too, or the next training, and --resume, meets the pairs again. Copies elsewhere (files of `fedvpa personalize`, "
    "a published selector, what peers received) are not reached."
)
ELSEWHERE = (
    " The user takes no further part in this training. Its private state is on the SuperNode that holds its data; "
    "whoever runs that gives this command there, with the state folder."
)
AT_NODE = (
    "Not undone: the user's pairs in this SuperNode's data, with which it takes part again, and features of its texts "
    "in the cache folder. What the server keeps goes with this command on the server, with the run folder."
)


class Forgotten(NamedTuple):
    """Where something was removed: the files, those of them that were unreadable and therefore deleted whole, and a
    text that says what is left."""

    files: tuple[Path, ...]
    deleted: tuple[Path, ...]
    remains: str


def forget(run: Path, user: str, overrides: Sequence[str] = ()) -> Forgotten:
    """Removes a user's posterior, private state and figures from a run of `train`, `compare` or a deployment, or a
    user's private state from the state folder of a SuperNode.

    Args:
        user: the user's id, as in the data, or in a deployment its pseudonym.
        overrides: ``data.path=FILE`` or ``data.items=FILE``, where the data lie elsewhere than in training.

    Raises:
        UserError: another override, no run there, it is being written to, or nobody of that name took part or is shown
            in it.
    """
    if not (run / runs.CONFIG).is_file() and is_state_folder(run):
        gone = [p for name in (pseudonym(user), user) if is_pseudonym(name) for p in forget_user(run, name)]
        if not gone:
            raise _unknown(run, user)
        return Forgotten(tuple(gone), (), AT_NODE)
    for item in overrides:
        if (key := item.partition("=")[0]) not in ("data.path", "data.items"):
            raise UserError("decides nothing about who is forgotten", "give data.path or data.items only", field=key)
    config = load_config(run / runs.CONFIG, overrides) if overrides else runs.read_config(run)
    with runs.locked(run):
        saved, session = checkpoint.checkpoints(run / runs.CHECKPOINTS), Session.load(run / FOLDER)
        client = _position(config, session, user) if saved or session is not None else None
        shown = [p for p in _results(run) if _mentions(p, user)]
        if client is None and not shown:
            raise _unknown(run, user)
        files, deleted = list(shown), []
        for path in saved if client is not None else ():
            files.append(path)
            if not checkpoint.rewrite(path, lambda state: forget_client(state, client, config)):  # type: ignore[arg-type]
                shutil.rmtree(path)
                deleted.append(path)
        if client is not None:
            files += _forget_in_selector(run, config)
        for path in shown:
            _strip(path, user)
        if run / runs.RESULTS in shown:
            metrics = read_metrics(run / runs.METRICS) if (run / runs.METRICS).is_file() else []
            files.append(write_report(run, read_results(run / runs.RESULTS), metrics, config.to_yaml()))
        if session is not None and client is not None:
            files += _forget_in_session(run / FOLDER, session, client)
    return Forgotten(tuple(files), tuple(deleted), REMAINS + (ELSEWHERE if session is not None else ""))


def _unknown(folder: Path, user: str) -> UserError:
    return UserError(f"nothing is kept about {user!r}", "check the user's id", file=folder, field="USER")


def _forget_in_selector(run: Path, config: ExperimentConfig) -> list[Path]:
    """Gives a finished run's selector the clusters of the last checkpoint; returns its file."""
    found = checkpoint.load(run / runs.CHECKPOINTS)
    if found is None or found[0].server.round != config.federation.rounds or not (run / WEIGHTS).is_file():
        return []
    server, selector = found[0].server, Selector.from_pretrained(run)
    parameters = replace(selector.parameters, centroids=server.centroids, spread=server.spread)
    Selector(parameters, selector.info)._save_pretrained(run)
    return [run / WEIGHTS]


def _forget_in_session(folder: Path, session: Session, client: int) -> list[Path]:
    """Takes a user's name out of what a server over a network (or a simulation of one) has written; returns where."""
    name, left = session.users[client], session.without(client)
    left.save(folder)
    faults = Faults(folder)
    renamed = faults.rename(name, left.users[client])
    private = [path for node in sorted((folder / PRIVATE).glob("*")) for path in forget_user(node, name)]
    return [folder / SESSION, *([faults.path] if renamed else []), *private]


def _position(config: ExperimentConfig, session: Session | None, user: str) -> int | None:
    """The user's position among the training clients of the run; None where there is no such client.

    The server of a deployment has no data: it knows its users by their pseudonyms.
    """
    if session is not None and any(is_pseudonym(name) for name in session.users):
        found = [session.users.index(name) for name in (pseudonym(user), user) if name in session.users]
        return found[0] if found else None
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
