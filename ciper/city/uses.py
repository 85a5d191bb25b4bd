"""Land uses: which one a block gets, and who draws it."""

from __future__ import annotations

from collections.abc import Callable

import shapely

from ciper.city.blocks import Sketch, halves, wanted_use
from ciper.city.dwellings import draw_detached, draw_perimeter, draw_rows, draw_slabs
from ciper.city.greens import draw_park, draw_plaza, draw_school, draw_vacant, draw_verge
from ciper.city.plots import Block
from ciper.city.workplaces import draw_commercial, draw_industrial, draw_parking, draw_towers


def draw_block(sketch: Sketch, block: Block, density: float) -> None:
    """Choose a land use for a block (or one for each half of a large one) and draw it."""
    rng, area_m2 = sketch.rng, float(shapely.area(block))
    if area_m2 < 220.0 or shapely.is_empty(shapely.buffer(block, -5.0)):
        draw_verge(sketch, block)
    elif area_m2 > 11000.0 and rng.uniform() < min(0.45, area_m2 / 40000.0):
        for part in halves(block, rng, 0.15):
            draw_block(sketch, part, density)
    else:
        _DRAW[wanted_use(rng, area_m2, density, _WEIGHTS)](sketch, block)


# Name, weight at a city's edge, weight in its core, least and
# greatest area in square metres.
_WEIGHTS = (
    ("detached", 0.55, -0.2, 900.0, 1e9),
    ("rows", 0.16, 0.08, 900.0, 16000.0),
    ("perimeter", 0.0, 0.42, 1300.0, 14000.0),
    ("slabs", 0.10, 0.12, 1500.0, 1e9),
    ("towers", 0.0, 0.13, 1500.0, 12000.0),
    ("commercial", 0.04, 0.34, 220.0, 14000.0),
    ("industrial", 0.09, 0.0, 2200.0, 1e9),
    ("parking", 0.03, 0.06, 500.0, 7000.0),
    ("park", 0.07, 0.07, 500.0, 1e9),
    ("plaza", 0.01, 0.05, 220.0, 4500.0),
    ("school", 0.05, 0.03, 3000.0, 1e9),
    ("vacant", 0.04, 0.02, 220.0, 6000.0),
)
_DRAW: dict[str, Callable[[Sketch, Block], None]] = {
    "detached": draw_detached,
    "rows": draw_rows,
    "perimeter": draw_perimeter,
    "slabs": draw_slabs,
    "towers": draw_towers,
    "commercial": draw_commercial,
    "industrial": draw_industrial,
    "parking": draw_parking,
    "park": draw_park,
    "plaza": draw_plaza,
    "school": draw_school,
    "vacant": draw_vacant,
}
