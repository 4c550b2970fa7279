"""Faults of clients, injected around a method's uploads: what the server must live with, made on purpose.

Which clients are faulty, in which way and in which rounds follows from (seed, client, round) alone. Methods know
nothing of it. A faulty client has one kind of `fedvpa.config.FAULTS`:

* it does not answer: ``slow`` (after the time is up; its private state has moved on), ``drop-out`` (it never began) and
  ``crash`` (in the middle of training; its private state is that of before);
* it answers with rubbish: ``nan``, ``inf``, ``shape``, ``huge`` (a change of norm 10^6), ``stale`` (parameters that go
  back to the model of round 0);
* it lies: ``label-flip`` (trained on exchanged labels), ``scaled`` and ``sign-flip`` (its change times a factor, or
  minus that factor), ``forged-posterior`` (far away and narrow, the same place for all forgers).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedvpa.config import ExperimentConfig
from fedvpa.federation.reception import received_theta, take
from fedvpa.methods.base import Private, ServerState, Upload
from fedvpa.preferences.seeding import generator
from fedvpa.variational.selector import Theta

SILENT = ("slow", "drop-out")
FAILED = ("crash",)
LOST = (*SILENT, *FAILED)
"""Kinds of which the server sees no upload."""

UNCHANGED = ("drop-out", "crash")
"""Kinds after which a client's private state is that of before the round."""

HUGE = 1e6

Struck = dict[int, str]
"""Client -> what goes wrong with it in a round."""


def faulty_clients(config: ExperimentConfig, clients: int) -> Struck:
    """The faulty clients of a training, each with its kind, in turn."""
    f = config.faults
    if not f.kinds:
        return {}
    order = torch.randperm(clients, generator=generator(config.seed, "faulty"))
    chosen = order[: round(f.clients * clients)].tolist()
    return {c: f.kinds[i % len(f.kinds)] for i, c in enumerate(chosen)}


def struck(config: ExperimentConfig, clients: int, ids: Tensor, round: int) -> Struck:
    """Those of the round's clients `ids` (K,) whose fault occurs in this round."""
    faulty = faulty_clients(config, clients)
    draws = {
        i: torch.rand((), generator=generator(config.seed, "fault", round, i)) for i in ids.tolist() if i in faulty
    }
    return {i: faulty[i] for i, draw in draws.items() if draw < config.faults.rate}


def unlucky(found: Struck, *kinds: str) -> Tensor:
    """(n,) the clients that are struck by one of these kinds."""
    return torch.tensor([i for i, kind in found.items() if kind in kinds], dtype=torch.int64)


def restored(private: Private, before: Private, found: Struck) -> Private:
    """Private state of all clients after a round, with that of before where the round did not come to an end."""
    rows = unlucky(found, *UNCHANGED)
    return {k: v.index_copy(0, rows, before[k][rows]) for k, v in private.items()} if len(rows) else private


def inject(config: ExperimentConfig, state: ServerState, first: Theta, upload: Upload, found: Struck) -> list[Upload]:
    """What reaches the server: one stack of the clients with nothing wrong, and each of the others by itself.

    Args:
        state: the server's, as broadcast; first: the parameters of round 0.
        upload: what the clients would have sent.
    """
    hit = torch.tensor([int(i) in found for i in upload.ids])
    parts = [sound] if (sound := take(upload, ~hit)) is not None else []
    for k in hit.nonzero().flatten().tolist():
        kind, only = found[int(upload.ids[k])], torch.zeros(len(hit), dtype=torch.bool)
        only[k] = True
        mine = take(upload, only)
        if mine is not None and kind not in LOST:
            parts.append(_spoilt(config, kind, mine, state, first))
    return parts


def _spoilt(config: ExperimentConfig, kind: str, upload: Upload, state: ServerState, first: Theta) -> Upload:
    """One client's upload (K = 1) with its fault."""
    f, theta = config.faults, received_theta(state.theta, upload.model)
    if kind in ("scaled", "sign-flip"):
        factor = f.scale if kind == "scaled" else -f.scale
        return replace(upload, theta={k: v + factor * (upload.theta[k] - v) for k, v in theta.items()})
    if kind == "stale":
        old = received_theta(first, upload.model)
        return replace(upload, theta={k: v - theta[k] + old[k] for k, v in upload.theta.items()})
    if kind == "forged-posterior":
        place = torch.randn(upload.means.shape[1], generator=generator(config.seed, "forged")).sign()
        means = f.scale * place.to(upload.means).unsqueeze(0)
        return replace(upload, means=means, variances=torch.full_like(upload.variances, 1e-3))
    name, value = max(upload.theta.items(), key=lambda item: item[1].numel())
    if kind == "huge":
        value = value + HUGE / value.numel() ** 0.5
    elif kind == "shape":
        value = value[..., :-1]
    elif kind in ("nan", "inf"):
        value = value.clone()
        value[..., 0] = float(kind)
    return replace(upload, theta={**upload.theta, name: value})  # label-flip: as it was trained
