"""A training that diverges stops where it does, and says so."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch

from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.methods.base import ServerState

LARGEST = 1e6
"""No method's loss, a mean over pairs or judgements in nats, is near this while it learns."""
GROWTH = 1e5
"""How many times the first round's loss (or 1, if that is more) a loss may be; some that train come to a thousand."""


class Divergence:
    """Watches the rounds of one training.

    Where faults are made on purpose (`faults.kinds`) nothing is stopped: what they do is what is measured.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config
        self.first: float | None = None

    @contextlib.contextmanager
    def within(self, round: int) -> Iterator[None]:
        """While open, what numerical libraries raise on values that are not finite any more is a divergence.

        Args:
            round: rounds that are done.
        """
        try:
            yield
        except torch.linalg.LinAlgError:
            raise self._stopped(round + 1, "a covariance is not positive definite") from None
        except ValueError as e:  # scikit-learn's, in words
            if "NaN" not in str(e) and "infinity" not in str(e):
                raise
            raise self._stopped(round + 1, "a posterior is not finite") from None

    def check(self, server: ServerState, metrics: Mapping[str, float]) -> None:
        """Looks at the state after a round, and at what the round's clients said.

        Raises:
            UserError: a parameter is not finite, or the loss is not or has exploded; with the round and the value.
        """
        if self.config.faults.kinds:
            return
        loss = metrics.get("loss", 0.0)
        reference = self.first = abs(loss) if self.first is None else self.first
        if not abs(loss) <= min(LARGEST, GROWTH * max(1.0, reference)):  # also where it is NaN
            raise self._stopped(server.round, f"the loss is {loss:.3g}")
        for name, value in server.theta.items():
            if not torch.isfinite(value).all():
                worst = value[~torch.isfinite(value)].flatten()[0]
                raise self._stopped(server.round, f"the parameter {name} is {float(worst):.3g}")

    def _stopped(self, round: int, what: str) -> UserError:
        config = self.config
        if config.trains_language_model:
            field, value = "lora.learning_rate", config.lora.learning_rate
        elif config.method.name == "fedvpa-laplace":
            field, value = "laplace.learning_rate", config.laplace.learning_rate
        else:
            f = config.federation
            usual = {k: type(f).model_fields[k].default for k in ("learning_rate", "server_learning_rate")}
            field = max(usual, key=lambda k: getattr(f, k) / usual[k])
            field, value = f"federation.{field}", getattr(f, field)
        given = "" if value is None or not math.isfinite(value) else f" (it is {value:g})"
        problem = f"the training diverged in round {round}: {what}"
        return UserError(problem, f"lower {field}{given} and begin again with --overwrite", field=field)
