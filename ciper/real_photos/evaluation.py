"""Does a model find its way outside of simulated cities? A few real photos are asked.

Every photo of `study.real`'s folder is held against windows of the aerial image about it, at
several seeded offsets: which window is its own, among those of all photos and among chips of
rasters from elsewhere, and where in its own window was it taken?
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ciper import metrics
from ciper.asking import Progress, batches, ignore_progress, mean_descriptor, without_gaps
from ciper.camera import Camera
from ciper.data.preprocess import read_photo, read_with_camera
from ciper.errors import ConfigError, DatasetError, RasterError
from ciper.files import finished_folder
from ciper.gallery.inspect import expand_rasters, inspect_raster
from ciper.gallery.raster import Raster, RasterInfo, read_chip
from ciper.gallery.shards import AerialCodes
from ciper.geo import geographic_from_crs
from ciper.localize import Judged, judge
from ciper.logits import logsumexp
from ciper.model.load import load_model
from ciper.model.model import ChipFeatures, Model, PhotoCode
from ciper.posterior import Places
from ciper.prior import Prior
from ciper.real_photos.figures import AmongDistractors, Ranks, Trials, figures_of
from ciper.real_photos.picture import Shown
from ciper.real_photos.report import check_replaceable, write_report
from ciper.study.real import (
    GSD,
    NUM_OFFSETS,
    SEED,
    TABLE,
    VARIABLE,
    RealPose,
    read_table,
    real_folder,
    window_shift,
)

Rgb = NDArray[np.uint8]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHIPS_AT_ONCE = 16


@dataclass(frozen=True)
class RealPhotosOptions:
    """What is measured.

    Attributes:
        folder: of photos and aerial images as `study.real` describes it; None for the one that the
            environment names.
        model: name or file of weights.
        distractors: rasters from elsewhere, as paths, patterns and folders: the middle of each
            gives one chip.
        device: cpu, cuda or mps.
        seed: of the windows' offsets.
    """

    folder: Path | None = None
    model: str | Path = "ground"
    distractors: tuple[str, ...] = ()
    device: str | None = None
    seed: int = SEED


@dataclass(frozen=True)
class AskedPhoto:
    """A photo that was read and encoded, and the aerial image `(H, W, 3)` about its camera."""

    name: str
    pixels: Rgb
    camera: Camera
    heading_deg: float
    aerial: Rgb
    code: PhotoCode


@dataclass(frozen=True)
class Window:
    """A chip `(S, S, 3)` of a photo's surroundings, and the camera's pose `(3,)` in it."""

    pixels: Rgb
    pose: Floats


@dataclass(frozen=True)
class Scores:
    """What a model says of R chips: the windows, offset by offset, then the distractors.

    Attributes:
        descriptor: `(P, D)` of the photos.
        references: `(R, L, D)` of the chips.
        evidence: `(P, R)` log evidence of all poses of a chip.
    """

    descriptor: NDArray[np.float32]
    references: NDArray[np.float16]
    evidence: Floats

    def ranks(self, photos: Ints, chips: Ints, competitors: Sequence[Ints]) -> Ranks:
        """Ranks from 1 of chips `(Q,)` for photos `(Q,)`, each among its competitors."""
        everything = np.arange(len(self.references))
        excluded = [np.setdiff1d(everything, others) for others in competitors]
        by_descriptor = metrics.ranks(
            self.descriptor[photos], self.references, chips, excluded=excluded
        )
        by_evidence = metrics.ranks_from_similarity(self.evidence[photos], chips, excluded=excluded)
        return Ranks(*(1.0 + ranks.astype(np.float64) for ranks in (by_descriptor, by_evidence)))


def measure_real_photos(
    out: Path, options: RealPhotosOptions, progress: Progress = ignore_progress
) -> dict[str, Any]:
    """Measure a model on real photos and write a report.

    Args:
        out: the report's folder: report.md, metrics.json, photos.csv (a line per photo),
            windows.csv (a line per photo and offset) and pictures. It appears when all is done; a
            report of this kind that is there already is replaced.
        options: what is measured.
        progress: called with (what, done, total).

    Returns:
        What metrics.json holds.

    Raises:
        ConfigError: no folder is told.
        OutputError: `out` holds something else or cannot be written.
        DatasetError, PhotoError, RasterError, CheckpointError: an input cannot be used.
    """
    started = time.perf_counter()
    check_replaceable(out)
    poses = _poses(options.folder)
    rasters = expand_rasters(options.distractors) if options.distractors else []
    model = load_model(options.model, options.device)
    with finished_folder(out) as folder:
        photos = [_asked(model, pose) for pose in poses]
        trials = ask(model, photos, rasters, options.seed, progress)
        figures = {
            "model": model.model_name,
            "model_hash": model.model_hash,
            "chip_m": model.chip_m,
            "gsd": model.gsd,
            "seed": options.seed,
            **figures_of(trials),
            "warnings": _warnings(model, photos),
            "seconds": time.perf_counter() - started,
        }
        shown = [Shown(p.pixels, p.camera, p.aerial, GSD, model.chip_m) for p in photos]
        return write_report(folder, trials, figures, shown)


def _poses(folder: Path | None) -> tuple[RealPose, ...]:
    folder = real_folder() if folder is None else folder
    if folder is None:
        raise ConfigError(
            f"no folder of photos is told; name it with --folder, or set ${VARIABLE} to the folder "
            "that holds helsinki"
        )
    if not (folder / TABLE).is_file():
        raise DatasetError(
            f"{folder} holds no {TABLE}; expected that table with ID_ground.jpg and ID_aerial.jpg "
            "for each of its ids: name another folder with --folder"
        )
    poses = read_table(folder)
    wrong = [pose.name for pose in poses if not np.isfinite(pose.compass_deg)]
    if wrong or len(poses) < 2:
        found = f"photo {wrong[0]} without a heading" if wrong else f"{len(poses)} photos"
        raise DatasetError(
            f"{folder / TABLE} holds {found}; expected two photos at least, each with compass_deg"
        )
    return poses


def _asked(model: Model, pose: RealPose) -> AskedPhoto:
    """Reads and encodes a photo as the localizer does; nobody is told its heading."""
    pixels, camera, _ = read_with_camera(pose.ground)
    aerial = read_photo(pose.aerial)
    # Half a pixel is needed where a window snaps to the pixels.
    needed_m, side_m = 1.5 * model.chip_m + GSD, min(aerial.shape[:2]) * GSD
    if side_m < needed_m:
        raise DatasetError(
            f"{pose.aerial} is {side_m:g} m wide; expected {needed_m:g} m, for windows of "
            f"{model.chip_m:g} m at any offset: choose another --model or larger images"
        )
    code = model.encode_photo(pixels, camera)
    return AskedPhoto(pose.name, pixels, camera, pose.compass_deg % 360.0, aerial, code)


def _warnings(model: Model, photos: Sequence[AskedPhoto]) -> list[str]:
    misfits = [misfit for photo in photos if (misfit := model.misfit(photo.camera))]
    counted = [f"{len(misfits)} of {len(photos)} photos: {misfits[0]}"] if misfits else []
    return [*model.limits, *counted]


# ------------------------------------------------------------------------------------------ chips


def cut_window(photo: AskedPhoto, model: Model, shift_m: Floats) -> Window:
    """A window of the aerial image about a photo, as large as a model's chips.

    Args:
        photo: whose camera is in the middle of its aerial image.
        model: that shall see it.
        shift_m: where the window's centre lies, east and north of the camera `(2,)`. It snaps to
            the corners of the image's pixels: windows of the image's own gsd are copies.
    """
    middle_px = np.array(photo.aerial.shape[1::-1]) / 2
    centre_px = np.round(middle_px + shift_m * (1, -1) / GSD)
    half_px, size = model.chip_m / GSD / 2, (model.chip_px, model.chip_px)
    left, top, right, bottom = *(centre_px - half_px), *(centre_px + half_px)
    box = (float(left), float(top), float(right), float(bottom))
    pixels = Image.fromarray(photo.aerial).resize(size, Image.Resampling.BILINEAR, box=box)
    x_m, y_m = (middle_px - centre_px) * (GSD, -GSD)
    return Window(np.array(pixels), np.array([x_m, y_m, photo.heading_deg]))


def encode_whole(model: Model, chips: Sequence[Rgb], what: str, progress: Progress) -> AerialCodes:
    """Codes of chips that show imagery everywhere."""
    parts = []
    for numbers in batches(len(chips), CHIPS_AT_ONCE):
        pixels = np.stack([chips[i] for i in numbers])
        parts.append(model.encode(pixels, np.ones(pixels.shape[:3], dtype=np.bool_)))
        progress(what, numbers.stop, len(chips))
    return _joined(parts)


def _joined(parts: Sequence[AerialCodes]) -> AerialCodes:
    return AerialCodes(
        descriptors=np.concatenate([part.descriptors for part in parts]),
        coarse=np.concatenate([part.coarse for part in parts]),
        fine=np.concatenate([part.fine for part in parts]),
    )


def whole_middles(model: Model, rasters: Sequence[Path], progress: Progress) -> list[Rgb]:
    """The chip in the middle of every raster, but for rasters with gaps there.

    Raises:
        RasterError: a raster cannot be read, or all have gaps.
    """
    whole = []
    for number, path in enumerate(rasters, start=1):
        rgb, is_valid = _middle(inspect_raster(path), model)
        if is_valid.all():
            whole.append(rgb)
        progress("rasters", number, len(rasters))
    if not whole:
        raise RasterError(
            f"none of {len(rasters)} distractors, the first {rasters[0]}, shows a whole chip of "
            f"{model.chip_m:g} m in its middle; expected larger rasters, without gaps there"
        )
    return whole


def _middle(info: RasterInfo, model: Model) -> tuple[Rgb, NDArray[np.bool_]]:
    a, b, c, d, e, f = info.transform
    u, v = info.width / 2, info.height / 2
    lat, lon = geographic_from_crs(info.crs, a * u + b * v + c, d * u + e * v + f)
    with Raster(info) as raster:
        return read_chip(
            raster, lat=float(lat), lon=float(lon), size_px=model.chip_px, gsd=model.gsd
        )


# -------------------------------------------------------------------------------------- questions


def ask(
    model: Model,
    photos: Sequence[AskedPhoto],
    rasters: Sequence[Path],
    seed: int,
    progress: Progress = ignore_progress,
) -> Trials:
    """Holds every photo against all windows and the middles of rasters."""
    windows = _windows(model, photos, seed)
    codes = encode_whole(model, [window.pixels for window in windows], "windows", progress)
    far = whole_middles(model, rasters, progress) if rasters else []
    if far:
        codes = _joined([codes, encode_whole(model, far, "distractors", progress)])
    evidence, judged = [], []
    for i, photo in enumerate(photos):
        found = model.match(photo.code, ChipFeatures.of_codes(codes, model.device))
        evidence.append(logsumexp(found.coarse, axis=(1, 2, 3)))
        own = range(i, len(windows), len(photos))
        judged.append([_answer(model, photo.code, codes[k : k + 1]) for k in own])
        progress("photos", i + 1, len(photos))
    scores = Scores(
        np.stack([mean_descriptor(photo.code) for photo in photos]),
        without_gaps(codes.descriptors),
        np.stack(evidence),
    )
    poses = np.stack([window.pose for window in windows])
    return Trials(
        names=tuple(photo.name for photo in photos),
        half_m=model.chip_m / 4,
        true=poses.reshape(NUM_OFFSETS, -1, 3).swapaxes(0, 1),
        found=np.array([[_pose(model, answer) for answer in answers] for answers in judged]),
        confidence=np.array([[_confidence(model, a) for a in answers] for answers in judged]),
        place_prob=np.array([[a.posterior.place_prob[0] for a in answers] for answers in judged]),
        among_photos=_among_photos(scores, len(photos)),
        among_distractors=_among_distractors(scores, len(photos), len(rasters)),
    )


def _windows(model: Model, photos: Sequence[AskedPhoto], seed: int) -> list[Window]:
    """A window of every photo at every offset, offset by offset."""
    return [
        cut_window(photo, model, window_shift(number, i, reach_m=model.chip_m / 4, seed=seed))
        for number in range(NUM_OFFSETS)
        for i, photo in enumerate(photos)
    ]


def _answer(model: Model, code: PhotoCode, window: AerialCodes) -> Judged:
    """The answer in one window, in a plane about its centre."""
    origin = np.zeros(1)
    places = Places.around(origin, origin, chip_m=model.chip_m)
    evidence = model.match(code, ChipFeatures.of_codes(window, model.device))
    return judge(evidence, Prior(places), model.calibration)


def _pose(model: Model, answer: Judged) -> tuple[float, float, float]:
    mode = answer.posterior.mode
    return mode.x_m, mode.y_m, mode.heading_deg if model.says_heading else np.nan


def _confidence(model: Model, answer: Judged) -> float:
    return answer.confidence if model.calibration.is_fitted else np.nan


def _among_photos(scores: Scores, num_photos: int) -> Ranks:
    """`(P, O)` ranks of the own windows among all photos' at the same offset."""
    photo, number = (a.ravel() for a in np.indices((num_photos, NUM_OFFSETS)))
    first = number * num_photos
    at_offset = [np.arange(start, start + num_photos) for start in first]
    return _shaped(scores.ranks(photo, first + photo, at_offset), (num_photos, NUM_OFFSETS))


def _among_distractors(
    scores: Scores, num_photos: int, num_rasters: int
) -> AmongDistractors | None:
    """Ranks of every photo's own windows, and of the others', among the distractors, if any."""
    num_windows, num_chips = NUM_OFFSETS * num_photos, len(scores.references)
    if num_chips == num_windows:
        return None
    shape = (num_photos, NUM_OFFSETS, num_photos)
    photo, number, shown = (a.ravel() for a in np.indices(shape))
    distractors = np.arange(num_windows, num_chips)
    window = number * num_photos + shown
    all_ranks = _shaped(scores.ranks(photo, window, [distractors] * len(window)), shape)
    is_own = np.eye(num_photos, dtype=np.bool_)[:, None]

    def own(ranks: Floats) -> Floats:
        return np.asarray((ranks * is_own).sum(2))

    def others(ranks: Floats) -> Floats:
        return np.asarray((ranks * ~is_own).sum(2) / (num_photos - 1))

    return AmongDistractors(
        own=Ranks(own(all_ranks.descriptor), own(all_ranks.evidence)),
        others=Ranks(others(all_ranks.descriptor), others(all_ranks.evidence)),
        num=len(distractors),
        num_incomplete=num_rasters - len(distractors),
    )


def _shaped(ranks: Ranks, shape: tuple[int, ...]) -> Ranks:
    return Ranks(ranks.descriptor.reshape(shape), ranks.evidence.reshape(shape))
