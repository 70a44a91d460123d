"""Objectives: for each kind of head, what is learnt from rows and how answers are judged."""
