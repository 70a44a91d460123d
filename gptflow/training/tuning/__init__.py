"""Tuning: a search for the settings that train best."""
