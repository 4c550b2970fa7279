"""The server of a deployment, which has no data: rounds over the network, then a selector and what the clients say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid
from rich.console import Console

import fedvpa
from fedvpa.apps import fingerprints, runs
from fedvpa.apps.runs import RunFolder
from fedvpa.apps.training import check_resumable, recorded
from fedvpa.backbone.backbones import open_backbone
from fedvpa.backbone.models import cache_dir
from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import plain, write_text
from fedvpa.federation import privacy
from fedvpa.federation.rounds import RoundReport, TrainingState
from fedvpa.methods.base import Method, Setup, torch_dtype
from fedvpa.methods.registry import class_of
from fedvpa.network.server_app import Server, connect
from fedvpa.selector import FORMAT, Parameters, Selector, SelectorInfo

SUMMARY = "deployment.json"
"""In the run folder, written last: accuracy by inference, users, nodes, bytes, faults, epsilon."""


def train_selector(config: ExperimentConfig, run: RunFolder, console: Console, grid: Grid) -> None:
    """Trains over the nodes of a grid, or goes on, and leaves a selector in the run folder.

    Raises:
        UserError: too few nodes or sound uploads, a method that does not deploy or leaves no selector, a folder that
            cannot be written, or secret noise to be resumed.
    """
    if (run.path / SUMMARY).is_file():
        console.print(f"{run.path}: this run is finished; nothing to do", highlight=False, soft_wrap=True)
        return
    if not getattr(class_of(config), "portable", True):
        problem = f"{config.method.name} leaves no selector, and the server has no data to measure it on"
        raise UserError(problem, "set data-from to experiment, or choose another method", field="data-from")
    check_resumable(config, run)
    known = fingerprints.fingerprint(config, None)
    with (
        runs.opened(run, config, "train", known) as folder,
        recorded(config, folder, console, known) as record,
    ):
        begin = 0 if record.state is None else record.state.server.round
        server = connect(grid, config, folder, begin, known_by=fingerprints.shared_features(config))
        session = server.session
        sizes = Setup(config, session.features, len(session.users), server.clusters, torch_dtype(config))
        method: Method = class_of(config)(sizes)  # check_method: it has rounds
        reports: list[RoundReport] = []

        def after(report: RoundReport, now: TrainingState) -> None:
            record.seconds.append(report.seconds)
            reports.append(report)
            record.on_round(report, now, None)

        training = server.train(method, config, None, record.state, after)
        accuracy = server.evaluate(method, training)
        _selector(config, server, method, training, accuracy)._save_pretrained(folder)
        epsilon = privacy.epsilon_after(method, config, len(session.users), training.server.round)
        _summarise(folder, server, reports, accuracy, epsilon)


def _selector(
    config: ExperimentConfig, server: Server, method: Method, training: TrainingState, accuracy: dict[str, float]
) -> Selector:
    """The default inference is the one that predicts the clients' held-out pairs best."""
    best = max(accuracy, key=lambda how: accuracy[how]) if accuracy else ("mixture" if method.latent else "none")
    backbone = open_backbone(config.backbone, cache_dir(config), config.federation.device)
    sizes = config.evaluation.context_sizes if method.latent else (0,)
    info = SelectorInfo(
        format=FORMAT,
        version=fedvpa.__version__,
        method=config.method.name,
        config=config,
        features=server.session.features,
        clusters=server.clusters,
        groups=(),
        backbone=dict(backbone.identity),
        default_inference=dict.fromkeys(sizes, best),
        fingerprint=fingerprints.fingerprint(config, None),
        rating_scale=server.session.rating_scale,
    )
    return Selector(Parameters.of(training.server, server.session.standardizer), info)


def _summarise(
    folder: Path, server: Server, reports: list[RoundReport], accuracy: dict[str, float], epsilon: float | None
) -> None:
    users, p = len(server.session.users), server.config.privacy
    summary: dict[str, Any] = {
        "users": users,
        "nodes": len(server.nodes.held),
        "pairs": None if p.on else sum(server.session.pairs),
        "rounds": server.config.federation.rounds,
        "clients_accuracy": accuracy,
        "bytes_up_per_client": max((r.bytes_up for r in reports), default=None),
        "bytes_down_per_client": max((r.bytes_down for r in reports), default=None),
        "faults": dict(server.faults.counts),
    }
    if p.on:
        summary |= {"epsilon": plain(epsilon), "delta": privacy.delta(p, users)}
    write_text(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    for how, value in accuracy.items():
        print(f"accuracy on the clients' held-out pairs, {how}: {value:.3f}", flush=True)
    for note in server.faults.notes():
        print(note, flush=True)
