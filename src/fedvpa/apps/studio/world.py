"""What the studio knows of a run: its selector, pairs that nobody was trained on, its map of users, its notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedvpa.apps.runs import REPORT, RESULTS
from fedvpa.apps.studio.latent_map import LatentMap
from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import read_results
from fedvpa.methods.fedvpa_gp import LatentPredictor
from fedvpa.methods.fedvpa_laplace import LaplacePredictor
from fedvpa.preferences.jsonl import read_candidates
from fedvpa.preferences.schema import Pair, Prompt
from fedvpa.preferences.seeding import generator
from fedvpa.preferences.sources import load_preferences
from fedvpa.selector import Selector
from fedvpa.user import User

if TYPE_CHECKING:
    from fedvpa.alignment.policy import PersonalizedPolicy

MOST_PAIRS = 500
"""Candidate questions; more are drawn from at random, so that start and answers stay quick."""

PROMPTS, ANSWERS = 30, 4
"""Prompts that *Judge* offers, and answers of each."""


@dataclass(frozen=True)
class World:
    """A run, ready for the page; the same for everybody who looks at it.

    Attributes:
        selector, policy: the trained models; no policy, no *Write*.
        pairs: candidate questions; predictor: over these pairs.
        map: where users and prototypes lie.
        prototypes: a name for each of the selector's centres.
        average: a user of whom nothing is known.
        notes: sentences that must be shown with the data.
        report: the run's page, where it has one.
    """

    selector: Selector
    pairs: tuple[Pair, ...]
    predictor: LatentPredictor | LaplacePredictor
    map: LatentMap
    prototypes: tuple[str, ...]
    average: User
    notes: tuple[str, ...]
    report: Path | None
    policy: PersonalizedPolicy | None = None

    @staticmethod
    def open(run: Path, pairs: Path | None = None, policy: Path | None = None) -> World:
        """Loads a run, and computes the features of the candidate pairs that are not cached.

        Args:
            run: a folder of `fedvpa train`; pairs: JSON Lines with prompt, a, b instead of the run's unseen pairs;
            policy: a folder of `fedvpa align`.

        Raises:
            UserError: no such run or policy, one that has no latent or belongs to another run, or unreadable pairs.
        """
        selector = Selector.from_pretrained(run, cache=True)
        if not len(selector.centres):
            problem = f"{selector.info.method} has no latent, so there is no preference to switch"
            raise UserError(problem, "train fedvpa-laplace, fedvpa-gp or fedvpl", file=run, field="method.name")
        writer = None if policy is None else _policy(policy, selector)
        candidates, notes = (
            _unseen(selector.info.config) if pairs is None else (tuple(read_candidates(pairs))[:MOST_PAIRS], ())
        )
        results = read_results(run / RESULTS) if (run / RESULTS).is_file() else None
        found = LatentMap.of(_diagnostics(results, selector.info.method), selector.centres.tolist())
        report = run / REPORT
        return World(
            selector=selector,
            pairs=candidates,
            predictor=_predictor(selector, candidates),
            map=found,
            prototypes=found.prototype_names(),
            average=selector.known(None),
            notes=tuple(results["notes"]) if results else notes,
            report=report if report.is_file() else None,
            policy=writer,
        )

    @cached_property
    def examples(self) -> list[tuple[Prompt, list[str]]]:
        """Prompts with some of their answers, to start from in *Judge*."""
        found: dict[Prompt, list[str]] = {}
        for pair in self.pairs:
            answers = found.setdefault(pair.prompt, [])
            answers += [r for r in (pair.a, pair.b) if r not in answers]
        return [(prompt, answers[:ANSWERS]) for prompt, answers in list(found.items())[:PROMPTS]]


def _unseen(config: ExperimentConfig) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """Pairs of the test split, which no client was trained on, in a random order; and the data's notes."""
    try:
        data = load_preferences(config)
    except UserError as e:
        remedy = "put the run's data back, or name other pairs with --pairs FILE"
        raise UserError(e.problem, remedy, file=e.file, line=e.line, field=e.field) from None
    unseen = [pair for pair, split in zip(data.pairs, data.split, strict=True) if split == "test"]
    if not unseen:
        raise UserError("the run has no unseen pair to ask", "name other pairs with --pairs FILE", field="data")
    order = torch.randperm(len(unseen), generator=generator(config.seed, "studio"))[:MOST_PAIRS]
    return tuple(unseen[i] for i in order.tolist()), data.notes


def _predictor(selector: Selector, pairs: Sequence[Pair]) -> LatentPredictor | LaplacePredictor:
    predictor = selector.predictor_of(pairs)
    assert isinstance(predictor, LatentPredictor | LaplacePredictor)
    return predictor


def _diagnostics(results: dict[str, Any] | None, method: str) -> dict[str, Any]:
    return {} if results is None else results["diagnostics"].get(method) or {}


def _policy(folder: Path, selector: Selector) -> PersonalizedPolicy:
    from fedvpa.alignment.policy import PersonalizedPolicy

    policy = PersonalizedPolicy.from_pretrained(folder)
    if policy.selector.info.model_hash != selector.info.model_hash:
        remedy = "give the run that it was aligned with, or align again"
        raise UserError("the policy was aligned with another run's selector", remedy, file=folder, field="--policy")
    return policy
