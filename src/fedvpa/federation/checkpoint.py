"""Checkpoints of a training: folders ``round-000025`` with safetensors and JSON, each whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fedvpa.errors import UserError
from fedvpa.federation.rounds import TrainingState
from fedvpa.methods.base import ServerState

KEPT = 2
"""How many checkpoints stay on disk: if the newest is damaged, there is one before it."""

_FORMAT = 2
_TENSORS, _VALUES = "state.safetensors", "state.json"


def save(folder: str | Path, training: TrainingState, extra: Mapping[str, Any]) -> Path:
    """Writes ``folder/round-NNNNNN``, then removes all but the newest `KEPT` checkpoints.

    The files are written and flushed to disk under a temporary name, then the folder is renamed.

    Args:
        folder: the run's ``checkpoints/``; created if need be.
        training: the state after a round.
        extra: plain values that come back with it.

    Raises:
        OSError: the folder cannot be written, or the disk is full; earlier checkpoints are as they were.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, values = _flatten(training)
    blob = safetensors.torch.save(tensors)
    head = {"format": _FORMAT, "sha256": hashlib.sha256(blob).hexdigest(), "state": values, "extra": dict(extra)}
    target = folder / f"round-{training.server.round:06d}"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
        new = Path(temporary) / target.name
        new.mkdir()
        _write(new / _TENSORS, blob)
        _write(new / _VALUES, json.dumps(head).encode())
        if target.exists():  # a damaged one that was passed over
            target.rename(Path(temporary) / "old")
        new.rename(target)
    _sync(folder)
    for old in checkpoints(folder)[KEPT:]:
        shutil.rmtree(old)
    return target


def load(
    folder: str | Path, warn: Callable[[str], None] = lambda _: None
) -> tuple[TrainingState, dict[str, Any]] | None:
    """The newest checkpoint that is whole, on the CPU, with its ``extra``; None where there is none.

    Args:
        folder: the run's ``checkpoints/``.
        warn: told about each damaged checkpoint that was passed over.

    Raises:
        UserError: a checkpoint of another version's format.
    """
    for path in checkpoints(folder):
        found = _read(path)
        if not isinstance(found, str):
            return found
        warn(f"{path}: the checkpoint is damaged ({found}); going back to the one before")
    return None


def rewrite(path: Path, change: Callable[[TrainingState], TrainingState]) -> bool:
    """Replaces one checkpoint by what `change` makes of it, whole or not at all; False where it is damaged."""
    found = _read(path)
    if isinstance(found, str):
        return False
    save(path.parent, change(found[0]), found[1])
    return True


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    return sorted(Path(folder).glob("round-[0-9]*"), reverse=True)


def _read(path: Path) -> tuple[TrainingState, dict[str, Any]] | str:
    """The checkpoint's state and extra, or why it cannot be used."""
    try:
        blob, text = (path / _TENSORS).read_bytes(), (path / _VALUES).read_bytes()
        head = json.loads(text)
        if not isinstance(head, dict) or not isinstance(head.get("format"), int):
            return "unknown format"
        if head["format"] != _FORMAT:
            problem = f"format {head['format']}, this version reads {_FORMAT}"
            remedy = "go on with the version of fedvpa that wrote it, or begin again with --overwrite"
            raise UserError(problem, remedy, file=path)
        if head["sha256"] != hashlib.sha256(blob).hexdigest():
            return "its checksum differs"
        return _restore(safetensors.torch.load(blob), head["state"]), head["extra"]
    except OSError as e:
        return str(e.strerror)
    except (ValueError, KeyError, TypeError, SafetensorError):
        return "not readable"


def _flatten(training: TrainingState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors under dotted names, and everything else as plain values.

    A mapping of tensors leaves the list of its names among the values, so that an empty one comes back too.
    """
    parts = {"server": vars(training.server), "optimizer": {"moments": training.optimizer}}
    parts["private"], parts["faults"] = {"rows": training.private}, {"counts": training.faults}
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for part, fields in parts.items():
        for name, value in fields.items():
            key = f"{part}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = _plain(value)
            elif isinstance(value, Mapping):
                tensors |= {f"{key}/{k}": _plain(v) for k, v in value.items()}
                values[key] = list(value)
            else:
                values[key] = value
    return tensors, values


def _restore(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> TrainingState:
    merged: dict[str, Any] = {k: v for k, v in tensors.items() if "/" not in k}
    for key, value in values.items():
        merged[key] = {name: tensors[f"{key}/{name}"] for name in value} if isinstance(value, list) else value
    server = {k.removeprefix("server."): v for k, v in merged.items() if k.startswith("server.")}
    faults = merged.get("faults.counts", {})  # a checkpoint of an earlier version counts none
    return TrainingState(ServerState(**server), merged["optimizer.moments"], merged["private.rows"], faults)


def _plain(t: Tensor) -> Tensor:
    """A copy of its own on the CPU: safetensors refuses tensors that share memory."""
    return t.detach().cpu().contiguous().clone()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _sync(folder: Path) -> None:
    """Flushes the folder's entries (the rename) to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
