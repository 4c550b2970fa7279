"""Files of models: what identifies them, writing into the cache, and silence while a library reads them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import logging as transformers_logging

from fedvpa.errors import UserError


def content_hash(files: list[Path], cache: Path) -> str:
    """sha256 over the files' names and contents, remembered by (path, size, mtime): weights are large."""
    stats = [(str(f.resolve()), (s := f.stat()).st_size, s.st_mtime_ns) for f in files]
    key = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    memo = cache / "models" / "fingerprints.json"
    try:
        known = json.loads(memo.read_text())
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    if not isinstance(known.get(key), str):
        whole = hashlib.sha256()
        for f in files:
            with f.open("rb") as stream:
                whole.update(f"{f.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
        known[key] = whole.hexdigest()
        with writable(cache):
            write_whole(memo, json.dumps(known))
    return known[key]


def write_whole(file: Path, text: str) -> None:
    """Writes a file at once: other processes see the old one, or all of the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".new-", delete=False) as new:
        new.write(text)
    os.replace(new.name, file)


@contextlib.contextmanager
def writable(cache: Path) -> Iterator[None]:
    """Turns a failure to write into the cache (full, read-only, not a folder) into a `UserError`."""
    try:
        yield
    except OSError as e:
        remedy = "free some space, or set output.cache (or $FEDVPA_CACHE) to a folder that can be written"
        raise UserError(f"the cache cannot be written ({e.strerror or first_line(e)})", remedy, file=cache) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' own bars and warnings off the terminal."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def first_line(e: BaseException) -> str:
    lines = str(e).strip().splitlines()
    return lines[0][:200] if lines else type(e).__name__
