"""Which parts are covered, and how their losses become a map."""

import numpy as np
import pytest

from idefics.explain.occlusion import HeatMaps
from idefics.explain.parts import (
    CellGrid,
    Part,
    count_parts,
    part_sizes,
    parts_of_size,
    plan_level,
    select_parts,
)


@pytest.mark.parametrize(
    ("width", "height", "rows", "columns"),
    [(96, 96, 16, 16), (1000, 500, 8, 16), (300, 900, 16, 5), (5000, 10, 1, 16)],
)
def test_cells_are_as_square_as_can_be(width, height, rows, columns):
    assert CellGrid.for_size(width, height, 16) == CellGrid(rows, columns)


def test_sizes_of_parts_are_a_half_a_quarter_and_an_eighth():
    assert part_sizes(16) == [8, 4, 2]
    assert part_sizes(4) == [2, 1]  # an eighth of 4 cells is no cell


@pytest.mark.parametrize("overhangs", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (1, 16), (3, 7), (2, 2)])
def test_parts_of_a_size_cover_every_cell_and_none_is_empty(rows, columns, size, overhangs):
    cover = np.zeros((rows, columns), int)
    for part in parts_of_size(0, CellGrid(rows, columns), size, overhangs=overhangs):
        before = cover.sum()
        cover[part.cells] += 1
        assert cover.sum() > before
        weights = part.weights(CellGrid(rows, columns))
        assert weights.shape == cover[part.cells].shape
        assert (weights > 0).all()
        assert (weights <= 1).all()
    assert cover.min() >= 1


def test_inner_cells_are_in_four_parts_of_each_size():
    cover = np.zeros((16, 16), int)
    for part in parts_of_size(0, CellGrid(16, 16), 4, overhangs=True):
        cover[part.cells] += 1
    assert set(cover.ravel()) == {4}  # those at the edges too, since parts reach over them


def test_smaller_parts_reach_over_the_edges_and_the_largest_do_not():
    lowest = [min(part.top for part in plan_level([CellGrid(16, 16)], 16, level)[0]) for level in range(3)]
    assert lowest == [0, -2, -1]


def test_the_number_of_parts_is_known_and_bounded():
    one, two = [CellGrid(16, 16)], [CellGrid(16, 16)] * 2
    assert count_parts(one, 16) == 9 + 24 + 32
    assert count_parts(two, 16) == 18 + 24 + 32
    assert count_parts([CellGrid(1, 4)], 4) == sum(len(plan_level([CellGrid(1, 4)], 4, n)[0]) for n in (0, 1))


def test_parts_with_the_most_relevance_are_selected_in_their_order():
    relevance = [np.zeros((4, 4)), np.zeros((4, 4))]
    relevance[0][3, 3], relevance[1][0, 0] = 1, 2
    parts = [Part(picture, top, left, 2) for picture in (0, 1) for top in (0, 2) for left in (0, 2)]
    assert select_parts(parts, relevance, 2) == [Part(0, 2, 2, 2), Part(1, 0, 0, 2)]
    assert select_parts(parts, [np.ones((4, 4))] * 2, 3) == parts[:3]


def test_the_heat_of_a_cell_is_the_mean_over_parts_and_then_over_sizes():
    heat = HeatMaps([CellGrid(4, 4)], [4, 2], 1)
    heat.add(0, Part(0, 0, 0, 4), np.array([8.0]))
    assert np.allclose(heat.maps(0), 8)
    heat.add(1, Part(0, 0, 0, 2), np.array([4.0]))
    expected = np.full(
        (4, 4), (8 + 8 / 4) / 2
    )  # where no small part was covered: a quarter of the large one's loss
    expected[:2, :2] = (8 + 4) / 2
    assert np.allclose(heat.maps(0)[0], expected)


def test_parts_in_whose_middle_a_cell_lies_weigh_more():
    heat = HeatMaps([CellGrid(1, 6)], [4], 1)
    heat.add(0, Part(0, -1, 0, 4), np.array([1.0]))
    heat.add(0, Part(0, -1, 2, 4), np.array([0.0]))
    assert heat.maps(0)[0, 0] == pytest.approx([1, 1, 0.75, 0.25, 0, 0])


def test_tokens_and_pictures_have_maps_of_their_own():
    heat = HeatMaps([CellGrid(2, 2), CellGrid(1, 3)], [1], 2)
    heat.add(0, Part(1, 0, 2, 1), np.array([1.0, -2.0]))
    assert heat.maps(1)[:, 0].tolist() == [[0, 0, 1], [0, 0, -2]]
    assert not heat.maps(0).any()
