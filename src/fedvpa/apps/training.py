"""`fedvpa train`: one method, one seed, in a run folder that survives interruption."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import fedvpa
from fedvpa.apps import fingerprints, runs
from fedvpa.apps.events import Events
from fedvpa.apps.progress import RoundProgress
from fedvpa.apps.runs import RunFolder
from fedvpa.apps.stopping import StopSignals
from fedvpa.backbone.backbones import open_backbone
from fedvpa.backbone.models import cache_dir
from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.evaluation.encoding import readable
from fedvpa.evaluation.experiment import (
    MethodRun,
    Prepared,
    RoundCallback,
    Trainer,
    prepare,
    run_method,
)
from fedvpa.evaluation.result_files import plain, read_metrics, read_results, write_text
from fedvpa.evaluation.results import RoundRecord
from fedvpa.federation import checkpoint
from fedvpa.federation.rounds import RoundReport, TrainingState
from fedvpa.federation.rounds import train as run_rounds
from fedvpa.latents import latent_of
from fedvpa.preferences.schema import FederatedPreferences
from fedvpa.preferences.sources import load_preferences
from fedvpa.rewards import bounded, log_odds
from fedvpa.selector import FORMAT, Parameters, Selector, SelectorInfo

RATED = 64
"""Training users whose rewards give the selector's reward scale, at most."""

TrainerOf = Callable[[Prepared, Path], tuple[Trainer, Callable[[], tuple[str, ...]]]]
"""Makes what runs the rounds, and what afterwards says the sentences that the report must show."""


def train(
    config: ExperimentConfig,
    run: RunFolder,
    console: Console,
    trainer_of: TrainerOf | None = None,
    data: FederatedPreferences | None = None,
) -> dict[str, Any]:
    """Trains, measures and reports; returns the results as ``results.json`` holds them.

    Args:
        trainer_of: what runs the rounds, made in the run folder; None: the rounds are run here.
        data: of the configuration, where it has been read already.

    Raises:
        UserError: bad data, a missing model, a folder that cannot be written, secret noise to be resumed, or a run
            to be resumed whose data or features were others.
        Interrupted: SIGINT or SIGTERM; a checkpoint is there.
    """
    if not run.finished:
        check_resumable(config, run)
    data = load_preferences(config) if data is None else data
    known = fingerprints.fingerprint(config, data)
    if run.mode == "resume":
        runs.check_known(run, known)
    if run.finished:
        console.print(f"{run.path}: this run is finished; nothing to do", highlight=False, soft_wrap=True)
        return read_results(run.path / runs.RESULTS)
    prepared, notes = load(config, data)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    with runs.opened(run, config, "train", known) as folder:
        trainer, said = (run_rounds, lambda: ()) if trainer_of is None else trainer_of(prepared, folder)
        with recorded(config, folder, console, known) as record:
            measured = run_method(prepared, config.method.name, record.state, record.on_round, record.seconds, trainer)
        if measured.training is None or not getattr(measured.method, "portable", True):
            text = f"{config.method.name} has no single selector to save; the results are all there is"
            console.print(text, highlight=False, soft_wrap=True)
        else:
            selector_of(config, prepared, measured, known)._save_pretrained(folder)
        figures = {config.method.name: measured.figures} if measured.figures else {}
        results = runs.combine(
            config, prepared.data, (*notes, *said()), measured.rows, measured.scores, measured.switching, figures
        )
        return runs.finish(folder, results, record.log.records, config)


def check_resumable(config: ExperimentConfig, run: RunFolder) -> None:
    """Raises `UserError` where a run with secret noise is to be resumed."""
    if run.mode == "resume" and config.privacy.secret_noise:
        problem = "noise of the operating system cannot be drawn again, so this run cannot be resumed"
        remedy = "start again in another folder; what was released before counts separately"
        raise UserError(problem, remedy, file=run.path, field="privacy.secret_noise")


def load(config: ExperimentConfig, data: FederatedPreferences | None = None) -> tuple[Prepared, tuple[str, ...]]:
    """The data (read, where they are not given) as tensors, and what there is to say about the encoding.

    Raises:
        UserError: as the reading and encoding; or nobody has a pair to be asked.
    """
    data = load_preferences(config) if data is None else data
    if not _is_asked(data):
        raise _nothing_to_test(config)
    data, features = readable(config, data)
    return prepare(config, data, features), features.report.notes


def _is_asked(data: FederatedPreferences) -> bool:
    return any(len(c.test) for clients in data.clients.values() for c in clients)


def _nothing_to_test(config: ExperimentConfig) -> UserError:
    """The error, with the ways to ask that can test something with these data."""
    able = []
    for queries in ("by-prompt", "known-items", "new-items"):
        other = config.evaluation.model_copy(update={"queries": queries})
        with contextlib.suppress(UserError):
            if _is_asked(load_preferences(config.model_copy(update={"evaluation": other}))):
                able.append(f"evaluation.queries={queries}")
    problem = f"nothing can be tested with {config.evaluation.queries}: nobody is left with a pair to be asked"
    if config.evaluation.queries == "by-prompt":
        problem += " (each person's pairs are of one prompt)"
    remedy = " or ".join([*([f"set {' or '.join(able)}"] if able else []), "give people pairs of several prompts"])
    return UserError(problem, remedy, file=config.data.path, field="evaluation.queries")


@dataclass
class Recording:
    """A training's checkpoints, metrics and progress.

    Attributes:
        state: the checkpoint to go on from, None at the beginning; seconds: of the rounds so far.
        log: what ``metrics.jsonl`` holds; on_round: to be called after each round.
    """

    state: TrainingState | None
    seconds: list[float]
    log: _RoundLog
    on_round: RoundCallback


@contextlib.contextmanager
def recorded(
    config: ExperimentConfig, folder: Path, console: Console, fingerprint: Mapping[str, str]
) -> Iterator[Recording]:
    """While open, rounds are written down in the run folder, and signals end the training after a round.

    Args:
        fingerprint: of the data and features; every checkpoint carries it.

    Raises:
        UserError: the checkpoint to go on from was made with others.
    """
    name, total = config.method.name, config.federation.rounds
    state, spent = _last_checkpoint(config, folder, console, fingerprint)
    log = _RoundLog(folder, config, 0 if state is None else state.server.round)
    remedy = f"go on with `--out {folder} --resume`"
    with StopSignals(remedy) as stop, RoundProgress(console, name, total, log.round) as progress, log:
        if log.round == total:
            stop.final()

        def on_round(report: RoundReport, now: TrainingState, values: dict[str, Any] | None) -> None:
            log.add(report, values)
            progress.update(report, values)
            last = report.round == total
            if last or stop.received or report.round % config.output.checkpoint_every == 0:
                log.sync()
                extra = {"seconds": spent, "epsilon": plain(report.epsilon), "fingerprint": dict(fingerprint)}
                checkpoint.save(folder / runs.CHECKPOINTS, now, extra)
            if last:
                stop.final()
            stop.check()

        yield Recording(state, spent, log, on_round)


def _last_checkpoint(
    config: ExperimentConfig, folder: Path, console: Console, fingerprint: Mapping[str, str]
) -> tuple[TrainingState | None, list[float]]:
    """The state to go on from (None: the beginning), and the seconds of the rounds before it."""

    def warn(message: str) -> None:
        console.print(f"warning: {message}", highlight=False, soft_wrap=True)

    found = checkpoint.load(folder / runs.CHECKPOINTS, warn)
    if found is None:
        return None, []
    state, extra = found
    fingerprints.check(extra["fingerprint"], fingerprint, folder)
    text = f"resuming after round {state.server.round} of {config.federation.rounds}"
    console.print(text, highlight=False, soft_wrap=True)
    return state, list(extra["seconds"])


class _RoundLog:
    """``metrics.jsonl`` and the TensorBoard events, one record per round.

    Args:
        round: rounds that stay; what was written about later ones is dropped.
    """

    def __init__(self, folder: Path, config: ExperimentConfig, round: int) -> None:
        self.path, self.config, self.round = folder / runs.METRICS, config, round
        old = read_metrics(self.path) if self.path.is_file() else []
        self.records: list[dict[str, Any]] = [r for r in old if r["round"] <= round]
        write_text(self.path, "".join(_line(r) for r in self.records))
        self._events: Events | None = None
        if config.output.tensorboard:
            self._events = Events(folder / runs.EVENTS, round + 1 if round else None)

    def __enter__(self) -> _RoundLog:
        self._stack = contextlib.ExitStack()
        self._file = self._stack.enter_context(self.path.open("a", encoding="utf-8"))
        if self._events is not None:
            self._stack.callback(self._events.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, report: RoundReport, values: Mapping[str, Any] | None) -> None:
        record = round_record(self.config, report, values)
        self.records.append(record)
        self._file.write(_line(record))
        self._file.flush()
        if self._events is not None:
            named = {f"train/{k}": v for k, v in record.items()}
            named |= {f"validation/{k}": v for k, v in (record["validation"] or {}).items()}
            self._events.add({k: v for k, v in named.items() if isinstance(v, float)}, report.round)

    def sync(self) -> None:
        """To disk, before the checkpoint that counts on it."""
        os.fsync(self._file.fileno())


def round_record(config: ExperimentConfig, report: RoundReport, values: Mapping[str, Any] | None) -> dict[str, Any]:
    """A line of ``metrics.jsonl`` for a round of `config.method.name`."""
    cost: dict[str, Any] = {}
    if report.bytes_up:
        cost |= {"bytes_up": report.bytes_up, "bytes_down": report.bytes_down}
    head = {"method": config.method.name, "seed": config.seed, "round": report.round, "seconds": report.seconds}
    if report.faults:
        cost["faults"], cost["rejected"] = report.faults, {str(k): v for k, v in report.rejected.items()}
    rest = {"epsilon": report.epsilon, "validation": values}
    record = RoundRecord.model_validate(plain({**head, **report.metrics, **cost, **rest}))
    return record.model_dump()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def selector_of(
    config: ExperimentConfig, prepared: Prepared, measured: MethodRun, fingerprint: Mapping[str, str]
) -> Selector:
    """The selector that a trained method leaves behind, with the fingerprint of what it was trained on."""
    assert measured.training is not None
    setup = prepared.setup(config)
    backbone = open_backbone(config.backbone, cache_dir(config), config.federation.device)
    info = SelectorInfo(
        format=FORMAT,
        version=fedvpa.__version__,
        method=config.method.name,
        config=config,
        features=setup.features,
        clusters=setup.clusters,
        groups=prepared.data.groups,
        backbone=dict(backbone.identity),
        default_inference=default_inference(measured.rows),
        rating_scale=prepared.pool.rating_scale,
        fingerprint=dict(fingerprint),
    )
    selector = Selector(Parameters.of(measured.training.server, prepared.standardizer), info)
    scale = reward_scale(selector, prepared)
    return Selector(selector.parameters, info.model_copy(update={"reward_scale": scale}))


def reward_scale(selector: Selector, prepared: Prepared) -> tuple[float, float] | None:
    """Mean and standard deviation of bounded rewards of what seen users train on, each inferred from its own pairs.

    Up to `RATED` users, the first in their order. None where there are no rewards (choice logits), or where privacy is
    on: these are figures of single users' data that its account does not cover.
    """
    if selector.info.config.privacy.on or selector.info.config.backbone.choice_logits:
        return None
    found = []
    for client in prepared.data.clients["seen"][:RATED]:
        index = client.train.index
        judged = [(prepared.data.pairs[i], y) for i, y in zip(index.tolist(), client.train.y.tolist(), strict=True)]
        latent = latent_of(selector.infer_pairs(judged), selector.dtype)
        items = prepared.pool.items[prepared.pool.pairs[index].flatten()].to(selector.dtype)
        found.append(bounded(log_odds(selector.predictor, items, latent)))
    rewards = torch.cat(found)
    deviation = float(rewards.std(correction=0))
    return (float(rewards.mean()), deviation) if deviation > 0 else None


def default_inference(rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Per context size the inference that validation users chose; 0 stands for methods without a context."""
    return {row["context_size"] or 0: row["inference"] for row in rows if row["default"]}
