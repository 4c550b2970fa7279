from __future__ import annotations

import torch

from fedvpa.preferences.seeding import derive_seed, generator


def test_a_seed_depends_on_value_order_and_type_of_every_part():
    seeds = [
        derive_seed(1, "a"),
        derive_seed("a", 1),
        derive_seed("1", "a"),
        derive_seed(1, "a", 0),
        derive_seed(2, "a"),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


def test_seeds_are_the_same_in_every_process():
    assert derive_seed(0, "context", 7) == 4643791620367971671


def test_generators_repeat():
    a, b = (torch.rand(5, generator=generator(3, "x")) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, torch.rand(5, generator=generator(3, "y")))
