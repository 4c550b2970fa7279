"""Judges of generated answers, and win rates by them.

Every judge has one interface, says so loudly when it cannot judge, and is never replaced by another. `win_rate` puts
each comparison to the judge in both orders, counts a tie as half a win, and states the answers' lengths: a judge (an
LLM above all) may favour the first answer, or the longer one.

    rate = win_rate(RuleJudge("longer"), prompts, answers, answers_of_the_base_model)
    rate.low > 0.5
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from torch import Tensor

from fedvpa.errors import UserError
from fedvpa.evaluation.compare import LEVEL, Floats, PairScores, percentile_interval, resample_accuracy
from fedvpa.preferences import synthetic_rules
from fedvpa.preferences.attributes import RULES, length
from fedvpa.preferences.schema import FederatedPreferences, Prompt, prompt_key
from fedvpa.preferences.seeding import derive_seed
from fedvpa.preferences.synthetic import GROUPS


class Verdict(Enum):
    """Which of two answers is the better one; the value is what the first answer scores."""

    FIRST = 1.0
    TIE = 0.5
    SECOND = 0.0

    @staticmethod
    def of(first: float, second: float) -> Verdict:
        """The answer with the higher score; only equal scores are a tie."""
        return Verdict.FIRST if first > second else Verdict.SECOND if first < second else Verdict.TIE


class Judge(Protocol):
    """What decides which of two answers to a prompt is better."""

    @property
    def name(self) -> str: ...

    def judge(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
        """A verdict on each (prompt, first answer, second answer).

        Raises:
            UserError: the judge is missing, or its answer is not a verdict.
        """
        ...


@dataclass(frozen=True)
class WinRate:
    """How often answers win against a baseline's answers to the same prompts.

    Attributes:
        judge: its name.
        rate: mean over prompts of the mean score of their comparisons; a win is 1, a tie 1/2. A comparison's score is
            the mean of its two orders'.
        low, high: its 95 % interval, see `interval`.
        prompts: distinct prompts (dialogues that begin alike are one); comparisons: judged pairs of answers.
        wins, ties, losses: comparisons with a score above, at, or below 1/2.
        inconsistent: share of comparisons in which the two orders disagree; large for a judge who looks at the place.
        words, baseline_words: mean length of the answers and of the baseline's, in words.
    """

    judge: str
    rate: float
    low: float
    high: float
    prompts: int
    comparisons: int
    wins: int
    ties: int
    losses: int
    inconsistent: float
    words: float
    baseline_words: float


def win_rate(
    judge: Judge,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    baseline: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> WinRate:
    """Judges the i-th answer against the i-th answer of the baseline, in both orders.

    Args:
        prompts, answers, baseline: n each; a prompt may occur several times.
        resamples, seed: of the bootstrap.

    Raises:
        UserError: nothing to judge, or whatever the judge raises; also if it returns too few or no verdicts.
    """
    n = len(prompts)
    if not n or len(answers) != n or len(baseline) != n:
        problem = f"{n} prompts, {len(answers)} answers and {len(baseline)} of the baseline"
        raise UserError(problem, "give one answer of each side per prompt, and at least one prompt", field="answers")
    verdicts = judge.judge([*prompts, *prompts], [*answers, *baseline], [*baseline, *answers])
    if len(verdicts) != 2 * n or not all(isinstance(v, Verdict) for v in verdicts):
        problem = f"judge {judge.name!r} did not give a verdict on each of {2 * n} comparisons"
        raise UserError(problem, "use another judge", field="judge")
    straight = np.array([v.value for v in verdicts[:n]])
    turned = 1 - np.array([v.value for v in verdicts[n:]])
    score = (straight + turned) / 2
    _, place = np.unique([prompt_key(p) for p in prompts], return_inverse=True)
    means = np.bincount(place, score) / np.bincount(place)
    low, high = interval(means, resamples=resamples, seed=seed)
    return WinRate(
        judge=judge.name,
        rate=float(means.mean()),
        low=low,
        high=high,
        prompts=len(means),
        comparisons=n,
        wins=int((score > 0.5).sum()),
        ties=int((score == 0.5).sum()),
        losses=int((score < 0.5).sum()),
        inconsistent=float((straight != turned).mean()),
        words=float(np.mean([length(t) for t in answers])),
        baseline_words=float(np.mean([length(t) for t in baseline])),
    )


def interval(scores: Floats, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of (prompts,) scores in [0, 1]: the percentile bootstrap over prompts.

    Where every prompt is won, or every one lost, resampling knows no spread; the bound is then the exact one for n wins
    out of n (Clopper and Pearson 1934): the win rate at which that would still happen in 2.5 % of all cases.
    """
    n, tail = len(scores), (1 - LEVEL) / 2
    if (scores == 1).all():
        return float(tail ** (1 / n)), 1.0
    if (scores == 0).all():
        return 0.0, float(1 - tail ** (1 / n))
    rng = np.random.default_rng(derive_seed(seed, "win rate"))
    return percentile_interval(resample_accuracy([PairScores(np.ones(n), scores)], resamples, rng)[:, 0])


class RuleJudge:
    """The exact criterion of a group of `hh-attributes` or `synthetic` users.

    Args:
        criterion: a group of `attributes.RULES` (such as ``longer``) or of `synthetic.GROUPS` (such as ``formal``).

    Raises:
        UserError: no such group; from `judge`, that a synthetic criterion finds none of the generator's sentences in
            either answer, so that there is nothing that it could judge by.
    """

    def __init__(self, criterion: str) -> None:
        known = (*RULES, *GROUPS)
        if criterion not in known:
            raise UserError(f"no rule {criterion!r}", f"choose from {', '.join(known)}", field="criterion")
        self.criterion = criterion

    @property
    def name(self) -> str:
        return f"rule {self.criterion}"

    def judge(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
        compare = self._by_rule if self.criterion in RULES else self._by_sentences
        return [compare(a, b) for _, a, b in zip(prompts, first, second, strict=True)]

    def _by_rule(self, a: str, b: str) -> Verdict:
        rule = RULES[self.criterion]
        return Verdict.of(rule(a), rule(b))

    def _by_sentences(self, a: str, b: str) -> Verdict:
        if not any(synthetic_rules.read_attributes(text).sentences for text in (a, b)):
            problem = (
                f"judge {self.name!r} knows the generator's sentences only, and {a[:40]!r} and {b[:40]!r} hold none"
            )
            raise UserError(problem, "judge answers like the generator's, or use another judge", field="judge")
        return Verdict.of(synthetic_rules.prefers(self.criterion, a, b), 0)


class RewardModelJudge:
    """A reward model that was trained on other prompts than the selector that aligned the policy.

    A policy is bound to please the selector that it learnt from. Prompts count, not pairs: two models that saw other
    answers to the same prompts are not independent. An empty answer, which has no reward, is worse than any other.

    Args:
        score: rewards (n,) of n responses to n prompts, such as ``partial(selector.rewards, user=user)``.
        name: for the report.
        trained_on: keys (`training_prompts`) of the prompts that this model was trained on.
        aligned_on: those of the selector that aligned the policy.

    Raises:
        UserError: a prompt is in both sets, or one set is empty, so that it is not known what a model was trained on;
            from `judge`, a score that is missing or not finite.
    """

    def __init__(
        self,
        score: Callable[[Sequence[Prompt], Sequence[str]], Tensor],
        *,
        name: str,
        trained_on: Collection[str],
        aligned_on: Collection[str],
    ) -> None:
        for field, keys in (("trained_on", trained_on), ("aligned_on", aligned_on)):
            if not keys:
                raise UserError("names no prompt, so an overlap is not excluded", "name all of them", field=field)
        shared = set(trained_on) & set(aligned_on)
        if shared:
            problem = f"judge {name!r} shares {len(shared)} training prompts with the selector that it is to check"
            raise UserError(f"{problem}, such as {min(shared)[:60]!r}", "train it on others", field="trained_on")
        self._score, self._name = score, f"reward model {name}"

    @property
    def name(self) -> str:
        return self._name

    def judge(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
        n, texts = len(prompts), [*first, *second]
        written = [i for i, text in enumerate(texts) if text.strip()]
        scores = self._score([prompts[i % n] for i in written], [texts[i] for i in written])
        if scores.shape != (len(written),) or not scores.isfinite().all():
            problem = f"judge {self.name!r} did not give a finite score to each of {len(written)} answers"
            raise UserError(problem, "use another model", field="judge")
        values = [-math.inf] * (2 * n)
        for i, value in zip(written, scores.tolist(), strict=True):
            values[i] = value
        return [Verdict.of(a, b) for a, b in zip(values[:n], values[n:], strict=True)]


def training_prompts(data: FederatedPreferences) -> frozenset[str]:
    """Keys of the prompts that a run's training or choices saw: all pairs of its seen and validation clients' ``train``
    and of its validation clients' ``test``."""
    held = [c.train for population in ("seen", "validation") for c in data.clients.get(population, ())]
    held += [c.test for c in data.clients.get("validation", ())]
    return frozenset(prompt_key(data.pairs[i].prompt) for part in held for i in part.index.tolist())
