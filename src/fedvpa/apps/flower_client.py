"""`flwr run`, the client's component, and how a run's configuration is read.

It imports little, since a SuperNode starts a process for each message.

The run config has four keys: ``experiment`` (a YAML file in the app's folder, or an absolute path), ``settings``
(key=value, with spaces between, that replace the file's), ``out`` (the server's run folder) and ``data-from``:

* ``experiment``: the server and every node read the experiment's data, a node takes its share of the training clients
  (Flower's simulation, and trials). The server measures as `fedvpa train` does, and writes the same files.
* ``nodes``: each SuperNode reads the file of its own users that its node config names: pairs, or a table of choices,
  votes or ratings (`preferences.reading`). The server has no data; it writes the selector, and the accuracy that the
  clients report about their held-out pairs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context

from fedvpa.apps.fingerprints import shared_features
from fedvpa.backbone.encode import Features
from fedvpa.backbone.pairs import PairTexts
from fedvpa.config import PEOPLE_SOURCES, ExperimentConfig, load_config
from fedvpa.errors import UserError
from fedvpa.evaluation.encoding import readable, tokenize
from fedvpa.network.client_app import client_app
from fedvpa.network.node import Node
from fedvpa.network.session import FOLDER, PRIVATE
from fedvpa.preferences.schema import FederatedPreferences
from fedvpa.preferences.sources import load_preferences
from fedvpa.preferences.users import pseudonym

SOURCES = ("experiment", "nodes")
DATA_KEYS = {"data.name": "name", "data.path": "path", "data.user_column": "user_column", "data.items": "items"}
"""Keys of a node config that say where the node's own data is, and which key of the section data each is."""
NODE_KEYS = (*DATA_KEYS, "state-dir", "partition-id", "num-partitions")


@dataclass(frozen=True)
class RunSettings:
    """A run config, read.

    Attributes:
        config: the experiment; out: the server's run folder; data_from: one of `SOURCES`.
    """

    config: ExperimentConfig
    out: Path
    data_from: str


def read_run_config(values: Mapping[str, Any]) -> RunSettings:
    """What `flwr run` hands to both ends.

    Raises:
        UserError: a missing or unknown key, or an experiment that cannot be read.
    """
    keys = ("experiment", "settings", "out", "data-from")
    for key in keys:
        if key not in values:
            raise UserError("missing", "write it under [tool.flwr.app.config]", field=key)
    if values["data-from"] not in SOURCES:
        problem = f"unknown value {values['data-from']!r}"
        raise UserError(problem, f"choose from {', '.join(SOURCES)}", field="data-from")
    config = load_config(find_experiment(str(values["experiment"])), str(values["settings"]).split())
    config = config.for_method(config.method.name)
    return RunSettings(config, Path(str(values["out"])), str(values["data-from"]))


def find_experiment(name: str) -> Path:
    """The experiment's file: an absolute path, or one in the app's folder, which Flower puts on ``sys.path``."""
    for folder in sys.path:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    return Path(name)


def open_node(context: Context) -> Node:
    """The users of this node.

    Raises:
        UserError: a node config that does not say where the data is, or data that cannot be used.
    """
    settings, given = read_run_config(context.run_config), context.node_config
    unknown = sorted(set(given) - set(NODE_KEYS))
    if unknown:
        raise UserError("unknown key of the node config", f"known are {', '.join(NODE_KEYS)}", field=unknown[0])
    if settings.data_from == "experiment":
        share, shares = (int(str(given.get(key, -1))) for key in ("partition-id", "num-partitions"))
        if not 0 <= share < shares:
            raise UserError("is missing", "give partition-id and num-partitions, from 0", field="partition-id")
        state = Path(str(given.get("state-dir", settings.out / FOLDER / PRIVATE / f"node-{share}")))
        return _share(settings.config, share, shares, state)
    for key in ("data.path", "state-dir"):
        if key not in given:
            raise UserError("is missing", "add it to --node-config", field=key)
    return _own(settings.config, given)


def _share(config: ExperimentConfig, share: int, shares: int, state: Path) -> Node:
    """Every `shares`-th training client of the experiment, under its position's name."""
    data, features, texts = _data_of(config)
    mine = range(share, len(data.clients["seen"]), shares)
    names = tuple(f"{i:08d}" for i in mine)
    mine_of = tuple(data.clients["seen"][i] for i in mine)
    return Node(config, names, mine_of, data, features, state, texts, shared_features(config))


def _data_of(config: ExperimentConfig) -> tuple[FederatedPreferences, Features, PairTexts | None]:
    """Data, features and, where the method needs them, tokens. Without the defaults, since for a key that is not given
    (`evaluation.queries`) the data decides."""
    return _experiment_data(config.model_dump_json(exclude_unset=True))


@lru_cache(maxsize=1)
def _experiment_data(config_json: str) -> tuple[FederatedPreferences, Features, PairTexts | None]:
    """Once per process: a simulation's worker answers for many nodes."""
    config = ExperimentConfig.model_validate_json(config_json)
    data, features = readable(config, load_preferences(config), progress=False)
    return data, features, tokenize(config, data)


def _own(config: ExperimentConfig, given: Mapping[str, Any]) -> Node:
    """All users of the node's own file; every one of them trains.

    Raises:
        UserError: a source that holds no real people, or a file that cannot be used.
    """
    changes = {"name": "jsonl"} | {key: str(given[k]) for k, key in DATA_KEYS.items() if k in given}
    if changes["name"] not in PEOPLE_SOURCES:
        problem = f"{changes['name']!r} is not a source of people's own data"
        raise UserError(problem, f"choose from {', '.join(PEOPLE_SOURCES)}", field="data.name")
    everybody = {"clients": 10**9, "unseen_clients": 0, "validation_clients": 0}
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update=changes),
            "federation": config.federation.model_copy(update=everybody),
        }
    )
    data, features, texts = _data_of(config)
    clients = data.clients["seen"]
    names = tuple(pseudonym(c.client_id) for c in clients)
    state = Path(str(given["state-dir"]))
    return Node(config, names, clients, data, features, state, texts, shared_features(config))


client = client_app(open_node)
