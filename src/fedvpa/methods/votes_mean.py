"""What everybody thinks on average, from single judgements: `fedbt` on the judgements that `fedvpa-laplace` takes.

One logit per item for everybody, and one threshold per person for votes and ratings (a Rasch model, Rasch 1960, whose
item parameters are a function of the features): a person who agrees with little pulls no item down. The threshold is
integrated out under a Gaussian whose moments EM fits. It cancels in a choice between two items, so all people get the
same predictions, as under `fedbt`. This is `fedvpa-laplace` with no direction of the latent but the threshold, and one
component.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from fedvpa.methods.base import Pool, Predictor, ServerState, Setup
from fedvpa.methods.fedbt import CommonPredictor
from fedvpa.methods.fedvpa_laplace import FedVPALaplace


class VotesMean(FedVPALaplace):
    """One selector for everybody; inference `none`."""

    name: ClassVar[str] = "votes-mean"
    latent: ClassVar[bool] = False
    portable: ClassVar[bool] = False

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.sizes = replace(self.sizes, latent=0)
        self.l = self.l.model_copy(update={"components": 1})

    def init_server(self, generator: torch.Generator) -> ServerState:
        state = super().init_server(generator)
        slopes = torch.zeros(self.sizes.hidden, 0, dtype=self.setup.dtype)
        return replace(state, theta={**state.theta, "selector.weight": slopes})

    def predictor(self, state: ServerState, pool: Pool) -> Predictor:  # type: ignore[override]  # nobody is inferred
        common = state.theta["calibration.scale"] * state.theta["selector.common"]
        return CommonPredictor({**state.theta, "selector.common": common}, replace(pool, base_logit=None))
