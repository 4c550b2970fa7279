"""VMTL (Shen et al. 2021, 2111.05323) in FedAvg: the other clients' posteriors are the prior, as one Gaussian."""

from __future__ import annotations

from typing import ClassVar

from fedvpa.methods.base import Setup
from fedvpa.methods.fedvpa_gp import FedVPAGP

TAU_FINAL = 0.5
"""Where the temperature ends that starts at 1 (a share of `method.tau`), unless `method.tau_final` says otherwise."""


class VMTL(FedVPAGP):
    """Gumbel weights whose temperature falls, KL to the moment-matched Gaussian; no N(0, I) in it, no prototypes."""

    name: ClassVar[str] = "vmtl"
    use_ortho: ClassVar[bool] = False

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        final = TAU_FINAL * self.m.tau if self.m.tau_final is None else self.m.tau_final
        fixed = {"kl": "moment", "prior_weights": "gumbel", "prior_defensive": 0.0, "tau_final": final}
        self.m = self.m.model_copy(update=fixed)
