"""fedvpa: one preference selector for users who disagree, trained federated."""

__version__ = "0.1.0"
