"""Compiled kernels for the CPU: integer linear layers, attention over slots, whole decoder layers.

They are built with the machine's own C++ compiler when an engine first wants them, and kept.
Where there is no compiler, or the processor lacks AVX-512 with VNNI, `load` says why, and the
engine runs on torch's own operators.
"""

from gptflow.engine.native.library import Library, Unavailable, load

__all__ = ["Library", "Unavailable", "load"]
