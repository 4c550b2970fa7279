"""Run folders: what they hold, who may write into one, and how results come together.

``config.yaml``, ``fingerprint.json`` (what data and features are known by), ``results.json``, ``metrics.jsonl`` and
``report.html``; from `train` also ``model.safetensors``, ``model.json``, ``checkpoints/`` and ``tensorboard/``, from
`compare` also ``cells/``.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

import fedvpa
from fedvpa.apps import fingerprints
from fedvpa.config import ExperimentConfig, absolute_paths, parse_config
from fedvpa.errors import UserError
from fedvpa.evaluation.compare import PairScores, summarise
from fedvpa.evaluation.result_files import read_results, write_results, write_text
from fedvpa.federation.privacy import delta
from fedvpa.preferences.schema import FederatedPreferences
from fedvpa.reporting.html import write_report

CONFIG, RESULTS, METRICS, REPORT = "config.yaml", "results.json", "metrics.jsonl", "report.html"
CHECKPOINTS, CELLS, EVENTS, FAILURES = "checkpoints", "cells", "tensorboard", "failures.log"
LOCK = ".lock"
# Results go first, so that a removal that is cut short leaves no run that looks finished; the configuration, by which
# a run is known, goes last.
_OWNED = (RESULTS, REPORT, METRICS, "model.safetensors", "model.json", CHECKPOINTS, CELLS, EVENTS, FAILURES)
_KNOWN_BY = (fingerprints.FILE, CONFIG)

Mode = Literal["new", "overwrite", "resume"]
Kind = Literal["train", "compare"]


@dataclass(frozen=True)
class RunFolder:
    """A folder that a run may write into.

    Attributes:
        path: the folder; it need not exist yet.
        mode: ``new`` (nothing there), ``overwrite`` (what is there goes) or ``resume`` (the run there goes on).
        finished: whether the run to be resumed has ended.
    """

    path: Path
    mode: Mode
    finished: bool = False


def check_folder(
    path: Path, config: ExperimentConfig, kind: Kind, overwrite: bool = False, resume: bool = False
) -> RunFolder:
    """Decides what may be done with a folder; touches nothing.

    Raises:
        UserError: the folder is not empty and neither option is given, it holds something else than a run, there is no
            run to resume, or the run there has another configuration (the first key that differs is named).
    """
    if overwrite and resume:
        raise UserError("--overwrite and --resume exclude each other", "choose one")
    if path.exists() and not path.is_dir():
        raise UserError("is a file", "name a folder with --out", file=path)
    if not path.exists() and resume:
        raise UserError("no run to resume", "check --out, or leave --resume away", file=path)
    if not path.exists() or not any(p.name != LOCK for p in path.iterdir()):
        return RunFolder(path, "new")
    if not (overwrite or resume):
        raise UserError("the folder is not empty", "choose another --out, or give --overwrite or --resume", file=path)
    if not (path / CONFIG).is_file():
        raise UserError(f"holds files but no run (no {CONFIG})", "choose another --out", file=path)
    if overwrite:
        return RunFolder(path, "overwrite")
    if (path / CELLS).exists() != (kind == "compare"):
        other = "compare" if kind == "train" else "train"
        raise UserError(f"this run was made by `fedvpa {other}`", "choose another --out", file=path)
    _same_configuration(path, config)
    return RunFolder(path, "resume", (path / RESULTS).is_file() and (path / REPORT).is_file())


def read_config(run: Path) -> ExperimentConfig:
    """The resolved configuration of a run.

    Raises:
        UserError: no run there, or an unreadable configuration.
    """
    path = run / CONFIG
    if not path.is_file():
        problem = f"not a run (no {CONFIG})" if run.is_dir() else "no such run"
        raise UserError(problem, "give the folder of a run", file=run)
    try:
        return parse_config(yaml.safe_load(path.read_text(encoding="utf-8")), file=path)
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError("not valid YAML", "restore it, or run again", file=path) from None


def _same_configuration(path: Path, config: ExperimentConfig) -> None:
    there, here = absolute_paths(read_config(path)), absolute_paths(config)
    old, new = (flat(c.model_dump(mode="json", exclude={"output", "network"})) for c in (there, here))
    for key, value in new.items():
        if old[key] != value:
            problem = f"the run there has {old[key]!r}, this configuration {value!r}"
            raise UserError(
                problem,
                "go on with the same configuration, choose another folder, or use --overwrite",
                file=path,
                field=key,
            )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@contextlib.contextmanager
def opened(
    run: RunFolder, config: ExperimentConfig, kind: Kind, fingerprint: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """The folder, made (or emptied) and with its ``config.yaml``, held against other processes.

    Only what a run writes is removed by ``overwrite``. Call it when the data are known to be good.

    Args:
        fingerprint: what the run's data and features are known by, see `fingerprints`.

    Raises:
        UserError: another process is writing there, the folder cannot be written, or the run there was begun with
            other data or features.
    """
    with locked(run.path):
        if run.mode == "resume" and fingerprint is not None:
            fingerprints.check_run(run.path, fingerprint)
        if run.mode == "overwrite":
            for name in (*_OWNED, *_KNOWN_BY):
                _remove(run.path / name)
        if kind == "compare":
            (run.path / CELLS).mkdir(exist_ok=True)
        if run.mode != "resume":
            if fingerprint is not None:
                fingerprints.write(run.path, fingerprint)
            write_text(run.path / CONFIG, config.to_yaml())
        yield run.path


def check_known(run: RunFolder, fingerprint: Mapping[str, str]) -> None:
    """Refuses a run that was begun with other data or features, before they are encoded.

    Raises:
        UserError: as `fingerprints.check_run`; or another process is writing there.
    """
    with contextlib.nullcontext() if run.finished else locked(run.path):
        fingerprints.check_run(run.path, fingerprint)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Makes a folder and holds it against other processes.

    Raises:
        UserError: another process is writing there, or the folder cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK).open("w")
    except OSError as e:
        raise UserError(f"cannot be written ({e.strerror})", "choose another --out", file=path) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError("another process is writing here", "wait for it, or end it", file=path) from None
        try:
            yield
        finally:
            (path / LOCK).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def finish(
    folder: Path, results: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], config: ExperimentConfig
) -> dict[str, Any]:
    """Writes ``results.json``, then ``report.html``; returns the results as read back."""
    write_results(folder / RESULTS, results)
    checked = read_results(folder / RESULTS)
    write_report(folder, checked, metrics, config.to_yaml())
    return checked


def combine(
    config: ExperimentConfig,
    data: FederatedPreferences,
    notes: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    scores: Sequence[PairScores | None],
    switching: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of ``results.json`` from measured rows.

    Args:
        notes: sentences about the encoding, added to the data's.
        scores: one per row; figures: per method, of its first seed.
    """
    summary = summarise(rows, scores, resamples=config.evaluation.bootstrap, seed=config.seed)
    return {
        "rows": rows,
        "summary": summary,
        "diagnostics": figures,
        "switching": switching,
        "notes": [*data.notes, *notes, *average_notes(rows), *privacy_notes(config, rows)],
        "data": describe(data),
        "environment": environment(),
    }


def average_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a method with a latent leaves people's answers unused, because validation people are better off so."""
    used: dict[str, dict[int, bool]] = {}
    for row in rows:
        if row["default"] and row["context_size"]:
            sizes = used.setdefault(row["method"], {})
            sizes[row["context_size"]] = sizes.get(row["context_size"], False) or row["inference"] != "none"
    unused = {m: [str(n) for n, some in sizes.items() if not some] for m, sizes in used.items()}
    return [
        f"{m} predicts what people prefer on average after {', '.join(sizes)} answers: validation people's own answers "
        "made its predictions worse. More training people, or more answers of each, may change that."
        for m, sizes in unused.items()
        if sizes
    ]


def privacy_notes(config: ExperimentConfig, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What epsilon each method with privacy reached, in a sentence; empty where privacy is off."""
    if not config.privacy.on:
        return []
    reached = {r["method"]: r["epsilon"] for r in rows if r["bytes_up"] is not None}
    texts = [f"{m} {'without bound' if e is None or e == float('inf') else f'{e:.3g}'}" for m, e in reached.items()]
    shown = f"Client-level epsilon at delta {delta(config.privacy, config.federation.clients):.2g}: {', '.join(texts)}."
    return [shown] if texts else []


def describe(data: FederatedPreferences) -> dict[str, Any]:
    """Counts of the data: read, dropped and why, pairs, clients."""
    clients = {f"{population} users": len(clients) for population, clients in data.clients.items()}
    splits = {f"{s} pairs": data.split.count(s) for s in ("train", "validation", "test")}
    return {**data.counts, **splits, **clients, "groups": list(data.groups)}


def environment() -> dict[str, Any]:
    """Versions, device, threads and (in a checkout) the commit."""
    return {
        "fedvpa": fedvpa.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@lru_cache(maxsize=1)
def _commit() -> str | None:
    """The checkout's commit, with ``+`` if tracked files were changed; None outside a checkout.

    It is what it was when a process first asked: a process goes on with the code that it has loaded.
    """
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
