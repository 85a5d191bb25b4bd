"""Polygons of real maps as walls can stand on them."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from ciper.city.outlines import cleaned, is_near_rectangle, simple_rings, without_overlaps


def test_courtyards_stay_open() -> None:
    ring = shapely.box(0, 0, 40, 30) - shapely.box(10, 10, 30, 20)
    two = shapely.box(0, 0, 60, 30) - shapely.box(5, 10, 25, 20) - shapely.box(35, 8, 55, 22)
    for polygon in (ring, two, shapely.affinity.rotate(two, 33.0)):
        pieces = [shapely.Polygon(r) for r in simple_rings(polygon)]
        assert all(p.is_valid and shapely.is_ccw(p.exterior) for p in pieces)
        assert sum(p.area for p in pieces) == pytest.approx(polygon.area, abs=1e-6)
        assert shapely.union_all(pieces).symmetric_difference(polygon).area < 1e-6


def test_outlines_are_cleaned() -> None:
    bow_tie = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    assert sorted(p.area for p in cleaned(bow_tie)) == pytest.approx([25.0, 25.0])
    with_well = shapely.box(0, 0, 20, 20) - shapely.box(5, 5, 6, 6)
    assert [p.area for p in cleaned(with_well)] == pytest.approx([400.0])
    assert cleaned(shapely.box(0, 0, 30, 0.5)) == []
    assert cleaned(shapely.box(0, 0, 1, 1)) == []
    many = shapely.segmentize(shapely.box(0, 0, 20, 20), 1.0)
    assert len(simple_rings(cleaned(many)[0])[0]) == 4


def test_of_overlapping_outlines_the_prior_one_stays_whole() -> None:
    polygons = np.array(
        [shapely.box(0, 0, 10, 10), shapely.box(6, 0, 20, 10), shapely.box(0, 0, 10, 10)]
    )
    low, high, twin = without_overlaps(polygons, np.array([1.0, 2.0, 0.0]))
    assert [p.area for p in high] == pytest.approx([140.0])
    assert [p.area for p in low] == pytest.approx([60.0])
    assert twin == []


def test_rectangles() -> None:
    square = np.array([(0, 0), (10, 0), (10, 10), (0, 10)], float)
    skew = np.array([(0, 0), (10, 0), (15, 10), (5, 10)], float)
    assert is_near_rectangle(square) and is_near_rectangle(
        square + np.array([(0, 0), (0, 1), (0, 0), (0, 0)])
    )
    assert not is_near_rectangle(skew) and not is_near_rectangle(square[:3])
    assert not is_near_rectangle(square * (1.0, 0.1))
