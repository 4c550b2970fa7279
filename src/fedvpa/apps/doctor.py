"""`fedvpa doctor`: what is installed, found and missing, each with the remedy."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants
from packaging.requirements import Requirement

import fedvpa
from fedvpa.backbone.models import EMBEDDED, EMBEDDED_ENCODER, cache_dir, embedded_wheel, encoder_wheel
from fedvpa.config import parse_config
from fedvpa.errors import UserError
from fedvpa.preferences.hh_files import HUB_ID, find_source

TIMEOUT = 2.0
"""Seconds that the Hub has to answer."""

ENOUGH_GB = 5.0


class Finding(NamedTuple):
    """One line: ``missing`` is needed by the embedded default, ``note`` only by some uses."""

    name: str
    state: Literal["ok", "note", "missing"]
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Everything that `fedvpa doctor` prints. Changes nothing, and downloads nothing."""
    cache = cache_dir(parse_config({}))
    return [
        *_versions(),
        _device(),
        _embedded(cache),
        _encoder(),
        _cache(cache),
        _disk(cache),
        _hh_rlhf(),
        _hub(),
        *_extras(),
    ]


def _versions() -> Iterator[Finding]:
    yield Finding("fedvpa", "ok", f"{fedvpa.__version__}, Python {platform.python_version()}")
    found = {
        name: importlib.metadata.version(name)
        for name in ("torch", "transformers", "sentence-transformers", "huggingface-hub")
    }
    yield Finding("libraries", "ok", ", ".join(f"{k} {v}" for k, v in found.items()))


def _device() -> Finding:
    cores = len(os.sched_getaffinity(0))
    threads = f"{cores} cores, {torch.get_num_threads()} torch threads"
    if torch.cuda.is_available():
        return Finding("device", "ok", f"{torch.cuda.get_device_name()}, {threads}")
    return Finding("device", "ok", f"CPU, {threads}", "a CUDA GPU is used where torch finds one")


def _embedded(cache: Path) -> Finding:
    try:
        embedded_wheel()
    except UserError as e:
        return Finding("embedded model", "missing", e.problem, e.remedy or "")
    converted = any((cache / "models").glob(f"{EMBEDDED}-*/config.json"))
    state = "converted" if converted else "not converted yet (20 s, at the first use)"
    return Finding("embedded model", "ok", f"{EMBEDDED}, {state}")


def _encoder() -> Finding:
    try:
        encoder_wheel()
    except UserError as e:
        return Finding("sentence encoder", "note", e.problem, e.remedy or "")
    return Finding("sentence encoder", "ok", EMBEDDED_ENCODER)


def _cache(cache: Path) -> Finding:
    if not cache.is_dir():
        return Finding("cache", "ok", f"{cache} (made at the first use)")
    size = sum(f.stat().st_size for f in cache.rglob("*") if f.is_file())
    if not os.access(cache, os.W_OK):
        return Finding("cache", "missing", f"{cache} cannot be written", "set $FEDVPA_CACHE to a folder that can")
    return Finding("cache", "ok", f"{cache}, {size / 1e9:.2f} GB", "safe to delete; set $FEDVPA_CACHE to move it")


def _disk(cache: Path) -> Finding:
    place = next(p for p in (cache.absolute(), *cache.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free / 1e9
    if free < ENOUGH_GB:
        return Finding("free disk", "note", f"{free:.1f} GB at {place}", "free some space, or set $FEDVPA_CACHE")
    return Finding("free disk", "ok", f"{free:.1f} GB at {place}")


def _hh_rlhf() -> Finding:
    remedy = f"set $FEDVPA_HH_RLHF or data.path to its folder, or let it come from the Hub ({HUB_ID})"
    try:
        source = find_source(None)
    except UserError as e:
        return Finding("HH-RLHF", "note", str(e), remedy)
    if isinstance(source, Path):
        return Finding("HH-RLHF", "ok", str(source))
    return Finding("HH-RLHF", "note", f"no folder; {source} on the Hub", remedy)


def _hub() -> Finding:
    host = urlsplit(constants.ENDPOINT).hostname or ""
    remedy = "only other models and data need it; check the network or $HF_ENDPOINT"
    if constants.HF_HUB_OFFLINE:
        return Finding("Hub", "note", "switched off by $HF_HUB_OFFLINE", "unset it")
    try:
        socket.create_connection((host, 443), timeout=TIMEOUT).close()
    except OSError as e:
        return Finding("Hub", "note", f"{host} is not reached ({e.strerror or e})", remedy)
    return Finding("Hub", "ok", f"{host} answers")


def _extras() -> Iterator[Finding]:
    """Each extra of the package, and what of it is not installed."""
    package = importlib.metadata.metadata("fedvpa")
    wanted = [Requirement(text) for text in importlib.metadata.requires("fedvpa") or ()]
    for extra in package.get_all("Provides-Extra") or ():
        own = [r for r in wanted if r.marker is not None and r.marker.evaluate({"extra": extra})]
        missing = [r.name for r in own if not _installed(r.name)]
        if missing:
            remedy = f"pip install {_source(extra)}"
            yield Finding(f"extra {extra}", "note", f"missing: {', '.join(missing)}", remedy)
        else:
            yield Finding(f"extra {extra}", "ok", "installed")


def _source(extra: str) -> str:
    """What pip installs for an extra: the checkout that this is installed from, else the package."""
    origin = importlib.metadata.distribution("fedvpa").read_text("direct_url.json")
    editable = origin is not None and json.loads(origin).get("dir_info", {}).get("editable", False)
    return f"-e '.[{extra}]'" if editable else f"'fedvpa[{extra}]'"


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
