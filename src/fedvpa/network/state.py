"""Private state of users, on the disk of the node that holds them: it survives restarts and never leaves.

One folder per user and in it one safetensors file per round that the user trained in. A server that was killed goes
back to its last checkpoint, so a client has to go back with it: it keeps the states since then.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open

from fedvpa.evaluation.result_files import write_bytes, write_text
from fedvpa.methods.base import Private
from fedvpa.preferences.seeding import derive_seed

_PATTERN = "round-[0-9]*.safetensors"
DATA = "data.json"
"""In a node's state folder: what its users' data are known by."""
SECRET = "secret"
"""In a node's state folder: random bytes that its noise derives from."""


class KnownData:
    """What the data of a node's users were known by when they first took part in a training.

    Args:
        folder: the node's ``state-dir``; training: name of the training. Another one begins anew.
    """

    def __init__(self, folder: str | Path, training: str) -> None:
        self.path, self.training = Path(folder) / DATA, training
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        self.users: dict[str, str] = dict(known["users"]) if known.get("training") == training else {}

    def changed(self, now: Mapping[str, str]) -> set[str]:
        """The users whose data are others than at first; those that are new are remembered.

        Args:
            now: per user the fingerprint of its data.
        """
        new = {user: found for user, found in now.items() if user not in self.users}
        if new:
            self.users |= new
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_text(self.path, json.dumps({"training": self.training, "users": self.users}) + "\n")
        return {user for user, found in now.items() if self.users[user] != found}


class PrivateStore:
    """Private rows per user of one training.

    Args:
        folder: the node's ``state-dir``.
        training: name of the training. State of another one is never used, and goes with the first that is saved.
    """

    def __init__(self, folder: str | Path, training: str) -> None:
        self.folder, self.training = Path(folder), training

    def load(self, user: str, round: int, like: Private) -> Private | None:
        """The state that the user had before `round`; None where there is none, or a damaged or foreign one.

        Args:
            like: (1, ...) per entry, as the method initialises it: what is read must have its names and shapes.
        """
        for path in reversed(self._files(user)):
            if _round(path) >= round:
                continue
            found = self._read(path)
            if found is not None and {k: (v.shape, v.dtype) for k, v in found.items()} == {
                k: (v.shape, v.dtype) for k, v in like.items()
            }:
                return found
        return None

    def save(self, user: str, round: int, rows: Private, keep_from: int) -> None:
        """Writes the state after `round`, atomically; removes what no restart can need.

        Args:
            rows: (1, ...) per entry. Nothing is written where a method has no private state.
            keep_from: the earliest round that a restarted server can begin with.
        """
        if not rows:
            return
        folder = self.folder / user
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True)
        named = {k: v.detach().cpu().contiguous().clone() for k, v in rows.items()}
        write_bytes(folder / f"round-{round:06d}.safetensors", safetensors.torch.save(named, self._head()))
        before = [p for p in self._files(user) if _round(p) < keep_from]
        for path in {*before[:-1], *(p for p in self._files(user) if not self._mine(p))}:
            path.unlink(missing_ok=True)

    def rewind(self, user: str, round: int) -> None:
        """Forgets what the user did in `round` and later: the server that began it was lost, and begins it again."""
        for path in self._files(user):
            if _round(path) >= round:
                path.unlink(missing_ok=True)

    def _head(self) -> dict[str, str]:
        return {"training": self.training}

    def _files(self, user: str) -> list[Path]:
        return sorted((self.folder / user).glob(_PATTERN))

    def _mine(self, path: Path) -> bool:
        try:
            with safe_open(path, framework="pt") as f:
                return bool((f.metadata() or {}) == self._head())
        except (OSError, SafetensorError):
            return False

    def _read(self, path: Path) -> Private | None:
        if not self._mine(path):
            return None
        try:
            return safetensors.torch.load_file(path)
        except (OSError, SafetensorError):
            return None


def is_state_folder(folder: Path) -> bool:
    """Whether a folder is a node's ``state-dir`` that holds somebody's state."""
    return (folder / DATA).is_file() or any(folder.glob(f"*/{_PATTERN}"))


def forget_user(folder: Path, user: str) -> list[Path]:
    """Deletes what a ``state-dir`` holds about a user (by pseudonym); returns where that was."""
    found, mine = [], folder / user
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((folder / DATA).read_text(encoding="utf-8"))
        if known["users"].pop(user, None) is not None:
            write_text(folder / DATA, json.dumps(known) + "\n")
            found.append(folder / DATA)
    if mine.is_dir():
        shutil.rmtree(mine)
        found.append(mine)
    return found


def node_secret(folder: str | Path, training: str) -> int:
    """What a node's own noise in a training derives from, with `privacy.secret_noise`.

    It is drawn once and kept: a round whose answer was lost is asked for again, and then has to be answered with the
    same noise, since two answers with different noise would tell more than is accounted for.
    """
    path = Path(folder) / SECRET
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.is_file():
        new = path.with_name(f"{SECRET}-{os.getpid()}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.write(secrets.token_hex(16))
        new.rename(path)
    return derive_seed(path.read_text(encoding="ascii"), training)


def _round(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))
