"""Chips cut out of the aerial images of a data set: moved, turned and brought to another gsd.

Pixels are u to the right and v down from the image's or chip's upper left *corner*. A chip may
reach beyond its image; what lies there is 0 and marked invalid.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ciper.data.preprocess import read_photo
from ciper.data.protocol import AerialImage, Cut
from ciper.errors import DatasetError, PhotoError
from ciper.gallery.sampling import SourceWindow, sample_window
from ciper.geo import FloatArray, forward, right

Rgb = NDArray[np.uint8]
Bool = NDArray[np.bool_]

NUM_IMAGES = 16
# Control points of the map from chip to image. The map is affine, so that any step is exact; a
# smaller one leaves out more of a chip that lies outside of its image.
_STEP_PX = 32


class ImageReader:
    """Reads aerial images and keeps the last ones.

    An image of another size than published (data sets are often kept smaller) shows the same
    square; its pixels are then larger or smaller. Such files are listed in `resized`.

    Args:
        num_kept: how many decoded images; one of KITTI takes 5 MB.
    """

    def __init__(self, num_kept: int = NUM_IMAGES) -> None:
        self.resized: set[Path] = set()
        self._num_kept = num_kept
        self._kept: OrderedDict[Path, Rgb] = OrderedDict()

    def read(self, image: AerialImage) -> Rgb:
        """The pixels `(H, H, 3)`, RGB, not to be written to.

        Raises:
            DatasetError: the file is missing, no image, damaged or not square.
        """
        if image.path not in self._kept:
            pixels = _read_square(image.path)
            if len(pixels) != image.side_px:
                self.resized.add(image.path)
            if len(self._kept) >= self._num_kept:
                self._kept.popitem(last=False)
            pixels.flags.writeable = False
            self._kept[image.path] = pixels
        self._kept.move_to_end(image.path)
        return self._kept[image.path]

    def cut(self, image: AerialImage, cut: Cut, size_px: int) -> tuple[Rgb, Bool]:
        """`cut_chip` of an image's file.

        Raises:
            DatasetError: as `read`.
        """
        return cut_chip(
            self.read(image),
            image,
            x_m=cut.x_m,
            y_m=cut.y_m,
            up_deg=cut.up_deg,
            side_m=cut.side_m,
            size_px=size_px,
        )


def _read_square(path: Path) -> Rgb:
    try:
        pixels = read_photo(path)
    except PhotoError as error:
        raise DatasetError(f"aerial image: {error}") from error
    height_px, width_px = pixels.shape[:2]
    if height_px != width_px:
        raise DatasetError(
            f"aerial image {path} has {width_px} x {height_px} px; expected a square as published: "
            "copy it again"
        )
    return pixels


def cut_chip(
    pixels: Rgb,
    image: AerialImage,
    *,
    x_m: float,
    y_m: float,
    up_deg: float,
    side_m: float,
    size_px: int,
) -> tuple[Rgb, Bool]:
    """A square about a point of an aerial image, resampled as chips of galleries are.

    Where a chip's pixel spans several of the image's they are averaged, else it is bilinear
    between them (see `gallery.sampling`).

    Args:
        pixels: `(H, H, 3)` of the image, whatever its size: they cover `image.side_m`.
        image: where they lie.
        x_m: the chip's centre, east of the image's.
        y_m: likewise, north of it.
        up_deg: where the chip's up points, clockwise from true north.
        side_m: the chip's side.
        size_px: pixels along it.

    Returns:
        `(size_px, size_px, 3)`, 0 outside of the image, and which pixels' centres are inside of it.
    """
    rgb = np.zeros((size_px, size_px, 3), np.uint8)
    is_valid = np.zeros((size_px, size_px), np.bool_)
    corners = np.arange(0, size_px + _STEP_PX, _STEP_PX, dtype=np.float64)
    v, u = np.meshgrid(corners, corners, indexing="ij")
    gsd = side_m / size_px
    control = image_pixels(
        image,
        len(pixels),
        (u - size_px / 2) * gsd,
        (size_px / 2 - v) * gsd,
        cut=Cut(x_m, y_m, up_deg, side_m),
    )
    source = SourceWindow.plan(*control, size=pixels.shape[:2], step_px=_STEP_PX)
    if source is not None:
        planes = _reduced(pixels, source)
        sample_window(planes, np.ones(planes.shape[1:], np.bool_), source, rgb, is_valid)
    return rgb, is_valid


def image_pixels(
    image: AerialImage, num_px: int, x_m: FloatArray, y_m: FloatArray, *, cut: Cut
) -> tuple[FloatArray, FloatArray]:
    """Pixel coordinates (u, v) in an image of `num_px` a side, of points of a chip.

    Args:
        image: that the chip is cut out of.
        num_px: pixels along its side as it is read.
        x_m: metres right of the chip's centre.
        y_m: metres up of it.
        cut: the chip.
    """
    across, along = right(cut.up_deg), forward(cut.up_deg)
    east_m = cut.x_m + x_m * across[0] + y_m * along[0]
    north_m = cut.y_m + x_m * across[1] + y_m * along[1]
    gsd = image.side_m / num_px
    return num_px / 2 + east_m / gsd, num_px / 2 - north_m / gsd


def _reduced(pixels: Rgb, source: SourceWindow) -> Rgb:
    """The window's `(3, h, w)`, averaged over whole numbers of pixels."""
    window = pixels[
        source.top : source.top + source.height, source.left : source.left + source.width
    ]
    if (source.reduce_v, source.reduce_u) != (1, 1):
        window = np.asarray(Image.fromarray(window).reduce((source.reduce_u, source.reduce_v)))
    return np.ascontiguousarray(window.transpose(2, 0, 1))
