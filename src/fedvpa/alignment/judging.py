"""What an aligned policy must show: under the latent of group A it wins on A's criterion, under B's on B's.

The *switching table* has latents as rows and criteria as columns; a cell is the win rate against the base model's own
response to the same prompt. Responses that meet have random numbers of their own: with shared ones a small change would
win more often than it does against an independent response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from fedvpa.alignment.candidates import Request, capped_share
from fedvpa.alignment.config import JudgingConfig
from fedvpa.alignment.labelling import Latent, inferred
from fedvpa.alignment.language import Response
from fedvpa.alignment.policy import PersonalizedPolicy
from fedvpa.evaluation.judges import Judge, RuleJudge, interval, win_rate
from fedvpa.preferences.attributes import OPPOSITES, RULES
from fedvpa.preferences.schema import FederatedPreferences, Prompt

Write = Callable[[str, Sequence[Request]], list[Response]]
"""Writes responses: ``base``, ``policy`` or ``baseline`` says who."""

BASE = "base model"


class Row(NamedTuple):
    """A row of the switching table: who wrote, under whose latent, and a response to each of the first prompts."""

    kind: str
    group: str | None
    responses: list[Response]


@dataclass(frozen=True)
class Judging:
    """Who judges what.

    Attributes:
        prompts: to judge on.
        people: per group the latents that stand for it: unseen users, who take turns over the prompts.
        judges: per criterion (group) its judge.
    """

    prompts: tuple[Prompt, ...]
    people: Mapping[str, Sequence[Latent]]
    judges: Mapping[str, Judge]
    config: JudgingConfig
    seed: int

    @staticmethod
    def of(
        policy: PersonalizedPolicy,
        data: FederatedPreferences,
        prompts: Sequence[Prompt],
        config: JudgingConfig,
        seed: int,
    ) -> Judging | None:
        """With the groups' own rules as judges; None where the data's groups have no rules for free text."""
        if not data.groups or not set(data.groups) <= set(RULES):
            return None
        people = {
            name: inferred(
                policy.selector,
                data,
                [c for c in data.clients["unseen"] if c.group == g][: config.users],
                config.context_pairs,
            )
            for g, name in enumerate(data.groups)
        }
        judges = {name: RuleJudge(name) for name in data.groups}
        return Judging(tuple(prompts), {k: v for k, v in people.items() if v}, judges, config, seed)

    @property
    def notes(self) -> list[str]:
        """Groups that the table has as criteria only."""
        return [
            f"No unseen user is of group {g}, so it has no row in the table."
            for g in self.judges
            if g not in self.people
        ]

    def person(self, group: str, i: int) -> Latent:
        return self.people[group][i % len(self.people[group])]

    def rows(self, policy: PersonalizedPolicy, write: Write, baseline: bool) -> tuple[list[Row], list[Response]]:
        """The rows' responses, and the base model's that they are judged against."""
        base = write("base", [Request(p) for p in self.prompts])
        rows = []
        for g, group in enumerate(self.people):
            wanted = [Request(p, 1 + g, self.person(group, i).z) for i, p in enumerate(self.prompts)]
            rows.append(Row("policy", group, write("policy", wanted)))
        if baseline:
            rows.append(Row("baseline", None, write("baseline", [Request(p, 1) for p in self.prompts])))
        n = self.config.best_of
        if n:
            prompts = self.prompts[: self.config.best_of_prompts or None]
            several = write("base", [Request(p, 1 + k) for p in prompts for k in range(n)])
            for group in self.people:
                chosen = [
                    policy.choose(p, several[i * n : (i + 1) * n], self.person(group, i).user)
                    for i, p in enumerate(prompts)
                ]
                rows.append(Row(f"best of {n}", group, chosen))
            rows.append(Row(f"{BASE}, again", None, several[::n]))
        return rows, base

    def table(self, rows: Sequence[Row], base: Sequence[Response]) -> list[dict[str, Any]]:
        """A cell per row and criterion."""
        return [
            {"kind": r.kind, "latent": r.group, "criterion": criterion, "capped": capped_share(r.responses)}
            | self._rate(judge, r.responses, base)
            for r in rows
            for criterion, judge in self.judges.items()
        ]

    def exchanged(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """The policy under a group's latent against the policy under the opposite one's, on the group's criterion."""
        mine = {r.group: r.responses for r in rows if r.kind == "policy"}
        return [
            {"latent": group, "against": OPPOSITES[group], "criterion": group}
            | self._rate(self.judges[group], mine[group], mine[OPPOSITES[group]])
            for group in mine
            if group is not None and OPPOSITES[group] in mine
        ]

    def _rate(self, judge: Judge, a: Sequence[Response], b: Sequence[Response]) -> dict[str, Any]:
        prompts = self.prompts[: len(a)]
        texts = [[r.text for r in side[: len(a)]] for side in (a, b)]
        return asdict(win_rate(judge, prompts, *texts, resamples=self.config.bootstrap, seed=self.seed))

    def blends(self, policy: PersonalizedPolicy, write: Write) -> list[dict[str, Any]]:
        """Points between the prototypes of opposite groups, and the mean of the first group's criterion at each.

        A group's prototype is the one nearest to its users.
        """
        found: list[dict[str, Any]] = []
        prompts = self.prompts[: self.config.blend_prompts]
        for group, opposite in self.couples():
            here, there = (self.prototype_of(policy, g) for g in (group, opposite))
            if here == there:
                continue
            for share in self.config.blend:
                weights = {there: 1 - share, here: share}
                latent = tuple(policy.selector.blend(weights).mean)
                number = 100 + len(found)
                responses = write("policy", [Request(p, number, latent) for p in prompts])
                scores = np.array([RULES[group](r.text) for r in responses])
                low, high = _bounds(scores, self.config.bootstrap, self.seed)
                found.append(
                    {"group": group, "opposite": opposite, "prototypes": [there, here], "share": share}
                    | {"mean": float(scores.mean()), "low": low, "high": high, "prompts": len(prompts)}
                )
        return found

    def couples(self) -> list[tuple[str, str]]:
        """Opposite groups, each couple once."""
        names = list(self.people)
        return [(g, OPPOSITES[g]) for g in names if OPPOSITES[g] in names[names.index(g) + 1 :]]

    def prototype_of(self, policy: PersonalizedPolicy, group: str) -> int:
        centres = policy.selector.centres.double()
        mean = torch.tensor([latent.z for latent in self.people[group]], dtype=torch.float64).mean(0)
        return int((centres - mean).norm(dim=-1).argmin())


def _bounds(scores: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """95 % interval of a mean of any scores, by way of `judges.interval`, which wants them in [0, 1]."""
    low, size = float(scores.min()), float(np.ptp(scores))
    if not size:
        return low, low
    bounds = interval((scores - low) / size, resamples=resamples, seed=seed)
    return low + size * bounds[0], low + size * bounds[1]
