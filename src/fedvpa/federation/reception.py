"""The server's door: which of a round's uploads are sound. The round goes on without the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedvpa.config import DefenceConfig, ExperimentConfig
from fedvpa.federation import robust
from fedvpa.federation.aggregate import concatenate, of_model
from fedvpa.federation.declared import (
    form_problem,
    sums_of,
    update_norms,
    upload_arrays,
    upload_fields,
    upload_problems,
)
from fedvpa.methods.base import Method, ServerState, Upload
from fedvpa.variational.selector import Theta


class Reception(NamedTuple):
    """What came in.

    Attributes:
        upload: the sound uploads, by id; None if there is none.
        rejected: client -> why its upload was rejected.
    """

    upload: Upload | None
    rejected: dict[int, str]


def received_theta(theta: Theta, model: Tensor | None) -> Theta:
    """The parameters from which each client started, with a leading dimension of clients, or of 1."""
    if model is None:
        return {k: v.unsqueeze(0) for k, v in theta.items()}
    models = [of_model(theta, k) for k in model.tolist()]
    return {k: torch.stack([m[k] for m in models]) for k in models[0]}


def receive(
    method: Method, state: ServerState, parts: Sequence[Upload], config: ExperimentConfig, announced: Tensor
) -> Reception:
    """Takes the sound uploads out of a round's.

    First come form and bounds, for each part by itself (one client of another shape spoils no stack), then the outliers
    among what is left, by the size of the change and by the place of the posterior.

    Args:
        parts: stacks of one or more clients.
        announced: (clients,) numbers of training pairs that all clients had in round 0.
    """
    if not config.defence.reject:
        return Reception(concatenate(list(parts)) if parts else None, {})
    rejected: dict[int, str] = {}
    checked = [_within_bounds(method, state, part, config, announced, rejected) for part in parts]
    sound = [part for part in checked if part is not None]
    if not sound:
        return Reception(None, rejected)
    upload = without_outliers(state, concatenate(sound), config.defence, rejected)
    return Reception(upload, dict(sorted(rejected.items())))


def take(upload: Upload, keep: Tensor) -> Upload | None:
    """The clients at the positions that `keep` (K,) marks; None for nobody."""
    if not keep.any():
        return None
    return Upload(
        upload.ids[keep],
        {k: v[keep] for k, v in upload.theta.items()},
        upload.means[keep],
        upload.variances[keep],
        upload.counts[keep],
        {k: v[keep] for k, v in upload.metrics.items()},
        None if upload.model is None else upload.model[keep],
        {k: v[keep] for k, v in upload.sums.items()},
    )


def _within_bounds(
    method: Method,
    state: ServerState,
    part: Upload,
    config: ExperimentConfig,
    announced: Tensor,
    rejected: dict[int, str],
) -> Upload | None:
    theta, arrays = received_theta(state.theta, part.model), upload_arrays(part)
    plain = {k: v[0] for k, v in theta.items()}
    sums = sums_of(method, method.broadcast(state))
    fields = upload_fields(plain, state.means.shape[1], method.metric_names, config, sums)
    form = form_problem(arrays, fields, len(part.ids))
    if form is not None:
        rejected |= dict.fromkeys(part.ids.tolist(), form)
        return None
    return _drop(part, upload_problems(arrays, fields, theta, config, announced[part.ids]), rejected)


def without_outliers(
    state: ServerState, upload: Upload, rules: DefenceConfig, rejected: dict[int, str]
) -> Upload | None:
    """A round's uploads without those whose posterior or size stands out; None if there is none left.

    Args:
        rejected: told of each client that is left out, and why.
    """
    odd: dict[int, str] = {}
    if rules.posterior_outlier and upload.means.shape[1]:
        stored = state.counts > 0
        stored[upload.ids] = False
        far = robust.far_posteriors(upload.means, state.means[stored], rules.posterior_outlier)
        text = f"the posterior lies more than {rules.posterior_outlier:g} deviations from the median"
        odd |= dict.fromkeys(far.nonzero().flatten().tolist(), text)
    if rules.update_outlier:
        norms = update_norms(upload_arrays(upload), received_theta(state.theta, upload.model))
        large = robust.large_updates(norms, rules.update_outlier)
        text = f"theta has changed by more than {rules.update_outlier:g} times the round's median"
        odd |= dict.fromkeys(large.nonzero().flatten().tolist(), text)
    return _drop(upload, odd, rejected)


def _drop(upload: Upload, bad: dict[int, str], rejected: dict[int, str]) -> Upload | None:
    if not bad:
        return upload
    rejected.update({int(upload.ids[i]): why for i, why in bad.items()})
    keep = torch.ones(len(upload.ids), dtype=torch.bool)
    keep[list(bad)] = False
    return take(upload, keep)
