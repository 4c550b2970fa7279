"""A selector's two files, ``model.safetensors`` and ``model.json``: what they hold, and how they are read.

Places in ``model.json`` (of the backbone, the data, the cache) are relative to its folder, so that it tells nothing of
the machine and goes on working when both are moved together.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from fedvpa.config import ExperimentConfig, load_config
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import write_bytes
from fedvpa.federation.moments import Standardizer
from fedvpa.methods.base import ServerState
from fedvpa.preferences.schema import NO_RATINGS

FORMAT = 2
WEIGHTS, INFO = "model.safetensors", "model.json"
_STATE = ("centroids", "spread", "shares")
REMEDY = "give the folder of a finished run of `fedvpa train`"


class SelectorInfo(BaseModel):
    """``model.json``: all of a selector but its tensors.

    Attributes:
        format: version of the two files; version: of the package that wrote them.
        method: what trained it; config: the whole configuration of the run.
        features: D; clusters: M; groups: names of the true groups, where the data has them.
        backbone: identity of the features (`TextEncoder.identity`); others would be meaningless to this selector.
        default_inference: per context size the inference that validation users chose.
        rating_scale: mean and standard deviation of the training people's ratings; (0, 1) where nobody rated.
        fingerprint: what the training's data (where the trainer had any) and features are known by.
        reward_scale: mean and standard deviation of the training pairs' bounded rewards; None: not known.
        model_hash: sha256 of ``model.safetensors``; a user belongs to one model.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: int
    version: str
    method: str
    config: ExperimentConfig
    features: int
    clusters: int
    groups: tuple[str, ...]
    backbone: dict[str, Any]
    default_inference: dict[int, str]
    rating_scale: tuple[float, float] = NO_RATINGS
    fingerprint: dict[str, str]
    reward_scale: tuple[float, float] | None = None
    model_hash: str = ""


@dataclass(frozen=True)
class Parameters:
    """A selector's tensors: theta, what the server knows of the clusters, and the standardiser. No user's posterior."""

    theta: Mapping[str, Tensor] = field(repr=False)
    centroids: Tensor = field(repr=False)
    spread: Tensor = field(repr=False)
    shares: Tensor = field(repr=False)
    standardizer: Standardizer = field(repr=False)

    @staticmethod
    def of(server: ServerState, standardizer: Standardizer) -> Parameters:
        return Parameters(server.theta, server.centroids, server.spread, server.shares, standardizer)

    def to_bytes(self) -> bytes:
        """In safetensors' format."""
        named = {f"theta.{k}": v for k, v in self.theta.items()}
        named |= {f"clusters.{k}": getattr(self, k) for k in _STATE}
        named |= {"standardizer.mean": self.standardizer.mean, "standardizer.scale": self.standardizer.scale}
        return safetensors.torch.save({k: v.detach().cpu().contiguous().clone() for k, v in named.items()})

    @staticmethod
    def from_bytes(blob: bytes) -> Parameters:
        named = safetensors.torch.load(blob)
        theta = {k.removeprefix("theta."): v for k, v in named.items() if k.startswith("theta.")}
        standardizer = Standardizer(named["standardizer.mean"], named["standardizer.scale"])
        centroids, spread, shares = (named[f"clusters.{k}"] for k in _STATE)
        return Parameters(theta, centroids, spread, shares, standardizer)


def write_files(folder: Path, parameters: Parameters, info: SelectorInfo) -> None:
    """Writes a selector's files into a folder that is there."""
    write_bytes(folder / WEIGHTS, parameters.to_bytes())
    placed = with_places(info, lambda place: _relative(place, folder))
    write_bytes(folder / INFO, (placed.model_dump_json(indent=2) + "\n").encode())


def read_files(folder: Path) -> tuple[Parameters, SelectorInfo]:
    """Reads a selector's files.

    Raises:
        UserError: nothing there, damaged files, or files of another format.
    """
    if not folder.is_dir():
        raise UserError("no such run", REMEDY, file=folder)
    path = folder / INFO
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise UserError("no trained selector here", REMEDY, file=folder)
    try:
        info = SelectorInfo.model_validate_json(path.read_bytes())
    except ValidationError as e:
        first = e.errors()[0]
        name = ".".join(str(p) for p in first["loc"]) or None
        raise UserError(f"not a selector's description ({first['msg']})", REMEDY, file=path, field=name) from None
    if info.format != FORMAT:
        raise UserError(f"format {info.format}, this version reads {FORMAT}", "train again", file=path)
    blob = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(blob).hexdigest() != info.model_hash:
        raise UserError("damaged, its sha256 is not model_hash", "train again", file=folder / WEIGHTS)
    try:
        parameters = Parameters.from_bytes(blob)
    except (SafetensorError, KeyError):
        raise UserError("does not hold a selector", "train again", file=folder / WEIGHTS) from None
    return parameters, _found(with_places(info, lambda place: _absolute(place, folder)), folder)


def with_places(info: SelectorInfo, change: Callable[[str], str]) -> SelectorInfo:
    """A description with the places in its configuration changed; `change` also gets names, such as a Hub id."""
    config = info.config
    data = {k: change(v) for k in ("path", "items") if (v := getattr(config.data, k)) is not None}
    models = tuple(change(name) for name in config.backbone.models)
    model = models if isinstance(config.backbone.model, tuple) else models[0]
    cache = None if config.output.cache is None else change(config.output.cache)
    placed = config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "backbone": config.backbone.model_copy(update={"model": model}),
            "output": config.output.model_copy(update={"cache": cache}),
        }
    )
    return info.model_copy(update={"config": placed})


def only_name(place: str) -> str:
    """A place as somebody elsewhere may see it: its last part."""
    return f"./{Path(place).name}" if _is_place(place) else place


def is_hub_name(name: str) -> bool:
    """Whether a name can only be one on the Hub: OWNER/NAME, where no folder OWNER is here. ``runs/NAME`` is a run."""
    owner = name.partition("/")[0]
    if name.count("/") != 1 or "\\" in name or name.startswith((".", "~", "/")) or name.endswith("/"):
        return False
    return owner != "runs" and not Path(owner).exists()


def _found(info: SelectorInfo, folder: Path) -> SelectorInfo:
    """The description of a run that was moved: places that are not there any more are taken from its configuration."""
    config, written = info.config, folder / "config.yaml"
    missing = [name for name in config.backbone.models if _is_place(name) and not Path(name).exists()]
    if not missing or not written.is_file():
        return info
    own = load_config(written)
    update = {k: getattr(own, k) for k in ("backbone", "data", "output")}
    return info.model_copy(update={"config": config.model_copy(update=update)})


def _is_place(value: str) -> bool:
    return value.startswith(("/", "~", ".")) or Path(value).exists()


def _relative(place: str, folder: Path) -> str:
    if not _is_place(place):
        return place
    found = os.path.relpath(Path(place).expanduser().absolute(), folder.absolute())
    return found if found.startswith(".") else f"./{found}"


def _absolute(place: str, folder: Path) -> str:
    beside = os.path.normpath(folder.absolute() / place)
    return beside if place.startswith(".") and (os.path.exists(beside) or not Path(place).exists()) else place
