"""One experiment: data -> features -> training of a method -> everything that is measured of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fedvpa.backbone.encode import Features
from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.evaluation import diagnostics
from fedvpa.evaluation.compare import PairScores
from fedvpa.evaluation.encoding import readable, tokenize
from fedvpa.evaluation.protocol import Panel, make_panel, measure, measure_leaking, score_predictions
from fedvpa.federation import privacy
from fedvpa.federation.moments import Standardizer, rating_scale
from fedvpa.federation.rounds import Callback, ClientData, RoundReport, TrainingState, start, train
from fedvpa.methods.base import Judging, Method, Owning, Pool, Predictor, Setup, torch_dtype
from fedvpa.methods.clustering import MOST
from fedvpa.methods.fedbt import CommonPredictor
from fedvpa.methods.fedvpa_gp import LatentPredictor
from fedvpa.methods.fedvpa_laplace import CALIBRATION, FedVPALaplace, LaplacePredictor
from fedvpa.methods.oracle import needs_groups
from fedvpa.methods.oracle_labels import FedVPAGPLabels
from fedvpa.methods.registry import create
from fedvpa.preferences.schema import Client, FederatedPreferences
from fedvpa.preferences.seeding import derive_seed
from fedvpa.preferences.sources import load_preferences
from fedvpa.variational.calibration import calibrate

REPORTED = ("seen", "unseen")
DEFAULT_CLUSTERS = 4
WITH_LATENT = (LatentPredictor, LaplacePredictor)
CHOOSING_DRAWS = 4
"""Contexts per validation client on which the default inference is chosen."""


@dataclass(frozen=True)
class Prepared:
    """A configuration's data as tensors, ready for every method.

    Attributes:
        config: the configuration, with the seed of this preparation.
        data: texts, groups, clients.
        standardizer: the federated moments of round 0; `moments_bytes`: what one client sent for them.
        pool: standardised features.
        clients: the training clients.
        panels: per population (seen, validation, unseen, and switching where there is such a test) who is asked what.
        choosing: the validation clients with other random contexts, so that choices rest on more than one draw.
    """

    config: ExperimentConfig
    data: FederatedPreferences
    standardizer: Standardizer
    moments_bytes: int
    pool: Pool
    clients: ClientData
    panels: dict[str, Panel]
    choosing: tuple[Panel, ...]

    def with_texts(self, config: ExperimentConfig) -> Prepared:
        """The same with the pairs as tokens, where the method `config.method.name` needs them."""
        texts = tokenize(config, self.data)
        if texts is None:
            return self
        pool = replace(self.pool, texts=texts)
        return replace(self, pool=pool, clients=ClientData(pool, self.data.clients["seen"]))

    def setup(self, config: ExperimentConfig) -> Setup:
        """What the method `config.method.name` of this data is built from.

        Raises:
            UserError: the method's clusters are the true groups, and the data or `method.prototypes` do not fit.
        """
        clusters = clusters_of(config, len(self.clients), len(self.data.groups))
        validation = tuple(replace(c, group=None) for c in self.data.clients["validation"])
        setup = Setup(config, self.pool.features, len(self.clients), clusters, self.pool.items.dtype, validation)
        if config.method.name != FedVPAGPLabels.name:
            return setup
        groups = diagnostics.client_groups(self.data.clients["seen"])
        if not len(self.data.groups) or (groups < 0).any():
            raise needs_groups(config.method.name)
        if clusters != len(self.data.groups):
            problem = f"{clusters} prototypes or clients for {len(self.data.groups)} true groups"
            raise UserError(problem, "leave method.prototypes empty", field=f"method.name={config.method.name}")
        return replace(setup, groups=groups)


def clusters_of(config: ExperimentConfig, clients: int, groups: int = 0) -> int:
    """M: as configured, else the number of true groups where it is known."""
    wanted = config.method.prototypes
    return min(MOST if wanted == "auto" else wanted or groups or DEFAULT_CLUSTERS, clients)


def prepare(
    config: ExperimentConfig, data: FederatedPreferences | None = None, features: Features | None = None
) -> Prepared:
    """Loads the data, encodes it and standardises it by the training clients' moments.

    Args:
        data, features: where they are already there (another seed of the same pool has the same features).
    """
    data = load_preferences(config) if data is None else data
    if features is None:
        data, features = readable(config, data)
    dtype = torch_dtype(config)
    messages = [privacy.moments_of(features.of_client(c), config, c.ratings) for c in data.clients["seen"]]
    standardizer = privacy.standardizer_of(messages, config)
    base = None if features.base_logit is None else features.base_logit.to(dtype)
    scale = rating_scale(m.rating_sums for m in messages)
    pool = Pool(standardizer(features.items).to(dtype), features.pairs, base, rating_scale=scale)
    populations: dict[str, tuple[Client, ...]] = {**data.clients, "switching": data.switching}
    asked = {name: clients for name, clients in populations.items() if any(len(c.test) for c in clients)}
    panels = {name: make_panel(data, clients, config.seed, pool) for name, clients in asked.items()}
    choosing = tuple(
        make_panel(data, data.clients["validation"], derive_seed(config.seed, "choosing", draw), pool)
        for draw in range(CHOOSING_DRAWS if "validation" in asked else 0)
    )
    clients = ClientData(pool, data.clients["seen"])
    return Prepared(config, data, standardizer, messages[0].bytes(), pool, clients, panels, choosing)


@dataclass
class MethodRun:
    """A trained method and what was measured of it.

    Attributes:
        rows: rows of results.json; scores: one `PairScores` per row.
        switching: rows of the switching test; figures: data of the report's pictures.
        training: the final state; None for a method that is fitted directly.
    """

    method: Any
    predictor: Predictor
    training: TrainingState | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: list[PairScores] = field(default_factory=list)
    switching: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


Trainer = Callable[
    [Method, ExperimentConfig, ClientData, TrainingState | None, Callback | None],
    TrainingState,
]
"""What runs the rounds that are left: `federation.rounds.train`, or the same over a network."""

RoundCallback = Callable[[RoundReport, TrainingState, "dict[str, Any] | None"], None]


def run_method(
    prepared: Prepared,
    name: str,
    state: TrainingState | None = None,
    on_round: RoundCallback | None = None,
    seconds: list[float] | None = None,
    trainer: Trainer = train,
) -> MethodRun:
    """Trains (or fits) the method `name` and measures it on seen and unseen users.

    Args:
        state: a checkpoint to go on from.
        on_round: called after each round with its report, the state and, every `evaluation.every` rounds and at the
            end, the validation clients' accuracies.
        seconds: seconds of the rounds before the checkpoint; this run's are appended.
        trainer: what runs the rounds, such as `network.server_app.Server.train`.
    """
    config = prepared.config.for_method(name)
    prepared = prepared.with_texts(config)
    method = create(name, prepared.setup(config))
    if hasattr(method, "fit"):
        predictor = method.fit(prepared.data, prepared.pool)
        run = MethodRun(method, predictor, None)
        add_rows(run, prepared, {})
        return run

    spent: list[float] = [] if seconds is None else seconds
    cost = {"up": 0, "down": 0}

    def after(report: RoundReport, now: TrainingState) -> None:
        spent.append(report.seconds)
        cost["up"], cost["down"] = max(cost["up"], report.bytes_up), max(cost["down"], report.bytes_down)
        last = report.round == config.federation.rounds
        due = last or report.round % config.evaluation.every == 0
        values = validation_accuracy(method, now, prepared) if due and on_round else None
        if on_round is not None:
            on_round(report, now, values)

    training = calibrated(method, trainer(method, config, prepared.clients, state, after), prepared)
    predictor = method.predictor(training.server, prepared.pool)
    run = MethodRun(method, predictor, training)
    federated = method.federated
    download = method.broadcast(training.server)
    add_rows(
        run,
        prepared,
        {
            "bytes_up": upload_bytes(method, training, config.privacy.on) if federated else None,
            "bytes_down": method.download_bytes(download) if federated else None,
            "seconds_per_round": sum(spent) / len(spent) if spent else None,
            **fault_counts(training),
            "epsilon": privacy.epsilon_after(method, config, len(prepared.clients), training.server.round),
        },
    )
    return run


def calibrated(method: Method, training: TrainingState, prepared: Prepared) -> TrainingState:
    """The state with the predictions of `fedvpa-laplace` (or `votes-mean`) calibrated on validation people, over all
    context sizes."""
    if not isinstance(method, FedVPALaplace) or "validation" not in prepared.panels:
        return training
    theta = {**training.server.theta, **dict.fromkeys(CALIBRATION, torch.ones((), dtype=prepared.pool.items.dtype))}
    predictor = LaplacePredictor(replace(training.server, theta=theta), prepared.pool)
    answers = []
    for size in prepared.config.evaluation.context_sizes:
        how = choose_inference(predictor, predictor.inferences, prepared.choosing, size)
        for panel in prepared.choosing:
            users = predictor.infer(panel.judgements(size), how)
            answers.append(predictor.answers(users, panel.query, panel.query_y, panel.query_mask))
    items = prepared.pool.pairs[torch.cat([p.query[p.query_mask] for p in prepared.choosing])].unique()
    known = prepared.config.evaluation.queries == "known-items"
    found = calibrate(answers, method.usual_calibration(training.server), math.inf if known else len(items))
    theta |= {k: v.to(theta[k].dtype) for k, v in zip(CALIBRATION, found, strict=True)}
    return replace(training, server=replace(training.server, theta=theta))


def fault_counts(training: TrainingState) -> dict[str, int]:
    """Uploads that did not come, and uploads that were rejected, over the whole training; without zeros."""
    seen = {k: int(v) for k, v in training.faults.items()}
    counts = {
        "lost_uploads": seen.get("silent", 0) + seen.get("failed", 0),
        "rejected_uploads": seen.get("rejected", 0),
    }
    return {k: v for k, v in counts.items() if v}


def upload_bytes(method: Method, training: TrainingState, private: bool = False) -> int:
    """The most bytes that one client sends in a round: theta, posterior statistics, sums, count and metrics.

    Of several models (`fedbiscuit`) a client sends one, and in a round with a survey its loss under each. With DP
    (`private`) no metrics leave.
    """
    server, models = training.server, getattr(method, "models", 1)
    metrics = 0 if private else len(method.metric_names)
    theta = sum(t.numel() * t.element_size() for t in server.theta.values()) // models
    theta += models * server.means.element_size() if models > 1 else 0
    sums = method.sums_shapes(method.broadcast(server)) if isinstance(method, Judging) else {}
    theta += server.means.element_size() * sum(math.prod(shape) for shape in sums.values())
    return theta + 2 * server.means.shape[1] * server.means.element_size() + 8 + 4 * metrics


def validation_accuracy(method: Method, training: TrainingState, prepared: Prepared) -> dict[str, Any] | None:
    """Accuracy of the default inference candidates' best on the validation clients, for the curve over rounds."""
    panel = prepared.panels.get("validation")
    if panel is None:
        return None
    predictor = method.predictor(training.server, prepared.pool)
    context = panel.context_for(predictor, prepared.config.federation.context_pairs)
    quick = [how for how in predictor.inferences if how != "refined"]
    scored = [
        score_predictions(panel, predictor.predict(predictor.infer(context, how, panel.groups), panel.query)).values
        for how in quick
    ]
    best = max(scored, key=lambda v: v["accuracy"])
    return {k: best[k] for k in ("accuracy", "worst_group_accuracy", "group_accuracy")}


def add_rows(run: MethodRun, prepared: Prepared, cost: dict[str, Any]) -> None:
    """Measures every population, context size and inference; the default inference is chosen on validation clients."""
    config = prepared.config
    leaking = config.evaluation.protocol == "pair-leak" and run.method.latent
    sized = not leaking and getattr(run.method, "contextual", run.method.latent)
    sizes: tuple[int | None, ...] = config.evaluation.context_sizes if sized else (None,)
    # Refining a latent per query would take hours and show nothing new.
    inferences = tuple(how for how in run.predictor.inferences if not (leaking and how == "refined"))
    personal = not isinstance(run.predictor, CommonPredictor)
    shared = dict(cost)
    truth = diagnostics.client_groups(prepared.data.clients["seen"])
    initial = None
    if isinstance(run.predictor, WITH_LATENT) and run.training is not None:
        shared |= diagnostics.structure(run.training.server, truth)
        uses = isinstance(run.predictor, LatentPredictor)
        weights = diagnostics.prior_weights(run.method, run.training) if uses else None
        if weights is not None:
            shared |= diagnostics.weight_metrics(weights, truth)
        initial = run.method.predictor(start(run.method, config, len(prepared.clients)).server, prepared.pool)

    for size in sizes:
        chosen = choose_inference(run.predictor, inferences, prepared.choosing, size)
        for population in REPORTED:
            if population not in prepared.panels:
                continue
            latent = _latent_values(run, prepared, population, size, initial)
            for how in inferences:
                row, scores = _row(run, prepared, population, how, size, personal, initial, latent)
                row |= {"default": how == chosen, **shared}
                run.rows.append(row)
                run.scores.append(scores)
        if "switching" in prepared.panels and size in (None, config.federation.context_pairs):
            run.switching.append(_switching_row(run, prepared, chosen, size))
    if isinstance(run.predictor, WITH_LATENT) and run.training is not None:
        ids = {p: [c.client_id for c in prepared.data.clients[p] if len(c.test)] for p in REPORTED}
        ids["clients"] = [c.client_id for c in prepared.data.clients["seen"]]
        run.figures = diagnostics.figures(
            run.predictor,
            run.training,
            prepared.panels,
            ids,
            config.federation.context_pairs,
            truth,
            prepared.data.groups,
        )


def choose_inference(
    predictor: Predictor, inferences: tuple[str, ...], panels: Sequence[Panel], size: int | None
) -> str:
    """The inference with the highest accuracy on the validation clients at this context size; the first of equals.

    To do without a client's answers (``none``, where there are others) must be better by more than a standard error.
    """
    if not panels or len(inferences) == 1:
        return inferences[0]

    def accuracies(how: str) -> Any:
        """(clients,) means over the panels."""
        each = []
        for panel in panels:
            users = predictor.infer(panel.context_for(predictor, size or 0), how, panel.groups)
            each.append(score_predictions(panel, predictor.predict(users, panel.query)).scores.people)
        return np.mean(np.stack([people for people in each if people is not None]), axis=0)

    found = {how: accuracies(how) for how in inferences}
    best = max((how for how in inferences if how != "none"), key=lambda how: found[how].mean())
    if "none" not in found:
        return best
    gain = found["none"] - found[best]
    return "none" if gain.mean() > gain.std() / len(gain) ** 0.5 else best


def _latent_values(
    run: MethodRun, prepared: Prepared, population: str, size: int | None, initial: Predictor | None
) -> dict[str, float]:
    """What rows of every inference have in common: active units, KL and norms beside those at initialisation, and the
    accuracy with z = 0; empty without a latent."""
    if not (isinstance(run.predictor, WITH_LATENT) and isinstance(initial, WITH_LATENT)):
        return {}
    panel, config = prepared.panels[population], prepared.config
    now, before = (
        diagnostics.latent_metrics(p, panel.context_for(p, size or 0), config.seed) for p in (run.predictor, initial)
    )
    if config.evaluation.protocol == "pair-leak":
        return now
    return {
        **now,
        "zero_accuracy": diagnostics.zero_accuracy(run.predictor, panel),
        **{f"{k}_at_init": before[k] for k in ("active_units", "kl", "mean_norm")},
    }


def _row(
    run: MethodRun,
    prepared: Prepared,
    population: str,
    how: str,
    size: int | None,
    personal: bool,
    initial: Predictor | None,
    latent: dict[str, float],
) -> tuple[dict[str, Any], PairScores]:
    panel, config = prepared.panels[population], prepared.config
    # A seen user without a shared model is fitted on all of its own pairs, whatever the context size.
    everything = run.method.name == "local" and population == "seen"
    shown = int(panel.counts.max()) if everything else size or 0
    leaking = config.evaluation.protocol == "pair-leak" and run.method.latent
    predictor = _predictor_for(run, prepared, population)
    measured = measure_leaking(predictor, panel, how) if leaking else measure(predictor, panel, shown, how, personal)
    row: dict[str, Any] = dict.fromkeys(_NULLABLE) | {
        "method": run.method.name,
        "seed": config.seed,
        "population": population,
        "inference": how,
        "context_size": size,
        **measured.values,
        **latent,
    }
    if isinstance(initial, WITH_LATENT):
        if not leaking and how != "refined":
            row["flip_rate_at_init"] = measure(initial, panel, shown, how, True).values.get("flip_rate")
    elif run.method.name.startswith("oracle") or predictor is not run.predictor:
        row["flip_rate"] = None  # nothing is inferred from a context
    return row, measured.scores


def _predictor_for(run: MethodRun, prepared: Prepared, population: str) -> Predictor:
    """The run's predictor; for training clients with private heads the one with their own."""
    if population != "seen" or not isinstance(run.predictor, Owning):
        return run.predictor
    assert run.training is not None
    asked = [i for i, c in enumerate(prepared.data.clients["seen"]) if len(c.test)]
    return run.predictor.own(run.training.private, torch.tensor(asked))


_NULLABLE = (
    "log_loss",
    "ece",
    "worst_group_accuracy",
    "switch_gap",
    "flip_rate",
    "active_units",
    "cluster_purity",
    "kl",
    "bytes_up",
    "bytes_down",
    "seconds_per_round",
    "epsilon",
)


def _switching_row(run: MethodRun, prepared: Prepared, how: str, size: int | None) -> dict[str, Any]:
    panel: Panel = prepared.panels["switching"]
    users = run.predictor.infer(panel.context_for(run.predictor, size or 0), how, panel.groups)
    values = score_predictions(panel, run.predictor.predict(users, panel.query)).values
    keys = ("accuracy", "group_accuracy", "log_loss")
    return {
        "method": run.method.name,
        "seed": prepared.config.seed,
        "inference": how,
        "context_size": size,
        "pairs": int(panel.query_mask.any(0).sum()),
        **{k: values[k] for k in keys},
    }
