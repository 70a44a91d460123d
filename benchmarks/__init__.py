"""Measurements of this project, and of what else there is on the same machine."""
