"""One training pair of a data set's sample: what a network is shown of its photo and its place.

*Random* pairs are those of the synthetic cities: a canvas, and a chip of the network's metres about
a random place, so that the camera lies anywhere in its central half. *Published* pairs are those of
the data set's authors: the whole photo squeezed to the ground image, and the published chip, whose
shift and rotation are drawn anew each time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ciper.camera import Camera, camera_from_metadata
from ciper.data.augment import (
    AugmentConfig,
    change_colour,
    mirror_pose,
    pinhole_mask,
    roll_canvas,
    turn_pose,
)
from ciper.data.chips import cut_chip
from ciper.data.datasets import Reading
from ciper.data.image_cache import ImageCache, SizePx
from ciper.data.preprocess import CanvasSpec, to_canvas
from ciper.data.protocol import AerialImage, Cut, Sample
from ciper.data.shown import sector, turned
from ciper.errors import PhotoError
from ciper.geo import forward, right, wrap_deg
from ciper.metadata import PhotoMetadata

Rgb = NDArray[np.uint8]
Bool = NDArray[np.bool_]
Float = NDArray[np.float64]
PairKind = Literal["random", "published"]

# KITTI's and Ford's published shifts, along both axes.
SHIFT_M = 20.0
# A pinhole photo is kept so many times denser than the canvas that samples it: bilinear between
# two pixels twice would blur it.
_PINHOLE_DENSITY = 2.0
_PINHOLE_ASPECTS = (4 / 3, 3 / 2, 16 / 9)
_BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class NetworkInput:
    """Sizes of a network's inputs: chips of `chip_px` pixels of `gsd` metres, and its canvas."""

    chip_px: int
    gsd: float
    canvas: CanvasSpec

    @property
    def side_m(self) -> float:
        """Metres along a chip."""
        return self.chip_px * self.gsd

    @property
    def ground_px(self) -> SizePx:
        """(height, width) of the canvas."""
        return self.canvas.height_px, self.canvas.width_px


@dataclass(frozen=True, eq=False)
class Pair:
    """What a `Batch` holds of one pair, and where its chip lies.

    Attributes:
        canvas, is_visible, chip, is_valid, pose: as in `Batch`.
        centre_m: the chip's centre, east and north of its aerial image's.
    """

    canvas: Rgb
    is_visible: Bool
    chip: Rgb
    is_valid: Bool
    pose: Float
    centre_m: tuple[float, float]


@dataclass(frozen=True)
class PairViews:
    """Makes pairs of samples.

    Attributes:
        images: where images are read from.
        wanted: what the network takes.
        kind: random or published.
        reading: of KITTI's and Ford's published shifts and rotations.
        augment: colours, and the pinhole views that random panoramas become.
    """

    images: ImageCache
    wanted: NetworkInput
    kind: PairKind
    reading: Reading
    augment: AugmentConfig

    def make(self, sample: Sample, rng: np.random.Generator, narrow_share: float) -> Pair:
        """One pair, a function of the sample and of the generator's state.

        Args:
            sample: whose photo and place are shown.
            rng: of all that is random.
            narrow_share: of the panoramas that become pinhole views in random pairs.

        Raises:
            PhotoError: an image is missing, damaged or of another shape.
            CameraError: what is said of the camera contradicts the photo.
        """
        if self.kind == "random":
            pair = self._random(sample, rng, narrow_share)
        else:
            pair = self._published(sample, rng)
        canvas = change_colour(np.ascontiguousarray(pair.canvas), rng, self.augment)
        chip = change_colour(np.ascontiguousarray(pair.chip), rng, self.augment)
        return replace(
            pair,
            canvas=_masked(canvas, pair.is_visible),
            chip=_masked(chip, pair.is_valid),
        )

    # ---------------------------------------------------------------------------------- random

    def _random(self, sample: Sample, rng: np.random.Generator, narrow_share: float) -> Pair:
        reach_m = self.wanted.side_m / 4
        shift = rng.uniform(-reach_m, reach_m, 2)
        cut = Cut(sample.x_m + shift[0], sample.y_m + shift[1], 0.0, self.wanted.side_m)
        chip, is_valid = self._chip(sample.image, cut, self.wanted.gsd)
        canvas, is_visible, camera = self._canvas(sample)
        pose = np.array([-shift[0], -shift[1], sample.heading_deg])
        if camera.is_full_circle:
            columns = int(rng.integers(canvas.shape[1]))
            canvas = roll_canvas(canvas, columns)
            # Of the file's middle, and of so many columns to its right.
            pose[2] += columns * 360.0 / canvas.shape[1] - sample.turn_deg
            pose[2] %= 360.0
            is_visible = self._seen(sample, is_visible, rng, narrow_share)
        if rng.random() < 0.5:
            chip, is_valid = chip[:, ::-1], is_valid[:, ::-1]
            canvas, is_visible = canvas[:, ::-1], is_visible[:, ::-1]
            pose = mirror_pose(pose)
        turns = int(rng.integers(4))
        return Pair(
            canvas=canvas,
            is_visible=np.ascontiguousarray(is_visible),
            chip=np.rot90(chip, turns),
            is_valid=np.ascontiguousarray(np.rot90(is_valid, turns)),
            pose=turn_pose(pose, turns),
            centre_m=(cut.x_m, cut.y_m),
        )

    def _seen(
        self, sample: Sample, is_visible: Bool, rng: np.random.Generator, narrow_share: float
    ) -> Bool:
        """What is left of a panorama: its shown sector, and of some what a pinhole would see."""
        spec = self.wanted.canvas
        is_visible = is_visible & (np.abs(spec.bearings_deg) <= sample.fov_deg / 2)
        if rng.random() >= narrow_share:
            return is_visible
        return is_visible & pinhole_mask(
            spec.height_px,
            spec.width_px,
            hfov_deg=rng.uniform(*self.augment.hfov_deg),
            aspect=rng.choice(_PINHOLE_ASPECTS),
            pitch_deg=rng.uniform(-self.augment.pitch_deg, self.augment.pitch_deg),
            elevation_top_deg=spec.elevation_top_deg,
            elevation_bottom_deg=spec.elevation_bottom_deg,
        )

    def _canvas(self, sample: Sample) -> tuple[Rgb, Bool, Camera]:
        """The canvas about the middle of the photo as its file is, and the camera of the file."""
        spec = self.wanted.canvas
        photo = self.images.read(
            sample.photo, lambda file_px: _shrunk_px(_camera_of(sample, file_px), spec.camera)
        )
        camera = _camera_of(sample, photo.file_px)
        height_px, width_px = photo.pixels.shape[:2]
        rows = _canvas_rows(camera, spec, height_px)
        if rows is None:
            shrunk = resized(camera, (height_px, width_px))
            return *to_canvas(photo.pixels, shrunk, spec=spec), camera
        # Of a level panorama the canvas is a part, which needs no sampling ray by ray.
        canvas = Image.fromarray(photo.pixels).resize(
            (spec.width_px, spec.height_px), _BILINEAR, (0.0, rows[0], width_px, rows[1])
        )
        return np.array(canvas), np.ones(self.wanted.ground_px, np.bool_), camera

    # ------------------------------------------------------------------------------- published

    def _published(self, sample: Sample, rng: np.random.Generator) -> Pair:
        shown = redrawn(sample, self.reading, rng)
        chip, is_valid = self._chip(sample.image, shown.cut, shown.cut.side_m / self.wanted.chip_px)
        canvas = self._squeezed(shown)
        x_m, y_m, heading_deg = shown.pose
        # All chips are one size to the network: what it learns are shares of their sides.
        scale = self.wanted.side_m / shown.cut.side_m
        return Pair(
            canvas=canvas,
            is_visible=np.ones(canvas.shape[:2], np.bool_),
            chip=chip,
            is_valid=is_valid,
            pose=np.array([x_m * scale, y_m * scale, heading_deg]),
            centre_m=(shown.cut.x_m, shown.cut.y_m),
        )

    def _squeezed(self, sample: Sample) -> Rgb:
        """All that is shown of a photo in the size of the canvas; its aspect is not kept."""
        height_px, width_px = self.wanted.ground_px
        whole_px = (height_px, math.ceil(width_px * 360.0 / sample.fov_deg))
        photo = self.images.read(sample.photo, lambda file_px: _smaller(file_px, whole_px))
        pixels = photo.pixels
        if sample.turn_deg or sample.fov_deg < 360.0:
            camera = resized(_camera_of(sample, photo.file_px), pixels.shape[:2])
            pixels, _ = sector(turned(pixels, sample.turn_deg), camera, sample.fov_deg)
        if pixels.shape[:2] == self.wanted.ground_px:
            return pixels
        return np.array(Image.fromarray(pixels).resize((width_px, height_px), _BILINEAR))

    def _chip(self, image: AerialImage, cut: Cut, gsd: float) -> tuple[Rgb, Bool]:
        """A chip of the network's size, cut out of the image as it is when shrunk to a gsd."""

        def size_for(file_px: SizePx) -> SizePx:
            if file_px[0] != file_px[1]:
                raise PhotoError(
                    f"aerial image {image.path} has {file_px[1]} x {file_px[0]} px; expected a "
                    "square as published: copy it again"
                )
            return _smaller(file_px, (max(1, round(image.side_m / gsd)),) * 2)

        pixels, size_px = self.images.read(image.path, size_for).pixels, self.wanted.chip_px
        if len(pixels) == size_px and _is_whole(image, cut):
            return pixels, np.ones((size_px, size_px), np.bool_)
        return cut_chip(
            pixels,
            image,
            x_m=cut.x_m,
            y_m=cut.y_m,
            up_deg=cut.up_deg,
            side_m=cut.side_m,
            size_px=size_px,
        )


def redrawn(sample: Sample, reading: Reading, rng: np.random.Generator) -> Sample:
    """The sample as its protocol might have drawn it, with what is told left as it is.

    A panorama is turned within the noise of its heading. A pinhole's chip is moved and turned: as
    HighlyAccurate reads its labels, the chip turns by a about its centre after the camera was moved
    by (x, y) from there, so that the camera stands at R(a) (x, y); as CIPER reads them, at (x, y).
    The shifts, uniform within 20 m along both axes, are the camera's.
    """
    within_deg = sample.told.heading_within_deg
    turn_deg = rng.uniform(-within_deg, within_deg)
    if sample.camera.projection == "equirectangular":
        heading_deg = float(wrap_deg(sample.heading_deg - sample.turn_deg + turn_deg))
        return replace(sample, turn_deg=turn_deg, heading_deg=heading_deg)
    right_m, up_m = rng.uniform(-SHIFT_M, SHIFT_M, 2)
    if reading == "highlyaccurate":
        cos, sin = math.cos(math.radians(turn_deg)), math.sin(math.radians(turn_deg))
        right_m, up_m = cos * right_m - sin * up_m, sin * right_m + cos * up_m
    # A counter-clockwise turn lessens the heading that the chip sees.
    up_deg = sample.heading_deg - sample.told.heading_deg + turn_deg
    x_m, y_m = np.array([sample.x_m, sample.y_m]) - right_m * right(up_deg) - up_m * forward(up_deg)
    cut = Cut(float(x_m), float(y_m), float(wrap_deg(up_deg)), sample.cut.side_m)
    return replace(sample, cut=cut)


def resized(camera: Camera, size_px: SizePx) -> Camera:
    """The camera of the same photo with another (height, width)."""
    principal_px = camera.principal_px
    if principal_px is not None:
        principal_px = (
            principal_px[0] * size_px[1] / camera.width_px,
            principal_px[1] * size_px[0] / camera.height_px,
        )
    return replace(camera, height_px=size_px[0], width_px=size_px[1], principal_px=principal_px)


def _camera_of(sample: Sample, file_px: SizePx) -> Camera:
    # What the data set says is all there is: metadata of its files are not asked.
    return camera_from_metadata(PhotoMetadata(), size_px=file_px, overrides=sample.camera)


def _shrunk_px(camera: Camera, canvas: Camera) -> SizePx:
    """The size of a photo that is as dense as the canvas, and never larger than it is."""
    finer = 1.0 if camera.is_full_circle else _PINHOLE_DENSITY
    down, across = camera.pixels_per_degree
    canvas_down, canvas_across = canvas.pixels_per_degree
    return (
        max(1, round(camera.height_px / max(1.0, down / (finer * canvas_down)))),
        max(1, round(camera.width_px / max(1.0, across / (finer * canvas_across)))),
    )


def _canvas_rows(camera: Camera, spec: CanvasSpec, height_px: int) -> tuple[float, float] | None:
    """Between which rows of a panorama of `height_px` the canvas lies, if it is part of it."""
    if not camera.is_full_circle or camera.pitch_deg or camera.roll_deg:
        return None
    top_deg, bottom_deg = camera.vertical_range_deg
    if spec.elevation_top_deg > top_deg or spec.elevation_bottom_deg < bottom_deg:
        return None
    per_deg = height_px / (top_deg - bottom_deg)
    return (
        (top_deg - spec.elevation_top_deg) * per_deg,
        min((top_deg - spec.elevation_bottom_deg) * per_deg, height_px),
    )


def _masked(image: Rgb, mask: Bool) -> Rgb:
    """The image, 0 where the mask is not."""
    return image if mask.all() else image * mask[..., None]


def _is_whole(image: AerialImage, cut: Cut) -> bool:
    return cut.x_m == cut.y_m == cut.up_deg == 0.0 and math.isclose(cut.side_m, image.side_m)


def _smaller(one: SizePx, other: SizePx) -> SizePx:
    return min(one[0], other[0]), min(one[1], other[1])
