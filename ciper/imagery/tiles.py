"""Tiles onto the disk, each asked for once, and from there into strips of a picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ciper.errors import ImageryError, NoImageryError, OutputError
from ciper.files import written_whole
from ciper.imagery.grid import TILE_PX, Tile, TileMatrix
from ciper.imagery.picture import NotAPictureError, Picture, decode
from ciper.imagery.place import Span
from ciper.imagery.polite import Client, Reply, UnusableReplyError, excerpt
from ciper.imagery.source import TileSource
from ciper.imagery.write import Strip

Progress = Callable[[str, int, int], None]

# More missing than this is a mistake as a rule: a wrong place, zoom or order of rows.
MOST_MISSING = 0.5


class TileCache:
    """Tiles of one source and one grid: `Z/COLUMN/ROW.tile`, empty where there is no imagery."""

    def __init__(self, folder: Path, *, shown: str) -> None:
        """Open or make it; `shown` is the source's address without keys, for who looks inside.

        Raises:
            OutputError: it cannot be written.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "SOURCE.txt").exists():
                with written_whole(folder / "SOURCE.txt") as unfinished:
                    unfinished.write_text(f"{shown}\n", encoding="utf-8")
        except OSError as error:
            raise _unwritable(folder, error) from error

    def path(self, zoom: int, tile: Tile) -> Path:
        """Where a tile lies, rows counted from the top whatever the source does."""
        return self.folder / str(zoom) / str(tile.col) / f"{tile.row}.tile"

    def holds(self, zoom: int, tile: Tile) -> bool:
        """Whether the source has been asked."""
        return self.path(zoom, tile).exists()

    def picture(self, zoom: int, tile: Tile) -> Picture | None:
        """A tile that is held; None where the source has none.

        Raises:
            ImageryError: the file is damaged.
        """
        path = self.path(zoom, tile)
        body = path.read_bytes()
        try:
            return decode(body) if body else None
        except NotAPictureError as error:
            raise ImageryError(
                f"{path}: holds {error}; expected a tile that was whole when it was written. "
                "Delete the file and run the same command again"
            ) from error

    def date(self, zoom: int, tile: Tile) -> str:
        """The day on which a tile was fetched, as YYYY-MM-DD in UTC."""
        return time.strftime("%Y-%m-%d", time.gmtime(self.path(zoom, tile).stat().st_mtime))

    def put(self, zoom: int, tile: Tile, body: bytes | None) -> None:
        """Keep what the source said.

        Raises:
            OutputError: the disk is full or not writable.
        """
        path = self.path(zoom, tile)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as unfinished:
                unfinished.write_bytes(body or b"")
        except OSError as error:
            raise _unwritable(path, error) from error


@dataclass(frozen=True)
class TileJob:
    """One zoom of a source, asked through a client into a cache."""

    source: TileSource
    matrix: TileMatrix
    client: Client
    cache: TileCache

    def has(self, tile: Tile) -> bool:
        """Whether there is imagery; asks unless the cache knows."""
        zoom = self.matrix.zoom
        if not self.cache.holds(zoom, tile):
            self.cache.put(zoom, tile, self.client.get(self.source.url(self.matrix, tile), _check))
        return self.cache.path(zoom, tile).stat().st_size > 0

    def picture(self, tile: Tile) -> Picture | None:
        """A tile that was asked for; None where there is none."""
        return self.cache.picture(self.matrix.zoom, tile)


def _check(reply: Reply) -> None:
    # All of it is decoded now: what is kept can be used, and a body cut short is asked for again.
    try:
        decode(reply.body)
    except NotAPictureError as error:
        kind = reply.content_type.partition(";")[0].strip() or "nothing"
        raise UnusableReplyError(
            f"status 200 with {error}, called {kind}{excerpt(reply)}"
        ) from error


def tiles_of(span: Span) -> list[Tile]:
    """Row by row from the north-west."""
    return [Tile(r, c) for r in range(span.top, span.bottom) for c in range(span.left, span.right)]


def download(
    job: TileJob,
    pixels: Span,
    *,
    num_connections: int,
    most_missing: float,
    progress: Progress,
) -> None:
    """Ask for all tiles below a place that the cache does not know.

    Args:
        job: what to ask.
        pixels: of the whole grid with tiles of `TILE_PX`, what was asked for.
        num_connections: how many tiles at a time.
        most_missing: share of the place without imagery from which on it is given up.
        progress: called with (what, done, total).

    Raises:
        NoImageryError: more than that is missing.
        ImageryError: the source fails for good.
    """
    tiles = tiles_of(_tiles(pixels, (TILE_PX, TILE_PX)))
    known = [tile for tile in tiles if job.cache.holds(job.matrix.zoom, tile)]
    unknown = sorted(set(tiles) - set(known))
    missing = sum(_share(tile, pixels) for tile in known if not job.has(tile))
    num_done = len(known)
    require(missing, most_missing, job)
    if not unknown:
        return
    progress("tiles", num_done, len(tiles))
    pool = ThreadPoolExecutor(num_connections, thread_name_prefix="tiles")
    try:
        asked = {pool.submit(job.has, tile): tile for tile in unknown}
        for future in as_completed(asked):
            missing += 0.0 if future.result() else _share(asked[future], pixels)
            require(missing, most_missing, job)
            num_done += 1
            progress("tiles", num_done, len(tiles))
    except BaseException:
        # Also after Ctrl-C: nobody waits for a slot or for a server any longer.
        job.client.clock.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def require(missing: float, most_missing: float, job: TileJob) -> None:
    """Give up where too much is missing.

    Raises:
        NoImageryError: it is.
    """
    if missing > most_missing:
        shown, zoom = job.source.address.shown, job.matrix.zoom
        raise NoImageryError(
            f"{shown}: has no imagery of {missing:.0%} of the place or more at zoom {zoom}; "
            "expected most of it. Check bbox, a lower --zoom and the order of rows ({-y} for TMS), "
            f"or take what there is with --allow-missing; answers are kept in {job.cache.folder}"
        )


def _share(tile: Tile, pixels: Span) -> float:
    """How much of the place lies in a tile."""
    left, top = tile.col * TILE_PX, tile.row * TILE_PX
    width = min(left + TILE_PX, pixels.right) - max(left, pixels.left)
    height = min(top + TILE_PX, pixels.bottom) - max(top, pixels.top)
    return width * height / pixels.num


def _tiles(pixels: Span, tile_px: tuple[int, int]) -> Span:
    height, width = tile_px
    return Span(
        pixels.left // width,
        pixels.top // height,
        -(-pixels.right // width),
        -(-pixels.bottom // height),
    )


def first_picture(job: TileJob, tiles: list[Tile]) -> Picture | None:
    """The first tile that there is: its size is that of all."""
    pictures = (job.picture(tile) for tile in tiles)
    return next((picture for picture in pictures if picture is not None), None)


def strips(
    job: TileJob, pixels: Span, tile_px: tuple[int, int], progress: Progress
) -> Iterator[Strip]:
    """The pixels of a place, one row of tiles at a time.

    Args:
        job: whose tiles are on the disk.
        pixels: of the whole grid with tiles of `tile_px`.
        tile_px: (height, width) of a tile.
        progress: called with (what, done, total).

    Raises:
        ImageryError: a tile is damaged or of another size.
    """
    height, width = tile_px
    span = _tiles(pixels, tile_px)
    for row in range(span.top, span.bottom):
        progress("rows of tiles", row - span.top, span.bottom - span.top)
        top, bottom = max(row * height, pixels.top), min((row + 1) * height, pixels.bottom)
        strip = Strip.empty(top - pixels.top, (bottom - top, pixels.right - pixels.left))
        for col in range(span.left, span.right):
            tile = Tile(row, col)
            picture = job.picture(tile)
            if picture is None:
                continue
            _require_size(job, tile, picture, tile_px)
            left, right = max(col * width, pixels.left), min((col + 1) * width, pixels.right)
            inside = np.s_[top - row * height : bottom - row * height,
                           left - col * width : right - col * width]  # fmt: skip
            place = np.s_[:, left - pixels.left : right - pixels.left]
            strip.rgb[place] = picture.rgb[inside]
            strip.is_valid[place] = picture.is_valid[inside]
        yield strip
    progress("rows of tiles", span.bottom - span.top, span.bottom - span.top)


def _require_size(job: TileJob, tile: Tile, picture: Picture, tile_px: tuple[int, int]) -> None:
    if picture.size_px != tile_px:
        found, expected = ("{1} x {0} px".format(*size) for size in (picture.size_px, tile_px))
        raise ImageryError(
            f"{job.cache.path(job.matrix.zoom, tile)}: is {found}, the tiles before it are "
            f"{expected}; expected one size from {job.source.address.shown}. Choose another zoom"
        )


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path}: {error.strerror}; free some space or choose another --cache"
    )
