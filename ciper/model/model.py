"""A model, ready for use: photos and chips in, codes and evidence out.

`Model` is all that indexing, localizing and evaluating know of; `CiperModel` is our network behind
it, `ciper.model.paper_model.PaperModel` the paper's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ciper.camera import Camera, assumed_cameras, assumed_heights
from ciper.checkpoint import knows_level_photos
from ciper.data.plan_view import to_plan
from ciper.data.preprocess import CanvasSpec, canvas_spec_for, to_canvas
from ciper.device import fast_dtype, mixed_precision
from ciper.errors import ConfigError
from ciper.gallery.shards import AerialCodes
from ciper.model.calibration import Calibration
from ciper.model.matcher import Evidence, glance, match
from ciper.model.network import GroundCode, Network
from ciper.model.paper import PaperGround
from ciper.pose_grid import NUM_COARSE, snapped

Int = NDArray[np.int64]
Bool = NDArray[np.bool_]
Images = tuple[NDArray[np.uint8], Bool]
PhotoCode = GroundCode | PaperGround


@dataclass(frozen=True)
class ChipFeatures:
    """What a gallery holds of R chips, read when it is asked for.

    Attributes:
        read_descriptors: reads the descriptors `(R, L, D)`.
        read_coarse: reads the coarse features `(R, ...)`, on the model's device.
        read_fine: reads the fine features `(U, ...)`, on the model's device, of some chips `(U,)`.
    """

    read_descriptors: Callable[[], NDArray[np.float16]]
    read_coarse: Callable[[], torch.Tensor]
    read_fine: Callable[[Int], torch.Tensor]

    @classmethod
    def of_codes(cls, codes: AerialCodes, device: str) -> ChipFeatures:
        """Of chips that were encoded just now."""
        fine = torch.from_numpy(codes.fine)
        return cls(
            read_descriptors=lambda: codes.descriptors,
            read_coarse=lambda: torch.from_numpy(codes.coarse).to(device, fast_dtype(device)),
            read_fine=lambda chips: fine[torch.from_numpy(chips)].to(device),
        )


class InputConfig(Protocol):
    """What every network's configuration says of its inputs, see `NetworkConfig`."""

    @property
    def chip_px(self) -> int:
        """Pixels along a chip's side."""

    @property
    def gsd(self) -> float:
        """Metres per pixel of a chip."""

    @property
    def canvas_height_px(self) -> int:
        """Rows of the canvas."""

    @property
    def canvas_width_px(self) -> int:
        """Columns of the canvas."""

    @property
    def elevation_top_deg(self) -> float:
        """Elevation of the canvas's upper edge."""

    @property
    def elevation_bottom_deg(self) -> float:
        """Elevation of the canvas's lower edge."""


@dataclass(frozen=True)
class Model(ABC):
    """A network in evaluation mode with its calibration.

    Attributes:
        network: the network.
        model_name: what people call the weights.
        model_hash: tells the network and its weights from others, see `load.weights_hash`.
        calibration: of its probabilities.
        device: where it runs.
        header: what the weights file says of itself.
    """

    network: nn.Module
    model_name: str
    model_hash: str
    calibration: Calibration = field(default_factory=Calibration)
    device: str = "cpu"
    header: Mapping[str, Any] = field(default_factory=dict)

    @property
    @abstractmethod
    def config(self) -> InputConfig:
        """The network's configuration."""

    @property
    def chip_px(self) -> int:
        """Pixels along a chip's side."""
        return self.config.chip_px

    @property
    def gsd(self) -> float:
        """Metres per pixel of a chip."""
        return self.config.gsd

    @property
    def chip_m(self) -> float:
        """Metres along a chip's side."""
        return self.chip_px * self.gsd

    @property
    def says_heading(self) -> bool:
        """Whether its evidence tells headings apart."""
        return True

    @property
    def is_metric(self) -> bool:
        """Whether a chip must have its gsd; else its metres are shares of any chip's side."""
        return True

    @property
    def wants_north(self) -> bool:
        """Whether it takes the middle of a panorama for north."""
        return False

    @property
    def limits(self) -> tuple[str, ...]:
        """What whoever reads its answers must know."""
        is_fitted_from_above = self.calibration.plan is not None
        if self.calibration.is_fitted or (
            # Of level photos `misfit` has worse to say.
            is_fitted_from_above and not knows_level_photos(self.header)
        ):
            return ()
        photos = "" if not is_fitted_from_above else " for photos that do not look down"
        return (
            f"the model {self.model_name!r} is not calibrated{photos}: its radii and probabilities "
            "are rough, and no confidence is stated; see ciper calibrate",
        )

    def misfit(self, camera: Camera) -> str | None:
        """Why photos of a camera are not what it was trained on, if that is so."""
        return None

    @property
    def canvas(self) -> CanvasSpec:
        """The ground input's geometry."""
        config = self.config
        return CanvasSpec(
            config.canvas_height_px,
            config.canvas_width_px,
            config.elevation_top_deg,
            config.elevation_bottom_deg,
        )

    def check_grid(self, *, chip_m: float, stride_m: float) -> None:
        """Refuses grids that the posterior cannot answer for.

        A chip answers for its central half: with a larger stride places would be lost, with a
        smaller one every pose would count several times.

        Raises:
            ConfigError: chips or strides of other sizes.
        """
        wanted_m = (self.chip_m, self.chip_m / 2)
        if (snapped(chip_m, wanted_m[0]), snapped(stride_m, wanted_m[1])) != wanted_m:
            raise ConfigError(
                f"chips of {chip_m:g} m every {stride_m:g} m do not suit the model "
                f"{self.model_name!r}; expected chips of {wanted_m[0]:g} m every {wanted_m[1]:g} m"
            )

    def views(
        self, pixels: NDArray[np.uint8], camera: Camera, *, heading_deg: float | None = None
    ) -> Images:
        """A photo as the network's ground input: one view per camera that may have taken it.

        Args:
            pixels: (H, W, 3) the photo.
            camera: its camera.
            heading_deg: where it looked, if that is known; most models do not care.

        Returns:
            canvases (M, h, w, 3) and what of them is visible (M, h, w).
        """
        spec = canvas_spec_for(camera, self.canvas)
        views = [to_canvas(pixels, c, spec=spec) for c in assumed_cameras(camera)]
        return np.stack([canvas for canvas, _ in views]), np.stack([seen for _, seen in views])

    def encode_photo(
        self, pixels: NDArray[np.uint8], camera: Camera, *, heading_deg: float | None = None
    ) -> PhotoCode:
        """Codes of a photo's `views`: one, or one per camera that may have taken it."""
        return self.encode_photos(*self.views(pixels, camera, heading_deg=heading_deg))

    @abstractmethod
    def encode(self, chips: NDArray[np.uint8], valid: Bool) -> AerialCodes:
        """Codes of chips `(B, H, W, 3)` with the mask of their imagery `(B, H, W)`."""

    @abstractmethod
    def encode_photos(self, canvases: NDArray[np.uint8], visible: Bool) -> PhotoCode:
        """Codes of canvases `(B, h, w, 3)` with what of them is visible `(B, h, w)`."""

    @abstractmethod
    def cells_with_imagery(self, features: ChipFeatures) -> Bool:
        """`(R, 16, 16)` coarse cells that hold imagery, so that a camera can be there at all."""

    @abstractmethod
    def match(
        self,
        code: PhotoCode,
        features: ChipFeatures,
        *,
        has_imagery: Bool | None = None,
        log_prior: NDArray[np.float32] | None = None,
    ) -> Evidence:
        """Evidence of one photo over R chips.

        Args:
            code: of M views of the photo, equally probable.
            features: of the chips.
            has_imagery: `(R, 16, 16)` cells that can hold the camera at all; None if all can.
            log_prior: `(R, 32, 16, 16)`, decides what is looked at closely; the evidence is free
                of it.
        """

    def glance(
        self, code: PhotoCode, features: ChipFeatures, has_imagery: Bool
    ) -> NDArray[np.float32] | None:
        """Log evidence `(R,)` of chips as `match` would find it, cheaply and roughly.

        None where the model's descriptors are the better guide to which chips to match.
        """
        return None

    def best_in_chip(self, code: PhotoCode, features: ChipFeatures) -> NDArray[np.float64] | None:
        """The answer to a photo in the one chip of `features`, if the network itself names it.

        Returns:
            x_m, y_m, heading_deg `(3,)`, NaN if unknown; None where it is the posterior's mode.
        """
        return None

    def to_device(self, array: NDArray[Any]) -> torch.Tensor:
        """An array as a tensor where the network is."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


@dataclass(frozen=True)
class CiperModel(Model):
    """Our network: descriptors of places, and correlation of templates with feature maps."""

    network: Network

    @property
    def config(self) -> InputConfig:
        """The network's configuration."""
        return self.network.config

    def misfit(self, camera: Camera) -> str | None:
        """As `Model.misfit`: it knows level photos, and with a plan head those from above."""
        canvas, has_plan = self.canvas, self.network.plan is not None
        if has_plan and camera.looks_down:
            return None
        if not knows_level_photos(self.header):
            return (
                f"the model {self.model_name!r} was trained on photos that look straight down "
                "alone; of others its answer means nothing: take the model 'ground'"
            )
        if canvas.elevation_bottom_deg <= camera.pitch_deg <= canvas.elevation_top_deg:
            return None
        known = " and photos that look straight down" if has_plan else ""
        return (
            f"the model {self.model_name!r} was trained on level photos{known}; of one with a "
            f"pitch of {camera.pitch_deg:.0f} deg its answer means little"
        )

    def views(
        self, pixels: NDArray[np.uint8], camera: Camera, *, heading_deg: float | None = None
    ) -> Images:
        """As `Model.views`; of a camera that looks down they are plan views `(M, H, H, 3)`."""
        if self.network.plan is None or not camera.looks_down:
            return super().views(pixels, camera, heading_deg=heading_deg)
        config = self.network.config
        views = [
            to_plan(pixels, c, size_px=config.chip_px, gsd=config.gsd)
            for c in assumed_heights(camera)
        ]
        return np.stack([plan for plan, _ in views]), np.stack([seen for _, seen in views])

    @torch.inference_mode()
    def encode(self, chips: NDArray[np.uint8], valid: Bool) -> AerialCodes:
        """As `Model.encode`: 64 descriptors, a coarse and a fine map per chip."""
        with mixed_precision(self.device):
            code = self.network.encode_aerial(self.to_device(chips), self.to_device(valid))
        codes = AerialCodes(*(to_half(t) for t in (code.descriptors, code.coarse, code.fine)))
        codes.descriptors[~places_with_imagery(valid, codes.descriptors.shape[1])] = np.nan
        return codes

    @torch.inference_mode()
    def encode_photos(self, canvases: NDArray[np.uint8], visible: Bool) -> GroundCode:
        """As `Model.encode_photos`."""
        with mixed_precision(self.device):
            return self.network.encode_ground(self.to_device(canvases), self.to_device(visible))

    def cells_with_imagery(self, features: ChipFeatures) -> Bool:
        """As `Model.cells_with_imagery`: a descriptor is NaN where there is none."""
        is_there = np.isfinite(np.asarray(features.read_descriptors())[:, :, 0])
        side = round(is_there.shape[1] ** 0.5)
        cells = is_there.reshape(-1, side, side)
        return cells.repeat(NUM_COARSE // side, axis=1).repeat(NUM_COARSE // side, axis=2)

    def glance(
        self, code: PhotoCode, features: ChipFeatures, has_imagery: Bool
    ) -> NDArray[np.float32]:
        """As `Model.glance`: at every second row, column and heading."""
        assert isinstance(code, GroundCode)
        return glance(self.network, code, features.read_coarse(), has_imagery)

    def match(
        self,
        code: PhotoCode,
        features: ChipFeatures,
        *,
        has_imagery: Bool | None = None,
        log_prior: NDArray[np.float32] | None = None,
    ) -> Evidence:
        """As `Model.match`."""
        assert isinstance(code, GroundCode)
        return match(
            self.network,
            code,
            features.read_coarse(),
            features.read_fine,
            has_imagery=has_imagery,
            log_prior=log_prior,
        )


def places_with_imagery(valid: Bool, num_places: int) -> Bool:
    """Which places of the chips' central halves show any imagery.

    Args:
        valid: `(B, H, W)` pixels with imagery.
        num_places: P, in rows from the north, as many as columns.

    Returns:
        `(B, P)`.
    """
    batch, height, width = valid.shape
    side = round(num_places**0.5)
    central = valid[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
    for axis in (1, 2):
        edges = np.arange(side) * central.shape[axis] // side
        central = np.logical_or.reduceat(central, edges, axis=axis)
    return np.asarray(central.reshape(batch, num_places))


def to_half(tensor: torch.Tensor) -> NDArray[np.float16]:
    """As galleries keep it."""
    half: NDArray[np.float16] = tensor.to(torch.float16).cpu().numpy()
    return half
