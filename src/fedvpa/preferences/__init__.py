"""Preference pairs, users and clients: what enters the system, validated once at the border."""
