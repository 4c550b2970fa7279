"""Judges and win rates: closed forms, coverage, both orders, and judges that refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import toy
from fedvpa import UserError
from fedvpa.evaluation.judges import (
    Judge,
    RewardModelJudge,
    RuleJudge,
    Verdict,
    interval,
    training_prompts,
    win_rate,
)
from fedvpa.preferences.attributes import OPPOSITES, RULES
from fedvpa.preferences.schema import Prompt, as_prompt, prompt_key
from fedvpa.preferences.synthetic import GROUPS, label, specimens_of


def prompts(n: int) -> list[Prompt]:
    return [as_prompt(f"question {i}") for i in range(n)]


class Scripted:
    """A judge that decides by a function of the two texts."""

    name = "scripted"

    def __init__(self, decide: Callable[[str, str], Verdict]) -> None:
        self.decide = decide
        self.asked: list[tuple[Prompt, str, str]] = []

    def judge(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
        self.asked += list(zip(prompts, first, second, strict=True))
        return [self.decide(a, b) for a, b in zip(first, second, strict=True)]


# Win rates ------------------------------------------------------------------------------------------------------------


def test_wins_ties_and_losses_in_closed_form() -> None:
    answers = ["a b c", "a b c", "a b", "a", "a b c d"]
    baseline = ["a", "a b", "a b", "a b c", "a b c"]
    found = win_rate(RuleJudge("longer"), prompts(5), answers, baseline)
    assert (found.wins, found.ties, found.losses) == (3, 1, 1)
    assert found.rate == pytest.approx((3 + 0.5) / 5)
    assert found.low < found.rate < found.high
    assert (found.judge, found.prompts, found.comparisons, found.inconsistent) == ("rule longer", 5, 5, 0.0)
    assert (found.words, found.baseline_words) == (pytest.approx(13 / 5), pytest.approx(11 / 5))


def test_every_comparison_is_asked_in_both_orders() -> None:
    judge = Scripted(lambda a, b: Verdict.TIE)
    win_rate(judge, prompts(2), ["a", "b"], ["c", "d"])
    one, two = prompts(2)
    assert sorted(judge.asked) == sorted([(one, "a", "c"), (one, "c", "a"), (two, "b", "d"), (two, "d", "b")])


@pytest.mark.parametrize("always", [Verdict.FIRST, Verdict.SECOND])
def test_a_judge_who_looks_at_the_place_alone_decides_nothing(always: Verdict) -> None:
    found = win_rate(Scripted(lambda a, b: always), prompts(20), ["x"] * 20, ["y"] * 20)
    assert (found.rate, found.low, found.high) == (0.5, 0.5, 0.5)
    assert (found.ties, found.inconsistent) == (20, 1.0)


def test_a_bias_towards_a_place_is_cancelled() -> None:
    """A judge who is right where the answers are far apart and takes the first otherwise."""

    def biased(a: str, b: str) -> Verdict:
        return Verdict.of(len(a), len(b)) if abs(len(a) - len(b)) > 1 else Verdict.FIRST

    answers, baseline = ["xxx"] * 12 + ["xx"] * 8, ["x"] * 20
    found = win_rate(Scripted(biased), prompts(20), answers, baseline)
    assert found.rate == pytest.approx((12 + 8 / 2) / 20)
    assert (found.wins, found.ties, found.losses, found.inconsistent) == (12, 8, 0, pytest.approx(0.4))


def test_a_tie_in_one_order_counts_a_quarter() -> None:
    judge = Scripted(lambda a, b: Verdict.FIRST if a == "x" else Verdict.TIE)
    found = win_rate(judge, prompts(4), ["x"] * 4, ["y"] * 4)
    assert (found.rate, found.wins, found.inconsistent) == (0.75, 4, 1.0)


def test_prompts_count_once_however_often_they_are_judged() -> None:
    many = [*[as_prompt("one")] * 8, as_prompt("two"), as_prompt("TWO!")]
    found = win_rate(RuleJudge("longer"), many, ["a b"] * 8 + ["a", "a"], ["a"] * 8 + ["a b", "a b"])
    assert (found.rate, found.prompts, found.comparisons, found.wins, found.losses) == (0.5, 2, 10, 8, 2)
    assert (found.low, found.high) == (0.0, 1.0)  # two prompts, one won and one lost


texts = st.text("ab ?", max_size=12)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=12), st.sampled_from(sorted(RULES)))
@settings(max_examples=60, deadline=None)
def test_exchanging_the_sides_mirrors_the_rate(pairs: list[tuple[str, str]], criterion: str) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    one = win_rate(RuleJudge(criterion), prompts(len(a)), a, b, resamples=200)
    two = win_rate(RuleJudge(criterion), prompts(len(a)), b, a, resamples=200)
    opposite = win_rate(RuleJudge(OPPOSITES[criterion]), prompts(len(a)), a, b, resamples=200)
    assert one.rate == pytest.approx(1 - two.rate)
    assert (one.wins, one.ties, one.losses) == (two.losses, two.ties, two.wins)
    assert (one.low, one.high) == (pytest.approx(1 - two.high), pytest.approx(1 - two.low))
    assert (opposite.rate, opposite.low, opposite.high) == (two.rate, two.low, two.high)
    assert one.low <= one.rate <= one.high


@given(st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_prompts_does_not_move_the_rate(order: list[int]) -> None:
    questions, answers, baseline = prompts(6), ["a b", "a", "a", "a b c", "", "b b"], ["a"] * 6
    straight = win_rate(RuleJudge("longer"), questions, answers, baseline, resamples=100)
    turned = win_rate(
        RuleJudge("longer"), [questions[i] for i in order], [answers[i] for i in order], baseline, resamples=100
    )
    assert turned == straight  # the bootstrap goes over the prompts' keys, in one order


def test_the_interval_is_the_normal_one_for_many_prompts() -> None:
    scores = np.repeat([1.0, 0.5, 0.0], [600, 100, 300])
    low, high = interval(scores, resamples=4000)
    half = 1.96 * scores.std() / np.sqrt(len(scores))
    assert (low, high) == (pytest.approx(0.65 - half, abs=0.003), pytest.approx(0.65 + half, abs=0.003))


@pytest.mark.parametrize("share", [(0.6, 0.0), (0.45, 0.3), (0.85, 0.05)])
def test_the_interval_covers_the_truth_in_95_of_100_cases(share: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    win, tie = share
    truth, covered = win + tie / 2, []
    for repeat in range(400):
        scores = rng.choice([1.0, 0.5, 0.0], 150, p=[win, tie, 1 - win - tie])
        low, high = interval(scores, resamples=400, seed=repeat)
        covered.append(low <= truth <= high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_a_clean_sweep_has_the_exact_bound() -> None:
    """0.025^(1/n): at that win rate n wins out of n happen in 2.5 % of all cases."""
    low, high = interval(np.ones(10))
    assert (low**10, high) == (pytest.approx(0.025), 1.0)
    assert interval(np.zeros(10)) == (0.0, pytest.approx(1 - low))
    few = win_rate(RuleJudge("longer"), prompts(3), ["a b"] * 3, ["a"] * 3)
    assert few.rate == 1.0
    assert few.low < 0.5  # three wins are no proof


def test_the_interval_repeats() -> None:
    scores = np.array([1.0, 0.0, 1.0, 0.5] * 10)
    assert interval(scores, seed=1) == interval(scores, seed=1)
    assert interval(scores, seed=1, resamples=50) != interval(scores, seed=2, resamples=50)


def test_nothing_to_judge() -> None:
    for arguments in (([], [], []), (prompts(2), ["a"], ["b", "c"]), (prompts(1), ["a"], [])):
        with pytest.raises(UserError, match=r"answers: .* at least one prompt"):
            win_rate(RuleJudge("longer"), *arguments)


class _Broken:
    name = "broken"

    def __init__(self, verdicts: list[object]) -> None:
        self.verdicts = verdicts

    def judge(self, prompts: object, first: object, second: object) -> list[object]:
        return self.verdicts


@pytest.mark.parametrize("verdicts", [[], [Verdict.FIRST], [Verdict.FIRST, None], [1.0, 0.0], [Verdict.TIE] * 3])
def test_nonsense_from_a_judge_ends_the_judging(verdicts: list[object]) -> None:
    judge: Judge = _Broken(verdicts)  # type: ignore[assignment]
    with pytest.raises(UserError, match="judge 'broken' did not give a verdict on each of 2"):
        win_rate(judge, prompts(1), ["a"], ["b"])


# Rules ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "better", "worse"),
    [
        ("longer", "one two", "one"),
        ("shorter", "one", "one two"),
        ("asks-back", "And you?", "Fine."),
        ("does-not-ask", "Fine.", "And you?"),
        ("hedges", "Perhaps so.", "It is so."),
        ("no-first-person", "It is so.", "I say so."),
    ],
)
def test_rules(criterion: str, better: str, worse: str) -> None:
    judge = RuleJudge(criterion)
    verdicts = judge.judge(prompts(3), [better, worse, better], [worse, better, better])
    assert verdicts == [Verdict.FIRST, Verdict.SECOND, Verdict.TIE]


@pytest.mark.parametrize("group", GROUPS)
def test_synthetic_criteria_are_the_generators_labels(group: str) -> None:
    specimens = specimens_of(3)
    ask = [s.pair.prompt for s in specimens]
    found = RuleJudge(group).judge(ask, [s.pair.a for s in specimens], [s.pair.b for s in specimens])
    expected = {1: Verdict.FIRST, 0: Verdict.TIE, -1: Verdict.SECOND}
    assert found == [expected[label(group, s.a, s.b)] for s in specimens]


def test_a_synthetic_criterion_refuses_what_it_cannot_read() -> None:
    known = "Just stretch daily and chill."
    assert RuleJudge("casual").judge(prompts(1), [known], ["The weather."]) == [Verdict.FIRST]
    with pytest.raises(UserError, match="'rule casual' knows the generator's sentences only"):
        RuleJudge("casual").judge(prompts(1), ["Nice day."], ["The weather."])


def test_an_unknown_rule() -> None:
    with pytest.raises(UserError, match="criterion: no rule 'louder'; choose from longer, shorter"):
        RuleJudge("louder")


# Reward models --------------------------------------------------------------------------------------------------------


def by_length(prompts: Sequence[Prompt], responses: Sequence[str]) -> torch.Tensor:
    return torch.tensor([float(len(r)) for r in responses])


def test_a_reward_model_judges_by_its_scores() -> None:
    judge = RewardModelJudge(by_length, name="length", trained_on={"a"}, aligned_on={"b"})
    assert judge.name == "reward model length"
    verdicts = judge.judge(prompts(3), ["xx", "x", "xx"], ["x", "xx", "yy"])
    assert verdicts == [Verdict.FIRST, Verdict.SECOND, Verdict.TIE]


def test_an_empty_answer_is_worse_than_any_other() -> None:
    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> torch.Tensor:
        assert all(responses)
        assert [p[0].content for p in prompts] == ["question 0", "question 1"]
        return torch.full((len(responses),), -1e9)

    judge = RewardModelJudge(score, name="m", trained_on={"a"}, aligned_on={"b"})
    verdicts = judge.judge(prompts(3), ["bad", " ", ""], ["", "bad", ""])
    assert verdicts == [Verdict.FIRST, Verdict.SECOND, Verdict.TIE]


def test_a_reward_model_with_the_selectors_data_is_refused() -> None:
    with pytest.raises(UserError, match=r"trained_on: judge 'm' shares 1 training prompts .* such as 'b'"):
        RewardModelJudge(by_length, name="m", trained_on={"a", "b"}, aligned_on={"b", "c"})
    with pytest.raises(UserError, match="trained_on: names no prompt"):
        RewardModelJudge(by_length, name="m", trained_on=set(), aligned_on={"b"})
    with pytest.raises(UserError, match="aligned_on: names no prompt"):
        RewardModelJudge(by_length, name="m", trained_on={"b"}, aligned_on=[])


@pytest.mark.parametrize("scores", [[float("nan"), 1.0], [1.0, float("inf")], [1.0], [[1.0], [2.0]]])
def test_a_reward_model_that_answers_nonsense(scores: list[float]) -> None:
    judge = RewardModelJudge(lambda p, r: torch.tensor(scores), name="m", trained_on={"a"}, aligned_on={"b"})
    with pytest.raises(UserError, match="'reward model m' did not give a finite score to each of 2 answers"):
        judge.judge(prompts(1), ["x"], ["y"])


def test_training_prompts_are_all_that_training_and_choices_saw() -> None:
    data, _ = toy.preferences(toy.settings())
    parts = [c.train for c in data.clients["seen"]]
    parts += [part for c in data.clients["validation"] for part in (c.train, c.test)]
    expected = {prompt_key(data.pairs[i].prompt) for part in parts for i in part.index.tolist()}
    assert training_prompts(data) == expected
    everything = {prompt_key(p.prompt) for p in data.pairs}
    assert expected < everything
