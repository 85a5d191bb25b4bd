"""Photos as a protocol shows them: whole, or a panorama turned and cut to a sector."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ciper.camera import Camera
from ciper.data.poses import PhotoPose
from ciper.data.preprocess import ReadPhoto, read_with_camera
from ciper.data.protocol import Sample
from ciper.errors import CameraError

Rgb = NDArray[np.uint8]


@dataclass(frozen=True)
class ShownPose(PhotoPose):
    """A sample as a line of a table of poses would say it."""

    sample: Sample | None = None

    @classmethod
    def of(cls, sample: Sample) -> ShownPose:
        """With the sample's place, heading and camera."""
        lat, lon = sample.position
        return cls(sample.photo, lat, lon, sample.heading_deg, sample=sample)

    @property
    def told_heading_deg(self) -> float | None:
        """Only what the protocol tells: a turn may be what is tested."""
        assert self.sample is not None
        return self.heading_deg if self.sample.told.heading_within_deg == 0.0 else None

    def read(self) -> ReadPhoto:
        """What is shown of the photo; raises what `read_shown` raises."""
        assert self.sample is not None
        return read_shown(self.sample)


def read_shown(sample: Sample) -> ReadPhoto:
    """What is shown of a sample's photo, and the camera that would have taken it.

    Raises:
        PhotoError: the file is missing, no image or damaged.
        CameraError: what is said of the camera contradicts the photo, or a photo that is no full
            panorama should be turned or cut.
    """
    pixels, camera, metadata = read_with_camera(sample.photo, sample.camera)
    if sample.turn_deg % 360.0 == 0.0 and sample.fov_deg >= 360.0:
        return pixels, camera, metadata
    if not camera.is_full_circle:
        raise CameraError(
            f"photo {sample.photo} is no full panorama; expected one, to be turned by "
            f"{sample.turn_deg:g} and cut to {sample.fov_deg:g} degrees"
        )
    return *sector(turned(pixels, sample.turn_deg), camera, sample.fov_deg), metadata


def turned(panorama: Rgb, turn_deg: float) -> Rgb:
    """A full panorama `(H, W, 3)` whose new middle lies `turn_deg` clockwise of the old one.

    Exact to parts of a column: between two columns it is linear.
    """
    shift_px = turn_deg / 360.0 * panorama.shape[1]
    whole = int(np.floor(shift_px))
    part = shift_px - whole
    left = np.roll(panorama, -whole, axis=1)
    if part < 1e-6:
        return left
    following = np.roll(left, -1, axis=1)
    mixed = (1.0 - part) * left.astype(np.float32) + part * following.astype(np.float32)
    return np.asarray((mixed + 0.5).astype(np.uint8))


def sector(panorama: Rgb, camera: Camera, fov_deg: float) -> tuple[Rgb, Camera]:
    """The middle of a full panorama, as wide as whole columns come to `fov_deg`, and its camera.

    As many columns are cut on the left as on the right; the camera's field of view is exactly that
    of the columns that stay.
    """
    num_cut = round((1.0 - min(fov_deg, 360.0) / 360.0) * camera.width_px / 2)
    width_px = camera.width_px - 2 * num_cut
    shown = panorama[:, num_cut : num_cut + width_px]
    hfov_deg = camera.hfov_deg * width_px / camera.width_px
    return np.ascontiguousarray(shown), replace(camera, width_px=width_px, hfov_deg=hfov_deg)
