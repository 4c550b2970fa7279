"""Why `network.secure_aggregation` is refused: facts about Flower that a newer version may change."""

from __future__ import annotations

import flwr.clientapp.mod
import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.server.workflow import SecAggPlusWorkflow

from fedvpa.errors import UserError
from fedvpa.network.node import check_method
from toy import settings


def test_it_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"network.secure_aggregation: .*32-bit seeds; leave it false"):
        check_method(settings(network__secure_aggregation=True))
    check_method(settings())


def test_flowers_workflow_is_for_its_legacy_strategies() -> None:
    with pytest.raises(TypeError, match="Expect a LegacyContext"):
        SecAggPlusWorkflow(3, 2)(None, Context(1, 1, {}, RecordDict(), {}))  # type: ignore[arg-type]
    assert not hasattr(flwr.clientapp.mod, "secaggplus_mod")


def test_a_mask_depends_on_32_bits_of_its_secret() -> None:
    """Two secrets of 256 bits whose words have the same exclusive or."""
    secret = np.random.default_rng(0).bytes(32)
    words = np.frombuffer(secret, np.uint32)
    other = np.array([np.bitwise_xor.reduce(words), *[0] * 7], np.uint32).tobytes()
    assert other != secret
    one, two = (pseudo_rand_gen(s, 2**32, [(50,)])[0] for s in (secret, other))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, pseudo_rand_gen(b"\1" + other[1:], 2**32, [(50,)])[0])
