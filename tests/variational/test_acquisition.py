"""Questions worth asking, against sums written out and integrals."""

import math

import pytest
import torch

from fedvpa.variational import acquisition, laplace
from fedvpa.variational.gaussian import Gaussian
from fedvpa.variational.selector import Sizes, Theta, init_theta

H, DIM = 6, 3


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def theta() -> Theta:
    g = torch.Generator().manual_seed(0)
    return {k: 2 * torch.randn(v.shape, generator=g).double() for k, v in init_theta(Sizes(4, H, DIM, 5), g).items()}


def brute_force(p: list[list[float]]) -> list[float]:
    """Mutual information of the answer and the sample, from the joint table, pair by pair."""
    samples, found = len(p), []
    for j in range(len(p[0])):
        total = 0.0
        for y in (0, 1):
            joint = [(row[j] if y else 1 - row[j]) / samples for row in p]
            total += sum(q * math.log(q / (sum(joint) / samples)) for q in joint if q > 0)
        found.append(total)
    return found


def test_it_is_the_mutual_information_of_answer_and_latent() -> None:
    p = torch.rand(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p[0, 0], p[1, 0] = 0.0, 1.0
    assert acquisition.information_gain(p).tolist() == pytest.approx(brute_force(p.tolist()), abs=1e-12)


def test_samples_come_near_the_integral() -> None:
    """One latent dimension: the same quantity by quadrature over a fine grid."""
    theta = {"selector.common": torch.tensor([0.3, -0.2]).double(), "selector.weight": torch.tensor([[1.0], [-2.0]])}
    theta["selector.weight"] = theta["selector.weight"].double()
    q = Gaussian(torch.tensor([0.4]).double(), torch.tensor([math.log(0.6)]).double())
    d = draw(3, 4, 2)
    found = acquisition.expected_information_gain(theta, q, d, None, draw(4, 200_000, 1))
    for j in range(4):
        slope, offset = float(d[j] @ theta["selector.weight"][:, 0]), float(d[j] @ theta["selector.common"])
        mean, sd, n = 0.4, math.sqrt(0.6), 20_001
        prediction = entropy = weight = 0.0
        for i in range(n):
            z = mean + sd * (-8 + 16 * i / (n - 1))
            w = math.exp(-(((z - mean) / sd) ** 2) / 2)
            p = 1 / (1 + math.exp(-(slope * z + offset) / math.sqrt(2)))
            prediction, weight = prediction + w * p, weight + w
            entropy += w * -(p * math.log(p) + (1 - p) * math.log(1 - p))
        p = prediction / weight
        exact = -(p * math.log(p) + (1 - p) * math.log(1 - p)) - entropy / weight
        assert float(found[j]) == pytest.approx(exact, abs=2e-3)


def test_it_is_zero_where_nothing_can_be_learned(theta: Theta) -> None:
    q, noise = Gaussian(draw(0, DIM), draw(1, DIM)), draw(2, 256, DIM)
    d = torch.cat([torch.zeros(1, H).double(), draw(3, 6, H)])
    gain = acquisition.expected_information_gain(theta, q, d, None, noise)
    assert gain.shape == (7,)
    assert abs(float(gain[0])) < 1e-12
    assert (gain <= math.log(2)).all()
    assert (gain[1:] > 1e-4).all()
    certain = Gaussian(q.mean, torch.full((DIM,), -60.0).double())
    assert acquisition.expected_information_gain(theta, certain, d, None, noise).max() < 1e-9


def test_it_is_largest_where_the_latents_disagree() -> None:
    # s = z * d: a clear question about z tells more than a faint one.
    theta = {"selector.common": torch.zeros(2), "selector.weight": torch.ones(2, 1)}
    noise = torch.randn(512, 1, generator=torch.Generator().manual_seed(0))
    q = Gaussian(torch.zeros(1), torch.zeros(1))
    gain = acquisition.expected_information_gain(theta, q, torch.tensor([[0.1, 0], [1, 0], [10, 0]]), None, noise)
    assert gain[0] < gain[1] < gain[2]


def test_the_order_of_a_pair_does_not_matter(theta: Theta) -> None:
    q, noise, d = Gaussian(draw(0, DIM), draw(1, DIM)), draw(2, 64, DIM), draw(3, 6, H)
    gain = acquisition.expected_information_gain(theta, q, d, None, noise)
    torch.testing.assert_close(acquisition.expected_information_gain(theta, q, -d, None, noise), gain)


def test_no_pair_is_asked_twice() -> None:
    gain, asked = torch.tensor([0.1, 0.5, 0.0, 0.3]), torch.zeros(4, dtype=torch.bool)
    order = []
    while (row := acquisition.next_question(gain, asked)) is not None:
        order.append(row)
        asked[row] = True
    assert order == [1, 3, 0, 2]


# Under a mixture posterior -----------------------------------------------------------------------------------------


def two_camps(distance: float = 3.0) -> laplace.Prior:
    """People who stand at +distance or -distance on the first axis, and alike on the second."""
    means = torch.tensor([[distance, 0.0], [-distance, 0.0]])
    return laplace.Prior(torch.full((2,), -math.log(2)), means, torch.full((2, 2), 0.01))


def asked(*slopes: tuple[float, float]) -> laplace.Observations:
    u = torch.tensor([slopes], dtype=torch.float32)
    one = torch.ones(u.shape[:2])
    return laplace.Observations(u, 0 * one, one, one < 0, one)


NO_NOISE = laplace.Noise(torch.tensor(0.0), torch.tensor(1.0))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_question_that_divides_the_camps_comes_first() -> None:
    (best, gain), *_ = acquisition.first_questions(two_camps(), asked((0, 1), (2, 0), (0.1, 0)), NO_NOISE, 1, rng())
    assert best == 1
    assert gain == pytest.approx(math.log(2), abs=0.05)


def test_a_question_that_repeats_an_answer_comes_last() -> None:
    """Who has said on which side they stand tells nothing by saying it again, but something by another answer."""
    camps = two_camps()
    means = torch.nn.functional.pad(camps.means, (0, 1))  # the last dimension is the threshold
    prior = camps._replace(means=means, variances=torch.tensor([[0.01, 1.0, 0.01], [0.01, 1.0, 0.01]]))
    found = acquisition.first_questions(prior, asked((2, 0, 0), (2.1, 0, 0), (0, 1, 0)), NO_NOISE, 3, rng())
    assert [row for row, _ in found][1] == 2
    assert found[2][1] < 0.02


def test_what_only_tells_the_threshold_is_not_asked() -> None:
    camps = two_camps()
    prior = camps._replace(
        means=torch.nn.functional.pad(camps.means, (0, 1)),
        variances=torch.tensor([[0.01, 1.0, 9.0], [0.01, 1.0, 9.0]]),
    )
    found = acquisition.first_questions(prior, asked((0, 0, 1), (0, 0.5, 0)), NO_NOISE, 2, rng())
    assert [row for row, _ in found] == [1, 0]
    assert found[1][1] < 1e-6


def test_a_known_camp_needs_no_question() -> None:
    belief = laplace.as_posterior(two_camps(), 1)
    sure = belief._replace(log_weights=torch.tensor([[0.0, -torch.inf]]))
    q = asked((2, 0))
    before, after = (
        acquisition.information_gain(acquisition.answers_under(b, q, NO_NOISE, rng())) for b in (belief, sure)
    )
    assert before > 0.6
    assert after < 0.01


def test_errors_of_people_take_information_away() -> None:
    belief = laplace.as_posterior(two_camps(), 1)
    gains = [
        float(acquisition.information_gain(acquisition.answers_under(belief, asked((2, 0)), noise, rng())))
        for noise in (NO_NOISE, laplace.Noise(torch.tensor(0.2), torch.tensor(1.0)))
    ]
    assert gains[0] > 0.6
    assert gains[1] == pytest.approx(math.log(2) - 0.5004, abs=0.05)  # a binary symmetric channel with e = 0.2


def test_no_more_questions_than_there_are() -> None:
    found = acquisition.first_questions(two_camps(), asked((0, 1), (2, 0)), NO_NOISE, 9, rng())
    assert sorted(row for row, _ in found) == [0, 1]
