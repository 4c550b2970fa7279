"""Federated moments against the mean and standard deviation of everything in one place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvpa.errors import UserError
from fedvpa.federation.moments import client_moments, combine, rating_scale
from fedvpa.preferences.schema import NO_RATINGS, NOTHING_RATED, RATING, VOTE, Judgements, RatingSums


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 1000), st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_moments_are_those_of_the_pooled_features(sizes: list[int], seed: int, shift: float) -> None:
    g = torch.Generator().manual_seed(seed)
    parts = [3 * torch.randn(n + 1, 4, generator=g) + shift for n in sizes]
    together = torch.cat(parts).double()
    found = combine(client_moments(p) for p in parts)
    torch.testing.assert_close(found.mean, together.mean(0).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.scale, together.std(0, correction=0).float(), rtol=1e-4, atol=1e-4)
    z = found(torch.cat(parts))
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=1e-3, rtol=0)


def test_a_constant_feature_is_left_in_place() -> None:
    found = combine([client_moments(torch.tensor([[7.0, 1.0], [7.0, 3.0]]))])
    assert found(torch.tensor([[8.0, 4.0]])).tolist() == [[1.0, 2.0]]


def test_the_message_is_two_vectors_a_count_and_three_sums_of_ratings_in_double_precision() -> None:
    message = client_moments(torch.randn(9, 5))
    assert message.bytes() == 8 * (1 + 5 + 5 + 3)
    assert float(message.count) == 9


def rated(values: torch.Tensor, kind: int = RATING) -> Judgements:
    place = torch.arange(len(values))
    return Judgements(
        place, place - 1, values, torch.full((len(values),), kind, dtype=torch.int8), torch.ones(len(values))
    )


@given(st.lists(st.integers(0, 20), min_size=2, max_size=6), st.integers(0, 1000), st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_the_rating_scale_is_that_of_the_pooled_ratings_in_any_order(sizes: list[int], seed: int, shift: float) -> None:
    g = torch.Generator().manual_seed(seed)
    parts = [3 * torch.randn(n, generator=g) + shift for n in (*sizes, 2)]
    sums = [client_moments(torch.zeros(1, 1), RatingSums.of(rated(p))).rating_sums for p in parts]
    together = torch.cat(parts).double()
    mean, deviation = rating_scale(sums)
    assert mean == pytest.approx(float(together.mean()), rel=1e-9, abs=1e-9)
    assert deviation == pytest.approx(float(together.std(correction=0)), rel=1e-6)
    assert rating_scale(sums[::-1]) == (mean, deviation)


def test_without_ratings_there_is_no_scale() -> None:
    votes = RatingSums.of(rated(torch.ones(5), VOTE))
    assert votes == NOTHING_RATED
    assert rating_scale([votes, NOTHING_RATED]) == rating_scale([]) == NO_RATINGS


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e5])
def test_equal_ratings_are_refused(value: float) -> None:
    sums = [RatingSums.of(rated(torch.full((n,), value))) for n in (1, 7, 1000)]
    with pytest.raises(
        UserError, match=r"rating: all 1008 ratings of the training people are .*; give ratings that differ"
    ):
        rating_scale(sums)
