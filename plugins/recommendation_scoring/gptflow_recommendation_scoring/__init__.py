"""Ranks candidates for a user by interest, features and diversity."""
