"""Comparisons of cities."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from ciper.city.parts import City


def assert_same(a: City, b: City) -> None:
    """All that two cities hold is equal."""
    for part in ("buildings", "trees", "cars"):
        one, two = getattr(a, part), getattr(b, part)
        for item in fields(one):
            left, right = getattr(one, item.name), getattr(two, item.name)
            assert len(left) == len(right)
            assert all(np.array_equal(p, q) for p, q in zip(left, right, strict=True))
    assert np.array_equal(a.surface, b.surface)
    assert np.array_equal(a.camera_sites, b.camera_sites)
    assert np.array_equal(a.car_slots, b.car_slots)
