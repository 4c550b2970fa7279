"""One cell of a comparison or a study: a configuration, a method and a seed, run in whatever process and kept in two
files, the JSON last and atomically: where it is, the cell is finished."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from threadpoolctl import threadpool_limits

from fedvpa.apps.fingerprints import fingerprint, of_files
from fedvpa.apps.runs import environment
from fedvpa.apps.stopping import Interrupted
from fedvpa.apps.training import load, round_record, selector_of
from fedvpa.backbone.backbones import feature_dtypes
from fedvpa.backbone.models import cache_dir, choose_device
from fedvpa.config import (
    ColumnsConfig,
    ExperimentConfig,
    LaplaceConfig,
    LoRAConfig,
    MethodConfig,
    PrivacyConfig,
    parse_config,
)
from fedvpa.evaluation.compare import PairScores
from fedvpa.evaluation.experiment import MethodRun, Prepared, run_method
from fedvpa.evaluation.result_files import plain, write_bytes, write_text
from fedvpa.federation.rounds import RoundReport, TrainingState
from fedvpa.preferences.schema import Pair

stop = threading.Event()
"""Asks cells that run in this process to end after the round."""


_IRRELEVANT: Any = {"output": True, "network": True, "evaluation": {"bootstrap", "every"}, "federation": {"device"}}
_SINCE: dict[tuple[str, str], Any] = {
    ("method", "prior_components"): 0,
    ("method", "posterior_age"): 0,
    **{
        ("method", key): MethodConfig.model_fields[key].default
        for key in (
            *("bases", "ridge", "inner_steps", "inner_rate", "ideal_points", "factors", "factor_ridge"),
            *("edge_sharpness", "second_hop", "attention_layers", "attention_width", "attention_rounds"),
        )
    },
    ("federation", "aggregation"): "mean",
    ("federation", "byzantine"): 0.2,
    ("faults", "kinds"): [],
    ("faults", "clients"): 0.2,
    ("faults", "rate"): 1.0,
    ("faults", "scale"): 10.0,
    ("defence", "reject"): False,
    ("defence", "max_update_norm"): 1e3,
    ("defence", "max_posterior_norm"): 1e3,
    ("defence", "max_pairs"): 10**7,
    ("defence", "update_outlier"): 0.0,
    ("defence", "posterior_outlier"): 0.0,
    ("data", "user_column"): "user_id",
    ("data", "columns"): ColumnsConfig().model_dump(mode="json"),
    ("data", "items"): None,
    ("data", "min_gap"): 0.0,
    ("data", "min_votes"): 8,
    ("evaluation", "queries"): "by-prompt",
    ("evaluation", "matched"): 0.1,
    ("evaluation", "queries_per_user"): 60,
    ("backbone", "train"): "frozen",
    ("backbone", "text"): "response",
    **{("privacy", key): neutral for key, neutral in PrivacyConfig().model_dump(mode="json").items()},
    **{("laplace", key): neutral for key, neutral in LaplaceConfig().model_dump(mode="json").items()},
    **{("lora", key): neutral for key, neutral in LoRAConfig().model_dump(mode="json").items()},
}
"""Keys that are newer than some finished cells, and the value at which the code does what it did before it had them:
at that value they do not enter an address, so that cells that were finished earlier are still found."""


@dataclass(frozen=True)
class Cell:
    """A method and a seed."""

    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}"

    def file(self, folder: Path) -> Path:
        """The cell's JSON in the folder of a comparison, which has one configuration."""
        return folder / f"{self.method}-seed{self.seed}.json"

    def address(self, config: ExperimentConfig) -> str:
        """20 hex digits of what decides the cell's result: the resolved configuration, the method and the seed.

        Where files go, how intervals are resampled and how often training is watched do not enter. The version of the
        code does not either: a finished cell names the commit that made it.
        """
        tree = self.config(config).model_dump(mode="json", exclude=_IRRELEVANT)
        for (section, key), neutral in _SINCE.items():
            if tree[section][key] == neutral:
                del tree[section][key]
        tree = {k: v for k, v in tree.items() if v != {}}
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:20]

    def config(self, config: ExperimentConfig) -> ExperimentConfig:
        """The configuration with this cell's method and seed."""
        return config.for_method(self.method).model_copy(update={"seed": self.seed})


@dataclass(frozen=True)
class Finished:
    """What a cell leaves behind.

    Attributes:
        rows, switching, figures: as in `MethodRun`; metrics: records of ``metrics.jsonl``.
        scores: one per row; pool: digest of the pairs that they refer to.
        seconds: wall clock of training and measuring.
        config: the resolved configuration; environment: versions, hardware, commit and date.
        notes: what must be said wherever a result of these data is shown.
        sources: what the data's files and the features are known by (`fingerprints.of_files`); empty: an older cell.
    """

    rows: list[dict[str, Any]]
    switching: list[dict[str, Any]]
    figures: dict[str, Any]
    metrics: list[dict[str, Any]]
    scores: list[PairScores]
    pool: str
    seconds: float
    config: dict[str, Any]
    environment: dict[str, Any]
    notes: list[str]
    sources: dict[str, str]


def start_worker(threads: int, parent: int) -> None:
    """Called once in each worker process: Ctrl-C is the parent's business, and a lost parent ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_threads(threads)
    environment()  # before somebody commits: what runs here is the code as it is now
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process as soon as its parent is gone (kill -9); what it was about to write is not there at all."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def limit_threads(threads: int) -> None:
    """For torch, and for the BLAS under NumPy and scikit-learn, which would otherwise take every core in every cell."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def run_cell(
    config_json: str, cell: Cell, path: Path, lean: bool = False, selector: Path | None = None
) -> float | None:
    """Runs one cell and writes its files; returns the default accuracy on unseen users (else on seen ones).

    Args:
        config_json: the configuration; its seed and method are replaced by the cell's.
        path: the JSON that the cell leaves; its arrays go beside it.
        lean: leave out the report's figures, the rounds' records and their accuracies, which a study has no use for.
        selector: a folder for the trained selector, where it is to be kept.
    """
    config = cell.config(parse_config(json.loads(config_json)))
    if lean:
        watch = config.evaluation.model_copy(update={"every": config.federation.rounds})
        config = config.model_copy(update={"evaluation": watch})
    prepared = replace(_prepared(data_part(config)), config=config)
    metrics: list[dict[str, Any]] = []
    began = time.perf_counter()

    def on_round(report: RoundReport, _: TrainingState, values: Mapping[str, Any] | None) -> None:
        metrics.append(round_record(config, report, values))
        if stop.is_set():
            raise Interrupted(signal.SIGINT, "go on with --resume")

    measured = run_method(prepared, cell.method, on_round=on_round)
    if lean:
        measured.figures, metrics = {}, []
    if selector is not None:
        selector.mkdir(parents=True, exist_ok=True)
        known = fingerprint(config, prepared.data)
        selector_of(config, prepared, measured, known)._save_pretrained(selector)
    _write(path, prepared, measured, metrics, time.perf_counter() - began)
    size = config.federation.context_pairs
    shown = {
        r["population"]: r["accuracy"] for r in measured.rows if r["default"] and r["context_size"] in (size, None)
    }
    return shown.get("unseen", shown.get("seen"))


def data_part(config: ExperimentConfig) -> str:
    """What decides a cell's data as tensors; cells with the same part that follow each other share them."""
    populations = {"clients", "unseen_clients", "validation_clients", "device", "dtype"}
    keep: Any = {
        "seed": True,
        "data": True,
        "backbone": True,
        "federation": populations,
        "evaluation": {"context_sizes", "queries", "matched", "queries_per_user"},
        "output": {"cache"},
        "privacy": {"moments_clip", "moments_noise", "secret_noise"},
    }
    tree = config.model_dump(mode="json", include=keep)
    tree["federation"]["sampled_clients"] = 1  # no part of the data, but never more than there are clients
    return json.dumps(tree, sort_keys=True)


@lru_cache(maxsize=1)
def _prepared(part: str) -> Prepared:
    return load(parse_config(json.loads(part)))[0]


@lru_cache(maxsize=1)
def _digest(pairs: tuple[Pair, ...]) -> str:
    return hashlib.sha256(" ".join(p.key for p in pairs).encode()).hexdigest()


def _write(
    path: Path,
    prepared: Prepared,
    measured: MethodRun,
    metrics: list[dict[str, Any]],
    seconds: float,
) -> None:
    used = np.any([s.weight > 0 for s in measured.scores], axis=0)
    weight, column = np.unique([s.weight[used] for s in measured.scores], axis=0, return_inverse=True)
    arrays = {
        "pairs": np.flatnonzero(used).astype(np.int64),
        "weight": weight,
        "weight_row": column.reshape(-1).astype(np.int64),
        "correct": np.stack([s.correct[used] for s in measured.scores]),
    }
    people = [s.people for s in measured.scores if s.people is not None]
    if len(people) == len(measured.scores):
        arrays |= {"people": np.concatenate(people), "people_per_row": np.array([len(p) for p in people])}
    blob = save_arrays(arrays)
    device = choose_device(prepared.config.federation.device)
    write_bytes(path.with_suffix(".safetensors"), blob)
    tree = {
        "sha256": hashlib.sha256(blob).hexdigest(),
        "config": prepared.config.model_dump(mode="json", exclude={"output"}),
        "notes": prepared.data.notes,
        "environment": {
            **environment(),
            "date": datetime.now(UTC).date().isoformat(),
            "features": ", ".join(feature_dtypes(prepared.config.backbone, cache_dir(prepared.config), device)),
        },
        "sources": of_files(prepared.config),
        "pool": _digest(prepared.data.pairs),
        "pool_size": len(used),
        "seconds": seconds,
        "rows": measured.rows,
        "switching": measured.switching,
        "figures": measured.figures,
        "metrics": metrics,
    }
    write_text(path, json.dumps(plain(tree), allow_nan=False) + "\n")


def read_cell(path: Path) -> Finished | None:
    """A finished cell; None where there is none, or a damaged one (which is then run again)."""
    try:
        tree = json.loads(path.read_bytes())
        blob = path.with_suffix(".safetensors").read_bytes()
        if hashlib.sha256(blob).hexdigest() != tree["sha256"]:
            return None
        arrays, size = load_arrays(blob), tree["pool_size"]
        weights = [_spread(arrays["pairs"], w, size) for w in arrays["weight"]]
        people: list[Any] = [None] * len(arrays["correct"])
        if "people" in arrays:
            people = np.split(arrays["people"], arrays["people_per_row"].cumsum()[:-1])
        scores = [
            PairScores(weights[row], _spread(arrays["pairs"], correct, size), own)
            for row, correct, own in zip(arrays["weight_row"], arrays["correct"], people, strict=True)
        ]
        kept = {k: tree[k] for k in _KEPT}
        return Finished(scores=scores, sources=tree.get("sources", {}), **kept)
    except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError):
        return None


_KEPT = ("rows", "switching", "figures", "metrics", "pool", "seconds", "config", "environment", "notes")


def _spread(pairs: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    full = np.zeros(size)
    full[pairs] = values
    return full
