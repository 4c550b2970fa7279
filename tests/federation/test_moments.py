"""Federated moments against the mean and standard deviation of everything in one place."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvpa.federation.moments import client_moments, combine


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


def test_the_message_is_two_vectors_and_a_count_in_double_precision() -> None:
    message = client_moments(torch.randn(9, 5))
    assert message.bytes() == 8 * (1 + 5 + 5)
    assert float(message.count) == 9
