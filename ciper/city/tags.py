"""What the tags of a map's shapes mean: heights, widths, kinds of streets and of ground.

Keys and values are OpenStreetMap's (https://wiki.openstreetmap.org/wiki/Map_features), in lower
case, and the columns of some cadastres, such as France's HAUTEUR (height of the eave) and
NB_ETAGES (number of floors). What contradicts common sense counts as not given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ciper.city.parts import Surface
from ciper.city.streets import Rank

Tags = Mapping[str, str]

STOREY_M = 3.0
_FOOT_M = 0.3048
_TOP_KEYS = ("height", "building:height", "measuredheight", "height_m", "est_height")
_EAVE_KEYS = ("hauteur",)
_LEVEL_KEYS = ("building:levels", "levels", "nb_etages", "num_floors", "storeys")
_LIKELY_TOP_M = (1.5, 700.0)
_LIKELY_LEVELS = (0.5, 170.0)
# A roof on posts, or what is not there at all.
_NO_BUILDING = {
    "no", "roof", "carport", "entrance", "underpass_entrance", "proposed", "demolished", "ship",
    "construction", "razed", "bridge",
}  # fmt: skip

KEYS = frozenset(
    {
        *_TOP_KEYS, *_EAVE_KEYS, *_LEVEL_KEYS, "building", "building:part", "roof:shape",
        "roof:height", "min_height", "building:min_level", "layer", "location", "tunnel", "covered",
        "indoor", "bridge", "highway", "name", "width", "lanes", "oneway", "junction", "service",
        "footway", "surface", "sidewalk", "parking:lane:both", "parking:lane:left",
        "parking:lane:right", "parking:both", "parking:left", "parking:right", "railway",
        "natural", "landuse", "leisure", "amenity", "parking", "waterway", "barrier", "place",
        "area:highway", "public_transport", "usage1",
    }
)  # fmt: skip


# ----------------------------------------------------------------------------------------- numbers

_LENGTH = re.compile(
    r"""[~≈]?\s*(?P<whole>\d+(?:[.,]\d+)?)\s*
        (?P<unit>m|met(?:er|re)s?|ft|feet|foot|')?\.?\s*
        (?:(?P<inch>\d+(?:[.,]\d+)?)\s*(?:"|''|in))?\s*$""",
    re.VERBOSE | re.IGNORECASE,
)


def metres(text: str | None) -> float | None:
    """A length such as "12", "12,5 m", "40 ft" or 5'6"; the first of several; else None."""
    found = _LENGTH.match((text or "").split(";")[0].strip())
    if found is None:
        return None
    value = float(found["whole"].replace(",", "."))
    if (found["unit"] or "m").lower().startswith("m"):
        return value if found["inch"] is None else None
    inches = float((found["inch"] or "0").replace(",", "."))
    return _FOOT_M * (value + inches / 12.0)


def number(text: str | None) -> float | None:
    """The first number of a text such as "5", "4.5" or "3;4"; else None."""
    found = re.match(r"\s*([+-]?\d+(?:[.,]\d+)?)", text or "")
    return None if found is None else float(found[1].replace(",", "."))


def _first(tags: Tags, keys: tuple[str, ...], *, low: float, high: float) -> float | None:
    """The first of the keys whose length lies within its bounds."""
    for key in keys:
        value = metres(tags.get(key))
        if value is not None and low <= value <= high:
            return value
    return None


# --------------------------------------------------------------------------------------- buildings


@dataclass(frozen=True)
class Heights:
    """What a map says of a building's heights, in metres above ground; None where it is silent.

    Attributes:
        top_m: of the ridge.
        eave_m: of the walls' top.
        roof_m: from eave to ridge.
        base_m: of its underside, 0 for what stands on the ground.
    """

    top_m: float | None
    eave_m: float | None
    roof_m: float | None
    base_m: float


def heights(tags: Tags) -> Heights:
    """The heights that tags state, from metres or feet or, without those, from levels."""
    low, high = _LIKELY_TOP_M
    top_m = _first(tags, _TOP_KEYS, low=low, high=high)
    eave_m = _first(tags, _EAVE_KEYS, low=low, high=high)
    if top_m is None and eave_m is None:
        for key in _LEVEL_KEYS:
            levels = number(tags.get(key))
            if levels is not None and _LIKELY_LEVELS[0] <= levels <= _LIKELY_LEVELS[1]:
                eave_m = STOREY_M * levels
                break
    base_m = metres(tags.get("min_height"))
    if base_m is None:
        base_m = STOREY_M * max(number(tags.get("building:min_level")) or 0.0, 0.0)
    known_m = top_m if top_m is not None else eave_m
    roof_m = metres(tags.get("roof:height"))
    if roof_m is not None and known_m is not None and roof_m > 0.8 * known_m:
        roof_m = None
    return Heights(top_m, eave_m, roof_m, base_m)


def is_building(tags: Tags) -> bool:
    """Whether a shape is a building or a part of one that stands above the ground."""
    kind = tags.get("building", tags.get("building:part", "no"))
    return kind not in _NO_BUILDING and is_seen(tags)


def is_seen(tags: Tags) -> bool:
    """Whether a shape lies under the open sky, as passages through houses do but for the house."""
    if tags.get("tunnel", "no") not in ("no", "building_passage"):
        return False
    if tags.get("location") in ("underground", "indoor") or tags.get("indoor", "no") != "no":
        return False
    return (number(tags.get("layer")) or 0.0) >= 0.0


# ----------------------------------------------------------------------------------------- streets


@dataclass(frozen=True)
class StreetKind:
    """Usual sizes of a class of streets, in metres: kerb to kerb in two directions and in one."""

    rank: Rank
    width_m: float
    one_way_m: float
    sidewalk_m: float


_STREETS = {
    "motorway": StreetKind(Rank.ARTERIAL, 17.0, 10.5, 0.6),
    "trunk": StreetKind(Rank.ARTERIAL, 17.0, 9.0, 1.0),
    "primary": StreetKind(Rank.ARTERIAL, 15.0, 8.5, 3.2),
    "secondary": StreetKind(Rank.COLLECTOR, 13.0, 8.0, 3.0),
    "tertiary": StreetKind(Rank.COLLECTOR, 11.0, 7.5, 2.7),
    "unclassified": StreetKind(Rank.RESIDENTIAL, 8.5, 6.8, 2.3),
    "residential": StreetKind(Rank.RESIDENTIAL, 8.5, 6.8, 2.3),
    "road": StreetKind(Rank.RESIDENTIAL, 7.5, 6.0, 1.8),
    "living_street": StreetKind(Rank.ALLEY, 6.0, 5.0, 1.2),
    "busway": StreetKind(Rank.ALLEY, 7.0, 4.0, 1.0),
    "service": StreetKind(Rank.ALLEY, 4.6, 3.8, 0.5),
}
_LINK = StreetKind(Rank.COLLECTOR, 8.0, 5.5, 1.0)
_NO_PARKING = {"no", "no_parking", "no_stopping", "fire_lane", "separate"}


def street_kind(tags: Tags) -> StreetKind | None:
    """The class of a street that cars use; None for footpaths, sites of construction, ..."""
    highway = tags.get("highway", "")
    if highway.endswith("_link"):
        return _LINK
    return _STREETS.get(highway)


def is_one_way(tags: Tags) -> bool:
    """Whether cars use a street in one direction only."""
    is_round = tags.get("junction") in ("roundabout", "circular")
    return is_round or tags.get("oneway") in ("yes", "1", "-1", "true")


def parks_cars(tags: Tags) -> bool | None:
    """Whether cars are parked along a street; None if the map does not say."""
    told = [
        tags[key]
        for key in KEYS
        if key.startswith("parking:") and key in tags and not key.endswith("condition")
    ]
    if not told:
        return None
    return any(value not in _NO_PARKING for value in told)


def carriageway_m(tags: Tags, kind: StreetKind) -> float:
    """Width from kerb to kerb: as tagged, else from the lanes and the parked cars, else usual."""
    width_m = metres(tags.get("width"))
    if width_m is not None and 2.5 <= width_m <= 40.0:
        return width_m
    lanes = number(tags.get("lanes"))
    if lanes is None or not 1.0 <= lanes <= 10.0:
        return kind.one_way_m if is_one_way(tags) else kind.width_m
    beside_m = 4.4 if parks_cars(tags) else 0.6
    return max(3.2 * lanes + beside_m, 3.5)


_PATHS_M = {
    "footway": 2.2, "path": 1.6, "cycleway": 2.4, "steps": 2.4, "pedestrian": 6.0,
    "bridleway": 2.0, "track": 2.8, "platform": 3.0,
}  # fmt: skip
_PATH_SURFACES = {
    "asphalt": Surface.PARKING, "concrete": Surface.SIDEWALK, "paved": Surface.SIDEWALK,
    "paving_stones": Surface.PLAZA, "sett": Surface.PLAZA, "cobblestone": Surface.PLAZA,
    "gravel": Surface.PATH, "fine_gravel": Surface.PATH, "compacted": Surface.PATH,
    "unpaved": Surface.PATH, "ground": Surface.SOIL, "dirt": Surface.SOIL, "sand": Surface.PATH,
    "grass": Surface.GRASS, "wood": Surface.YARD,
}  # fmt: skip


def path_width_m(tags: Tags) -> float | None:
    """Width of a way for people on foot or bicycle; None for anything else."""
    usual_m = _PATHS_M.get(tags.get("highway", ""))
    width_m = metres(tags.get("width"))
    if usual_m is not None and width_m is not None and 0.6 <= width_m <= 30.0:
        return width_m
    return usual_m


def path_surface(tags: Tags) -> Surface:
    """Material of a path."""
    told = _PATH_SURFACES.get(tags.get("surface", ""))
    if told is not None:
        return told
    if tags.get("highway") in ("pedestrian", "platform"):
        return Surface.PLAZA
    is_street_side = tags.get("footway") in ("sidewalk", "crossing", "traffic_island")
    is_paved = is_street_side or tags.get("highway") in ("footway", "steps", "cycleway")
    return Surface.SIDEWALK if is_paved else Surface.PATH


# ------------------------------------------------------------------------------------------ ground


@dataclass(frozen=True)
class Cover:
    """What covers an area, and how many trees and shrubs stand on a hectare of it."""

    surface: Surface
    trees: float = 0.0
    shrubs: float = 0.0
    has_people: bool = False


_WATER = Cover(Surface.WATER)
_LAWN = Cover(Surface.GRASS, 8.0, has_people=True)
_PARK = Cover(Surface.GRASS, 42.0, 12.0, has_people=True)
_WOOD = Cover(Surface.DRY_GRASS, 260.0, 60.0)
_ROCK = Cover(Surface.YARD, 2.0)
_SQUARE = Cover(Surface.PLAZA, 6.0, has_people=True)
CAR_PARK = Cover(Surface.PARKING)
_COVERS = {
    ("natural", "water"): _WATER, ("waterway", "riverbank"): _WATER, ("waterway", "dock"): _WATER,
    ("landuse", "basin"): _WATER, ("landuse", "reservoir"): _WATER, ("landuse", "pond"): _WATER,
    ("leisure", "swimming_pool"): _WATER, ("amenity", "fountain"): _WATER,
    ("leisure", "park"): _PARK, ("leisure", "garden"): _PARK, ("leisure", "dog_park"): _PARK,
    ("landuse", "cemetery"): _PARK, ("amenity", "grave_yard"): _PARK,
    ("landuse", "allotments"): _PARK, ("leisure", "common"): _LAWN,
    ("leisure", "golf_course"): Cover(Surface.GRASS, 20.0),
    ("landuse", "grass"): _LAWN, ("landuse", "meadow"): Cover(Surface.DRY_GRASS, 6.0, 10.0),
    ("landuse", "village_green"): _LAWN, ("landuse", "recreation_ground"): _LAWN,
    ("landuse", "flowerbed"): Cover(Surface.SOIL, 0.0, 300.0), ("natural", "grassland"): _LAWN,
    ("landuse", "forest"): _WOOD, ("natural", "wood"): _WOOD,
    ("landuse", "orchard"): Cover(Surface.GRASS, 120.0),
    ("landuse", "vineyard"): Cover(Surface.SOIL, 0.0, 900.0),
    ("landuse", "farmland"): Cover(Surface.DRY_GRASS),
    ("natural", "scrub"): Cover(Surface.DRY_GRASS, 15.0, 500.0),
    ("natural", "heath"): Cover(Surface.DRY_GRASS, 3.0, 150.0),
    ("natural", "wetland"): Cover(Surface.DRY_GRASS, 2.0, 80.0),
    ("natural", "beach"): Cover(Surface.PATH, has_people=True),
    ("natural", "sand"): Cover(Surface.PATH), ("natural", "bare_rock"): _ROCK,
    ("natural", "scree"): _ROCK, ("natural", "shingle"): _ROCK,
    ("leisure", "pitch"): Cover(Surface.GRASS, has_people=True),
    ("leisure", "track"): Cover(Surface.PATH, has_people=True),
    ("leisure", "playground"): Cover(Surface.PATH, 12.0, has_people=True),
    ("landuse", "construction"): Cover(Surface.SOIL), ("landuse", "brownfield"): _ROCK,
    ("landuse", "railway"): Cover(Surface.YARD), ("amenity", "parking"): CAR_PARK,
    ("amenity", "marketplace"): _SQUARE, ("highway", "pedestrian"): _SQUARE,
    ("highway", "footway"): _SQUARE, ("highway", "platform"): _SQUARE,
    ("railway", "platform"): Cover(Surface.SIDEWALK, has_people=True),
    ("highway", "service"): CAR_PARK, ("place", "square"): _SQUARE,
}  # fmt: skip
_GROUND_KEYS = (
    "natural", "waterway", "leisure", "landuse", "amenity", "highway", "railway", "place",
)  # fmt: skip


def cover(tags: Tags) -> Cover | None:
    """What covers a polygon's ground; None if the map says nothing of that."""
    if not is_seen(tags):
        return None
    if tags.get("parking", "surface") not in ("surface", "lane", "street_side"):
        return None
    for key in _GROUND_KEYS:
        found = _COVERS.get((key, tags.get(key, "")))
        if found is not None:
            return _with_surface(found, tags)
    return None


def _with_surface(found: Cover, tags: Tags) -> Cover:
    """Pitches and squares have the surface that they are tagged with."""
    told = _PATH_SURFACES.get(tags.get("surface", ""))
    if told is None or not (found is _SQUARE or tags.get("leisure") == "pitch"):
        return found
    return Cover(told, found.trees, found.shrubs, found.has_people)


_WATERWAYS_M = {"river": 14.0, "canal": 10.0, "stream": 2.5, "ditch": 1.5, "drain": 1.5}
_RAILS_M = {"rail": 3.2, "light_rail": 3.0, "subway": 3.0, "narrow_gauge": 2.4, "tram": 1.4}


def water_width_m(tags: Tags) -> float | None:
    """Width of a watercourse that is drawn as a line; None for anything else."""
    usual_m = _WATERWAYS_M.get(tags.get("waterway", ""))
    width_m = metres(tags.get("width"))
    return width_m if usual_m is not None and width_m is not None else usual_m


def rail_width_m(tags: Tags) -> float | None:
    """Width of a track with its ballast (a tram's without); None for anything else."""
    return _RAILS_M.get(tags.get("railway", ""))
