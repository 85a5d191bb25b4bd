"""Runs the cells that evaluate a finished model on simulated cities."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ciper.camera import Camera
from ciper.data.augment import pinhole_mask
from ciper.data.poses import PhotoPose, read_poses
from ciper.data.preprocess import read_photo
from ciper.errors import OutputError, PoseTableError
from ciper.files import written_whole
from ciper.geo import GeoImage, LocalFrame
from ciper.localize import Localizer, Match
from ciper.metrics import pose_errors, ranks_from_similarity, recall_at_k, recall_within
from ciper.model.load import Model
from ciper.model.model import ChipFeatures, PhotoCode
from ciper.posterior import Places, Posterior
from ciper.prior import Heading, Prior
from ciper.study.cells import GridCell
from ciper.study.config import Condition, GridConfig
from ciper.study.measuring import pose_figures
from ciper.study.store import CellResult, CellStore, hardware

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Progress = Callable[[str, int, int], None]

MAX_PINHOLE_DEG = 120
CLOUD_RADIUS_M = 12.0
CLOUD_GREY, OBSTACLE_GREY = 225, 96
KNOWN_SIGMA_DEG = 1.0
# Every purpose of a photo has random numbers of its own, so that cells are paired: what is guessed
# about its heading does not depend on what hides it.
OCCLUSION, GUESS, OWN_CHIP = range(3)


@dataclass(frozen=True)
class Shot:
    """One photo of a simulated city as a canvas, and where it was taken."""

    lat: float
    lon: float
    heading_deg: float
    canvas: Image
    is_visible: Mask


class Grid:
    """Evaluates grid cells.

    Args:
        model: that is evaluated.
        store: the finished cells.
        cache: keeps simulated cities and their galleries.
        progress: called with (what, done, total).
    """

    def __init__(self, model: Model, store: CellStore, cache: Path, progress: Progress) -> None:
        self.model, self.store, self.progress = model, store, progress
        self.cache = cache / "grid"
        self.config = store.config.grid
        # Cells come city by city for one view: what they share is kept.
        self._shots = lru_cache(maxsize=self.config.num_cities)(self._read_shots)
        self._localizer = lru_cache(maxsize=self.config.num_cities)(self._open_gallery)

    def measure(self, cell: GridCell) -> CellResult:
        """Retrieval, pose in the true chip, and end to end."""
        started = time.monotonic()
        localizer = self._localizer(cell.city_seed, _of_imagery(cell.condition))
        shots = self._shots(cell.city_seed)
        asked = [self._ask(localizer, cell, i, shot) for i, shot in enumerate(shots)]
        for_ranks = np.array([a.rank for a in asked])
        in_chip = pose_errors([a.in_chip for a in asked], [(0.0, 0.0, 0.0)] * len(asked))
        whole = pose_errors([a.whole for a in asked], [(0.0, 0.0, 0.0)] * len(asked))
        metrics = {
            "retrieval_recall@1": float(np.mean([a.is_retrieved for a in asked])),
            "matched_recall@1": recall_at_k(for_ranks, 1),
            **pose_figures(in_chip),
            "end_to_end_recall@1m": recall_within(whole.position_m, 1.0),
            "end_to_end_recall@5m": recall_within(whole.position_m, 5.0),
            "num_photos": float(len(asked)),
            "num_references": float(len(localizer.gallery)),
        }
        result = CellResult(
            metrics,
            seconds=time.monotonic() - started,
            hardware=hardware(self.model.device),
        )
        self.store.put(cell, result)
        return result

    def _ask(self, localizer: Localizer, cell: GridCell, index: int, shot: Shot) -> Asked:
        def rng(purpose: int) -> np.random.Generator:
            return np.random.default_rng([cell.city_seed, index, purpose])

        canvas, is_visible = narrowed(shot, cell.hfov_deg)
        canvas = hide_columns(canvas, is_visible, cell.condition.photo_hidden, rng(OCCLUSION))
        code = self.model.encode_photos(canvas[None], is_visible[None])
        heading = guessed_heading(shot.heading_deg, cell.heading_prior_deg, rng(GUESS))
        found = localizer.match(code, heading=heading)
        score = np.full(len(localizer.gallery), -np.inf)
        score[found.chips] = chip_scores(found)
        true_chip = localizer.gallery.nearest_chips(lat=[shot.lat], lon=[shot.lon])
        in_chip = match_in_chip(localizer, code, shot, heading, rng(OWN_CHIP))
        self.progress(cell.title, index + 1, self.config.num_photos)
        return Asked(
            is_retrieved=bool(localizer.retrieve(code, 1)[0][0] == true_chip[0]),
            rank=int(ranks_from_similarity(score[None], true_chip)[0]),
            whole=_error(localizer.judge(found).posterior, shot),
            in_chip=_error(localizer.judge(in_chip).posterior, shot),
        )

    def _open_gallery(self, seed: int, condition: Condition) -> Localizer:
        from ciper.index import IndexOptions, build_index

        words = "-".join(condition.name.split())
        raster = self.cache / f"{self._name(seed)}-{words}.tif"
        if condition.dates_apart == 1 and not condition.aerial_hidden:
            raster = self._city(seed) / "aerial.tif"
        elif not raster.exists():
            write_imagery(raster, seed, self.config, condition)
        gallery = self.cache / f"{self._name(seed)}-{words}-{self.model.model_hash[:12]}"
        chip_m = self.model.chip_m
        build_index([raster], gallery, self.model, IndexOptions(chip_m, chip_m / 2))
        return Localizer(gallery, self.model)

    def _read_shots(self, seed: int) -> tuple[Shot, ...]:
        table = self._city(seed) / "poses.csv"
        return tuple(self._read_shot(pose, table) for pose in read_poses(table))

    def _read_shot(self, pose: PhotoPose, table: Path) -> Shot:
        if pose.heading_deg is None or pose.hfov_deg is None:
            raise PoseTableError(
                f"{table} does not know heading_deg and hfov_deg of {pose.photo.name}; expected a "
                f"simulated city's table: delete {table.parent}, it is made anew"
            )
        pixels = read_photo(pose.photo)
        height_px, width_px = pixels.shape[:2]
        camera = Camera("equirectangular", height_px, width_px, pose.hfov_deg)
        canvases, visible = self.model.views(pixels, camera)
        return Shot(pose.lat, pose.lon, pose.heading_deg, canvases[0], visible[0])

    def _city(self, seed: int) -> Path:
        from ciper.simulate import SimulateConfig, simulate

        folder = self.cache / self._name(seed)
        if not folder.exists():
            config = SimulateConfig(
                seed=seed,
                size_m=self.config.size_m,
                num_photos=self.config.num_photos,
                gsd=self.config.gsd,
            )
            simulate(folder, config, progress=self.progress)
        return folder

    def _name(self, seed: int) -> str:
        from ciper.city.parts import CITY_VERSION

        config = self.config
        return f"{seed}-{config.size_m:g}m-{config.gsd:g}-{config.num_photos}p-v{CITY_VERSION}"


@dataclass(frozen=True)
class Asked:
    """What one photo found.

    Whether descriptors name its true chip first, that chip's rank by evidence for poses, and the
    answers `whole` and `in_chip`: (x_m, y_m) from the true position, heading error in degrees.
    """

    is_retrieved: bool
    rank: int
    whole: tuple[float, float, float]
    in_chip: tuple[float, float, float]


def _of_imagery(condition: Condition) -> Condition:
    """What of a condition the imagery depends on: photos hidden in part share their gallery."""
    if condition.photo_hidden and condition.dates_apart == 1 and not condition.aerial_hidden:
        return Condition("one date apart")
    return condition


def _error(posterior: Posterior, truth: Shot) -> tuple[float, float, float]:
    pose = posterior.places.pose(posterior.mode)
    frame = LocalFrame(lat=truth.lat, lon=truth.lon)
    x_m, y_m = frame.to_local(lat=pose.lat, lon=pose.lon)
    return float(x_m), float(y_m), pose.heading_deg - truth.heading_deg


def guessed_heading(
    heading_deg: float, half_width_deg: int, rng: np.random.Generator
) -> Heading | None:
    """A prior about a guess that is uniformly wrong by up to `half_width_deg`; None for 180.

    Its standard deviation is that of the uniform distribution.
    """
    if half_width_deg >= 180:
        return None
    guess = heading_deg + rng.uniform(-half_width_deg, half_width_deg)
    return Heading(guess % 360.0, max(half_width_deg / math.sqrt(3), KNOWN_SIGMA_DEG))


def chip_scores(found: Match) -> NDArray[np.float64]:
    """`(R,)` log evidence of all poses of each chip, weighed by the prior."""
    logits = found.evidence.coarse.astype(np.float64)
    if found.prior.on_coarse_cells is not None:
        logits = logits + found.prior.on_coarse_cells
    flat = logits.reshape(len(logits), -1)
    peak = np.maximum(flat.max(1), np.finfo(np.float64).min)
    with np.errstate(divide="ignore"):
        return np.asarray(peak + np.log(np.exp(flat - peak[:, None]).sum(1)))


def match_in_chip(
    localizer: Localizer,
    code: PhotoCode,
    shot: Shot,
    heading: Heading | None,
    rng: np.random.Generator,
) -> Match:
    """The photo against one chip that holds its camera uniformly in its central half."""
    model, gallery = localizer.model, localizer.gallery
    quarter_m = model.chip_px * model.gsd / 4
    x_m, y_m = rng.uniform(-quarter_m, quarter_m, 2)
    lat, lon = LocalFrame(lat=shot.lat, lon=shot.lon).to_geographic(x=[x_m], y=[y_m])
    pixels, is_valid = gallery.read_area(
        lat=float(lat[0]), lon=float(lon[0]), size_px=model.chip_px, gsd=gallery.header.gsd
    )
    codes = model.encode(pixels[None], is_valid[None])
    places = Places.around(lat, lon, chip_m=model.chip_m)
    prior = Prior(places, None, heading)
    features = ChipFeatures.of_codes(codes, model.device)
    evidence = model.match(code, features, log_prior=prior.on_coarse_cells)
    return Match(np.array([-1]), places, prior, evidence)


# --------------------------------------------------------------------------------------- conditions


def narrowed(shot: Shot, hfov_deg: int) -> tuple[Image, Mask]:
    """The canvas and what is visible of it when the camera sees `hfov_deg` about its heading."""
    height, width = shot.is_visible.shape
    if hfov_deg >= 360:
        is_seen = np.ones((height, width), dtype=bool)
    elif hfov_deg > MAX_PINHOLE_DEG:
        bearing = ((np.arange(width) + 0.5) / width - 0.5) * 360.0
        is_seen = np.broadcast_to(np.abs(bearing) <= hfov_deg / 2, (height, width))
    else:
        is_seen = pinhole_mask(height, width, hfov_deg=hfov_deg, aspect=4 / 3, pitch_deg=0.0)
    is_visible = shot.is_visible & is_seen
    return shot.canvas * is_visible[..., None], is_visible


def hide_columns(canvas: Image, is_visible: Mask, share: float, rng: np.random.Generator) -> Image:
    """Puts something grey before a share of the visible columns; they go on being visible."""
    columns = np.flatnonzero(is_visible.any(0))
    num_hidden = round(share * len(columns))
    if num_hidden == 0:
        return canvas
    start = int(rng.integers(len(columns)))
    hidden = columns[(start + np.arange(num_hidden)) % len(columns)]
    changed = canvas.copy()
    changed[:, hidden] = OBSTACLE_GREY * is_visible[:, hidden, None]
    return changed


def hide_discs(image: Image, share: float, radius_px: float, rng: np.random.Generator) -> Image:
    """Covers at least a share of an image with bright discs."""
    height, width = image.shape[:2]
    is_hidden = np.zeros((height, width), dtype=bool)
    reach = math.ceil(radius_px)
    v, u = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = u**2 + v**2 <= radius_px**2
    while is_hidden.mean() < share:
        row, column = int(rng.integers(height)), int(rng.integers(width))
        top, left = max(row - reach, 0), max(column - reach, 0)
        part = is_hidden[top : row + reach + 1, left : column + reach + 1]
        first_row, first_column = top - row + reach, left - column + reach
        rows, columns = part.shape
        part |= disc[first_row : first_row + rows, first_column : first_column + columns]
    changed = image.copy()
    changed[is_hidden] = CLOUD_GREY
    return changed


def write_imagery(path: Path, seed: int, config: GridConfig, condition: Condition) -> None:
    """The aerial image of a simulated city under a condition, as GeoTIFF; whole or not at all.

    Photos are taken one change after the city's first date (see `ciper.simulate`); imagery of that
    same date, or of a line of changes of its own, is none or several changes away from them.

    Raises:
        OutputError: it cannot be written.
    """
    from ciper.city.aerial import write_geotiff

    image = imagery(seed, config, condition)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as unfinished:
            write_geotiff(unfinished, image)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}); free some space") from error


def imagery(seed: int, config: GridConfig, condition: Condition) -> GeoImage:
    """What `write_imagery` writes."""
    from ciper.city.aerial import aerial_image
    from ciper.city.layout import at_other_date, make_city
    from ciper.simulate import place_on_earth

    city = make_city(seed, config.size_m)
    if condition.dates_apart == 0:
        city = at_other_date(city, seed)
    for number in range(1, condition.dates_apart):
        city = at_other_date(city, seed + number)
    rng = np.random.default_rng([seed, 0])
    image: GeoImage = aerial_image(city, place_on_earth(seed), config.gsd, rng)
    if condition.aerial_hidden:
        has_imagery = image.array.any(-1, keepdims=True)
        radius_px = CLOUD_RADIUS_M / config.gsd
        hidden = hide_discs(image.array, condition.aerial_hidden, radius_px, rng)
        image = replace(image, array=hidden * has_imagery)
    return image
