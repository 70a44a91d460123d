"""Steps on a GPU: attention of all rows in one call per layer, decode steps as CUDA graphs.

The keys and values of all slots are one pool of tokens, `[slots * length + 1, heads, width]`,
and every sequence of a step a stretch of it. Flash attention for rows of unequal lengths takes
such stretches as they lie: where each begins, and how many tokens of it count.
"""

from gptflow.engine.cuda.operations import Operations, Record, VarlenAttention, operations
from gptflow.engine.cuda.step import PackedStep, StepRunner

__all__ = [
    "Operations",
    "PackedStep",
    "Record",
    "StepRunner",
    "VarlenAttention",
    "operations",
]
