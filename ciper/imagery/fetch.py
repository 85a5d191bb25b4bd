"""`ciper imagery fetch`: what is published of a place, as one cloud-optimised GeoTIFF."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import ciper
from ciper.errors import ConfigError, DependencyError, NoImageryError
from ciper.imagery.grid import TILE_PX, WEB_MERCATOR, TileGrid, TileMatrix, load_grid
from ciper.imagery.place import Bounds, Frame
from ciper.imagery.polite import Client, Manners
from ciper.imagery.source import Address, TileSource
from ciper.imagery.stac import Item, ItemImages, find_items
from ciper.imagery.tiles import (
    MOST_MISSING,
    TileCache,
    TileJob,
    download,
    first_picture,
    strips,
    tiles_of,
)
from ciper.imagery.write import check_out, write_cog

if TYPE_CHECKING:
    from ciper.imagery.http import HttpTransport

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]

STAC = "stac:"
# Fine enough for chips of 0.5 m/px, whatever the direction of the pixels.
GSD = 0.3
# Where a source has less, coarser imagery than this shows no city any more.
_COARSEST_GSD = 40.0


@dataclass(frozen=True)
class FetchConfig:
    """What to fetch, and how.

    Attributes:
        bbox: the place.
        source: a template of tiles, or "stac:" and an address or path.
        zoom: of tiles; None for the coarsest of at most 0.3 m/px that the source has.
        license: what the source permits, for the file.
        cache: folder that keeps the tiles.
        max_tiles: more are refused.
        asset: of a STAC item.
        tile_matrix_set: the grid's OGC name, or a file of its JSON.
        is_missing_allowed: whether most of the place may be without imagery.
        manners: how often and how patiently servers are asked.
    """

    bbox: Bounds
    source: str
    zoom: int | None = None
    license: str = ""
    cache: Path = Path("cache/imagery")
    max_tiles: int = 10_000
    asset: str | None = None
    tile_matrix_set: str = WEB_MERCATOR
    is_missing_allowed: bool = False
    manners: Manners = field(default_factory=Manners)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.manners.rate_per_s) and self.manners.rate_per_s > 0.0):
            raise ConfigError(
                f"--rate {self.manners.rate_per_s:g}: expected a number of requests per second "
                "above 0"
            )
        if not self.is_stac and self.asset is not None:
            raise ConfigError(f"--asset {self.asset} is of STAC items; leave it out with tiles")
        if self.is_stac and self.zoom is not None:
            raise ConfigError(
                f"--zoom {self.zoom} is of tiles; leave it out: a STAC item is read as fine as it "
                "is"
            )

    @property
    def is_stac(self) -> bool:
        """Whether the source is a catalogue."""
        return self.source.startswith(STAC)

    @property
    def most_missing(self) -> float:
        """The share of the place that may be without imagery."""
        return 1.0 if self.is_missing_allowed else MOST_MISSING


@dataclass(frozen=True)
class Fetched:
    """What was written.

    Attributes:
        out: the file.
        frame: its pixels.
        missing: the share of them without imagery.
    """

    out: Path
    frame: Frame
    missing: float

    def __str__(self) -> str:
        height, width = self.frame.size_px
        pixel_m = self.frame.transform.a
        mercator = f" (Web Mercator's {pixel_m:.3f} are no metres)" * _is_mercator(self.frame.crs)
        missing = f", {max(self.missing, 0.001):.1%} without imagery" * (self.missing > 0.0)
        return f"{self.out}: {width} x {height} px, gsd {self.frame.gsd:.3f} m{mercator}{missing}"


def fetch(config: FetchConfig, out: Path, *, progress: Progress, say: Say) -> Fetched:
    """Fetch the imagery of a place.

    Args:
        config: what to fetch, and how.
        out: the GeoTIFF to write; an older one is replaced when all is there.
        progress: called with (what, done, total).
        say: called with lines for the user, before anything large is asked for.

    Raises:
        ConfigError: source, zoom or key make no sense.
        GeoError: the place makes no sense.
        ImageryError: the source has too little, refuses or fails.
        OutputError: result or cache cannot be written.
        DependencyError: a library of the extra `imagery` is not installed.
    """
    check_out(out)
    if config.is_stac:
        return _fetch_items(config, out, progress=progress, say=say)
    return _fetch_tiles(config, out, progress=progress, say=say)


# -------------------------------------------------------------------------------------------- tiles


def _fetch_tiles(config: FetchConfig, out: Path, *, progress: Progress, say: Say) -> Fetched:
    job = _downloaded(config, progress=progress, say=say)
    shown, zoom = job.source.address.shown, job.matrix.zoom
    tiles = tiles_of(job.matrix.tiles_over(config.bbox))
    first = first_picture(job, tiles)
    if first is None:
        raise NoImageryError(
            f"{shown}: has no imagery of {config.bbox} at zoom {zoom}; expected some. Check bbox, "
            "zoom and the order of rows ({-y} for TMS)"
        )
    pixels = job.matrix.pixels_over(config.bbox, first.size_px)
    frame = job.matrix.frame(pixels, first.size_px)
    tags = {
        "SOURCE": shown,
        "ZOOM": str(zoom),
        # Tiles do not tell when they were taken.
        "FETCHED": min(job.cache.date(zoom, tile) for tile in tiles),
        **_license_tags(config.license),
    }
    missing = write_cog(
        out,
        frame,
        strips(job, pixels, first.size_px, progress),
        tags,
        is_lossy=first.is_lossy,
        most_missing=config.most_missing,
    )
    return Fetched(out, frame, missing)


def _downloaded(config: FetchConfig, *, progress: Progress, say: Say) -> TileJob:
    """All tiles of the place at one zoom, in the cache."""
    source, grid = TileSource.parse(config.source), load_grid(config.tile_matrix_set)
    matrix = _first_matrix(config, grid)
    with _transport(config, source.address) as transport:
        cache = TileCache(config.cache / source.key / grid.name, shown=source.address.shown)
        client = Client(transport, config.manners, hide=source.address.hide)
        job, tile_px = _probed(config, grid, TileJob(source, matrix, client, cache))
        _say_plan(config, job, tile_px, say)
        download(
            job,
            job.matrix.pixels_over(config.bbox, (TILE_PX, TILE_PX)),
            num_connections=config.manners.num_connections,
            most_missing=config.most_missing,
            progress=progress,
        )
    return job


def _first_matrix(config: FetchConfig, grid: TileGrid) -> TileMatrix:
    """The zoom that was asked for, or the one that should do; refused if it is of too many tiles.

    Raises:
        ConfigError: it has more tiles than allowed.
    """
    zoom = config.zoom
    matrix = grid.fine_enough(config.bbox, GSD) if zoom is None else grid.matrix(zoom)
    num_tiles = matrix.tiles_over(config.bbox).num
    if num_tiles > config.max_tiles:
        fitting = grid.finest_within(config.bbox, config.max_tiles)
        advice = "fetch smaller places"
        if fitting is not None:
            advice = f"--zoom {fitting} would fit ({grid.matrix(fitting).gsd(config.bbox):.2f} m)"
        raise ConfigError(
            f"bbox {config.bbox} is {num_tiles:,} tiles at zoom {matrix.zoom}; expected at most "
            f"{config.max_tiles:,}: {advice}, or raise --max-tiles if the source permits it"
        )
    return matrix


def _probed(config: FetchConfig, grid: TileGrid, job: TileJob) -> tuple[TileJob, int]:
    """Look at the tile in the middle: how fine the source is there, and how large its tiles are.

    Raises:
        NoImageryError: without a zoom that was asked for, there is none in the middle at any.
    """
    lat, lon = config.bbox.middle
    for matrix in reversed([m for m in grid if m.zoom <= job.matrix.zoom]):
        at_zoom = replace(job, matrix=matrix)
        middle = matrix.tile_at(lat=lat, lon=lon)
        if at_zoom.has(middle):
            picture = at_zoom.picture(middle)
            tile_px = picture.size_px[1] if picture is not None else TILE_PX
            if config.zoom is None:
                enough = min(matrix.zoom, grid.fine_enough(config.bbox, GSD, tile_px).zoom)
                at_zoom = replace(job, matrix=grid.matrix(enough))
            return at_zoom, tile_px
        if config.zoom is not None:
            return job, TILE_PX
        if matrix.gsd(config.bbox) > _COARSEST_GSD:
            break
    raise NoImageryError(
        f"{job.source.address.shown}: has no tile in the middle of {config.bbox} at zoom "
        f"{job.matrix.zoom} or below; expected one. Check the place and the order of rows ({{-y}} "
        "for TMS), or say --zoom"
    )


def _say_plan(config: FetchConfig, job: TileJob, tile_px: int, say: Say) -> None:
    matrix, zoom = job.matrix, job.matrix.zoom
    span = matrix.tiles_over(config.bbox)
    pixels = matrix.pixels_over(config.bbox, (tile_px, tile_px))
    num_held = sum(job.cache.holds(zoom, tile) for tile in tiles_of(span))
    seconds = (span.num - num_held) / config.manners.rate_per_s
    say(
        f"{job.source.address.shown}: zoom {zoom}, {span.num:,} tiles ({num_held:,} of them in "
        f"{job.cache.folder}), {pixels.num / 1e6:.1f} megapixels of "
        f"{matrix.gsd(config.bbox, tile_px):.3f} m, at least {seconds:,.0f} s"
    )
    say(_license_note(config.license, job.source.address.host))


# --------------------------------------------------------------------------------------------- STAC


def _fetch_items(config: FetchConfig, out: Path, *, progress: Progress, say: Say) -> Fetched:
    address = Address.parse(config.source.removeprefix(STAC).strip())
    with _transport(config, address) as transport:
        client = Client(transport, config.manners, hide=address.hide)
        items = find_items(address, config.bbox, client, config.asset)
    from ciper.imagery.http import USER_AGENT

    with ItemImages(items, address, user_agent=USER_AGENT) as images:
        frame = images.frame(config.bbox)
        _check_size(config, frame)
        license_text = config.license or _joined(item.license for item in items)
        say(
            f"{address.shown}: {_listed(items)}, {math.prod(frame.size_px) / 1e6:.1f} megapixels "
            f"of {frame.gsd:.3f} m"
        )
        say(_license_note(license_text, address.host))
        tags = {
            "SOURCE": address.shown,
            "ITEMS": ", ".join(item.name for item in items),
            "DATE": _joined(item.date for item in items),
            "FETCHED": time.strftime("%Y-%m-%d", time.gmtime()),
            **_license_tags(license_text),
        }
        missing = write_cog(
            out,
            frame,
            images.strips(frame, progress),
            tags,
            is_lossy=images.is_lossy,
            most_missing=config.most_missing,
        )
    return Fetched(out, frame, missing)


def _check_size(config: FetchConfig, frame: Frame) -> None:
    num_pixels = math.prod(frame.size_px)
    num_tiles = math.ceil(num_pixels / TILE_PX**2)
    if num_tiles > config.max_tiles:
        raise ConfigError(
            f"bbox {config.bbox} is {num_pixels / 1e6:,.0f} megapixels, as much as {num_tiles:,} "
            f"tiles; expected at most {config.max_tiles:,}: fetch smaller places, or raise "
            "--max-tiles"
        )


def _joined(texts: Iterable[str]) -> str:
    """What is said, each thing once."""
    return ", ".join(dict.fromkeys(text for text in texts if text))


def _listed(items: tuple[Item, ...]) -> str:
    shown = ", ".join(f"{item.name} ({item.date[:10] or 'no date'})" for item in items[:3])
    return shown + f" and {len(items) - 3} more" * (len(items) > 3)


# --------------------------------------------------------------------------------------------- both


def _transport(config: FetchConfig, address: Address) -> HttpTransport:
    try:
        from ciper.imagery.http import HttpTransport
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"fetching imagery needs {error.name}, which is not installed; run: "
            "pip install 'ciper-geo[imagery]'"
        ) from error
    return HttpTransport(
        config.manners.num_connections, timeout_s=config.manners.timeout_s, hide=address.hide
    )


def _license_note(text: str, host: str) -> str:
    told = f"the file will say: {text}" if text else "say what with --license, for the file"
    return (
        f"note: you must have the right to download and keep this imagery; read the terms of "
        f"{host} ({told})"
    )


def _license_tags(text: str) -> dict[str, str]:
    tags = {"TIFFTAG_SOFTWARE": f"ciper {ciper.__version__}"}
    return tags if not text else {**tags, "LICENSE": text, "TIFFTAG_COPYRIGHT": text}


def _is_mercator(crs: str) -> bool:
    return crs == "EPSG:3857"
