"""Photos of one date searched in imagery of another: ours beside methods without learning.

Photos that look straight down are cut out of the rasters of one date (`ciper.data.nadir`); the
gallery is made of those of another. Every method is given the same plan views, of the told heights,
and the same threads; what depends on the gallery alone is made ready before the clock runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ciper.asking import Progress, ignore_progress
from ciper.classical import ClassicalAnswer, Method
from ciper.classical.registration import Floor, registration_floor
from ciper.data.nadir import NadirConfig, kept_photos
from ciper.data.plan_view import to_plan
from ciper.data.poses import PhotoPose, read_poses
from ciper.errors import ConfigError, DatasetError
from ciper.evaluate import evaluate
from ciper.files import check_cache, finished_folder
from ciper.gallery.inspect import expand_rasters
from ciper.gallery.store import Gallery
from ciper.geo import LocalFrame, wrap_signed_deg
from ciper.index import kept_gallery
from ciper.metrics import NO_REFERENCE, finite_or_none, ranks_from_similarity
from ciper.model.load import load_model
from ciper.report import TABLE, check_replaceable, write_metrics

Float = NDArray[np.float64]
WITHIN_M = (1.0, 5.0)


@dataclass(frozen=True)
class NadirBenchmarkOptions:
    """What is measured.

    Attributes:
        photos: rasters (files, folders or globs) of the date that the photos show.
        imagery: rasters of the gallery's date; more places than the photos' make it harder.
        model: name or file of weights.
        num_photos: of which each raster has its share.
        num_classical: of them, the methods without learning are asked for so many; 0 for none.
        height_error: see `NadirConfig`.
        seed: of the photos, and of the chips in which poses are measured.
        device: cpu, cuda or mps; of the model.
        num_threads: of the methods without learning.
        cache: folder that keeps photos and galleries.
    """

    photos: tuple[str, ...]
    imagery: tuple[str, ...]
    model: str | Path = "ground"
    num_photos: int = 200
    num_classical: int = 40
    height_error: float | None = 0.0
    seed: int = 7
    device: str | None = None
    num_threads: int = 1
    cache: Path = Path("cache/nadir")

    def __post_init__(self) -> None:
        if self.num_photos < 1 or self.num_classical < 0:
            raise ConfigError(
                f"{self.num_photos} photos and {self.num_classical} for the methods without "
                "learning; expected at least one photo"
            )
        if self.height_error is None and self.num_classical:
            raise ConfigError(
                f"{self.num_classical} photos for the methods without learning, which take the "
                "heights that are not told; expected none: set --num-classical 0"
            )


@dataclass(frozen=True)
class Row:
    """One method's line of the table: shares, metres, degrees, seconds; NaN where it has none."""

    method: str
    num_photos: int
    recall_at_1: float
    hit_rate: float
    within_1m: float = np.nan
    within_5m: float = np.nan
    median_m: float = np.nan
    heading_median_deg: float = np.nan
    seconds: float = np.nan


def benchmark_nadir(
    out: Path, options: NadirBenchmarkOptions, *, progress: Progress = ignore_progress
) -> dict[str, Any]:
    """Measures a model, template matching and local features on photos of another date.

    Args:
        out: REPORT folder: report.md, metrics.json, floor.csv, and the model's own report in
            `model/`.
        options: what to do.
        progress: called with (what, done, total).

    Returns:
        What metrics.json holds.

    Raises:
        ConfigError, CheckpointError, RasterError, OutputError: an input cannot be used.
        DependencyError: OpenCV is not installed, and methods without learning are asked for.
    """
    started = time.perf_counter()
    check_replaceable(out)
    check_cache(options.cache)
    model = load_model(options.model, options.device)
    methods = _methods(options)
    poses = _photographed(options, progress)
    gallery = kept_gallery(
        options.imagery, options.cache, model, lambda done, total: progress("chips", done, total)
    )
    with finished_folder(out) as folder:
        ours = evaluate(
            str(poses), folder / "model", gallery=gallery, model=model,
            seed=options.seed, progress=progress,
        )  # fmt: skip
        rows = _own_rows(model.model_name, ours)
        if methods:
            asked = _asked_of_classical(ours["num_queries"], options.num_classical)
            if len(asked) < ours["num_queries"]:
                rows.append(_same_row(model.model_name, folder / "model", asked))
            photos = read_poses(poses)
            rows += _classical_rows(
                methods, [photos[int(i)] for i in asked], gallery, options, progress
            )
        floor, no_floor = _floor(options, progress)
        figures = {
            "photos": list(options.photos),
            "imagery": list(options.imagery),
            "height_error": options.height_error,
            "num_threads": options.num_threads,
            "table": [finite_or_none(vars(row)) for row in rows],
            "floor": None if floor is None else finite_or_none(vars(floor)),
            "model": ours,
            "seconds": time.perf_counter() - started,
        }
        written = write_metrics(folder, figures)
        (folder / "report.md").write_text(
            _report(rows, ours, options)
            + "".join(f"\nWarning: {warning}\n" for warning in ours["warnings"])
            + (no_floor if floor is None else _floor_text(floor)),
            encoding="utf-8",
        )
    return written


# --------------------------------------------------------------------------------------- material


def _photographed(options: NadirBenchmarkOptions, progress: Progress) -> Path:
    """The table of the photos, which are taken unless they are there."""
    config = NadirConfig(
        num_photos=options.num_photos, seed=options.seed, height_error=options.height_error
    )
    return kept_photos(options.photos, options.cache, config, progress=progress)


def _chips(gallery: Gallery) -> tuple[NDArray[np.uint8], NDArray[np.bool_], float]:
    """All chips as they were indexed, where they show imagery, and their gsd."""
    chips = [gallery.read_chip(index) for index in range(len(gallery))]
    pixels, valid = (np.stack(part) for part in zip(*chips, strict=True))
    return pixels, valid, gallery.header.gsd


def _floor(options: NadirBenchmarkOptions, progress: Progress) -> tuple[Floor | None, str]:
    """How far the two dates' rasters lie apart, or why that is not known."""
    progress("registration", 0, 1)
    try:
        floor = registration_floor(expand_rasters(options.photos), expand_rasters(options.imagery))
    except DatasetError as error:
        return None, f"\nHow far the two dates lie apart was not measured: {error}.\n"
    progress("registration", 1, 1)
    return floor, ""


def _floor_text(floor: Floor) -> str:
    return (
        "\nThe two dates themselves lie apart, by phase correlation: "
        f"{floor.median_m:.2f} m in the median, more than {floor.p90_m:.2f} m in a tenth of "
        f"{floor.num_reliable} places (of {floor.num_pairs}; the others have no clear peak). No "
        "answer can be nearer to the truth of the photos' date than that.\n"
    )


# ---------------------------------------------------------------------------------------- methods


def _methods(options: NadirBenchmarkOptions) -> dict[str, Method]:
    """The methods without learning, by name."""
    if options.num_classical == 0:
        return {}
    # Only here, for they take OpenCV.
    from ciper.classical.sift import SiftConfig, SiftMatching
    from ciper.classical.template import TemplateConfig, TemplateMatching

    num_threads = options.num_threads
    return {
        "template matching, 36 rotations": TemplateMatching(
            TemplateConfig(num_threads=num_threads)
        ),
        "SIFT and RANSAC, exact search": SiftMatching(
            SiftConfig(search="exact", num_threads=num_threads)
        ),
        "SIFT and RANSAC, approximate search": SiftMatching(
            SiftConfig(search="flann", num_threads=num_threads)
        ),
    }


def _asked_of_classical(num_photos: int, num_classical: int) -> NDArray[np.int64]:
    """Which photos the methods without learning are asked for, spread over the rasters."""
    index = np.linspace(0, num_photos - 1, min(num_classical, num_photos))
    return index.round().astype(np.int64)


def _same_row(name: str, report: Path, asked: NDArray[np.int64]) -> Row:
    """The model's figures on the photos that the methods without learning are asked for."""
    rows = pq.read_table(report / TABLE).to_pylist()

    def found(row: Mapping[str, Any]) -> _Found:
        """One answer; without one, or outside of the gallery, a photo counts as failed."""
        failed = {"error_m": np.inf, "heading_error_deg": 180.0, "seconds": np.nan}
        names = ("posterior_rank", "posterior_hit_rank", *failed)
        values: list[Any] = [
            failed.get(n, NO_REFERENCE) if row[n] is None else row[n] for n in names
        ]
        return _Found(*values)

    return _row(f"{name}, the photos of the methods below", [found(rows[int(i)]) for i in asked])


def _classical_rows(
    methods: Mapping[str, Method],
    asked: Sequence[PhotoPose],
    gallery_path: Path,
    options: NadirBenchmarkOptions,
    progress: Progress,
) -> list[Row]:
    gallery = Gallery.open(gallery_path)
    chips, is_valid, gsd = _chips(gallery)
    rows = []
    for name, method in methods.items():
        progress(f"{name}: gallery", 0, 1)
        method.prepare(chips, is_valid, gsd)
        found = []
        for number, pose in enumerate(asked, start=1):
            found.append(_asked(method, pose, gallery, gsd))
            progress(name, number, len(asked))
        rows.append(_row(name, found))
    return rows


@dataclass(frozen=True)
class _Found:
    """One answer of a method, held against the truth."""

    rank: int
    hit_rank: int
    distance_m: float
    turn_deg: float
    seconds: float


def _asked(method: Method, pose: PhotoPose, gallery: Gallery, gsd: float) -> _Found:
    size_px = round(gallery.header.chip_m / gsd)
    started = time.perf_counter()
    pixels, camera, _ = pose.read()
    plan, is_visible = to_plan(pixels, camera, size_px=size_px, gsd=gsd)
    answer = method.locate(plan, is_visible)
    seconds = time.perf_counter() - started
    true = int(gallery.nearest_chips(lat=[pose.lat], lon=[pose.lon])[0])
    rank, hit_rank = _ranks(answer, true, gallery, pose)
    distance_m, turn_deg = _errors(answer, gallery, pose)
    return _Found(rank, hit_rank, distance_m, turn_deg, seconds)


def _ranks(
    answer: ClassicalAnswer, true: int, gallery: Gallery, pose: PhotoPose
) -> tuple[int, int]:
    """Of the true chip among all, and without the others that hold the camera."""
    if true < 0:
        return NO_REFERENCE, NO_REFERENCE
    holding = gallery.chips_holding(lat=pose.lat, lon=pose.lon)
    others = holding[holding != true]
    scores = answer.scores[None]
    return (
        int(ranks_from_similarity(scores, [true])[0]),
        int(ranks_from_similarity(scores, [true], excluded=[others])[0]),
    )


def _errors(answer: ClassicalAnswer, gallery: Gallery, pose: PhotoPose) -> tuple[float, float]:
    """Metres and degrees from the truth, infinite and half a turn where nothing was found."""
    if not answer.is_found:
        return np.inf, 180.0
    chips = gallery.chips
    centre = LocalFrame(lat=float(chips.lat[answer.chip]), lon=float(chips.lon[answer.chip]))
    x_m, y_m = centre.to_local(lat=pose.lat, lon=pose.lon)
    turn_deg = abs(float(wrap_signed_deg(answer.heading_deg - (pose.heading_deg or 0.0))))
    return float(np.hypot(answer.x_m - x_m, answer.y_m - y_m)), turn_deg


def _row(name: str, found: Sequence[_Found]) -> Row:
    distance_m = np.array([f.distance_m for f in found])
    return Row(
        method=name,
        num_photos=len(found),
        recall_at_1=float(np.mean([f.rank == 0 for f in found])),
        hit_rate=float(np.mean([f.hit_rank == 0 for f in found])),
        within_1m=float((distance_m <= WITHIN_M[0]).mean()),
        within_5m=float((distance_m <= WITHIN_M[1]).mean()),
        median_m=float(np.median(distance_m)),
        heading_median_deg=float(np.median([f.turn_deg for f in found])),
        seconds=float(np.nanmedian([f.seconds for f in found])),
    )


def _own_rows(name: str, figures: Mapping[str, Any]) -> list[Row]:
    """The model's figures: its answer, the evidence of all poses alone, and descriptors."""
    answered = figures["retrieval_posterior"]
    ends, num_photos = figures["end_to_end"], figures["num_queries"]
    answer = Row(
        method=name,
        num_photos=num_photos,
        recall_at_1=answered["recall@1"],
        hit_rate=answered["hit_rate"],
        within_1m=ends["recall@1m"],
        within_5m=ends["recall@5m"],
        median_m=_or_nan(ends["median_m"]),
        heading_median_deg=_or_nan(ends["heading_median_deg"]),
        seconds=_or_nan(figures["seconds_per_query"]),
    )
    parts = {"evidence of all poses": "retrieval_matched", "descriptors": "retrieval"}
    others = [
        Row(f"{name}, {by} alone", num_photos, figures[part]["recall@1"], figures[part]["hit_rate"])
        for by, part in parts.items()
    ]
    return [answer, *others]


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


# ----------------------------------------------------------------------------------------- report


def _report(rows: Sequence[Row], ours: Mapping[str, Any], options: NadirBenchmarkOptions) -> str:
    pose, centre = ours["pose"], ours["baseline"]["center"]["pose"]
    head = (
        "| method | photos | right chip first | hit rate | within 1 m | within 5 m | median m "
        "| heading median deg | s per photo |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    told = {None: "not told", 0.0: "told as it is"}.get(
        options.height_error, f"told wrong by {options.height_error or 0:.0%}"
    )
    return (
        "# Photos that look straight down, in imagery of another date\n\n"
        f"{ours['num_queries']} photos out of {', '.join(options.photos)}; gallery of "
        f"{', '.join(options.imagery)}: {ours['num_references']} chips of {ours['chip_m']:g} m "
        f"every {ours['stride_m']:g} m. Headings unknown, heights {told}. Seconds are medians, "
        "reading the photo among them, the gallery made ready; the methods without learning had "
        f"{options.num_threads} threads. All of the model: [model/report.md](model/report.md).\n\n"
        + head
        + "\n".join(_line(row) for row in rows)
        + f"\n\nOn the true chip: position {_text(pose['median_m'])} m (the chip's centre "
        f"{_text(centre['median_m'])} m), heading {_text(pose['heading_median_deg'])} deg "
        "(medians).\n"
    )


def _line(row: Row) -> str:
    shares = (row.recall_at_1, row.hit_rate, row.within_1m, row.within_5m)
    numbers = (row.median_m, row.heading_median_deg, row.seconds)
    cells = [
        row.method,
        str(row.num_photos),
        *(_text(share, "{:.1%}") for share in shares),
        *(_text(number) for number in numbers),
    ]
    return f"| {' | '.join(cells)} |"


def _text(value: float | None, form: str = "{:.2f}") -> str:
    return "-" if value is None or not np.isfinite(value) else form.format(value)
