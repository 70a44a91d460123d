"""The gates of the surge detector, on a small seeded grid."""

import pytest

from gptflow.monitoring.simulation import Cell, Score, always, grid, simulate

CELLS = [
    Cell(base=10, phi=1),
    Cell(base=10, phi=1, surge=3, hours=6),
    Cell(base=40, phi=3, surge=5, hours=6),
]


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, Cell], Score]:
    found = simulate(CELLS, series=10, seed=1)
    return {(score.detector, score.cell): score for score in found}


def test_false_alarms_stay_within_one_in_ten_weeks(
    scores: dict[tuple[str, Cell], Score],
) -> None:
    for cell in CELLS:
        assert scores["gptflow", cell].false_alarms <= 0.1


def test_surges_are_found_within_two_buckets(scores: dict[tuple[str, Cell], Score]) -> None:
    for cell in CELLS[1:]:
        score = scores["gptflow", cell]
        assert score.recall is not None
        assert score.recall >= 0.9
        assert score.delay is not None
        assert score.delay <= 2


def test_a_flat_threshold_finds_less_or_cries_wolf_more(
    scores: dict[tuple[str, Cell], Score],
) -> None:
    for cell in CELLS[1:]:
        ours, flat = scores["gptflow", cell], scores["flat z>3", cell]
        assert (ours.recall, -ours.false_alarms) > (flat.recall, -flat.false_alarms)


def test_the_dummy_shows_what_firing_always_costs(
    scores: dict[tuple[str, Cell], Score],
) -> None:
    assert scores["always", CELLS[0]].false_alarms > 5
    assert len(always([0] * 100, [0] * 100, 0)) == 4


def test_the_grid_holds_quiet_cells_once() -> None:
    cells = grid()
    assert len(cells) == 6 * (1 + 3 * 3)
    assert sum(cell.surge == 1 for cell in cells) == 6
