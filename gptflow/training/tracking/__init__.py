"""Trackers: where a run's figures and plots are shown while it goes."""
