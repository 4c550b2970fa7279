"""The synthetic benchmark: exact conflict, unseen wording in every split, and nothing that single words decide."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from fedvpa.errors import UserError
from fedvpa.preferences import synthetic, synthetic_text
from fedvpa.preferences.schema import LabelledPool
from fedvpa.preferences.synthetic import FLAWS, GROUPS, SIZES, Attributes, generate, label, specimens_of

STYLES = ("FORMAL", "CASUAL", "ENCOURAGING", "CAUTIOUS")
answers = st.builds(Attributes, st.sampled_from((1, -1)), st.sampled_from((1, -1)), st.sampled_from(("", *FLAWS)))


@pytest.fixture(scope="module")
def pool() -> LabelledPool:
    return generate(0)


def rows(pool: LabelledPool, split: str) -> np.ndarray:
    return np.array([s == split for s in pool.split])


def word_differences(pool: LabelledPool) -> np.ndarray:
    """(pairs, words): how much more often each training word occurs in a than in b; punctuation counts too."""
    train = [t for p, s in zip(pool.pairs, pool.split, strict=True) if s == "train" for t in (p.a, p.b)]
    words = CountVectorizer(token_pattern=r"[\w']+|[^\w\s]").fit(train)
    return (words.transform([p.a for p in pool.pairs]) - words.transform([p.b for p in pool.pairs])).toarray()


def fitted(x: np.ndarray, y: np.ndarray, strengths: tuple[float, ...]) -> list[LogisticRegression]:
    return [LogisticRegression(C=c, fit_intercept=False, max_iter=1000).fit(x, y) for c in strengths]


def bag_of_words_accuracy(pool: LabelledPool) -> list[float]:
    """Per group the test accuracy of logistic regression on word counts, its strength chosen on validation."""
    x, found = word_differences(pool).astype(float), []
    train, validation, test = (rows(pool, s) for s in SIZES)
    for y in pool.group_labels.numpy():
        fits = fitted(x[train], y[train], (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0))
        best = max(fits, key=lambda m: m.score(x[validation], y[validation]))
        found.append(float(best.score(x[test], y[test])))
    return found


def test_the_same_seed_gives_the_same_pool_and_another_seed_another(pool: LabelledPool) -> None:
    again, other = generate(0), generate(1)
    assert again.pairs == pool.pairs
    assert again.split == pool.split
    assert (again.group_labels == pool.group_labels).all()
    assert len({p.key for p in pool.pairs} & {p.key for p in other.pairs}) == 0


def test_sizes_and_shares(pool: LabelledPool) -> None:
    assert {s: pool.split.count(s) for s in SIZES} == SIZES
    agreed = (pool.group_labels == pool.group_labels[0]).all(0).numpy()
    for split in SIZES:
        assert agreed[rows(pool, split)].mean() == pytest.approx(0.3, abs=0.03)
    assert pool.counts["agreed"] == agreed.sum()
    assert pool.counts["agreed"] + pool.counts["conflicting"] == pool.counts["pairs"] == len(pool.pairs)


def test_couples_are_opposite_on_every_conflicting_pair(pool: LabelledPool) -> None:
    y = pool.group_labels.numpy()
    assert pool.groups == GROUPS
    assert pool.opposite == (1, 0, 3, 2)
    assert set(np.unique(y)) == {-1, 1}
    conflict = ~(y == y[0]).all(0)
    assert (y[0] == -y[1])[conflict].all()
    assert (y[2] == -y[3])[conflict].all()
    assert (y[:, conflict].sum(0) == 0).all()  # two against two: no selector without a latent is above 0.5
    assert 0.45 < (y[0] == y[2])[conflict].mean() < 0.55  # the couples are independent of each other


def test_the_order_tells_nothing(pool: LabelledPool) -> None:
    y = pool.group_labels.numpy()
    agreed = (y == y[0]).all(0)
    canonical = np.array([p.a < p.b for p in pool.pairs]) * 2 - 1
    for kind in (agreed, ~agreed):
        for group in y[:, kind]:
            assert abs((group == 1).mean() - 0.5) < 0.06
            assert abs((group == canonical[kind]).mean() - 0.5) < 0.12


@pytest.mark.parametrize("flaw", FLAWS)
def test_no_flaw_shows_in_the_alphabetical_order(flaw: str) -> None:
    """Damaged answers without a capital letter once sorted after intact ones, 0.95 of the time."""
    first = []
    for s in (s for seed in range(4) for s in specimens_of(seed)):
        if flaw in (s.a.flaw, s.b.flaw):
            first.append((s.pair.a < s.pair.b) == (s.b.flaw == flaw))
    assert len(first) > 150
    assert 0.38 < np.mean(first) < 0.62


def test_no_prompt_and_no_answer_is_in_two_splits(pool: LabelledPool) -> None:
    prompts = {s: {p.prompt for p, t in zip(pool.pairs, pool.split, strict=True) if t == s} for s in SIZES}
    texts = {s: {r for p, t in zip(pool.pairs, pool.split, strict=True) if t == s for r in (p.a, p.b)} for s in SIZES}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not prompts[first] & prompts[second]
        assert not texts[first] & texts[second]
    assert len({p.key for p in pool.pairs}) == len(pool.pairs)
    assert len({(p.prompt, frozenset((p.a, p.b))) for p in pool.pairs}) == len(pool.pairs)


@pytest.mark.parametrize("bank", [*STYLES, "RUDE", "REFUSAL", "TRIVIA", "QUESTIONS"])
def test_every_phrasing_lies_in_one_split(pool: LabelledPool, bank: str) -> None:
    shown = [f"{p.prompt[0].content} | {p.a} | {p.b}" for p in pool.pairs]
    by_split = {s: " | ".join(t for t, own in zip(shown, pool.split, strict=True) if own == s) for s in SIZES}
    for phrase in getattr(synthetic_text, bank):
        pattern = re.compile(re.escape(phrase).replace(r"\{vp\}", "[^|.]+").replace(r"\{goal\}", "[^|.]+"))
        found = [s for s, text in by_split.items() if pattern.search(text)]
        assert len(found) <= 1, (phrase, found)


def test_banks_are_rich_and_free_of_repetition() -> None:
    for bank in (*STYLES, "TOPICS"):
        assert len(set(getattr(synthetic_text, bank))) == len(getattr(synthetic_text, bank)) >= 60
    for topic in synthetic_text.TOPICS:
        assert len(set(topic.split(" | "))) == 5, topic
    goals = [t.split(" | ")[0] for t in synthetic_text.TOPICS]
    assert len(set(goals)) == len(goals)


def test_every_flaw_occurs_and_changes_the_text() -> None:
    specimens = specimens_of(3)
    for flaw in FLAWS:
        assert sum(flaw in (s.a.flaw, s.b.flaw) for s in specimens) >= 30
    for s in specimens:
        assert not (s.a.flaw and s.b.flaw)
        assert s.pair.a.strip()
        assert s.pair.b.strip()
        assert "{" not in s.pair.a + s.pair.b + s.pair.prompt[0].content


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_single_word_decides(seed: int) -> None:
    pool = generate(seed)
    sign = np.sign(word_differences(pool))
    for y in pool.group_labels.numpy():
        accuracy = (1 + sign * y[:, None]).mean(0) / 2  # a tie counts one half
        assert np.maximum(accuracy, 1 - accuracy).max() < 0.7
    length = np.sign([len(p.a.split()) - len(p.b.split()) for p in pool.pairs])
    for y in pool.group_labels.numpy():
        assert abs((1 + length * y).mean() / 2 - 0.5) < 0.2


def test_a_bag_of_words_does_not_solve_it(pool: LabelledPool) -> None:
    accuracy = bag_of_words_accuracy(pool)
    assert min(accuracy) > 0.45
    assert np.mean(accuracy) < 0.8


@given(answers, answers, st.sampled_from(GROUPS))
def test_the_rule_is_antisymmetric_and_opposite_within_a_couple(a: Attributes, b: Attributes, group: str) -> None:
    assert label(group, a, b) == -label(group, b, a)
    i = GROUPS.index(group)
    other = label(GROUPS[i ^ 1], a, b)
    if bool(a.flaw) != bool(b.flaw):
        assert other == label(group, a, b) == (-1 if a.flaw else 1)
    else:
        assert other == -label(group, a, b)
    assert label(group, a, a) == 0


def test_the_rule_by_example() -> None:
    polite = Attributes(formal=1, encouraging=-1)
    jolly = Attributes(formal=-1, encouraging=1)
    assert [label(g, polite, jolly) for g in GROUPS] == [1, -1, -1, 1]
    assert [label(g, polite, replace(jolly, flaw="rude")) for g in GROUPS] == [1, 1, 1, 1]


def test_groups_can_be_chosen(pool: LabelledPool) -> None:
    some = generate(0, ["cautious", "formal"])
    assert some.pairs == pool.pairs
    assert some.opposite == (1, 0)
    assert (some.group_labels == pool.group_labels[[3, 0]]).all()
    assert generate(0, ["casual", "cautious", "formal"]).opposite == (2, 2, 0)


@pytest.mark.parametrize(
    ("groups", "problem"),
    [(["formall"], "did you mean formal"), (["formal", "formal"], "named twice"), ([""], "unknown")],
)
def test_wrong_groups_are_refused(groups: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        generate(0, groups)


def test_an_unknown_split_is_a_programming_error() -> None:
    with pytest.raises(AssertionError):
        synthetic._part([1, 2], "dev", 0)  # type: ignore[arg-type]
