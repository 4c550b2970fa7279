"""fedvpa: one preference selector for users who disagree, trained federated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedvpa.config import ExperimentConfig, load_config
    from fedvpa.errors import UserError
    from fedvpa.run import Run, train
    from fedvpa.selector import Selector
    from fedvpa.user import User

__version__ = "0.1.0"
__all__ = ["ExperimentConfig", "Run", "Selector", "User", "UserError", "__version__", "load_config", "train"]

_HOME = {
    "ExperimentConfig": "fedvpa.config",
    "load_config": "fedvpa.config",
    "Run": "fedvpa.run",
    "train": "fedvpa.run",
    "Selector": "fedvpa.selector",
    "User": "fedvpa.user",
    "UserError": "fedvpa.errors",
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is asked for: torch takes seconds, and `fedvpa --help` needs none of it."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
