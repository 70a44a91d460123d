"""Monitors: watch feeds of posts for surges of negatives.

    sources  ->  duplicates  ->  (a task classifies)  ->  series  ->  surge  ->  alerts

`runner.run` does all of it once; `store` keeps what was seen, counted and said. Nothing here
knows a model: whoever runs a monitor brings the function that classifies.
"""
