"""What choosing the questions is worth: replay of questions to people who never trained, on votes that they gave.

Per conversation, way to ask and seed, fedvpa-laplace trains once. Each unseen person's own context votes (all of them,
not the first 64 alone) are then revealed one at a time in four orders, and the person's queries, which are other
statements, are predicted after 0, 1, 2, 4, 8, 16 and 32 votes:

- random: shuffled. (Contexts of the evaluation are not: they alternate agreement and disagreement.)
- chosen: next the vote with the largest expected information under the person's posterior from the votes before.
- planned: the person's votes in the order of `acquisition.best_questions` under the prior: no answer is looked at.
- questionnaire: the n first questions of `acquisition.first_questions`, the same for everybody; a person answers those
  of them that it voted on in its context, which are fewer than n.

Somebody with fewer votes than n has given all of them, in every arm. The inference is the one that validation people
choose at each size. Figures are means over people, pooled over the conversations; a person that was asked under
several seeds counts once, with its mean. Differences are paired, with a bootstrap over people.

    FEDVPA_CACHE=CACHE OMP_NUM_THREADS=1 python benchmarks/questions.py --data FOLDER FOLDER --seeds 5 --json out.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedvpa.apps.runs import environment
from fedvpa.config import load_config
from fedvpa.evaluation import metrics
from fedvpa.evaluation.experiment import Prepared, calibrated, choose_inference, prepare
from fedvpa.evaluation.protocol import Panel
from fedvpa.federation.rounds import train
from fedvpa.methods.base import Judged
from fedvpa.methods.fedvpa_laplace import LaplacePredictor, observations
from fedvpa.methods.registry import create
from fedvpa.preferences.seeding import generator
from fedvpa.variational import laplace
from fedvpa.variational.acquisition import SAMPLES, best_questions, first_questions, information_gain
from fedvpa.variational.laplace import Noise, Observations, Posterior
from questions_figures import COMPARISONS, STEPS, Pooled, show

ROOT = Path(__file__).parent.parent
METHOD = "fedvpa-laplace"
ALL = 1000
"""A context size that no person reaches: a context holds all of a person's votes that are not for queries."""
AT_ONCE = 1_000_000
"""Numbers in one tensor of sampled answers, about."""


# Orders --------------------------------------------------------------------------------------------------------------


def answers_of(belief: Posterior, asked: Observations, noise: Noise, rng: torch.Generator) -> Tensor:
    """p(yes | z) of each person's votes under samples of its z: `acquisition.answers_under` of many people.

    Args:
        belief: (people, K); asked: (people, n).

    Returns:
        (samples, people, n)
    """
    people, dim = len(asked.offset), belief.means.shape[-1]
    uniform = torch.rand(people, SAMPLES, generator=rng).to(belief.means)
    z = laplace.sample(belief, uniform, torch.randn(people, SAMPLES, dim, generator=rng).to(belief.means))
    p = torch.sigmoid(z @ asked.slope.mT + asked.offset.unsqueeze(-2))
    return (noise.error + (1 - 2 * noise.error) * p).transpose(0, 1)


def gains(belief: Posterior, asked: Observations, noise: Noise, rng: torch.Generator) -> Tensor:
    """Expected information in nats of each person's votes, (people, n); arguments as of `answers_of`."""
    most = max(1, AT_ONCE // (SAMPLES * max(asked.offset.shape[-1], belief.means[0].numel())))
    blocks = -(-len(asked.offset) // most)
    parts = zip(*(zip(*(t.tensor_split(blocks) for t in ts), strict=True) for ts in (belief, asked)), strict=True)
    return torch.cat(
        [information_gain(answers_of(Posterior(*q), Observations(*seen), noise, rng)) for q, seen in parts]
    )


def random_order(weight: Tensor, rng: torch.Generator) -> Tensor:
    """Each person's columns shuffled, (people, n), those with weight 0 last."""
    return torch.rand(weight.shape, generator=rng).masked_fill(weight == 0, 2.0).argsort(1)


def planned_order(prior: Posterior, asked: Observations, noise: Noise, rng: torch.Generator) -> Tensor:
    """Each person's columns in the order of `best_questions` under the prior, as far as `STEPS` go; others follow."""
    rows = []
    for i, n in enumerate((asked.weight > 0).sum(1).tolist()):
        one = Observations(*(t[i : i + 1, :n] for t in asked))
        p = answers_of(Posterior(*(t[i : i + 1] for t in prior)), one, noise, rng)[:, 0]
        first = [j for j, _ in best_questions(p, max(STEPS), rng)]
        rows.append(torch.tensor(first + sorted(set(range(asked.weight.shape[1])) - set(first))))
    return torch.stack(rows)


# Replay --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """Unseen people's context votes, and what predicts their queries.

    Attributes:
        how: the inference at each of `STEPS`.
        items: rows of the items that may stand in a questionnaire.
    """

    predictor: LaplacePredictor
    panel: Panel
    how: dict[int, str]
    items: Tensor

    @property
    def weight(self) -> Tensor:
        return self.panel.judged.weight

    def observed(self, judged: Judged) -> Observations:
        return observations(self.predictor.slope, self.predictor.offset, judged)

    def believed(self, given: Tensor, n: int) -> Posterior:
        """The posterior from the columns `given` (people, n or fewer), with the inference of so many votes."""
        judged = Judged(*(t.gather(1, given) for t in self.panel.judged))
        return self.predictor.infer(judged, self.how[max(s for s in STEPS if s <= n)])

    def measure(self, users: Posterior) -> dict[str, Tensor]:
        """Each person's accuracy, and that on its matched queries (NaN without any)."""
        panel = self.panel
        hit = metrics.correct(self.predictor.predict(users, panel.query).double(), panel.query_y)
        matched = panel.query_mask if panel.matched is None else panel.matched
        return {
            "accuracy": metrics.per_user(hit, panel.query_mask.double()),
            "matched": metrics.per_user(hit, matched.double()),
        }

    def in_order(self, order: Tensor) -> dict[int, dict[str, Tensor]]:
        """What is measured after the first votes of an order (people, n)."""
        found = {}
        for n in STEPS:
            given = order[:, :n]
            found[n] = self.measure(self.believed(given, n)) | {"votes": self.weight.gather(1, given).sum(1)}
        return found

    def chosen(self, rng: torch.Generator) -> Tensor:
        """The order in which each vote has the largest gain under the posterior from those before it."""
        all_votes, noise = self.observed(self.panel.judged), self.predictor.likelihood
        order, used = torch.zeros(len(self.weight), 0, dtype=torch.int64), self.weight == 0
        for n in range(min(max(STEPS), self.weight.shape[1])):
            gain = gains(self.believed(order, n), all_votes, noise, rng)
            # Somebody without a free vote is given padding, whose weight is 0.
            best = gain.masked_fill(used, -1.0).argmax(1, keepdim=True)
            best = torch.where(used.all(1, keepdim=True), self.padding, best)
            order, used = torch.cat([order, best], 1), used.scatter(1, best, True)
        return order

    @property
    def padding(self) -> Tensor:
        """(people, 1) a column of weight 0 of each person who has one; of others the last, which is used last."""
        return self.weight.argmin(1, keepdim=True)

    def planned(self, rng: torch.Generator) -> Tensor:
        none = torch.zeros(len(self.weight), 0, dtype=torch.int64)
        return planned_order(self.believed(none, 0), self.observed(self.panel.judged), self.predictor.likelihood, rng)

    def questionnaire(self, rng: torch.Generator) -> dict[int, dict[str, Tensor]]:
        """What is measured after the first n questions of the list for everybody, as far as people voted on them."""
        one = torch.ones(1, len(self.items), dtype=self.weight.dtype)
        rows = self.items.unsqueeze(0)
        asked = self.observed(Judged(rows, -torch.ones_like(rows), one, torch.zeros_like(rows, dtype=torch.bool), one))
        prior = self.predictor.population
        prior = prior if self.how[0] == "mixture" else laplace.moment_matched(prior)
        listed = self.items[[j for j, _ in first_questions(prior, asked, self.predictor.likelihood, max(STEPS), rng)]]
        found = {}
        for n in STEPS:
            answered = torch.isin(self.panel.judged.first, listed[:n]) & (self.weight > 0)
            judged = self.panel.judged._replace(weight=self.weight * answered)
            users = self.predictor.infer(judged, self.how[n])
            found[n] = self.measure(users) | {"votes": answered.sum(1)}
        return found

    @torch.no_grad()
    def arms(self, seed: int) -> dict[str, dict[int, dict[str, Tensor]]]:
        """Per arm and number of votes: each person's accuracy, matched accuracy and votes that were given."""
        return {
            "random": self.in_order(random_order(self.weight, generator(seed, "random votes"))),
            "chosen": self.in_order(self.chosen(generator(seed, "chosen votes"))),
            "planned": self.in_order(self.planned(generator(seed, "planned votes"))),
            "questionnaire": self.questionnaire(generator(seed, "questionnaire")),
        }


def replay_of(prepared: Prepared) -> Replay:
    """Trains fedvpa-laplace, and takes the unseen people."""
    method = create(METHOD, prepared.setup(prepared.config))
    state = calibrated(method, train(method, prepared.config, prepared.clients), prepared)
    predictor = method.predictor(state.server, prepared.pool)
    how = {n: choose_inference(predictor, predictor.inferences, prepared.choosing, n) for n in STEPS}
    given = [c.judgements.first for c in prepared.data.clients["seen"] if c.judgements is not None]
    return Replay(predictor, prepared.panels["unseen"], how, torch.cat(given).unique())


def prepared_of(folder: str, queries: str, seed: int) -> Prepared:
    settings = [f"data.path={folder}", f"method.name={METHOD}", f"evaluation.queries={queries}", f"seed={seed}"]
    sizes = ",".join(map(str, [*STEPS, ALL]))
    config = load_config(ROOT / "configs/polis.yaml", [*settings, f"evaluation.context_sizes=[{sizes}]"])
    return prepare(config.for_method(METHOD))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="folders of votes")
    parser.add_argument("--queries", nargs="+", default=["known-items", "new-items"], help="ways to ask (default both)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each (default 2)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    pooled, runs = Pooled.empty(), []
    result: dict[str, Any] = {}
    for seed in range(args.seeds):
        for folder in args.data:
            for queries in args.queries:
                began, prepared = time.perf_counter(), prepared_of(folder, queries, seed)
                ids = [(folder, c.client_id) for c in prepared.data.clients["unseen"] if len(c.test)]
                replay = replay_of(prepared)
                arms, one = replay.arms(seed), Pooled.empty()
                for kept in (pooled, one):
                    kept.add(queries, ids, arms)
                run = {"data": Path(folder).name, "queries": queries, "seed": seed, "people": len(ids)}
                run |= {"how": replay.how, "seconds": time.perf_counter() - began, "table": one.table()}
                runs.append(run)
                print({k: run[k] for k in run if k != "table"}, file=sys.stderr, flush=True)
        compared = [pooled.compare(c) for c in COMPARISONS if c.queries in args.queries]
        result = {"steps": STEPS, "table": pooled.table(), "comparisons": compared, "runs": runs}
        if args.json:  # after each seed
            args.json.write_text(json.dumps(result | {"environment": environment()}, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    main()
