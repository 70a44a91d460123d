"""Sampled answers: pass@k, the chance that at least one of k programs solves the problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gptflow.errors import EmptyData
from gptflow.training.evaluation.answers import Indices


def pass_at_k(tried: int, solved: int, k: int) -> float:
    """The unbiased estimate 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, equation 1).

    Raises:
        ValueError: fewer than `k` were tried, or more solved than tried.
    """
    if not 0 <= solved <= tried or not 1 <= k <= tried:
        raise ValueError(f"pass@{k} of {solved} solved in {tried} tries")
    if tried - solved < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(tried - solved + 1, tried + 1)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SampleAnswers:
    """How many of the programs written for each problem pass its tests.

    Attributes:
        tried: `[problems]`.
        solved: `[problems]`.
        ks: the `k` of `pass@k`; those above the fewest tries are left out.
        names: of the problems; numbers by default.
    """

    tried: NDArray[np.int64]
    solved: NDArray[np.int64]
    ks: tuple[int, ...] = (1, 10)
    names: Sequence[str] = ()
    primary: str = "pass@1"

    def __post_init__(self) -> None:
        tried, solved = np.asarray(self.tried), np.asarray(self.solved)
        if tried.shape != solved.shape or tried.ndim != 1:
            raise ValueError("tried and solved are one number per problem each")
        if not len(tried):
            raise EmptyData("There are no problems.", hint="Give test rows that hold some.")
        table = {
            f"pass@{k}": np.array(
                [pass_at_k(int(n), int(c), k) for n, c in zip(tried, solved, strict=True)]
            )
            for k in self.ks
            if k <= int(tried.min())
        }
        object.__setattr__(self, "_table", table)

    def __len__(self) -> int:
        return len(self.tried)

    def metrics(self, indices: Indices | None = None) -> Mapping[str, float]:
        table: Mapping[str, NDArray[np.float64]] = self.__dict__["_table"]
        return {
            name: float((values if indices is None else values[indices]).mean())
            for name, values in table.items()
        }
