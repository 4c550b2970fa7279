"""FedVPL: variational preference learning (Poddar et al. 2024, 2408.10075) in FedAvg, and the two halves of FedVPA-GP.

The prior is N(0, I) and there are no prototypes; `fedvpl+prior` adds the federated mixture prior, `fedvpl+ortho` the
prototypes with their losses.
"""

from __future__ import annotations

from typing import ClassVar

from fedvpa.methods.fedvpa_gp import FedVPAGP


class FedVPL(FedVPAGP):
    """Neither part."""

    name: ClassVar[str] = "fedvpl"
    use_prior: ClassVar[bool] = False
    use_ortho: ClassVar[bool] = False


class FedVPLPrior(FedVPAGP):
    """The federated mixture prior alone."""

    name: ClassVar[str] = "fedvpl+prior"
    use_ortho: ClassVar[bool] = False


class FedVPLOrtho(FedVPAGP):
    """Prototypes and the orthogonal loss alone."""

    name: ClassVar[str] = "fedvpl+ortho"
    use_prior: ClassVar[bool] = False
