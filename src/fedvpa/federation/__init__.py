"""Rounds: sampling, local training of many clients at once, aggregation, checkpoints."""
