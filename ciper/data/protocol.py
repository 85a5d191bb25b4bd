"""One photo with the aerial chip that shows its place, whatever data set it is from.

A `Sample` says where the files lie, how the chip is cut and where the camera stands; a `Protocol`
which samples a split asks for and in what gallery they are looked for. No pixel is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ciper.camera import CameraOverrides
from ciper.geo import forward, right, wrap_deg
from ciper.geodesic import SEMI_MAJOR_M, moved, radii_of_curvature


@dataclass(frozen=True)
class AerialImage:
    """A square aerial image of a data set: true north up, square pixels.

    Attributes:
        path: of the file.
        lat, lon: of its centre, WGS84.
        gsd: metres per pixel.
        side_px: pixels along its side, as published.
        is_mercator: its pixels are those of Web Mercator, and `gsd` is theirs on the sphere at the
            centre's latitude: up to 0.7 % off the ellipsoid's, along one axis more than the other.
    """

    path: Path
    lat: float
    lon: float
    gsd: float
    side_px: int
    is_mercator: bool = False

    @property
    def true_metres(self) -> tuple[float, float]:
        """Metres on the ellipsoid, east and north, that one of its metres stands for."""
        if not self.is_mercator:
            return 1.0, 1.0
        meridional_m, prime_vertical_m = radii_of_curvature(self.lat)
        return prime_vertical_m / SEMI_MAJOR_M, meridional_m / SEMI_MAJOR_M

    @property
    def side_m(self) -> float:
        """Metres along its side."""
        return self.side_px * self.gsd


@dataclass(frozen=True)
class Cut:
    """How a chip is cut out of an aerial image.

    Attributes:
        x_m, y_m: the chip's centre, east and north of the image's.
        up_deg: where the chip's up points, clockwise from true north.
        side_m: the chip's side as the data set's authors cut it.
    """

    x_m: float
    y_m: float
    up_deg: float
    side_m: float


@dataclass(frozen=True)
class Told:
    """What a protocol tells of a pose beforehand, in the chip's frame.

    Attributes:
        heading_deg: a guess of the heading, clockwise from the chip's up.
        heading_within_deg: by how much the guess may be wrong; 180 tells nothing.
        within_m: the camera lies within so much of the chip's centre along both of the chip's axes.
    """

    heading_deg: float
    heading_within_deg: float
    within_m: float


@dataclass(frozen=True)
class Sample:
    """One query of a data set.

    The photo's heading is that of the middle of what is shown of it (of the viewing axis of a
    pinhole). Where a panorama is turned or cut to a sector, `turn_deg` and `fov_deg` say so: the
    shown middle lies `turn_deg` clockwise of the file's, and `heading_deg` is the shown one's.

    Attributes:
        name: tells it from all others of its protocol, and is the same on every machine.
        photo: file.
        camera: what the data set says of the camera.
        x_m, y_m: the camera, east and north of the aerial image's centre, in the image's metres.
        heading_deg: clockwise from true north, [0, 360).
        image: the aerial image that shows the place.
        cut: the published chip.
        told: what the protocol tells.
        turn_deg: how far a panorama is turned before it is shown.
        fov_deg: the sector of a panorama that is shown.
    """

    name: str
    photo: Path
    camera: CameraOverrides
    x_m: float
    y_m: float
    heading_deg: float
    image: AerialImage
    cut: Cut
    told: Told
    turn_deg: float = 0.0
    fov_deg: float = 360.0

    @property
    def position(self) -> tuple[float, float]:
        """The camera's latitude and longitude, WGS84."""
        east, north = self.image.true_metres
        lat, lon = moved(
            lat=self.image.lat, lon=self.image.lon, x_m=east * self.x_m, y_m=north * self.y_m
        )
        return float(lat), float(lon)

    @property
    def pose(self) -> tuple[float, float, float]:
        """The camera in its chip: metres right and up of the centre, heading clockwise from up."""
        offset = np.array([self.x_m - self.cut.x_m, self.y_m - self.cut.y_m])
        x_m, y_m = offset @ right(self.cut.up_deg), offset @ forward(self.cut.up_deg)
        return float(x_m), float(y_m), float(wrap_deg(self.heading_deg - self.cut.up_deg))


@dataclass(frozen=True)
class Protocol:
    """What a split of a data set asks.

    Attributes:
        dataset: vigor, kitti or ford.
        settings: all that was chosen, such as the split and the labels, for the report.
        samples: the queries.
        references: the published gallery; empty where each query's own chip is its reference.
        true: (Q,) index of each query's reference in `references`.
        semi_positives: for each query the other references that show its place.
        notes: what a reader of figures must know of them.
    """

    dataset: str
    settings: Mapping[str, str]
    samples: tuple[Sample, ...]
    references: tuple[AerialImage, ...] = ()
    true: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    semi_positives: tuple[NDArray[np.int64], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def has_gallery(self) -> bool:
        """Whether references compete that do not know the query's pose."""
        return bool(self.references)
