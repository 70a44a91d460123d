"""Our engine and what a user might pick instead, over the same requests in one run.

    python -m benchmarks.peers setup          an environment and model files for each of them
    python -m benchmarks.peers run            measure: a JSON, a Markdown table and a PNG

Every engine lives in a process of its own, in its own environment, and holds its model for the
whole run. They take turns: round by round each gets the same new token ids, greedy, to their
full length, while all the others are stopped (`SIGSTOP`), so that nobody's idle threads spin on
the cores that are being measured. What counts is the ratio of two engines within one round.
"""
