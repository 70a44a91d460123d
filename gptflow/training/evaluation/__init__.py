"""Evaluation: answers, the floors that they must beat, and figures with intervals."""
