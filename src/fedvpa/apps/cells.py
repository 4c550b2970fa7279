"""One cell of a comparison: a method and a seed, run in whatever process and kept in two files."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from threadpoolctl import threadpool_limits

from fedvpa.apps.stopping import Interrupted
from fedvpa.apps.training import load, round_record
from fedvpa.config import ExperimentConfig, parse_config
from fedvpa.evaluation.compare import PairScores
from fedvpa.evaluation.experiment import MethodRun, Prepared, run_method
from fedvpa.evaluation.result_files import plain, write_bytes, write_text
from fedvpa.federation.rounds import RoundReport, TrainingState
from fedvpa.preferences.schema import Pair

stop = threading.Event()
"""Asks cells that run in this process to end after the round."""

_parent: int | None = None


@dataclass(frozen=True)
class Cell:
    """A method and a seed."""

    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}"

    def file(self, folder: Path) -> Path:
        """The cell's JSON; it is written last, so where it is, the cell is finished."""
        return folder / f"{self.method}-seed{self.seed}.json"


@dataclass(frozen=True)
class Finished:
    """What a cell leaves behind.

    Attributes:
        rows, switching, figures: as in `MethodRun`; metrics: records of ``metrics.jsonl``.
        scores: one per row; pool: digest of the pairs that they refer to.
        seconds: wall clock of training and measuring.
    """

    rows: list[dict[str, Any]]
    switching: list[dict[str, Any]]
    figures: dict[str, Any]
    metrics: list[dict[str, Any]]
    scores: list[PairScores]
    pool: str
    seconds: float


def start_worker(threads: int, parent: int) -> None:
    """Called once in each worker process: Ctrl-C is the parent's business, and a lost parent ends the work."""
    global _parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_threads(threads)
    _parent = parent


def limit_threads(threads: int) -> None:
    """For torch, and for the BLAS under NumPy and scikit-learn, which would otherwise take every core in every cell."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def run_cell(config_json: str, cell: Cell, folder: Path) -> float | None:
    """Runs one cell and writes its files; returns the default accuracy on unseen users (else on seen ones).

    Args:
        config_json: the configuration; its seed and method are replaced by the cell's.
        folder: the run's ``cells/``.
    """
    prepared = _prepared(config_json, cell.seed)
    config = prepared.config
    config = config.model_copy(update={"method": config.method.model_copy(update={"name": cell.method})})
    metrics: list[dict[str, Any]] = []
    began = time.perf_counter()

    def on_round(report: RoundReport, _: TrainingState, values: Mapping[str, Any] | None) -> None:
        metrics.append(round_record(config, report, values))
        if stop.is_set() or (_parent is not None and os.getppid() != _parent):
            raise Interrupted(signal.SIGINT, "go on with --resume")

    measured = run_method(prepared, cell.method, on_round=on_round)
    _write(cell.file(folder), measured, metrics, _digest(prepared.data.pairs), time.perf_counter() - began)
    size = config.federation.context_pairs
    shown = {
        r["population"]: r["accuracy"] for r in measured.rows if r["default"] and r["context_size"] in (size, None)
    }
    return shown.get("unseen", shown.get("seen"))


@lru_cache(maxsize=1)
def _prepared(config_json: str, seed: int) -> Prepared:
    """Cells of one seed that follow each other share their data."""
    config = parse_config(json.loads(config_json)).model_copy(update={"seed": seed})
    return load(config)[0]


@lru_cache(maxsize=1)
def _digest(pairs: tuple[Pair, ...]) -> str:
    return hashlib.sha256(" ".join(p.key for p in pairs).encode()).hexdigest()


def _write(path: Path, measured: MethodRun, metrics: list[dict[str, Any]], pool: str, seconds: float) -> None:
    used = np.any([s.weight > 0 for s in measured.scores], axis=0)
    arrays = {
        "pairs": np.flatnonzero(used).astype(np.int64),
        "weight": np.stack([s.weight[used] for s in measured.scores]),
        "correct": np.stack([s.correct[used] for s in measured.scores]),
    }
    blob = save_arrays(arrays)
    write_bytes(path.with_suffix(".safetensors"), blob)
    tree = {
        "sha256": hashlib.sha256(blob).hexdigest(),
        "pool": pool,
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
        scores = [
            PairScores(_spread(arrays["pairs"], w, size), _spread(arrays["pairs"], c, size))
            for w, c in zip(arrays["weight"], arrays["correct"], strict=True)
        ]
        kept = {k: tree[k] for k in ("rows", "switching", "figures", "metrics", "pool", "seconds")}
        return Finished(scores=scores, **kept)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def _spread(pairs: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    full = np.zeros(size)
    full[pairs] = values
    return full


def config_json(config: ExperimentConfig) -> str:
    """The configuration as text, which a worker process can be sent."""
    return config.model_dump_json()
