"""Answers to the queries of published protocols: in one chip, and among references."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper import geodesic
from ciper.asking import found_of
from ciper.data.protocol import AerialImage, Sample, Told
from ciper.gallery.shards import AerialCodes
from ciper.geo import LocalFrame, wrap_deg, wrap_signed_deg
from ciper.localize import Judged, judge
from ciper.model.model import ChipFeatures, Model, PhotoCode
from ciper.pose_grid import CELLS_PER_CHIP, NUM_COARSE
from ciper.posterior import Places, Posterior
from ciper.prior import NEAR_SOFTNESS, Prior
from ciper.published.codes import REACH_SHARE, cells_within, seen_cut, whole
from ciper.published.figures import SampleQuery, world_offset
from ciper.scoring import NO_ANSWER, Found

Float = NDArray[np.floating[Any]]

# How softly a told range of headings ends, besides the width of the cells.
HEADING_SOFTNESS_DEG = 1.0


@dataclass(frozen=True)
class SeenPhoto:
    """A photo that was read and encoded, in some seconds."""

    code: PhotoCode
    descriptor: NDArray[np.float32]
    seconds: float


# ------------------------------------------------------------------------------- what is told


@dataclass(frozen=True)
class ToldPrior(Prior):
    """What a protocol tells of a pose in a chip that `places` puts at its frame's origin.

    The frame's axes are the chip's right and up. Within the told ranges all is equal; beyond them
    it falls softly, as in `prior.Near`.
    """

    told: Told | None = None

    @property
    def says_something(self) -> bool:
        """Whether anything is told."""
        return self.told is not None

    def log_position(self, x_m: Float, y_m: Float) -> Float:
        """Log factor at positions, by the axis that is farther from the chip's centre."""
        if self.told is None or not np.isfinite(self.told.within_m):
            return np.zeros(np.shape(x_m))
        beyond_m = np.maximum(np.maximum(np.abs(x_m), np.abs(y_m)) - self.told.within_m, 0.0)
        return np.asarray(-0.5 * np.square(beyond_m / (NEAR_SOFTNESS * self.told.within_m)))

    def log_heading(self, heading_deg: Float, step_deg: float) -> Float:
        """Log factor at headings of cells `step_deg` wide."""
        if self.told is None or self.told.heading_within_deg >= 180.0:
            return np.zeros(np.shape(heading_deg))
        turn_deg = np.abs(wrap_signed_deg(heading_deg - self.told.heading_deg))
        beyond_deg = np.maximum(turn_deg - self.told.heading_within_deg, 0.0)
        variance = HEADING_SOFTNESS_DEG**2 + step_deg**2 / 12
        return np.asarray(-0.5 * np.square(beyond_deg) / variance)


def judged_on(
    model: Model,
    code: PhotoCode,
    codes: AerialCodes,
    prior: Prior,
    *,
    reach_m: Sequence[float] | None = None,
) -> Judged | None:
    """The answer on some chips, as `Localizer.judge` gives it; None if none holds a place for it.

    Args:
        model: that answers.
        code: of the photo.
        codes: of the chips.
        prior: on them.
        reach_m: (R,) how far from its centre along both axes each chip answers; None for as far
            as it can.
    """
    features = ChipFeatures.of_codes(codes, model.device)
    has_imagery = model.cells_with_imagery(features)
    if reach_m is not None:
        half_m = prior.places.half_m
        near = [cells_within(NUM_COARSE, half_m=half_m, reach_m=r) for r in reach_m]
        has_imagery = has_imagery & np.stack(near)
    if not has_imagery.any():
        return None
    evidence = model.match(code, features, has_imagery=has_imagery, log_prior=prior.on_coarse_cells)
    return judge(evidence, prior, model.calibration)


def without_told_heading(found: Found, told: Told) -> Found:
    """An answer to a question that told the heading has none of its own."""
    return replace(found, says_heading=False) if told.heading_within_deg == 0.0 else found


# ------------------------------------------------------------------------- in the published chip


def in_chip(
    model: Model, sample: Sample, photo: SeenPhoto, codes: AerialCodes, told: Told | None
) -> Found:
    """The answer in a sample's own chip, whose right and up are the axes of the posterior's frame.

    Args:
        model: that answers.
        sample: what is asked.
        photo: what is shown.
        codes: of the chip.
        told: of the pose, if the model is told.
    """
    started, image = time.perf_counter(), sample.image
    side_m = seen_cut(model, sample.cut).side_m
    places = Places(
        LocalFrame(lat=image.lat, lon=image.lon), np.array([image.lat]), np.array([image.lon]),
        x_m=np.zeros(1), y_m=np.zeros(1), coarse_m=side_m / CELLS_PER_CHIP,
    )  # fmt: skip
    judged = judged_on(model, photo.code, codes, ToldPrior(places, told=told))
    if judged is None:
        return NO_ANSWER
    answer = _answer_in_chip(model, photo.code, codes, judged.posterior, side_m)
    found = found_of(
        judged.posterior, judged.features, judged.confidence,
        true_xy=sample.pose[:2], seconds=time.perf_counter() - started,
    )  # fmt: skip
    return _in_world(found, sample, answer)


def _answer_in_chip(
    model: Model, code: PhotoCode, codes: AerialCodes, posterior: Posterior, side_m: float
) -> tuple[float, float, float]:
    """Metres right and up of the centre of the mode's chip, and the heading from its up.

    A set decoder's most confident hypothesis may lie outside of the central half, which is all that
    the posterior's cells cover.

    Args:
        model: that answers.
        code: of the photo.
        codes: of the mode's chip.
        posterior: of one chip or several.
        side_m: of that chip, in true metres.
    """
    best = model.best_in_chip(code, ChipFeatures.of_codes(codes, model.device))
    if best is None:
        mode, places = posterior.mode, posterior.places
        scale = side_m / (places.coarse_m * CELLS_PER_CHIP)
        x_m, y_m = mode.x_m - places.x_m[mode.chip], mode.y_m - places.y_m[mode.chip]
        return float(x_m * scale), float(y_m * scale), mode.heading_deg
    # What it calls metres is a share of the chip's side.
    x_m, y_m = (best[:2] * side_m / model.chip_m).tolist()
    return x_m, y_m, float(best[2])


def _in_world(found: Found, sample: Sample, answer: tuple[float, float, float]) -> Found:
    """With an answer in the published chip: metres right and up, heading clockwise from up."""
    x_m, y_m, heading_deg = answer
    up_deg = sample.cut.up_deg
    away = world_offset(x_m - sample.pose[0], y_m - sample.pose[1], up_deg)
    true_lat, true_lon = sample.position
    lat, lon = geodesic.moved(lat=true_lat, lon=true_lon, x_m=away[0], y_m=away[1])
    heading_deg = float(wrap_deg(up_deg + heading_deg)) if found.says_heading else np.nan
    return replace(
        found, x_m=float(away[0]), y_m=float(away[1]), lat=float(lat), lon=float(lon),
        heading_deg=heading_deg,
    )  # fmt: skip


# ---------------------------------------------------------------------------- among references


def among(
    model: Model,
    query: SampleQuery,
    photo: SeenPhoto,
    references: Sequence[tuple[AerialImage, AerialCodes]],
) -> Found:
    """The answer on some references, all in one posterior.

    Evidence counts in shares of a chip, so that references of several sides are drawn to the side
    of the first one in the posterior's frame; what leaves it has its true metres again.

    Args:
        model: that answers; a metric one is told the heading as far as the protocol tells it.
        query: what is asked.
        photo: what is shown.
        references: the images with their codes, the most similar one first.
    """
    images = [image for image, _ in references]
    codes = _together([code for _, code in references])
    sides_m = np.array([seen_cut(model, whole(image)).side_m for image in images])
    places = _places_of(np.array([(i.lat, i.lon) for i in images]), sides_m[0])
    told, reach_m = None, None
    if model.is_metric:
        told = replace(query.sample.told, within_m=np.inf)
        reach_m = [REACH_SHARE * image.side_m for image in images]
    judged = judged_on(model, photo.code, codes, ToldPrior(places, told=told), reach_m=reach_m)
    if judged is None:
        return NO_ANSWER
    chip = judged.posterior.mode.chip
    answer = _answer_in_chip(
        model, photo.code, references[chip][1], judged.posterior, sides_m[chip]
    )
    return _on_globe(judged, query, sides_m / sides_m[0], answer)


def _places_of(lat_lon: Float, side_m: float) -> Places:
    """Places of north-up chips, in metres about the first one."""
    (lat, lon), first = lat_lon.T, lat_lon[0]
    x_m, y_m = geodesic.offset_m(lat=first[0], lon=first[1], to_lat=lat, to_lon=lon).T
    frame = LocalFrame(lat=float(first[0]), lon=float(first[1]))
    return Places(frame, lat, lon, x_m, y_m, coarse_m=side_m / CELLS_PER_CHIP)


def _together(codes: Sequence[AerialCodes]) -> AerialCodes:
    return AerialCodes(
        *(np.concatenate(part) for part in zip(
            *((c.descriptors, c.coarse, c.fine) for c in codes), strict=True
        ))
    )  # fmt: skip


def _on_globe(
    judged: Judged, query: SampleQuery, scale: Float, answer: tuple[float, float, float]
) -> Found:
    """An answer of the gallery, in the mode's chip.

    Args:
        judged: the posterior.
        query: what is asked.
        scale: (R,) the chips' true size over that in the posterior.
        answer: metres east and north of the centre of the mode's chip, heading.
    """
    posterior, truth = judged.posterior, query.pose
    places, chip = posterior.places, posterior.mode.chip
    from_chips = geodesic.offset_m(
        lat=places.lat, lon=places.lon, to_lat=truth.lat, to_lon=truth.lon
    )
    nearest = int(np.argmin(np.hypot(*from_chips.T)))
    true_x, true_y = from_chips[nearest] / scale[nearest]
    true_xy = (float(places.x_m[nearest] + true_x), float(places.y_m[nearest] + true_y))
    found = found_of(posterior, judged.features, judged.confidence, true_xy=true_xy, seconds=0.0)
    lat, lon = geodesic.moved(
        lat=places.lat[chip], lon=places.lon[chip], x_m=answer[0], y_m=answer[1]
    )
    x_m, y_m = geodesic.offset_m(lat=truth.lat, lon=truth.lon, to_lat=lat, to_lon=lon).tolist()
    return replace(
        found, x_m=x_m, y_m=y_m, lat=float(lat), lon=float(lon),
        heading_deg=answer[2] if found.says_heading else np.nan,
    )  # fmt: skip
