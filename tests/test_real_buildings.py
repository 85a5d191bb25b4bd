"""Heights, roofs and looks of the buildings of a map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import shapely

from ciper.city.buildings import Wing
from ciper.city.footprints import Shapes
from ciper.city.parts import RoofKind
from ciper.city.real_buildings import make_wings


def shapes_of(items: Sequence[tuple[shapely.Geometry, dict[str, str]]]) -> Shapes:
    geometry = np.array([shape for shape, _ in items], np.object_)
    key = np.rint(shapely.get_coordinates(shapely.centroid(geometry))).astype(np.int64) + 1000
    return Shapes(geometry, tuple(tags for _, tags in items), key)


def wing_at(wings: list[Wing], x: float, y: float) -> Wing:
    (found,) = [w for w in wings if shapely.Polygon(w.polygon).contains(shapely.Point(x, y))]
    return found


def test_heights_and_roofs_are_those_of_the_map() -> None:
    wings = make_wings(
        shapes_of(
            [
                (shapely.box(0, 0, 20, 10), {"height": "12", "roof:shape": "gabled"}),
                (shapely.box(50, 0, 70, 10), {"height": "12", "roof:height": "3",
                                              "roof:shape": "hipped"}),
                (shapely.box(100, 0, 120, 40), {"building:levels": "7", "roof:shape": "flat"}),
                (shapely.box(150, 0, 170, 10), {"height": "12", "roof:height": "4",
                                                "roof:shape": "flat"}),
            ]
        ),
        1,
    )  # fmt: skip
    gable, hip, flat, odd = (wing_at(wings, x, 5.0) for x in (10.0, 60.0, 110.0, 160.0))
    assert gable.roof is RoofKind.GABLE
    assert gable.eave_m + gable.rise_m == pytest.approx(12.0) and gable.rise_m > 0.5
    assert (hip.roof, hip.eave_m, hip.rise_m) == (RoofKind.HIP, 9.0, 3.0)
    assert (flat.roof, flat.eave_m, flat.rise_m) == (RoofKind.FLAT, 21.0, 0.0)
    assert (odd.roof, odd.eave_m) == (RoofKind.FLAT, 10.0)


def test_parts_take_their_ground_from_the_outline_and_floating_ones_are_left_out() -> None:
    outline = (shapely.box(0, 0, 40, 40), {"building": "yes", "height": "10"})
    tower = (shapely.box(10, 10, 20, 20), {"building:part": "yes", "height": "40"})
    bridge = (shapely.box(60, 0, 80, 10), {"building:part": "yes", "height": "9",
                                           "min_height": "5"})  # fmt: skip
    wings = make_wings(shapes_of([outline, tower, bridge]), 1)
    assert wing_at(wings, 15.0, 15.0).eave_m > 30.0
    assert wing_at(wings, 35.0, 35.0).eave_m <= 10.0
    assert sum(shapely.Polygon(w.polygon).area for w in wings) == pytest.approx(1600.0)


def test_plausible_heights_follow_the_neighbours_and_do_not_depend_on_the_rest() -> None:
    known = [(shapely.box(x, 0, x + 15, 15), {"height": "30"}) for x in range(0, 120, 20)]
    unknown = (shapely.box(40, 20, 55, 35), {"building": "yes"})
    garage = (shapely.box(70, 20, 76, 26), {"building": "garage"})
    wings = make_wings(shapes_of([*known, unknown, garage]), 1)
    assert 20.0 < wing_at(wings, 45.0, 25.0).eave_m < 45.0
    assert wing_at(wings, 73.0, 23.0).eave_m < 3.5
    fewer = make_wings(shapes_of([unknown, *known[:5]]), 1)
    for key in ("eave_m", "roof", "rise_m"):
        assert getattr(wing_at(fewer, 5.0, 5.0), key) == getattr(wing_at(wings, 5.0, 5.0), key)
    alone = make_wings(shapes_of([unknown]), 1)
    assert alone[0].eave_m < 12.0
    looks = {make_wings(shapes_of([unknown]), seed)[0].look.style_seed for seed in range(4)}
    assert len(looks) == 4
