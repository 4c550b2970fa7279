"""What may leave a client over a network, checked before it sends and again where it arrives.

Fields and bounds of an upload are those of every engine (`federation.declared`); here are the messages around them.

A reply holds one row per user of the node, so a silo of many users answers at once. It may hold nothing but

* ``enroll`` (round 0): a pseudonym per user, the number of training pairs, and the moments of features and ratings;
* ``train``: trained parameters, posterior mean and variance, number of examples, a fixed set of scalar metrics;
* ``evaluate``: the share of the user's own held-out pairs that each inference predicts, and their number. With privacy
  on there is no such message, every number of pairs or examples is 1, and there are no metrics.

Prior weights (log pi), pairs, labels and texts are in none of them. A message of another form is refused as a whole;
a user's row that breaks a bound is left out by itself, so that one bad row does not cost a silo its round. Every reply
names the training and the round that it was computed for, and counts for no other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedvpa.config import ExperimentConfig
from fedvpa.federation.declared import Field, Fields
from fedvpa.federation.moments import Moments
from fedvpa.methods.base import Upload

PROTOCOL = 3
ENROLL, TRAIN, EVALUATE = "query.enroll", "train", "evaluate"
MAX_FEATURES = 2**16
MAX_FEATURE = 1e6
"""Largest absolute value of a feature, or of a rating, that a client's moments may speak of."""

_REPLY, _ARRAYS = "reply", "arrays"
_PSEUDONYM = re.compile("[0-9a-f]{8,64}")
_HEADER = 512
"""Bytes that NumPy's file header may add to an array's own."""


class Refusal(Exception):
    """A message that is not of the declared form. The text names a field and a rule, never a value of a user's."""


class Stamp(NamedTuple):
    """What a reply answers: a training, by name, and its round."""

    training: str
    round: int


class Reply(NamedTuple):
    """What a node sends back.

    Attributes:
        users: pseudonyms of the rows; arrays: (users, ...) each; refused: per user why nothing is sent.
    """

    users: tuple[str, ...]
    arrays: dict[str, Tensor]
    refused: dict[str, str]


def enroll_fields(features: int, config: ExperimentConfig) -> dict[str, Field]:
    """Round 0 of clients whose features have `features` dimensions; see `federation.privacy.moments_of`.

    With privacy on nothing is said of ratings.
    """
    pairs, clip = config.defence.max_pairs, config.privacy.moments_clip
    counted = Field((), torch.int64, 1, 1 if config.privacy.on else pairs)
    rated = 0.0 if config.privacy.on else 2.0 * pairs
    ratings = {
        "moments.ratings": Field((), torch.float64, 0, rated),
        "moments.rating_total": Field((), torch.float64, -rated * MAX_FEATURE, rated * MAX_FEATURE),
        "moments.rating_squares": Field((), torch.float64, 0, rated * MAX_FEATURE**2),
    }
    if clip is not None:
        norm = clip * (1 + 1e-6)  # rounding
        return {
            "pairs": counted,
            "moments.count": Field((), torch.float64, 1, 1),
            "moments.total": Field((features,), torch.float64, norm=norm),
            "moments.squares": Field((features,), torch.float64, 0, norm=norm**2),
            **ratings,
        }
    most = pairs * 2 * MAX_FEATURE
    return {
        "pairs": counted,
        "moments.count": Field((), torch.float64, 1, 2 * pairs),
        "moments.total": Field((features,), torch.float64, -most, most),
        "moments.squares": Field((features,), torch.float64, 0, most * MAX_FEATURE),
        **ratings,
    }


def evaluate_fields(inferences: Sequence[str], config: ExperimentConfig) -> dict[str, Field]:
    """The accuracy of each inference on a user's held-out pairs, and how many these are."""
    return {
        "accuracy": Field((len(inferences),), torch.float64, 0, 1),
        "pairs": Field((), torch.int64, 1, config.defence.max_pairs),
    }


def as_upload(arrays: Mapping[str, Tensor], ids: Tensor) -> Upload:
    """The inverse of `declared.upload_arrays`; ids: (users,) positions among the training clients."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    means, variances, counts = (arrays[k] for k in ("means", "variances", "counts"))
    return Upload(ids, part("theta."), means, variances, counts, part("metrics."), sums=part("sums."))


def moments_arrays(moments: Sequence[Moments]) -> dict[str, Tensor]:
    """One row per user of each sum."""
    return {f"moments.{name}": torch.stack([getattr(m, name) for m in moments]) for name in Moments._fields}


def as_moments(arrays: Mapping[str, Tensor]) -> list[Moments]:
    """The inverse of `moments_arrays`."""
    return [Moments(*row) for row in zip(*(arrays[f"moments.{name}"] for name in Moments._fields), strict=True)]


def write_reply(reply: Reply, fields: Fields, bad: Mapping[int, str], stamp: Stamp) -> RecordDict:
    """The records of a reply, without the rows `bad`; what is not declared is not sent.

    Raises:
        Refusal: the arrays are not those that are declared.
    """
    _same_names(reply.arrays, fields)
    for name, value in reply.arrays.items():
        _same_kind(name, tuple(value.shape), value.dtype, fields[name], len(reply.users))
    keep = [i for i in range(len(reply.users)) if i not in bad]
    refused = reply.refused | {reply.users[i]: why for i, why in bad.items()}
    arrays = write_arrays({k: v[keep] for k, v in reply.arrays.items()})
    head: dict[str, int | str | list[str]] = {"protocol": PROTOCOL, **stamp._asdict()}
    head |= {
        "users": [reply.users[i] for i in keep],
        "refused": list(refused),
        "reasons": [w[:200] for w in refused.values()],
    }
    return RecordDict({_REPLY: ConfigRecord(head), _ARRAYS: arrays})


def read_reply(content: RecordDict, fields: Fields, asked: Sequence[str] | None, stamp: Stamp) -> Reply:
    """A reply whose form is the declared one; its values are still to be checked (`problems`).

    Args:
        asked: the users that may answer; None: any, under pseudonyms.
        stamp: what was asked for.

    Raises:
        Refusal: an answer to something else, or records, names, shapes, dtypes, sizes or users that are not as
            declared.
    """
    head, arrays = _reply_records(content)
    if head["training"] != stamp.training:
        raise Refusal("computed for another training")
    if head["round"] != stamp.round:
        raise Refusal(f"computed for another round than {stamp.round + 1}")
    users, refused, reasons = (_texts(head, key) for key in ("users", "refused", "reasons"))
    if len(refused) != len(reasons) or len({*users, *refused}) != len(users) + len(refused):
        raise Refusal("users are named twice, or reasons do not fit")
    if asked is None and not all(_PSEUDONYM.fullmatch(user) for user in (*users, *refused)):
        raise Refusal("users under names that are no pseudonyms")
    if asked is not None and not {*users, *refused} <= set(asked):
        raise Refusal("users who were not asked")
    return Reply(users, read_arrays(arrays, fields, len(users)), dict(zip(refused, reasons, strict=True)))


def reply_features(content: RecordDict) -> int:
    """The number of feature dimensions that an enrolling node's moments have."""
    total = _reply_records(content)[1].get("moments.total")
    if total is None or len(total.shape) != 2 or not 1 <= total.shape[1] <= MAX_FEATURES:
        raise Refusal("moments.total has another shape")
    return int(total.shape[1])


def write_arrays(named: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as Flower's arrays, in NumPy's format."""
    return ArrayRecord({k: Array(v.detach().cpu().contiguous().numpy()) for k, v in named.items()})


def read_arrays(record: ArrayRecord, fields: Fields, rows: int | None) -> dict[str, Tensor]:
    """Checked tensors. Sizes are checked before anything is decoded, so a message cannot claim more than it may.

    Args:
        rows: the leading dimension of all; None: there is none.
    """
    _same_names(record, fields)
    found = {}
    for name, array in record.items():
        field = fields[name]
        dtype = _torch_dtype(array.dtype)
        _same_kind(name, tuple(array.shape), dtype, field, rows)
        size = math.prod(array.shape) * field.dtype.itemsize
        if array.stype != "numpy.ndarray" or not size <= len(array.data) <= size + _HEADER:
            raise Refusal(f"{name} has another size")
        try:
            value = torch.from_numpy(array.numpy().copy())
        except (ValueError, TypeError, EOFError, OSError):
            raise Refusal(f"{name} cannot be decoded") from None
        _same_kind(name, tuple(value.shape), value.dtype, field, rows)
        found[name] = value
    return found


def _reply_records(content: RecordDict) -> tuple[ConfigRecord, ArrayRecord]:
    if set(content) != {_REPLY, _ARRAYS}:
        raise Refusal("other records than declared")
    head, arrays = content[_REPLY], content[_ARRAYS]
    if not isinstance(head, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise Refusal("other records than declared")
    if set(head) != {"protocol", *Stamp._fields, "users", "refused", "reasons"} or head["protocol"] != PROTOCOL:
        raise Refusal("another protocol; use one version of fedvpa everywhere")
    return head, arrays


def _texts(head: ConfigRecord, key: str) -> tuple[str, ...]:
    value = head[key]
    if not isinstance(value, list) or not all(isinstance(v, str) and len(v) <= 200 for v in value):
        raise Refusal(f"{key} is not a list of short texts")
    return tuple(str(v) for v in value)


def _same_names(given: Mapping[str, object], fields: Fields) -> None:
    if set(given) != set(fields):
        odd = sorted({*given} ^ {*fields})[0]
        raise Refusal(f"{odd[:60]} is {'not declared' if odd in given else 'missing'}")


def _same_kind(name: str, shape: tuple[int, ...], dtype: torch.dtype | None, field: Field, rows: int | None) -> None:
    wanted = field.shape if rows is None else (rows, *field.shape)
    if shape != wanted:
        raise Refusal(f"{name} has shape {shape}, not {wanted}")
    if dtype != field.dtype:
        raise Refusal(f"{name} has another dtype than {field.dtype}")


def _torch_dtype(name: str) -> torch.dtype | None:
    kinds: dict[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64}
    return kinds.get(np.dtype(name).name) if name in kinds else None
