"""Index rasters: cut them into chips, encode the chips, write a gallery.

Reading overlaps encoding: one thread resamples the next block of imagery while the encoder works on
this one. Every few hundred chips a shard is finished on disk; a run that is interrupted in any way
is continued by the same call.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import shapely
from numpy.typing import NDArray

from ciper.errors import ConfigError, GalleryModelMismatchError, OutputError, RasterError
from ciper.gallery.chips import (
    MIN_VALID_FRACTION,
    Block,
    BlockImage,
    ChipGrid,
    plan_chips,
    raster_bounds,
    rasters_within,
    read_block,
)
from ciper.gallery.inspect import expand_rasters, inspect_raster
from ciper.gallery.manifest import GalleryHeader, Manifest, ShardRecord, holds_gallery
from ciper.gallery.raster import Mosaic, RasterInfo
from ciper.gallery.shards import AerialCodes, Shard, sha256_of
from ciper.gallery.store import Gallery, check_raster
from ciper.gallery.writer import GalleryWriter, settle
from ciper.pose_grid import snapped

# An append encodes a known chip again only if more than this of it had no imagery.
_COMPLETE_FRACTION = 0.999

Progress = Callable[[int, int], None]


class AerialEncoder(Protocol):
    """A model that turns chips into codes."""

    @property
    def model_name(self) -> str:
        """What people call the weights."""

    @property
    def model_hash(self) -> str:
        """What tells the weights from all others."""

    @property
    def chip_px(self) -> int:
        """Pixels along a chip's side."""

    @property
    def gsd(self) -> float:
        """Metres per pixel of a chip."""

    def encode(self, chips: NDArray[np.uint8], valid: NDArray[np.bool_]) -> AerialCodes:
        """Codes of RGB chips (B, H, W, 3) with the mask of their imagery (B, H, W)."""


@dataclass(frozen=True)
class IndexOptions:
    """How to index: the grid, the sizes of batches and files, whether to add to a gallery.

    Chips are as large as the model's if they are not told, and half of that apart.
    """

    chip_m: float | None = None
    stride_m: float | None = None
    append: bool = False
    batch_size: int = 32
    shard_chips: int = 256

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_chips"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected at least 1.")


@dataclass(frozen=True)
class IndexReport:
    """What indexing did. `num_encoded` chips were encoded now, `num_resumed` by an earlier run."""

    path: Path
    num_rasters: int
    num_chips: int
    num_encoded: int
    num_resumed: int
    area_km2: float
    seconds: float


@dataclass(frozen=True)
class _Work:
    """One shard to be made: its blocks and the key that names what it is made from."""

    key: str
    blocks: tuple[Block, ...]

    def __len__(self) -> int:
        return sum(len(block) for block in self.blocks)


def _silent(num_done: int, num_total: int) -> None:
    """The progress of which nobody wants to hear."""


def build_index(
    rasters: Sequence[str | Path],
    out: Path,
    encoder: AerialEncoder,
    options: IndexOptions | None = None,
    progress: Progress = _silent,
) -> IndexReport:
    """Make a gallery of rasters, continue an interrupted one, or add rasters to a finished one.

    Where rasters overlap, earlier ones win. An append adds the chips that the new rasters bring and
    encodes those known chips again that lacked imagery which the new rasters may have; for that the
    old rasters must still be in their places. Calling again for a finished gallery does nothing.

    Args:
        rasters: paths, patterns and folders.
        out: the gallery's folder.
        encoder: the model.
        options: grid, batches, append.
        progress: called with (chips done, chips planned).

    Raises:
        RasterError: a raster cannot be used, or no chip holds imagery.
        OutputError: the folder holds something else, is not writable, or the disk is full; finished
            shards are kept.
        GalleryModelMismatchError: the gallery to append to was made by another model.
        ConfigError: a grid that does not fit the encoder or the gallery.
    """
    start, options, out = time.monotonic(), options or IndexOptions(), Path(out)
    header = _header(encoder, options)
    known = Manifest.read(out) if holds_gallery(out) else None
    paths = expand_rasters(rasters)
    old = _old_rasters(known, header) if known and options.append else ()
    new = [inspect_raster(p) for p in paths if str(p) not in {r.path for r in old}]
    all_rasters = (*old, *new)
    command = _command(header, all_rasters)
    if known is not None and _command_of(known) == command:
        settle(out, known)
        return _report(out, known, start, num_encoded=0, num_resumed=known.num_chips)
    if known is not None and not options.append:
        raise OutputError(
            f"{out}: already holds a gallery of other rasters, options or another model; add to it "
            "with --append or choose another --out."
        )
    writer = GalleryWriter(out, header)
    job = _Job(all_rasters, encoder, options, progress, writer)
    shards = job.run(_plan(out, known, all_rasters, len(old), header.grid))
    if not shards and known is None:
        raise RasterError(
            f"no chip of {len(all_rasters)} raster(s) holds imagery; expected at least "
            f"{MIN_VALID_FRACTION:.0%} valid pixels in a {header.stride_m:g} m square. "
            "Check nodata."
        )
    manifest = writer.finish(_superseding(known, shards, writer), all_rasters)
    return _report(out, manifest, start, num_encoded=job.num_encoded, num_resumed=job.num_resumed)


def kept_gallery(
    rasters: Sequence[str | Path],
    cache: Path,
    encoder: AerialEncoder,
    progress: Progress = _silent,
) -> Path:
    """The gallery of rasters in a folder of the cache, made unless it is there.

    Other rasters or another model have a folder of their own.

    Raises:
        As `build_index`.
    """
    paths = expand_rasters(rasters)
    digest = _hash(encoder.model_hash, [str(path) for path in paths])[:12]
    build_index(paths, cache / f"gallery-{digest}", encoder, progress=progress)
    return cache / f"gallery-{digest}"


def _header(encoder: AerialEncoder, options: IndexOptions) -> GalleryHeader:
    wanted_m = encoder.chip_px * encoder.gsd
    chip_m = wanted_m if options.chip_m is None else snapped(options.chip_m, wanted_m)
    stride_m = chip_m / 2 if options.stride_m is None else snapped(options.stride_m, chip_m / 2)
    header = GalleryHeader(
        model_name=encoder.model_name,
        model_hash=encoder.model_hash,
        chip_m=float(chip_m),
        stride_m=float(stride_m),
        gsd=float(encoder.gsd),
    )
    if header.grid.chip_px != encoder.chip_px:
        raise ConfigError(
            f"chip_m={chip_m:g} is {header.grid.chip_px} px of {encoder.gsd:g} m; model "
            f"{encoder.model_name!r} expects {encoder.chip_px} px: "
            f"use --chip-m {wanted_m:g}."
        )
    return header


def _old_rasters(known: Manifest, header: GalleryHeader) -> tuple[RasterInfo, ...]:
    """The rasters of a gallery that is to be appended to, if that is possible."""
    if known.header.model_hash != header.model_hash:
        raise GalleryModelMismatchError(
            f"the gallery was made by model {known.header.model_name!r} "
            f"({known.header.model_hash[:12]}); expected {header.model_name!r} "
            f"({header.model_hash[:12]}). Append with its own model or index into another --out."
        )
    if known.header.grid != header.grid:
        raise ConfigError(
            f"the gallery has chips of {known.header.chip_m:g} m every {known.header.stride_m:g} m "
            f"at {known.header.gsd:g} m/px; expected the same to append, not {header.chip_m:g} m "
            f"every {header.stride_m:g} m at {header.gsd:g} m/px."
        )
    for raster in known.rasters:
        check_raster(raster)
    return known.rasters


def _plan(
    out: Path, known: Manifest | None, rasters: Sequence[RasterInfo], num_old: int, grid: ChipGrid
) -> tuple[Block, ...]:
    """Blocks to encode: all cells, or for an append those that the new rasters complete or add."""
    if known is None:
        return plan_chips(rasters, grid)
    if num_old == len(rasters):
        return ()
    chips = Gallery(out, known).chips
    is_complete = chips.valid_fractions >= _COMPLETE_FRACTION
    complete = set(zip(chips.rows[is_complete], chips.cols[is_complete], strict=True))
    blocks = []
    for block in plan_chips(rasters, grid, first_new=num_old):
        is_due = [cell not in complete for cell in zip(block.rows, block.cols, strict=True)]
        if any(is_due):
            rows, cols = block.rows[is_due], block.cols[is_due]
            blocks.append(dataclasses.replace(block, rows=rows, cols=cols))
    return tuple(blocks)


def _superseding(
    known: Manifest | None, shards: Sequence[ShardRecord], writer: GalleryWriter
) -> list[ShardRecord]:
    """The shards of the gallery: old ones without the chips that are in the new ones."""
    if known is None:
        return list(shards)
    fresh: set[tuple[int, int]] = set()
    for record in shards:
        file = writer.open_shard(record.file)
        fresh.update(zip(file["rows"].tolist(), file["cols"].tolist(), strict=True))
    merged = []
    for record in known.shards:
        file = writer.open_shard(record.file)
        cells = zip(file["rows"].tolist(), file["cols"].tolist(), strict=True)
        again = {row for row, cell in enumerate(cells) if cell in fresh}
        superseded = tuple(sorted(again.union(record.superseded)))
        if len(superseded) < record.num_chips:
            merged.append(dataclasses.replace(record, superseded=superseded))
    return [*merged, *shards]


class _Job:
    """The reading, encoding and writing of a plan's shards."""

    def __init__(
        self,
        rasters: Sequence[RasterInfo],
        encoder: AerialEncoder,
        options: IndexOptions,
        progress: Progress,
        writer: GalleryWriter,
    ) -> None:
        self.num_encoded = self.num_resumed = 0
        self._rasters, self._bounds = rasters, raster_bounds(rasters)
        self._encoder, self._options, self._progress = encoder, options, progress
        self._writer, self._grid = writer, writer.header.grid

    def run(self, blocks: Sequence[Block]) -> list[ShardRecord]:
        """Make every shard that does not exist yet; those without any imagery are left out."""
        works = list(self._shards(blocks))
        self._num_done, self._num_total = 0, sum(map(len, works))
        records: list[ShardRecord | None] = [self._find(work) for work in works]
        due = [number for number, record in enumerate(records) if record is None]
        self._progress(self._num_done, self._num_total)
        with Mosaic(self._rasters) as mosaic, ThreadPoolExecutor(1, "ciper-read") as pool:
            images = self._prefetched(
                mosaic, pool, [b for number in due for b in works[number].blocks]
            )
            for number in due:
                records[number] = self._make(works[number], images)
        return [record for record in records if record is not None]

    def _shards(self, blocks: Sequence[Block]) -> Iterator[_Work]:
        """Consecutive blocks, together as long as they hold at most `shard_chips` chips."""
        limit = self._options.shard_chips
        held: list[Block] = []
        for part in (part for block in blocks for part in block.split(limit)):
            if held and sum(map(len, held)) + len(part) > limit:
                yield _Work(self._key(held), tuple(held))
                held = []
            held.append(part)
        if held:
            yield _Work(self._key(held), tuple(held))

    def _key(self, blocks: Sequence[Block]) -> str:
        """A hash of all that decides what a shard holds."""
        numbers = sorted({number for block in blocks for number in block.rasters})
        return _hash(
            dataclasses.asdict(dataclasses.replace(self._writer.header, model_name="")),
            [[number, dataclasses.asdict(self._rasters[number])] for number in numbers],
            [[block.rows.tolist(), block.cols.tolist(), block.rasters] for block in blocks],
        )

    def _find(self, work: _Work) -> ShardRecord | None:
        found = self._writer.find(work.key)
        if found is None:
            return None
        num_chips = len(self._writer.open_shard(found)["rows"])
        self.num_resumed += num_chips
        self._num_done += len(work)
        return ShardRecord(found, num_chips)

    def _prefetched(
        self, mosaic: Mosaic, pool: ThreadPoolExecutor, blocks: Sequence[Block]
    ) -> Iterator[BlockImage]:
        """Images of the blocks, each read while the one before it is being encoded."""
        ahead: Future[BlockImage] | None = None
        for block in blocks:
            ready, ahead = ahead, pool.submit(read_block, mosaic, self._grid, block)
            if ready is not None:
                yield ready.result()
        if ahead is not None:
            yield ahead.result()

    def _make(self, work: _Work, images: Iterator[BlockImage]) -> ShardRecord | None:
        """Encode and write one shard, None if its chips hold no imagery."""
        parts = [part for _ in work.blocks for part in self._encode(next(images))]
        if not parts:
            return None
        shard = Shard.concatenate(parts)
        return ShardRecord(self._writer.add(work.key, shard), len(shard))

    def _encode(self, image: BlockImage) -> Iterator[Shard]:
        block = image.block
        whole, central = image.valid_fractions()
        kept = np.flatnonzero(central >= MIN_VALID_FRACTION)
        self._num_done += len(block) - len(kept)
        for start in range(0, len(kept), self._options.batch_size):
            chosen = kept[start : start + self._options.batch_size]
            codes = self._encoder.encode(*image.chips(chosen))
            rows, cols = block.rows[chosen], block.cols[chosen]
            self.num_encoded += len(chosen)
            self._num_done += len(chosen)
            self._progress(self._num_done, self._num_total)
            rasters = self._first_rasters(block, rows, cols)
            yield Shard(rows, cols, rasters, whole[chosen].astype(np.float32), codes)

    def _first_rasters(
        self, block: Block, rows: NDArray[np.int64], cols: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """For each chip the first raster whose bounds meet its central square."""
        numbers = np.array(block.rasters)
        areas = shapely.bounds(self._grid.footprints(rows, cols, is_whole=False))
        first = [rasters_within(self._bounds[numbers], area) for area in areas]
        return np.array([numbers[found[0]] if found else numbers[0] for found in first], np.int32)


def _command_of(known: Manifest) -> str:
    return _command(known.header, known.rasters)


def _command(header: GalleryHeader, rasters: Sequence[RasterInfo]) -> str:
    """What makes one gallery another one; a model is its hash, whatever it is called."""
    unnamed = dataclasses.replace(header, model_name="")
    return _hash(dataclasses.asdict(unnamed), [dataclasses.asdict(r) for r in rasters])


def _hash(*parts: object) -> str:
    return sha256_of(json.dumps(parts, sort_keys=True).encode())


def _report(
    path: Path, manifest: Manifest, start: float, *, num_encoded: int, num_resumed: int
) -> IndexReport:
    return IndexReport(
        path=path,
        num_rasters=len(manifest.rasters),
        num_chips=manifest.num_chips,
        num_encoded=num_encoded,
        num_resumed=num_resumed,
        area_km2=manifest.num_chips * manifest.header.stride_m**2 / 1e6,
        seconds=time.monotonic() - start,
    )
