"""Training pairs of photos looking straight down, cut out of georeferenced rasters of two dates.

The photo is seen in one raster, the chip in another one of the same place; where there is no other,
in the same. Dates are not asked: tiles of one date that overlap are others, too. Both are cut
afresh at every step: any place of the raster, any heading, as wide as drones see, from a height
that is told a little wrong.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ciper.city.light import degrade
from ciper.data.augment import AugmentConfig, change_colour, mirror_pose, turn_pose
from ciper.data.batches import Drawing, RandomPairs
from ciper.data.nadir_view import NadirViewConfig
from ciper.errors import ConfigError, RasterError
from ciper.gallery.chips import raster_bounds
from ciper.gallery.raster import Canvas, Mosaic, RasterInfo
from ciper.geo import LocalFrame, forward, right

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Rgb = NDArray[np.uint8]
Bool = NDArray[np.bool_]

# Rasters nearer to each other than this are of one city: their pairs are told apart by position.
_CITY_GAP_M = 1000.0
_METRES_PER_DEG = 111_320.0
# A camera stands so far inside of its raster that the photo's middle shows imagery.
_MARGIN_M = 16.0
# Sites of one cell share a frame, which takes long to make: 1.1 km from south to north.
_FRAME_DEG = 0.01
# Borders nearer to each other than a metre are one.
_SAME_DEG = 1e-5
# Pairs with less imagery in photo or chip are drawn again, so many times at a site at most.
_MIN_IMAGERY = 0.2
_MAX_TRIES = 5


@dataclass(frozen=True, eq=False)
class Sites:
    """Where cameras may be: squares of a raster each, every time another place in them.

    Attributes:
        raster: `(N,)` index of the raster that shows the photo.
        others: for each the other rasters that show the place; meant to be of other dates.
        geographic: `(N, 2)` latitude and longitude of the squares' middles.
        side_m: `(N,)` of the squares.
        city: `(N,)` number of the city.
        position_m: `(N, 2)` the squares' middles, east and north in their city.
        bounds: `(R, 4)` of the rasters: west, south, east, north.
    """

    raster: Int
    others: tuple[tuple[int, ...], ...]
    geographic: Float
    side_m: Float
    city: Int
    position_m: Float
    bounds: Float

    def __len__(self) -> int:
        return len(self.raster)

    @classmethod
    def of(cls, rasters: Sequence[RasterInfo], side_m: float) -> Sites:
        """Squares of at most `side_m` that tile every raster's bounds, but for its margin."""
        bounds = raster_bounds(rasters)
        squares = [_squares(box, side_m) for box in bounds]
        raster = np.repeat(np.arange(len(bounds)), [len(middles) for middles, _ in squares])
        geographic = np.concatenate([middles for middles, _ in squares])
        others: list[list[int]] = [[] for _ in raster]
        tree = shapely.STRtree(shapely.box(*bounds.T))
        points = shapely.points(geographic[:, ::-1])
        for site, other in tree.query(points, predicate="intersects").T:
            if other != raster[site]:
                others[site].append(int(other))
        city = _cities(bounds)[raster]
        return cls(
            raster=raster,
            others=tuple(tuple(sorted(o)) for o in others),
            geographic=geographic,
            side_m=np.array([side for _, side in squares])[raster],
            city=city,
            position_m=_in_cities(geographic, city),
            bounds=bounds,
        )

    @property
    def note(self) -> str:
        """A warning where most places are in no other raster, so of no other date; else nothing."""
        alone = np.mean([not others for others in self.others])
        if alone <= 0.5:
            return ""
        return f"{alone:.0%} of the places are in one raster alone, so that photo and chip are one"

    def taken(self, is_taken: Bool) -> Sites:
        """Some of the sites `(N,)`."""
        arrays = ("raster", "geographic", "side_m", "city", "position_m")
        others = tuple(o for o, taken in zip(self.others, is_taken, strict=True) if taken)
        return replace(self, others=others, **{a: getattr(self, a)[is_taken] for a in arrays})

    def frame(self, site: int) -> LocalFrame:
        """Metres about a place near a site, the same for sites near each other.

        Its north is that of the site to a hundredth of a degree, below 60 degrees of latitude.
        """
        lat, lon = (np.floor(self.geographic[site] / _FRAME_DEG) + 0.5) * _FRAME_DEG
        return LocalFrame(lat=min(max(float(lat), -90.0), 90.0), lon=float(lon))


def _cities(bounds: Float) -> Int:
    """Rasters (west, south, east, north) `(N, 4)` to the number of their city `(N,)`."""
    lat_gap = _CITY_GAP_M / 2 / _METRES_PER_DEG
    lon_gap = lat_gap / np.cos(np.deg2rad(np.clip(bounds[:, 1::2].mean(1), -85, 85)))
    west, south, east, north = bounds.T
    boxes = shapely.box(west - lon_gap, south - lat_gap, east + lon_gap, north + lat_gap)
    one, other = shapely.STRtree(boxes).query(boxes, predicate="intersects")
    links = coo_array((np.ones(len(one)), (one, other)), shape=(len(boxes), len(boxes)))
    return np.asarray(connected_components(links)[1], dtype=np.int64)


def _squares(box: Float, side_m: float) -> tuple[Float, float]:
    """Middles `(N, 2)`, lat and lon, of the squares that tile a raster's bounds, and their side."""
    west, south, east, north = box
    per_lon = _METRES_PER_DEG * math.cos(math.radians((south + north) / 2))
    width_m = max((east - west) * per_lon - 2 * _MARGIN_M, 1.0)
    height_m = max((north - south) * _METRES_PER_DEG - 2 * _MARGIN_M, 1.0)
    across, down = math.ceil(width_m / side_m), math.ceil(height_m / side_m)
    x = ((np.arange(across) + 0.5) / across - 0.5) * width_m / per_lon + (west + east) / 2
    y = ((np.arange(down) + 0.5) / down - 0.5) * height_m / _METRES_PER_DEG + (south + north) / 2
    middles = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
    return middles, max(width_m / across, height_m / down)


def _in_cities(geographic: Float, city: Int) -> Float:
    """Latitudes and longitudes `(N, 2)` as metres about the middle of their city."""
    position_m = np.empty_like(geographic)
    for number in range(int(city.max()) + 1):
        lat, lon = geographic[city == number].T
        frame = LocalFrame(lat=float(lat.mean()), lon=float(lon.mean()))
        position_m[city == number] = np.column_stack(frame.to_local(lat=lat, lon=lon))
    return position_m


class NadirPairs(RandomPairs):
    """Random pairs out of rasters.

    Args:
        rasters: that show places at one or several dates.
        sites: where cameras may be.
        config: of the photos.
        size: (pixels, metres per pixel) of chips and plan views.
        augment: of the colours.
        drawing: how pairs are drawn.
        max_open: files that each thread holds open.

    Raises:
        ConfigError: there is no site.
    """

    def __init__(
        self,
        rasters: Sequence[RasterInfo],
        sites: Sites,
        config: NadirViewConfig,
        size: tuple[int, float],
        augment: AugmentConfig,
        drawing: Drawing,
        max_open: int = 32,
    ) -> None:
        if len(sites) == 0:
            raise ConfigError("there is no place in the rasters; expected some: set data.rasters")
        self.rasters, self.sites, self.config, self.augment = rasters, sites, config, augment
        self.size_px, self.gsd = size
        self.max_open = max_open
        self._opened = threading.local()
        super().__init__(sites.city, sites.position_m, drawing)

    @property
    def mosaic(self) -> Mosaic:
        """The rasters as this thread has opened them: GDAL's files are not to be shared."""
        if not hasattr(self._opened, "mosaic"):
            self._opened.mosaic = Mosaic(self.rasters, max_open=self.max_open)
        mosaic: Mosaic = self._opened.mosaic
        return mosaic

    def _item(
        self, photo: int, rng: np.random.Generator, narrow_share: float
    ) -> tuple[NDArray[Any], ...]:
        """A pair of the site, or of the first one behind it that shows imagery.

        Raises:
            RasterError: none does.
        """
        num_sites = len(self.sites)
        for site in ((photo + ahead) % num_sites for ahead in range(num_sites)):
            # Rasters have collars and holes: a pair without imagery teaches nothing.
            for _ in range(_MAX_TRIES):
                item = self._pair(site, rng)
                if item is not None:
                    return item
        raise RasterError(
            f"{self.rasters[0].path}: neither it nor any of {len(self.rasters) - 1} other rasters "
            "shows imagery where one was looked for; expected rasters with less nodata"
        )

    def _pair(self, site: int, rng: np.random.Generator) -> tuple[NDArray[Any], ...] | None:
        """A random pair of a site; None if its photo or its chip shows next to nothing."""
        sites, frame = self.sites, self.sites.frame(site)
        lat, lon = sites.geographic[site]
        middle = np.array(frame.to_local(lat=lat, lon=lon))
        seen = self._seen(site, rng)
        camera = middle + rng.uniform(-0.5, 0.5, 2) * sites.side_m[site]
        centre = camera + rng.uniform(-0.25, 0.25, 2) * self.size_px * self.gsd
        heading_deg = float(rng.uniform(0, 360))
        plan, is_visible, share = self._plan(_Ground(frame, camera, heading_deg), seen.photo, rng)
        chip, is_valid = self._cut(_Ground(frame, centre, 0.0), seen.chip)
        if min(share, is_valid.mean()) < _MIN_IMAGERY:
            return None
        pose = np.array([*(camera - centre), heading_deg])
        if rng.random() < 0.5:
            chip, is_valid = chip[:, ::-1], is_valid[:, ::-1]
            plan, is_visible = plan[:, ::-1], is_visible[:, ::-1]
            pose = mirror_pose(pose)
        turns = int(rng.integers(4))
        chip = change_colour(np.ascontiguousarray(np.rot90(chip, turns)), rng, self.augment)
        is_valid = np.ascontiguousarray(np.rot90(is_valid, turns))
        plan = change_colour(np.ascontiguousarray(plan), rng, self.augment)
        is_visible = np.ascontiguousarray(is_visible)
        in_city = sites.position_m[site] - middle
        return (
            plan * is_visible[..., None],
            is_visible,
            chip * is_valid[..., None],
            is_valid,
            turn_pose(pose, turns).astype(np.float32),
            sites.city[site],
            (centre + in_city).astype(np.float32),
            (camera + in_city).astype(np.float32),
        )

    def _seen(self, photo: int, rng: np.random.Generator) -> _Seen:
        """Which rasters show a site in the photo, and which in the chip: of another date."""
        shown, others = int(self.sites.raster[photo]), self.sites.others[photo]
        if not others:
            return _Seen((shown,), (shown,))
        referred = int(rng.choice(others))
        rest = [other for other in others if other != referred]
        return _Seen(self._with_more(shown, rest), self._with_more(referred, rest))

    def _with_more(self, first: int, rest: Sequence[int]) -> tuple[int, ...]:
        """A raster and those that go on where it ends: mosaics have seams between dates, too."""
        # How far each side lies beyond that of the first, outwards.
        beyond = (self.sites.bounds[list(rest)] - self.sites.bounds[first]) * (-1, -1, 1, 1)
        goes_on = (beyond > _SAME_DEG).any(axis=1)
        return (first, *(r for r, goes in zip(rest, goes_on, strict=True) if goes))

    def _cut(
        self, ground: _Ground, rasters: tuple[int, ...], scale: float = 1.0
    ) -> tuple[Rgb, Bool]:
        """A square of the ground as rasters show it, pixels `scale` times as wide as a chip's."""
        size_px, gsd = self.size_px, self.gsd * scale

        def geographic_from_pixel(u: Float, v: Float) -> tuple[Float, Float]:
            return ground.geographic((u - size_px / 2) * gsd, (size_px / 2 - v) * gsd)

        canvas = Canvas.empty(size_px, size_px)
        self.mosaic.fill(canvas, geographic_from_pixel, rasters)
        return canvas.rgb, canvas.is_valid

    def _plan(
        self, ground: _Ground, rasters: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[Rgb, Bool, float]:
        """What a photo from above a place says of the ground, as its told height has it.

        Returns:
            plan, what is visible of it, and the share of the photo that shows imagery.
        """
        config = self.config
        width_m = rng.uniform(*config.width_m)
        length_m = width_m / rng.choice(config.aspects)
        # All metres of the plan are wrong by the share by which the height is.
        scale = math.exp(rng.normal(0.0, config.height_error))
        tilt_rad = np.deg2rad(rng.normal(0.0, config.tilt_error_deg, 2))
        moved = ground.moved(*(tilt_rad * config.height_over_width * width_m))
        rgb, is_valid = self._cut(moved, rasters, scale)
        across_m = (np.arange(self.size_px) + 0.5 - self.size_px / 2) * self.gsd * scale
        # A told tilt moves what is seen ahead, not what lies where.
        told_rad = math.radians(rng.uniform(0.0, config.max_tilt_deg))
        along_m = -across_m - math.tan(told_rad) * config.height_over_width * width_m
        is_framed = (np.abs(across_m) <= width_m / 2) & (np.abs(along_m) <= length_m / 2)[:, None]
        photo = Image.fromarray(rgb)
        if rng.random() < config.blur_share:
            photo = photo.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.5))))
        is_visible = is_valid & is_framed
        share = float(is_visible.sum() / max(is_framed.sum(), 1))
        return degrade(np.asarray(photo), rng), is_visible, share


class _Seen(NamedTuple):
    """The rasters that show a site, in the order of their precedence."""

    photo: tuple[int, ...]
    chip: tuple[int, ...]


@dataclass(frozen=True)
class _Ground:
    """The ground about a place (x, y) of a frame, seen with a heading up."""

    frame: LocalFrame
    place: Float
    heading_deg: float

    def geographic(self, across_m: Float, along_m: Float) -> tuple[Float, Float]:
        """Latitude and longitude of points to the right of the place and ahead of it."""
        x, y = self._offset(across_m, along_m)
        return self.frame.to_geographic(x=self.place[0] + x, y=self.place[1] + y)

    def moved(self, across_m: float, along_m: float) -> _Ground:
        """The ground about a place to the right of this one and ahead of it."""
        return replace(self, place=self.place + self._offset(across_m, along_m))

    def _offset(self, across_m: Any, along_m: Any) -> tuple[Any, Any]:
        aside, ahead = right(self.heading_deg), forward(self.heading_deg)
        return across_m * aside[0] + along_m * ahead[0], across_m * aside[1] + along_m * ahead[1]
