"""Session floors: popularity, and item-to-item neighbours by cosine (Sarwar et al. 2001)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Session = Sequence[int]
"""Items by their number, oldest first."""


def popularity(train: Sequence[Session], items: int) -> Floats:
    """`[items]`: how many training sessions hold each."""
    counts = np.zeros(items)
    for session in train:
        counts[list(set(session))] += 1
    return counts


def item_cosines(train: Sequence[Session], items: int) -> Floats:
    """`[items, items]`: sessions with both over the root of the product of sessions with each.

    The diagonal is 0: an item is not its own neighbour.
    """
    from scipy.sparse import csr_matrix

    rows = [number for number, session in enumerate(train) for _ in set(session)]
    columns = [item for session in train for item in set(session)]
    held = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(train), items))
    together = (held.T @ held).toarray()
    alone = np.sqrt(np.diagonal(together))
    cosines: Floats = np.divide(
        together, np.outer(alone, alone), out=np.zeros_like(together), where=together > 0
    )
    np.fill_diagonal(cosines, 0.0)
    return cosines


def neighbour_scores(cosines: Floats, histories: Sequence[Session]) -> Floats:
    """`[histories, items]`: the sum of the cosines with the items of each history."""
    return np.stack([cosines[list(set(history))].sum(axis=0) for history in histories])


def seen(histories: Sequence[Session], items: int) -> NDArray[np.bool_]:
    """`[histories, items]`: what each history holds, and no ranking should."""
    mask = np.zeros((len(histories), items), dtype=np.bool_)
    for number, history in enumerate(histories):
        mask[number, list(history)] = True
    return mask
