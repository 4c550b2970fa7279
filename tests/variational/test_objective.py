"""The parts of Eq. 10 against plain loops."""

import math

import torch

from fedvpa.variational import objective
from fedvpa.variational.objective import Terms

Y = torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0, -1.0, 1.0, 0.0]], dtype=torch.float64)
CONTEXT = torch.tensor([[True, True, False, False], [True, False, False, False]])
QUERY = torch.tensor([[False, False, True, True], [False, True, True, False]])
LOGITS = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LOG_SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()


def p(i: int, k: int, j: int) -> float:
    """p(y_j) of client i under latent k."""
    return 1 / (1 + math.exp(-float(Y[i, j] * LOGITS[i, k, j])))


def test_reconstruction_is_a_mean_over_queries_and_samples() -> None:
    found = objective.reconstruction(LOGITS, Y, QUERY)
    for i in range(2):
        queries = [j for j in range(4) if QUERY[i, j]]
        expected = -sum(math.log(p(i, k, j)) for k in range(3) for j in queries) / (3 * len(queries))
        assert math.isclose(float(found[i]), expected, rel_tol=1e-12)


def weights(i: int) -> list[float]:
    raw = [math.exp(LOG_SHARES[k]) * math.prod(p(i, k, j) for j in range(4) if CONTEXT[i, j]) for k in range(3)]
    return [r / sum(raw) for r in raw]


def test_responsibilities_are_bayes_rule_on_the_context() -> None:
    found = objective.responsibilities(LOGITS, Y, CONTEXT, LOG_SHARES).exp()
    torch.testing.assert_close(found, torch.tensor([weights(0), weights(1)], dtype=torch.float64))
    none = objective.responsibilities(LOGITS, Y, torch.zeros_like(CONTEXT), LOG_SHARES)
    torch.testing.assert_close(none, LOG_SHARES.expand(2, 3))


def test_mixture_predictive_is_minus_log_of_the_averaged_probability() -> None:
    log_r = objective.responsibilities(LOGITS, Y, CONTEXT, LOG_SHARES)
    found = objective.mixture_predictive(LOGITS, Y, QUERY, log_r)
    for i in range(2):
        queries = [j for j in range(4) if QUERY[i, j]]
        expected = -sum(math.log(sum(w * p(i, k, j) for k, w in enumerate(weights(i)))) for j in queries) / len(queries)
        assert math.isclose(float(found[i]), expected, rel_tol=1e-12)


def test_a_client_without_a_query_adds_nothing() -> None:
    none = torch.zeros_like(QUERY)
    assert (objective.reconstruction(LOGITS, Y, none) == 0).all()
    assert (objective.mixture_predictive(LOGITS, Y, none, LOG_SHARES.expand(2, 3)) == 0).all()


def test_cluster_losses_are_the_likelihood_and_the_responsibility_of_the_own_cluster() -> None:
    label = torch.tensor([2, -1])
    log_r = objective.responsibilities(LOGITS, Y, CONTEXT, LOG_SHARES)
    mask = CONTEXT | QUERY
    fit, name = objective.cluster_fit(LOGITS, Y, mask, label), objective.identification(log_r, label)
    pairs = [j for j in range(4) if mask[0, j]]
    assert math.isclose(float(fit[0]), -sum(math.log(p(0, 2, j)) for j in pairs) / len(pairs), rel_tol=1e-12)
    assert math.isclose(float(name[0]), -math.log(weights(0)[2]), rel_tol=1e-12)
    assert fit[1] == name[1] == 0


def test_bradley_terry_is_the_logistic_loss() -> None:
    g = torch.Generator().manual_seed(1)
    theta = {"selector.common": torch.randn(6, generator=g).double(), "selector.alpha": torch.tensor(0.5).double()}
    d, base = torch.randn(2, 4, 6, generator=g).double(), torch.randn(2, 4, generator=g).double()
    found = objective.bradley_terry(theta, d, base, Y, QUERY)
    s = d @ theta["selector.common"] / math.sqrt(6) + 0.5 * base
    loss = torch.nn.functional.binary_cross_entropy_with_logits(s, (Y > 0).double(), reduction="none")
    torch.testing.assert_close(found, torch.stack([loss[i][QUERY[i]].mean() for i in range(2)]))


def test_cluster_fit_is_the_loss_under_the_own_prototype_over_all_pairs() -> None:
    real = Y != 0
    found = objective.cluster_fit(LOGITS, Y, real, torch.tensor([2, 1]))
    for i, k in ((0, 2), (1, 1)):
        pairs = [j for j in range(4) if real[i, j]]
        expected = -sum(math.log(p(i, k, j)) for j in pairs) / len(pairs)
        assert math.isclose(float(found[i]), expected, rel_tol=1e-12)
    assert objective.cluster_fit(LOGITS, Y, real, torch.tensor([-1, 0]))[0] == 0


def test_total_weights_the_parts() -> None:
    parts = Terms(*(torch.tensor([10.0**k]) for k in range(5)))
    assert parts._fields == ("reconstruction", "kl", "ortho", "mixture", "cluster")
    assert float(parts.total(beta=2, lambda_=3, mixture=4, cluster=5)) == 54321
    assert float(parts.total(beta=0, lambda_=0, mixture=0, cluster=0)) == 1
