"""What a client is sent: a round's task, with everything that it needs, so that a node may forget all but its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedvpa.federation.moments import Standardizer
from fedvpa.methods.base import Download, Judging, Method, ServerState
from fedvpa.methods.components import Own
from fedvpa.network.messages import PROTOCOL, Field, Refusal, Stamp, read_arrays, write_arrays

_TASK, _ARRAYS, _CLUSTERS = "task", "arrays", "clusters"
_PER_CLIENT = ("means", "variances", "counts")
"""The prior's components in a `Download`; they travel only while the prior is in use."""
_STANDARDIZER, _RATING_SCALE = "standardizer.", "rating_scale"


@dataclass(frozen=True)
class Task:
    """A round's work for the users of one node.

    Attributes:
        training: name of the training; private state of another one is not used.
        keep_from: private state from before this round is no longer needed: no restart goes back behind it.
        clients, clusters: N and M of the training.
        users: pseudonyms of the users that take part; ids: (users,) their positions among the training clients,
            ascending.
        download: what they receive; its labels (and rows of a compressed prior) are theirs alone.
        standardizer: how features are standardised; rating_scale: mean and deviation of ratings.
        features: what they are known by (`apps.fingerprints.shared_features`); empty: they are not compared.
    """

    training: str
    keep_from: int
    clients: int
    clusters: int
    users: tuple[str, ...]
    ids: Tensor
    download: Download
    standardizer: Standardizer
    rating_scale: tuple[float, float]
    features: str = ""

    @property
    def stamp(self) -> Stamp:
        """What an answer to this task carries."""
        return Stamp(self.training, self.download.round)


def write_task(task: Task) -> RecordDict:
    """The records of a task."""
    head: dict[str, Any] = {
        "protocol": PROTOCOL,
        "training": task.training,
        "keep_from": task.keep_from,
        "clients": task.clients,
        "clusters": task.clusters,
        "users": list(task.users),
        "ids": task.ids.tolist(),
        "features": task.features,
    }
    arrays: dict[str, Tensor] = {f"{_STANDARDIZER}{k}": v for k, v in task.standardizer._asdict().items()}
    arrays[_RATING_SCALE] = torch.tensor(task.rating_scale, dtype=torch.float64)
    for field in fields(Download):
        value = getattr(task.download, field.name)
        if isinstance(value, Own):
            if task.download.prior_active:
                arrays |= {f"{field.name}.{k}": v[task.ids] for k, v in value._asdict().items()}
        elif isinstance(value, Mapping):
            arrays |= {f"{field.name}.{k}": v for k, v in value.items()}
        elif not isinstance(value, Tensor):
            if value is not None:
                head[field.name] = value
        elif field.name == "labels":
            arrays[field.name] = value[task.ids]
        elif field.name not in _PER_CLIENT or task.download.prior_active:
            arrays[field.name] = value
    return RecordDict({_TASK: ConfigRecord(head), _ARRAYS: write_arrays(arrays)})


def read_task(content: RecordDict) -> Task:
    """The inverse of `write_task`.

    Raises:
        Refusal: not a task of this protocol, or arrays that do not fit it.
    """
    head, record = content.get(_TASK), content.get(_ARRAYS)
    if not isinstance(head, ConfigRecord) or not isinstance(record, ArrayRecord) or head.get("protocol") != PROTOCOL:
        raise Refusal("not a task of this protocol; use one version of fedvpa everywhere")
    try:
        arrays = _decode(record)
        return _task(head, arrays)
    except (KeyError, TypeError, IndexError, RuntimeError) as e:
        raise Refusal(f"the task is incomplete ({type(e).__name__})") from None


def write_evaluation(task: Task, server: ServerState) -> RecordDict:
    """A task with what a trained model's inference needs of the clusters."""
    content = write_task(task)
    content[_CLUSTERS] = write_arrays({"centroids": server.centroids, "spread": server.spread})
    return content


def read_clusters(content: RecordDict, download: Download) -> ServerState:
    """The server's state as far as inference needs it, from `write_evaluation`.

    Raises:
        Refusal: the clusters are missing, or of another shape than their shares.
    """
    record = content.get(_CLUSTERS)
    if not isinstance(record, ArrayRecord):
        raise Refusal("the clusters are missing")
    arrays = _decode(record)
    if not {"centroids", "spread"} <= set(arrays) or len(arrays["centroids"]) != len(download.shares):
        raise Refusal("the clusters do not fit their shares")
    none = download.labels.new_zeros(0)
    return ServerState(
        round=download.round,
        theta=dict(download.theta),
        means=none,
        variances=none,
        counts=none,
        labels=none,
        centroids=arrays["centroids"],
        spread=arrays["spread"],
        shares=download.shares,
        clustered=download.ortho_active,
    )


def inferences_of(method: Method) -> tuple[str, ...]:
    """Inferences that clients compare; refining a latent takes too long for a question in passing."""
    if isinstance(method, Judging):
        return ("mixture", "gaussian")
    return ("amortised", "mixture") if method.latent else ("none",)


def _decode(record: ArrayRecord) -> dict[str, Tensor]:
    """The arrays, of whatever shape: a client checks them against the model that its own configuration describes."""
    kinds = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64}
    declared = {k: Field(tuple(a.shape), kinds[a.dtype]) for k, a in record.items()}
    arrays = read_arrays(record, declared, None)
    for name, value in arrays.items():
        if not torch.isfinite(value).all():
            raise Refusal(f"{name} is not finite")
    return arrays


def _task(head: ConfigRecord, arrays: Mapping[str, Tensor]) -> Task:
    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    ids, clients = torch.tensor(head["ids"], dtype=torch.int64), int(str(head["clients"]))
    labels = torch.full((clients,), -1)
    labels[ids] = arrays["labels"]
    values: dict[str, Any] = {}
    for field in fields(Download):
        if field.name == "theta":
            values[field.name] = part("theta.")
        elif field.name == "own":
            rows = part("own.")
            values[field.name] = Own(**{k: _scattered(v, ids, clients) for k, v in rows.items()}) if rows else None
        elif field.name == "labels":
            values[field.name] = labels
        elif field.name in arrays:
            values[field.name] = arrays[field.name]
        elif field.name in _PER_CLIENT:
            values[field.name] = torch.zeros(clients, dtype=torch.int64)  # not used while the prior is not
        else:
            values[field.name] = head[field.name]
    users = head["users"]
    assert isinstance(users, list)
    return Task(
        str(head["training"]),
        int(str(head["keep_from"])),
        clients,
        int(str(head["clusters"])),
        tuple(str(u) for u in users),
        ids,
        Download(**values),
        Standardizer(arrays[f"{_STANDARDIZER}mean"], arrays[f"{_STANDARDIZER}scale"]),
        tuple(arrays[_RATING_SCALE].tolist()),
        str(head["features"]),
    )


def _scattered(rows: Tensor, ids: Tensor, clients: int) -> Tensor:
    """(clients, ...) with the rows of `ids` in place; nobody reads the others."""
    return rows.new_zeros(clients, *rows.shape[1:]).index_copy(0, ids, rows)


def check_task(task: Task, theta: Mapping[str, Tensor], features: int) -> None:
    """Whether a task fits the model that this client's configuration describes.

    Args:
        theta: parameters as the client's own method would initialise them; features: D.

    Raises:
        Refusal: it does not; the two ends have different configurations.
    """
    given = {k: (v.shape, v.dtype) for k, v in task.download.theta.items()}
    if given != {k: (v.shape, v.dtype) for k, v in theta.items()}:
        raise Refusal("the parameters are those of another model; give both ends one configuration")
    if task.standardizer.mean.shape != (features,) or task.standardizer.scale.shape != (features,):
        raise Refusal("the features have another dimension; give both ends one backbone")
    if len(task.rating_scale) != 2 or task.rating_scale[1] <= 0:
        raise Refusal("the scale of ratings is not a mean and a deviation")
    if len(task.users) != len(task.ids) or not bool((task.ids.diff() > 0).all()):
        raise Refusal("users and ids do not fit")
