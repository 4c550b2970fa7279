"""What may leave a client: the declared rows pass unchanged, everything else is refused."""

from __future__ import annotations

import math

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedvpa.config import parse_config
from fedvpa.federation import declared, privacy
from fedvpa.federation.moments import client_moments
from fedvpa.methods.base import Upload
from fedvpa.network import messages
from fedvpa.network.messages import Field, Refusal, Reply, Stamp
from fedvpa.preferences.schema import NOTHING_RATED, RatingSums

THETA = {"g.weight": torch.zeros(3, 2), "alpha": torch.zeros(())}
CONFIG = parse_config({"defence": {"max_update_norm": 10, "max_posterior_norm": 5}})
FIELDS = declared.upload_fields(THETA, 4, ("loss",), CONFIG)
ANNOUNCED, STAMP = torch.full((3,), 7), Stamp("t", 4)
USERS = ("ada", "bob", "cyd")


def upload(seed: int = 0, users: int = 3) -> Upload:
    g = torch.Generator().manual_seed(seed)
    theta = {k: torch.randn(users, *v.shape, generator=g) for k, v in THETA.items()}
    means, variances = torch.randn(users, 4, generator=g), torch.rand(users, 4, generator=g)
    loss = torch.rand(users, generator=g)
    return Upload(torch.arange(users), theta, means, variances, torch.full((users,), 7), {"loss": loss})


@given(st.integers(0, 1000), st.integers(0, 3))
def test_an_upload_arrives_as_it_was(seed: int, users: int) -> None:
    sent = upload(seed, users)
    content = messages.write_reply(Reply(USERS[:users], declared.upload_arrays(sent), {}), FIELDS, {}, STAMP)
    reply = messages.read_reply(content, FIELDS, USERS, STAMP)
    found = messages.as_upload(reply.arrays, sent.ids)
    assert reply.users == USERS[:users]
    assert not declared.upload_problems(reply.arrays, FIELDS, THETA, CONFIG, ANNOUNCED[:users])
    for name, value in {**sent.theta, "m": sent.means, "v": sent.variances, "c": sent.counts}.items():
        other = {**found.theta, "m": found.means, "v": found.variances, "c": found.counts}[name]
        assert torch.equal(other, value)
    assert torch.equal(found.metrics["loss"], sent.metrics["loss"])


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("means", math.nan, "means is not finite"),
        ("means", 100.0, "means has a norm above 5"),
        ("variances", -1.0, "variances is below 0"),
        ("variances", 1e9, "variances is above 25"),
        ("counts", 0, "counts is below 1"),
        ("counts", 8, "counts is above the number of pairs of round 0"),
        ("counts", 10**9, "counts is above 1e+07"),
        ("metrics.loss", math.inf, "metrics.loss is not finite"),
        ("theta.alpha", math.nan, "theta.alpha is not finite"),
        ("theta.g.weight", 100.0, "defence.max_update_norm"),
    ],
)
def test_a_bad_row_is_held_back_and_no_other(name: str, value: float, reason: str) -> None:
    arrays = declared.upload_arrays(upload())
    arrays[name] = arrays[name].clone()
    arrays[name][1] = value
    bad = declared.upload_problems(arrays, FIELDS, THETA, CONFIG, ANNOUNCED)
    assert list(bad) == [1]
    assert reason in bad[1]
    reply = messages.read_reply(
        messages.write_reply(Reply(USERS, arrays, {}), FIELDS, bad, STAMP), FIELDS, USERS, STAMP
    )
    assert reply.users == ("ada", "cyd")
    assert reply.refused.keys() == {"bob"}
    assert torch.equal(reply.arrays["means"], arrays["means"][[0, 2]])


@pytest.mark.parametrize("extra", ["log_pi", "theta.selector.common", "texts"])
def test_nothing_undeclared_is_sent(extra: str) -> None:
    arrays = {**declared.upload_arrays(upload()), extra: torch.zeros(3)}
    with pytest.raises(Refusal, match=f"{extra} is not declared"):
        messages.write_reply(Reply(USERS, arrays, {}), FIELDS, {}, STAMP)
    arrays = declared.upload_arrays(upload())
    del arrays["counts"]
    with pytest.raises(Refusal, match="counts is missing"):
        messages.write_reply(Reply(USERS, arrays, {}), FIELDS, {}, STAMP)


def test_the_size_is_checked_before_anything_is_decoded() -> None:
    """An array that claims to be small and brings a megabyte, or claims to be another kind of file."""
    good = messages.write_arrays({"x": torch.zeros(3, 2)})["x"]
    field = {"x": Field((2,), torch.float32)}
    for data, stype, reason in [
        (good.data + b"\0" * 2**20, good.stype, "another size"),
        (b"\x93NUMPY" + b"\0" * 40, good.stype, "cannot be decoded"),
        (good.data, "pickle", "another size"),
    ]:
        record = ArrayRecord({"x": type(good)(good.dtype, good.shape, stype, data)})
        with pytest.raises(Refusal, match=reason):
            messages.read_arrays(record, field, 3)
    assert torch.equal(messages.read_arrays(ArrayRecord({"x": good}), field, 3)["x"], torch.zeros(3, 2))


def test_other_records_and_protocols_are_refused() -> None:
    content = messages.write_reply(Reply(USERS, declared.upload_arrays(upload()), {}), FIELDS, {}, STAMP)
    with pytest.raises(Refusal, match="users who were not asked"):
        messages.read_reply(content, FIELDS, USERS[:2], STAMP)
    content["reply"]["protocol"] = 99
    with pytest.raises(Refusal, match="another protocol"):
        messages.read_reply(content, FIELDS, USERS, STAMP)
    content["more"] = ConfigRecord({"prompt": "What shall I do?"})
    with pytest.raises(Refusal, match="other records"):
        messages.read_reply(content, FIELDS, USERS, STAMP)
    with pytest.raises(Refusal, match="other records"):
        messages.read_reply(RecordDict(), FIELDS, USERS, STAMP)


def test_an_answer_to_something_else_is_refused() -> None:
    content = messages.write_reply(Reply(USERS, declared.upload_arrays(upload()), {}), FIELDS, {}, STAMP)
    with pytest.raises(Refusal, match="another round than 6"):
        messages.read_reply(content, FIELDS, USERS, STAMP._replace(round=5))
    with pytest.raises(Refusal, match="another training"):
        messages.read_reply(content, FIELDS, USERS, STAMP._replace(training="u"))


def test_with_privacy_on_an_upload_has_no_metrics_one_example_and_a_clipped_change() -> None:
    config = parse_config({"privacy": {"clip": 0.5}})
    fields, theta = declared.upload_fields(THETA, 4, ("loss",), config), {k: v + 3 for k, v in THETA.items()}
    assert not any(name.startswith("metrics.") for name in fields)
    sent = privacy.protect(upload(), theta, config, 0)
    arrays = declared.upload_arrays(sent)
    assert declared.form_problem(arrays, fields, 3) is None
    assert not declared.upload_problems(arrays, fields, theta, config, ANNOUNCED)
    arrays["counts"] = torch.tensor([1, 2, 1])
    arrays["theta.alpha"] = arrays["theta.alpha"] + torch.tensor([0.0, 0.0, 1.0])
    bad = declared.upload_problems(arrays, fields, theta, config, ANNOUNCED)
    assert bad == {1: "counts is above 1", 2: "theta has changed by more than privacy.clip (0.5)"}


@pytest.mark.parametrize("privacy_on", [{"clip": 1.0}, {"moments_clip": 2.0}])
def test_with_privacy_on_round_0_says_nothing_of_ratings(privacy_on: dict[str, float]) -> None:
    config, rated = parse_config({"privacy": privacy_on}), RatingSums(3.0, 9.0, 29.0)
    fields, x = messages.enroll_fields(8, config), torch.ones(5, 8) / 8
    one = {"pairs": torch.ones(1, dtype=torch.int64)}
    message = privacy.moments_of(x, config, rated)
    assert message.rating_sums == NOTHING_RATED
    assert not declared.problems(one | messages.moments_arrays([message]), fields)
    for name in ("ratings", "rating_total", "rating_squares"):
        said = message._replace(**{name: getattr(client_moments(x, rated), name)})
        bad = declared.problems(one | messages.moments_arrays([said]), fields)
        assert bad == {0: f"moments.{name} is above 0"}


def test_with_privacy_on_round_0_says_no_number_and_is_clipped() -> None:
    config, x = parse_config({"privacy": {"moments_clip": 2.0}}), 10 * torch.randn(5, 8)
    fields = messages.enroll_fields(8, config)
    assert (fields["pairs"].low, fields["pairs"].high) == (1, 1)
    for message, sound in ((privacy.moments_of(x, config), True), (client_moments(x), False)):
        arrays = {"pairs": torch.ones(1, dtype=torch.int64), **messages.moments_arrays([message])}
        assert bool(declared.problems(arrays, fields)) != sound
