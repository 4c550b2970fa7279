"""Names of methods."""

from __future__ import annotations

from fedvpa.methods.base import Method, Setup
from fedvpa.methods.central_vpl import CentralVPL
from fedvpa.methods.fedbiscuit import FedBiscuit
from fedvpa.methods.fedbt import FedBT
from fedvpa.methods.fedpdpo import FedPDPO
from fedvpa.methods.fedvpa_gp import FedVPAGP
from fedvpa.methods.fedvpl import FedVPL, FedVPLOrtho, FedVPLPrior
from fedvpa.methods.local import Local
from fedvpa.methods.oracle import Oracle, OracleClients
from fedvpa.methods.oracle_labels import FedVPAGPLabels
from fedvpa.methods.vmtl import VMTL

Direct = Local | Oracle
"""Methods that are fitted at once, without rounds."""

CLASSES = {
    c.name: c
    for c in (
        FedVPAGP,
        FedVPL,
        FedVPLPrior,
        FedVPLOrtho,
        VMTL,
        FedBT,
        FedBiscuit,
        FedPDPO,
        Local,
        CentralVPL,
        FedVPAGPLabels,
        Oracle,
        OracleClients,
    )
}


def create(name: str, setup: Setup) -> Method | Direct:
    """The method called `name` (`fedvpa.config.METHODS`)."""
    return CLASSES[name](setup)
