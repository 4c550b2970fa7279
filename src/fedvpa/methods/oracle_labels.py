"""FedVPA-GP whose clusters are the true groups: an upper bound for what clustering costs, not a method.

The groups reach it through `Setup.groups`, which the experiment fills for this name and for no other. They replace the
server's clustering from the round on in which that would begin; users are inferred as in FedVPA-GP, from their
contexts alone.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedvpa.methods.base import ServerState
from fedvpa.methods.clustering import Clusters
from fedvpa.methods.fedvpa_gp import FedVPAGP
from fedvpa.variational.selector import Theta


class FedVPAGPLabels(FedVPAGP):
    """Cluster k is true group k."""

    name: ClassVar[str] = "fedvpa-gp+labels"
    true_groups: ClassVar[bool] = True

    def find_clusters(
        self, state: ServerState, theta: Theta, means: Tensor, known: Tensor, generator: torch.Generator
    ) -> Clusters | None:
        """The true groups of the users that are known, once there is one of each group."""
        assert self.setup.groups is not None
        labels = self.setup.groups[known]
        member = torch.nn.functional.one_hot(labels, self.setup.clusters).to(means.dtype)
        sizes = member.sum(0)
        return Clusters(labels, (member.T @ means) / sizes.unsqueeze(-1)) if (sizes > 0).all() else None
