"""Predictions by distinct pairs are those of every user's own pairs."""

import torch

from fedvpa.methods import base
from fedvpa.methods.base import by_row
from fedvpa.variational.inference import Particles, predictive
from fedvpa.variational.selector import Sizes, init_theta


def test_each_user_gets_the_values_of_its_own_pairs(monkeypatch):
    monkeypatch.setattr(base, "USERS_AT_ONCE", 3)
    g = torch.Generator().manual_seed(0)
    index, table = torch.randint(50, (7, 5), generator=g), torch.randn(7, 50, generator=g)
    found = by_row(index, lambda some, rows: table[some][:, rows])
    assert torch.equal(found, table.gather(1, index))


def test_shared_pairs_and_own_copies_give_the_same_predictive():
    g = torch.Generator().manual_seed(0)
    theta = {k: v.double() for k, v in init_theta(Sizes(features=6, hidden=5, latent=3, encoder=4), g).items()}
    theta["selector.common"] = torch.randn(5, generator=g, dtype=torch.float64)
    d, base_logit = torch.randn(8, 5, generator=g).double(), torch.randn(8, generator=g).double()
    weights = torch.randn(4, 2, generator=g).double().log_softmax(-1)
    users = Particles(torch.randn(4, 2, 3, generator=g).double(), weights)
    shared = predictive(theta, users, d, base_logit)
    own = predictive(theta, users, d.expand(4, -1, -1), base_logit.expand(4, -1))
    torch.testing.assert_close(shared, own)
