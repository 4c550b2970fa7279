"""What is done with a trained selector: evaluate it on other data, infer a user, score pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedvpa.apps import runs
from fedvpa.config import ExperimentConfig, load_config
from fedvpa.errors import UserError
from fedvpa.evaluation.encoding import readable
from fedvpa.evaluation.experiment import MethodRun, Prepared, add_rows
from fedvpa.evaluation.protocol import make_panel
from fedvpa.evaluation.result_files import check_results, plain
from fedvpa.federation.moments import rating_scale
from fedvpa.federation.rounds import ClientData
from fedvpa.methods.base import Pool
from fedvpa.preferences.examples import read_examples
from fedvpa.preferences.fingerprint import TRAINED, fingerprint_of
from fedvpa.preferences.jsonl import candidate_of
from fedvpa.preferences.lines import read_rows
from fedvpa.preferences.schema import NO_RATINGS, FederatedPreferences
from fedvpa.preferences.sources import load_preferences
from fedvpa.selector import Selector
from fedvpa.user import User

_FIXED = ("model", "method", "backbone")


def evaluation_config(run: Path, overrides: Sequence[str]) -> ExperimentConfig:
    """The run's configuration with other data.

    Raises:
        UserError: no such run, or an override of what training has fixed.
    """
    runs.read_config(run)
    for item in overrides:
        key = item.partition("=")[0]
        if key.split(".")[0] in _FIXED:
            raise UserError(
                "is fixed by the trained selector", "override data.*, evaluation.*, federation.* or seed", field=key
            )
    return load_config(run / runs.CONFIG, overrides)


def evaluate(selector: Selector, config: ExperimentConfig, own: ExperimentConfig) -> dict[str, Any]:
    """Measures a selector, with the inference that its own validation users chose, and as results.json would say it.

    Args:
        config: what to measure it on; own: the configuration that it was trained with. Where the people who trained
            are not those of the data, all that have queries are reported as ``unseen``. Their ratings are
            standardised as the selector's training people's, or by themselves where nobody rated in training.

    Raises:
        UserError: no user can be asked, the backbone is not the selector's, or the data of the training have changed.
    """
    data = load_preferences(config)
    assert selector.backbone is not None  # it is the one of the training, else this raises
    other = _other_people(selector, data, config, own)
    data, features = readable(config, data)
    populations = {p: c for p, c in data.clients.items() if p != "validation"}
    if other:
        populations = {"unseen": tuple(c for clients in populations.values() for c in clients)}
    if not any(len(c.test) for clients in populations.values() for c in clients):
        raise UserError("no user has a pair for a query", "give each user pairs on several prompts", field="data")
    standardizer = selector.parameters.standardizer
    base = None if features.base_logit is None else features.base_logit.to(selector.dtype)
    scale = selector.info.rating_scale
    if scale == NO_RATINGS:
        scale = rating_scale(c.ratings for c in data.clients["seen"])
    pool = Pool(standardizer(features.items).to(selector.dtype), features.pairs, base, rating_scale=scale)
    with_queries = {p: tuple(c for c in clients if len(c.test)) for p, clients in populations.items()}
    with_queries["switching"] = data.switching
    panels = {p: make_panel(data, c, config.seed, pool) for p, c in with_queries.items() if c}
    prepared = Prepared(config, data, standardizer, 0, pool, ClientData(pool, data.clients["seen"]), panels, ())
    measured = MethodRun(selector.method, selector.predictor(pool), None)
    add_rows(measured, prepared, {})
    for row in measured.rows:
        row["default"] = row["inference"] == selector.inference_for(row["context_size"] or 0)
    notes = list(features.report.notes)
    if other:
        notes.append("These are not the data that the selector was trained on; all users are reported as unseen.")
    results = runs.combine(config, data, notes, measured.rows, measured.scores, measured.switching, {})
    return check_results(plain(results))


def _other_people(
    selector: Selector, data: FederatedPreferences, config: ExperimentConfig, own: ExperimentConfig
) -> bool:
    """Whether a selector was trained on other people's judgements than the training clients' of these data.

    Raises:
        UserError: it was, although the configuration names the data of the training: they have changed, or other people
            would count as seen.
    """
    trained = selector.info.fingerprint.get(TRAINED)
    if trained == fingerprint_of(data)[TRAINED]:
        return False
    if trained is None or (config.data, config.seed) != (own.data, own.seed):
        return True
    if config.federation != own.federation:
        problem = "other people would count as seen than those who trained"
        raise UserError(problem, "leave the numbers of clients as they were in training", field="federation")
    problem = "the data have changed since the selector was trained on them"
    remedy = "put the former ones back; or evaluate on a copy, with data.path=COPY: all its users count as unseen"
    raise UserError(problem, remedy, file=config.data.path, field="data")


def personalize(selector: Selector, examples: Path, inference: str | None = None, user: User | None = None) -> User:
    """A user from a file of judgements (`read_examples`); of a known one, with the file's judgements added.

    Raises:
        UserError: an unreadable file, an invalid row, a user of another model, or one that cannot be updated.
    """
    given = read_examples(examples)
    if user is None:
        return selector.infer(given, inference)
    if inference is not None:
        raise UserError("has been chosen when the user was made", "leave it out", field="--inference")
    return selector.update(user, given)


def score(selector: Selector, user: User | None, pairs: Path) -> str:
    """The file's rows with ``p_a``, p(a > b), added, as JSON Lines.

    Raises:
        UserError: an unreadable file, an invalid row, or a user of another model.
    """
    rows = read_rows(pairs, lambda row, path, line: (row, candidate_of(row, path, line)))
    p = selector.prefer_pairs([pair for _, pair in rows], user).tolist()
    return "".join(
        json.dumps({**row, "p_a": value}, ensure_ascii=False) + "\n" for (row, _), value in zip(rows, p, strict=True)
    )
