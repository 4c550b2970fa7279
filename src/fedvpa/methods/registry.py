"""Names of methods."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from fedvpa.backbone.pairs import Form
from fedvpa.config import METHOD_GROUP, ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.methods.base import Method, Setup
from fedvpa.methods.central_vpl import CentralVPL
from fedvpa.methods.fedbis import FedBis, FedBiscuitLoRA
from fedvpa.methods.fedbiscuit import FedBiscuit
from fedvpa.methods.fedbt import FedBT
from fedvpa.methods.feddpo import FedDPO
from fedvpa.methods.fedpdpo import FedPDPO
from fedvpa.methods.fedvpa_gp import FedVPAGP
from fedvpa.methods.fedvpa_laplace import FedVPALaplace
from fedvpa.methods.fedvpl import FedVPL, FedVPLOrtho, FedVPLPrior
from fedvpa.methods.gumbel_mpnn import GumbelMPNN
from fedvpa.methods.item_factors import ItemFactors
from fedvpa.methods.local import Local
from fedvpa.methods.lore import LoRe
from fedvpa.methods.mrm import MRM
from fedvpa.methods.oracle import Oracle, OracleClients
from fedvpa.methods.oracle_labels import FedVPAGPLabels
from fedvpa.methods.pal import PAL
from fedvpa.methods.pluralllm import PluralLLM
from fedvpa.methods.vmtl import VMTL
from fedvpa.methods.votes_mean import VotesMean

Direct = Local | Oracle | ItemFactors
"""Methods that are fitted at once, without rounds."""

CLASSES = {
    c.name: c
    for c in (
        FedVPALaplace,
        FedVPAGP,
        FedVPL,
        FedVPLPrior,
        FedVPLOrtho,
        VMTL,
        FedBT,
        FedBiscuit,
        FedPDPO,
        GumbelMPNN,
        PluralLLM,
        VotesMean,
        FedDPO,
        LoRe,
        MRM,
        PAL,
        ItemFactors,
        Local,
        CentralVPL,
        FedVPAGPLabels,
        Oracle,
        OracleClients,
    )
}


LANGUAGE_MODEL = {c.name: c for c in (FedBis, FedBiscuitLoRA)}
"""What takes a class's place with `backbone.train: lora`."""


def class_of(config: ExperimentConfig) -> type[Any]:
    """The class of `method.name`, under `backbone.train`."""
    name = config.method.name
    if name not in CLASSES:
        return _installed(name)
    return (LANGUAGE_MODEL if config.trains_language_model else CLASSES).get(name, CLASSES[name])


def _installed(name: str) -> type[Any]:
    """The class that an installed package names in the entry points of the group `METHOD_GROUP`.

    Raises:
        UserError: it cannot be imported, or calls itself something else.
    """
    (entry, *_) = entry_points(group=METHOD_GROUP, name=name)
    remedy = f"mend the package that names it under {METHOD_GROUP}, or uninstall it"
    try:
        found: type[Any] = entry.load()
    except (ImportError, AttributeError) as e:
        raise UserError(f"{name} cannot be loaded from {entry.value} ({e})", remedy, field="method.name") from e
    if getattr(found, "name", None) != name:
        raise UserError(f"{entry.value} is not a method of the name {name}", remedy, field="method.name")
    return found


def text_form(config: ExperimentConfig) -> Form | None:
    """The tokens that `method.name` needs of a pair; None for methods that need its features only."""
    form: Form | None = getattr(class_of(config), "form", None)
    return form


def create(name: str, setup: Setup) -> Method | Direct:
    """The method called `name` (`fedvpa.config.known_methods`)."""
    method: Method | Direct = class_of(setup.config.for_method(name))(setup)
    return method
