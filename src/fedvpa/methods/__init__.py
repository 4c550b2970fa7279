"""Federated methods, one file each, on one interface of pure functions over explicit state."""
