"""From a photo file to the model's ground input, the *canvas*.

The canvas is an equirectangular strip about the camera's heading: all 360 degrees of bearing, a
window of elevation, square pixels. Whatever the camera, the same direction falls on the same
canvas pixel; what the photo does not see stays 0 and is marked so.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ciper.camera import (
    Camera,
    CameraOverrides,
    camera_from_metadata,
    pixels_from_rays,
    rays_from_pixels,
)
from ciper.errors import CameraError, PhotoError
from ciper.metadata import PhotoMetadata, open_image, orientation_of, read_metadata

# A photo (H, W, 3), the camera that took it, and what its file says of itself.
ReadPhoto = tuple[NDArray[np.uint8], Camera, PhotoMetadata]

_MID_GREY = (128, 128, 128, 255)
_STRIP_PX = 256

# What turns a photo of each EXIF orientation upright (EXIF 2.32, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# ------------------------------------------------------------------------------------ reading


def read_photo(path: str | Path) -> NDArray[np.uint8]:
    """Read a photo as RGB, upright.

    The EXIF orientation is applied; CMYK, palette, grey and 16-bit images are converted;
    transparent pixels lie over mid-grey. Of a file with several images the first is read.

    Returns:
        (H, W, 3) uint8.

    Raises:
        PhotoError: missing, empty, truncated, not an image, or too many pixels to decode.
    """
    with open_image(path) as image:
        try:
            image.load()
            # Most photos are upright: no second copy of them is made.
            turn = _UPRIGHT.get(orientation_of(image))
            return _to_rgb(image if turn is None else image.transpose(turn), path)
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
            raise PhotoError(
                f"photo {path} is damaged or cut short ({error}); copy it again"
            ) from error


def read_with_camera(photo: str | Path, said: CameraOverrides | None = None) -> ReadPhoto:
    """Read a photo as `read_photo` does, with its camera.

    Args:
        photo: path of an image.
        said: what is known of the camera beyond the photo's metadata.

    Raises:
        PhotoError, CameraError: the photo cannot be used.
    """
    pixels, metadata = read_photo(photo), read_metadata(photo)
    camera = camera_from_metadata(metadata, size_px=pixels.shape[:2], overrides=said)
    return pixels, camera, metadata


def _to_rgb(image: Image.Image, path: str | Path) -> NDArray[np.uint8]:
    if image.mode.startswith(("I", "F")):
        grey = _grey_from_deep(np.asarray(image), path)
        return np.repeat(grey[:, :, None], 3, axis=2)
    rgb = np.empty((image.height, image.width, 3), dtype=np.uint8)
    # Strip by strip: what Pillow makes on the way is never as large as the photo.
    for top in range(0, image.height, _STRIP_PX):
        strip = image.crop((0, top, image.width, min(top + _STRIP_PX, image.height)))
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, _MID_GREY), strip)
        rgb[top : top + _STRIP_PX] = np.asarray(strip.convert("RGB"))
    return rgb


def _grey_from_deep(values: NDArray[np.generic], path: str | Path) -> NDArray[np.uint8]:
    """8-bit grey from 16-bit; 65535 becomes 255."""
    is_16_bit = values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 65535
    if not is_16_bit:
        raise PhotoError(
            f"photo {path} holds {values.dtype} values from {values.min()} to {values.max()}; "
            "expected 8 or 16 bits per channel: export it as JPEG or PNG"
        )
    grey: NDArray[np.uint8] = np.rint(values.astype(np.float32) / 257.0).astype(np.uint8)
    return grey


# ------------------------------------------------------------------------------------- canvas


@dataclass(frozen=True)
class CanvasSpec:
    """Size and elevation window of the canvas; it always spans all bearings.

    Attributes:
        height_px: rows.
        width_px: columns; the middle is the camera's heading, bearing grows to the right.
        elevation_top_deg: elevation of the upper edge.
        elevation_bottom_deg: elevation of the lower edge.
    """

    height_px: int = 128
    width_px: int = 512
    elevation_top_deg: float = 45.0
    elevation_bottom_deg: float = -45.0

    @property
    def camera(self) -> Camera:
        """The level panoramic camera whose photo the canvas is."""
        return Camera(
            projection="equirectangular",
            height_px=self.height_px,
            width_px=self.width_px,
            hfov_deg=360.0,
            vfov_top_deg=self.elevation_top_deg,
            vfov_bottom_deg=self.elevation_bottom_deg,
        )

    @property
    def bearings_deg(self) -> NDArray[np.float64]:
        """Bearing of every column's centre relative to the heading, (W,), in (-180, 180)."""
        return ((np.arange(self.width_px) + 0.5) / self.width_px - 0.5) * 360.0

    @property
    def elevations_deg(self) -> NDArray[np.float64]:
        """Elevation of every row's centre, (H,), falling."""
        span_deg = self.elevation_top_deg - self.elevation_bottom_deg
        fraction = (np.arange(self.height_px) + 0.5) / self.height_px
        return self.elevation_top_deg - fraction * span_deg


def canvas_spec_for(camera: Camera, base: CanvasSpec | None = None) -> CanvasSpec:
    """The elevation window that suits a camera.

    A camera whose axis lies inside the base window keeps it, so that ordinary photos all share one
    window. One that looks further up or down gets a window of the same height, centred on its
    pitch as far as [-90, 90] allows: a nadir camera sees 0 to -90.
    """
    base = base or CanvasSpec()
    if base.elevation_bottom_deg <= camera.pitch_deg <= base.elevation_top_deg:
        return base
    half_deg = (base.elevation_top_deg - base.elevation_bottom_deg) / 2.0
    middle_deg = min(max(camera.pitch_deg, half_deg - 90.0), 90.0 - half_deg)
    return CanvasSpec(base.height_px, base.width_px, middle_deg + half_deg, middle_deg - half_deg)


def to_canvas(
    photo: NDArray[np.uint8], camera: Camera, *, spec: CanvasSpec | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Resample a photo onto the canvas.

    The photo is first averaged down to the canvas's density, then sampled bilinearly, so that
    detail finer than a canvas pixel does not alias.

    Args:
        photo: (H, W, 3) of the camera's size.
        camera: its camera.
        spec: the canvas; `CanvasSpec()` if None.

    Returns:
        canvas: (h, w, 3) uint8, 0 where not visible.
        is_visible: (h, w) whether the photo holds the direction of that pixel's centre.

    Raises:
        CameraError: the photo is not of the camera's size.
    """
    target = (spec or CanvasSpec()).camera
    check_size(photo, camera)
    return _cached_sampling(camera, target).apply(photo)


def reproject(
    photo: NDArray[np.uint8], camera: Camera, target: Camera
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The photo that another camera would have taken from the same place with the same heading.

    As `to_canvas`, for any target; the mapping is computed anew each time.
    """
    check_size(photo, camera)
    return _sampling(camera, target).apply(photo)


def check_size(photo: NDArray[np.uint8], camera: Camera) -> None:
    """Refuses a photo (H, W, 3) that is not of its camera's size, with a CameraError."""
    if photo.shape != (camera.height_px, camera.width_px, 3):
        raise CameraError(
            f"photo has shape {photo.shape}, its camera {camera.height_px} x {camera.width_px} px; "
            "expected (height, width, 3) of the camera's size"
        )


def _reduced_size_px(camera: Camera, target: Camera) -> tuple[int, int]:
    """Size (height, width) of the photo at the target's density; never larger than it is."""
    down, across = camera.pixels_per_degree
    if target.projection == "equirectangular":
        target_down, target_across = target.pixels_per_degree
    else:
        # A pinhole is densest at its edges: its average keeps them from being blurred.
        target_down = target_across = target.width_px / target.hfov_deg
    height_px = round(camera.height_px / max(1.0, down / target_down))
    width_px = round(camera.width_px / max(1.0, across / target_across))
    return max(1, height_px), max(1, width_px)


@dataclass(frozen=True, eq=False)
class Sampling:
    """Where a target's visible pixels lie in a photo, as bilinear weights.

    Attributes:
        size_px: (height, width) to which the photo is averaged down first.
        is_visible: (h, w).
        corners: (4, n) flat photo indices: upper left, upper right, lower left, lower right.
        weights: (4, n, 1) float32, summing to 1.
    """

    size_px: tuple[int, int]
    is_visible: NDArray[np.bool_]
    corners: NDArray[np.int32]
    weights: NDArray[np.float32]

    def apply(self, photo: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The target's image (h, w, 3), 0 where not visible, and where it is (h, w)."""
        if self.size_px != photo.shape[:2]:
            reduced = Image.fromarray(photo).resize(self.size_px[::-1], Image.Resampling.BOX)
            photo = np.asarray(reduced)
        flat = photo.reshape(-1, 3)
        total = np.full((self.corners.shape[1], 3), 0.5, dtype=np.float32)  # rounds the cast below
        for corner, weight in zip(self.corners, self.weights, strict=True):
            total += flat.take(corner, axis=0) * weight
        image = np.zeros((*self.is_visible.shape, 3), dtype=np.uint8)
        image[self.is_visible] = total.astype(np.uint8)
        return image, self.is_visible.copy()


def _sampling(camera: Camera, target: Camera) -> Sampling:
    rows, columns = np.mgrid[0.5 : target.height_px, 0.5 : target.width_px]
    rays = rays_from_pixels(target, columns, rows)
    return sampling(camera, rays, _reduced_size_px(camera, target))


def sampling(camera: Camera, rays: NDArray[np.float64], size_px: tuple[int, int]) -> Sampling:
    """How to read a photo along the rays of a target's pixels.

    Args:
        camera: of the photo.
        rays: (h, w, 3) in the heading frame, of any length above zero.
        size_px: (height, width) to which the photo is averaged down first.
    """
    u, v, is_visible = pixels_from_rays(camera, rays)
    height_px, width_px = size_px
    # Sample positions relative to pixel centres, on the reduced photo.
    column = u[is_visible] * (width_px / camera.width_px) - 0.5
    row = v[is_visible] * (height_px / camera.height_px) - 0.5
    left, upper = np.floor(column).astype(np.int32), np.floor(row).astype(np.int32)
    across, down = column - left, row - upper
    if camera.is_full_circle:
        columns_0, columns_1 = left % width_px, (left + 1) % width_px
    else:
        columns_0 = np.clip(left, 0, width_px - 1)
        columns_1 = np.clip(left + 1, 0, width_px - 1)
    rows_0, rows_1 = np.clip(upper, 0, height_px - 1), np.clip(upper + 1, 0, height_px - 1)
    corners = np.stack(
        [
            rows_0 * width_px + columns_0,
            rows_0 * width_px + columns_1,
            rows_1 * width_px + columns_0,
            rows_1 * width_px + columns_1,
        ]
    )
    weights = np.stack(
        [(1 - across) * (1 - down), across * (1 - down), (1 - across) * down, across * down]
    )
    return Sampling(size_px, is_visible, corners, weights.astype(np.float32)[:, :, None])


# A canvas's sampling takes 2 MB; photos of one survey share one camera.
_cached_sampling = lru_cache(maxsize=32)(_sampling)
