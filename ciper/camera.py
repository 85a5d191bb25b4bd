"""A camera is the rays of its pixels.

Rays live in the *heading frame*: x to the right, y forward along the heading, z up, level with the
ground. Pitch lifts the view (up positive), roll turns the camera clockwise as its holder sees it
(right side down positive). A nadir camera is a pinhole with pitch -90: the top of its image points
along the heading. All cameras have square pixels. A pinhole's principal point lies in the middle of
the image unless it is given; an equirectangular camera may cover any vertical range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ciper.errors import CameraError
from ciper.metadata import PhotoMetadata, open_image, oriented_size_px, read_metadata

FloatArray = NDArray[np.float64]
Projection = Literal["equirectangular", "pinhole"]

# Fields of view of the photo's long side. Ordinary phone and dashboard cameras lie in this range;
# between neighbours the edge of the photo moves by 4 degrees.
ASSUMED_FOV_DEG = 75.0
ASSUMED_FOVS_DEG = (60.0, 68.0, 75.0, 83.0, 90.0)

# Below this elevation of its axis a pinhole's photo is a plan of the ground, not a view of streets:
# the foot of an ordinary camera is still in it.
LOOKS_DOWN_DEG = -75.0
# Usual heights of drones above the ground; neighbours differ by a sixth, so that the nearest one
# is wrong by a twelfth at most.
ASSUMED_HEIGHTS_M = (30.0, 35.0, 40.8, 47.6, 55.6, 64.8, 75.6, 88.2, 102.9, 120.0)


@dataclass(frozen=True)
class Camera:
    """Projection, size, field of view and tilt of a photo.

    Attributes:
        projection: "equirectangular" or "pinhole".
        height_px: rows of the photo.
        width_px: columns of the photo.
        hfov_deg: horizontal field of view; below 180 for a pinhole, up to 360 for a panorama.
        vfov_top_deg: elevation of the upper edge of a panorama; None means square pixels with the
            horizon on the middle row, and is replaced by that value. None for a pinhole.
        vfov_bottom_deg: elevation of the lower edge, likewise.
        pitch_deg: elevation of the viewing axis, in [-90, 90].
        roll_deg: clockwise turn about the viewing axis, in [-180, 180].
        is_assumed: nothing told the field of view; see `assumed_cameras`.
        principal_px: (u, v) of a pinhole's viewing axis, to which heading and pitch belong; None
            means the middle of the photo. `hfov_deg` is that of the same lens about the middle.
        height_m: above the ground, None if unknown; only cameras that look down need it.
    """

    projection: Projection
    height_px: int
    width_px: int
    hfov_deg: float
    vfov_top_deg: float | None = None
    vfov_bottom_deg: float | None = None
    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    is_assumed: bool = False
    principal_px: tuple[float, float] | None = None
    height_m: float | None = None

    def __post_init__(self) -> None:
        if self.projection not in get_args(Projection):
            raise CameraError(
                f"projection {self.projection!r} is unknown; expected equirectangular or pinhole"
            )
        if self.height_px < 1 or self.width_px < 1:
            raise CameraError(f"a photo of {self.width_px} x {self.height_px} px has no pixels")
        _check_range("pitch", self.pitch_deg, 90.0)
        _check_range("roll", self.roll_deg, 180.0)
        if self.looks_down and self.height_m is not None and not 0.0 < self.height_m < 1e5:
            raise CameraError(
                f"a camera {self.height_m} m above the ground sees none; expected more than 0 and "
                "less than 100000 m"
            )
        if self.projection == "pinhole":
            self._check_pinhole()
        else:
            self._complete_equirectangular()

    def _check_pinhole(self) -> None:
        if not 0.0 < self.hfov_deg < 180.0:
            raise CameraError(
                f"a pinhole photo cannot span {self.hfov_deg} degrees; expected more than 0 and "
                "less than 180, or projection equirectangular"
            )
        if self.vfov_top_deg is not None or self.vfov_bottom_deg is not None:
            raise CameraError(
                "a pinhole photo has no vertical range: it follows from hfov_deg and the photo's "
                "size; leave vfov_top_deg and vfov_bottom_deg out"
            )

    def _complete_equirectangular(self) -> None:
        if self.principal_px is not None:
            raise CameraError("a panorama has no principal point; leave principal_px out")
        if not 0.0 < self.hfov_deg <= 360.0:
            raise CameraError(
                f"a panorama cannot span {self.hfov_deg} degrees; expected more than 0, at most 360"
            )
        top_deg, bottom_deg = self.vfov_top_deg, self.vfov_bottom_deg
        if top_deg is None and bottom_deg is None:
            top_deg = self.hfov_deg * self.height_px / self.width_px / 2.0
            # Resized spheres are often a pixel too high; more than 1 % is another kind of photo.
            if top_deg > 90.0 * 1.01:
                raise CameraError(
                    f"a {self.width_px} x {self.height_px} px panorama of {self.hfov_deg:g} "
                    f"degrees with square pixels would reach {top_deg:.0f} degrees up; give its "
                    "hfov_deg, or vfov_top_deg and vfov_bottom_deg, or projection pinhole"
                )
            top_deg = min(top_deg, 90.0)
            bottom_deg = -top_deg
        if top_deg is None or bottom_deg is None:
            raise CameraError("give both vfov_top_deg and vfov_bottom_deg, or neither")
        if not -90.0 <= bottom_deg < top_deg <= 90.0:
            raise CameraError(
                f"vertical range {bottom_deg} to {top_deg} degrees is impossible; expected "
                "-90 <= vfov_bottom_deg < vfov_top_deg <= 90"
            )
        object.__setattr__(self, "vfov_top_deg", float(top_deg))
        object.__setattr__(self, "vfov_bottom_deg", float(bottom_deg))

    @property
    def vertical_range_deg(self) -> tuple[float, float]:
        """Elevations (top, bottom) of a panorama's edges; an error for a pinhole."""
        if self.vfov_top_deg is None or self.vfov_bottom_deg is None:
            raise CameraError("a pinhole camera has no rows of equal elevation")
        return self.vfov_top_deg, self.vfov_bottom_deg

    @property
    def axis_px(self) -> tuple[float, float]:
        """Pixel coordinates (u, v) of a pinhole's viewing axis."""
        return self.principal_px or (self.width_px / 2.0, self.height_px / 2.0)

    @property
    def focal_px(self) -> float:
        """Focal length of a pinhole in pixels; an error for a panorama."""
        if self.projection != "pinhole":
            raise CameraError("a panorama has no focal length")
        return self.width_px / 2.0 / math.tan(math.radians(self.hfov_deg) / 2.0)

    @property
    def looks_down(self) -> bool:
        """Whether its photo is a plan of the ground: a pinhole's that looks steeply down."""
        return self.projection == "pinhole" and self.pitch_deg <= LOOKS_DOWN_DEG

    @property
    def is_guessed(self) -> bool:
        """Whether something that an answer depends on was not told: see `assumed_heights`."""
        return self.is_assumed or (self.looks_down and self.height_m is None)

    @property
    def pixels_per_degree(self) -> tuple[float, float]:
        """Sampling density (vertical, horizontal) in the middle of the photo."""
        if self.projection == "pinhole":
            density = self.focal_px * math.pi / 180.0
            return density, density
        top_deg, bottom_deg = self.vertical_range_deg
        return self.height_px / (top_deg - bottom_deg), self.width_px / self.hfov_deg

    @property
    def is_full_circle(self) -> bool:
        """Whether the left edge continues at the right edge."""
        return self.projection == "equirectangular" and self.hfov_deg == 360.0

    @property
    def axes(self) -> FloatArray:
        """The camera's right, forward and up axes in the heading frame, one per row, (3, 3)."""
        return camera_axes(pitch_deg=self.pitch_deg, roll_deg=self.roll_deg)


def _check_range(name: str, value_deg: float, limit_deg: float) -> None:
    if not abs(value_deg) <= limit_deg:  # refuses NaN as well
        raise CameraError(
            f"{name} {value_deg} is not a number in [-{limit_deg:g}, {limit_deg:g}] degrees"
        )


def camera_axes(*, pitch_deg: float, roll_deg: float) -> FloatArray:
    """Right, forward and up axes of a tilted camera in the heading frame, one per row, (3, 3)."""
    pitch, roll = math.radians(pitch_deg), math.radians(roll_deg)
    level_right = np.array([1.0, 0.0, 0.0])
    lifted_up = np.array([0.0, -math.sin(pitch), math.cos(pitch)])
    return np.stack(
        [
            math.cos(roll) * level_right - math.sin(roll) * lifted_up,
            np.array([0.0, math.cos(pitch), math.sin(pitch)]),
            math.sin(roll) * level_right + math.cos(roll) * lifted_up,
        ]
    )


def rays_from_pixels(camera: Camera, u: ArrayLike, v: ArrayLike) -> FloatArray:
    """Unit rays (..., 3) in the heading frame of pixel coordinates (u right, v down, corner 0).

    The centre of the pixel in column c and row r is (c + 0.5, r + 0.5).
    """
    u, v = np.broadcast_arrays(np.asarray(u, np.float64), np.asarray(v, np.float64))
    if camera.projection == "pinhole":
        along_right = (u - camera.axis_px[0]) / camera.focal_px
        along_up = (camera.axis_px[1] - v) / camera.focal_px
        rays = np.stack([along_right, np.ones_like(along_right), along_up], axis=-1)
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    else:
        top_deg, bottom_deg = camera.vertical_range_deg
        bearing = np.deg2rad((u / camera.width_px - 0.5) * camera.hfov_deg)
        elevation = np.deg2rad(top_deg - v / camera.height_px * (top_deg - bottom_deg))
        level = np.cos(elevation)
        rays = np.stack(
            [np.sin(bearing) * level, np.cos(bearing) * level, np.sin(elevation)], axis=-1
        )
    # Rows of `axes` are the camera's own right, forward and up.
    return np.asarray(rays @ camera.axes, dtype=np.float64)


def pixels_from_rays(
    camera: Camera, rays: ArrayLike
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Pixel coordinates (u, v) where rays of the heading frame meet the photo.

    Args:
        camera: the camera.
        rays: (..., 3), of any length above zero.

    Returns:
        u, v: (...), meaningful only where visible (NaN behind a pinhole).
        is_visible: (...), whether the photo holds that ray.
    """
    own = np.asarray(rays, dtype=np.float64) @ camera.axes.T
    along_right, along_forward, along_up = own[..., 0], own[..., 1], own[..., 2]
    if camera.projection == "pinhole":
        is_ahead = along_forward > 0.0
        scale = np.divide(
            camera.focal_px,
            along_forward,
            out=np.full_like(along_forward, np.nan),
            where=is_ahead,
        )
        u = camera.axis_px[0] + along_right * scale
        v = camera.axis_px[1] - along_up * scale
    else:
        top_deg, bottom_deg = camera.vertical_range_deg
        bearing_deg = np.rad2deg(np.arctan2(along_right, along_forward))
        elevation_deg = np.rad2deg(np.arctan2(along_up, np.hypot(along_right, along_forward)))
        u = (bearing_deg / camera.hfov_deg + 0.5) * camera.width_px
        v = (top_deg - elevation_deg) / (top_deg - bottom_deg) * camera.height_px
    is_visible = (u >= 0.0) & (u <= camera.width_px) & (v >= 0.0) & (v <= camera.height_px)
    return u, v, is_visible


# ------------------------------------------------------------------------------- cameras of photos


@dataclass(frozen=True)
class CameraOverrides:
    """What is said of a camera beside its photo; None leaves it to the photo's metadata.

    A pinhole's `focal_px` stands for `hfov_deg`, whatever the width of the photo; `principal_px` is
    that of `Camera`. Both are calibrations in pixels of the photo as it is.
    """

    projection: str | None = None
    hfov_deg: float | None = None
    vfov_top_deg: float | None = None
    vfov_bottom_deg: float | None = None
    pitch_deg: float | None = None
    roll_deg: float | None = None
    focal_px: float | None = None
    principal_px: tuple[float, float] | None = None
    height_m: float | None = None


def camera_from_photo(
    photo: str | Path | Image.Image, overrides: CameraOverrides | None = None
) -> Camera:
    """The camera of a photo: overrides first, then XMP-GPano, then EXIF, then the rule of thumb.

    The rule of thumb: a photo twice as wide as high (within 1 %) is a full panorama, anything else
    a pinhole of an assumed field of view (`is_assumed`). Sizes are those after EXIF orientation.

    Raises:
        PhotoError: the file is missing or not an image.
        CameraError: the description contradicts itself, or XMP names an unsupported projection.
    """
    if isinstance(photo, Image.Image):
        return camera_from_metadata(
            read_metadata(photo), size_px=oriented_size_px(photo), overrides=overrides
        )
    with open_image(photo) as image:
        return camera_from_photo(image, overrides)


def camera_from_metadata(
    metadata: PhotoMetadata,
    *,
    size_px: tuple[int, int],
    overrides: CameraOverrides | None = None,
) -> Camera:
    """As `camera_from_photo`, from metadata that were read before; `size_px` is (height, width)."""
    said = overrides or CameraOverrides()
    if _decide_projection(metadata, size_px, said) == "equirectangular":
        return _panorama(metadata, size_px, said)
    return _pinhole(metadata, size_px, said)


def _decide_projection(
    metadata: PhotoMetadata, size_px: tuple[int, int], said: CameraOverrides
) -> Projection:
    named = said.projection or metadata.projection
    if named == "equirectangular":
        return "equirectangular"
    if named == "pinhole":
        return "pinhole"
    if named is not None:
        raise CameraError(
            f"projection {named!r} is not supported; expected equirectangular or pinhole: "
            "say which one comes nearest, or convert the photo"
        )
    if said.focal_px is not None:
        return "pinhole"
    if said.hfov_deg is not None:
        return "equirectangular" if said.hfov_deg >= 180.0 else "pinhole"
    if said.vfov_top_deg is not None:
        return "equirectangular"
    if metadata.focal_35mm is not None:
        return "pinhole"
    height_px, width_px = size_px
    is_sphere = abs(width_px / (2.0 * height_px) - 1.0) <= 0.01
    return "equirectangular" if is_sphere else "pinhole"


def _panorama(metadata: PhotoMetadata, size_px: tuple[int, int], said: CameraOverrides) -> Camera:
    has_range = said.vfov_top_deg is not None or said.vfov_bottom_deg is not None
    source = said if has_range else metadata
    return Camera(
        projection="equirectangular",
        height_px=size_px[0],
        width_px=size_px[1],
        hfov_deg=_first(said.hfov_deg, metadata.hfov_deg, 360.0),
        vfov_top_deg=source.vfov_top_deg,
        vfov_bottom_deg=source.vfov_bottom_deg,
        pitch_deg=_first(said.pitch_deg, metadata.pitch_deg, 0.0),
        roll_deg=_first(said.roll_deg, metadata.roll_deg, 0.0),
        height_m=said.height_m,
    )


def _pinhole(metadata: PhotoMetadata, size_px: tuple[int, int], said: CameraOverrides) -> Camera:
    told_deg = said.hfov_deg
    if told_deg is None and said.focal_px is not None:
        told_deg = math.degrees(2.0 * math.atan(size_px[1] / (2.0 * said.focal_px)))
    if told_deg is None and metadata.focal_35mm is not None:
        told_deg = hfov_from_focal_35mm(metadata.focal_35mm, size_px=size_px)
    return Camera(
        projection="pinhole",
        height_px=size_px[0],
        width_px=size_px[1],
        hfov_deg=_assumed_hfov_deg(ASSUMED_FOV_DEG, size_px) if told_deg is None else told_deg,
        vfov_top_deg=said.vfov_top_deg,
        vfov_bottom_deg=said.vfov_bottom_deg,
        pitch_deg=_first(said.pitch_deg, metadata.pitch_deg, 0.0),
        roll_deg=_first(said.roll_deg, metadata.roll_deg, 0.0),
        is_assumed=told_deg is None,
        principal_px=said.principal_px,
        height_m=metadata.height_m if said.height_m is None else said.height_m,
    )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def hfov_from_focal_35mm(focal_35mm: float, *, size_px: tuple[int, int]) -> float:
    """Horizontal field of view of a photo from its 35 mm equivalent focal length.

    A 35 mm film frame is 36 x 24 mm (ISO 1007); the photo's long side is taken as the 36 mm, so a
    portrait photo spans less than a landscape one. Makers of 4:3 sensors who match diagonals
    instead (CIPA DCG-001) make this some 4 % too wide.

    Args:
        focal_35mm: EXIF tag FocalLengthIn35mmFilm, millimetres.
        size_px: (height, width) after orientation.
    """
    height_px, width_px = size_px
    frame_width_mm = 36.0 * width_px / max(height_px, width_px)
    return math.degrees(2.0 * math.atan(frame_width_mm / (2.0 * focal_35mm)))


def assumed_cameras(camera: Camera) -> tuple[Camera, ...]:
    """The cameras to average over: the camera itself, or five if its field of view is assumed.

    Those span 60 to 90 degrees along the photo's long side; a portrait photo is narrower across.
    """
    if not camera.is_assumed:
        return (camera,)
    size_px = (camera.height_px, camera.width_px)
    return tuple(
        replace(camera, hfov_deg=_assumed_hfov_deg(fov_deg, size_px))
        for fov_deg in ASSUMED_FOVS_DEG
    )


def assumed_heights(camera: Camera) -> tuple[Camera, ...]:
    """The cameras to average over of one that looks down.

    They are `ASSUMED_HEIGHTS_M` where its height is not known: field of view and height are one
    scale on the ground.
    """
    if camera.height_m is not None:
        return assumed_cameras(camera)
    return tuple(replace(camera, height_m=height_m) for height_m in ASSUMED_HEIGHTS_M)


def _assumed_hfov_deg(long_side_fov_deg: float, size_px: tuple[int, int]) -> float:
    if size_px[1] >= size_px[0]:
        return long_side_fov_deg
    half = math.tan(math.radians(long_side_fov_deg) / 2.0) * size_px[1] / size_px[0]
    return math.degrees(2.0 * math.atan(half))
