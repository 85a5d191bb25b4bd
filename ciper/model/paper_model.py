"""The paper's network as a model like any other: its hypotheses become evidence over poses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ciper.camera import Camera
from ciper.gallery.shards import AerialCodes
from ciper.logits import logsumexp
from ciper.model.hypotheses import PoseSet, Spread, best_chips, evidence_of
from ciper.model.matcher import Evidence
from ciper.model.model import (
    Bool,
    ChipFeatures,
    Images,
    Int,
    Model,
    PhotoCode,
    places_with_imagery,
    to_half,
)
from ciper.model.paper import PaperConfig, PaperGround, PaperNetwork
from ciper.model.released import Origin
from ciper.model.two_way import hypothesis_poses
from ciper.pose_grid import CELLS_PER_CHIP, NUM_COARSE

NUM_DECODED = 64
DECODED_AT_ONCE = 16


@dataclass(frozen=True)
class PaperModel(Model):
    """Retrieval by one descriptor per chip, poses by set prediction in the most similar chips.

    In a gallery its fine features are a chip's patches `(P, C)`, and its coarse ones `(16, 16)`
    tell which cells hold imagery. `origin` is what the authors trained a converted file on, None
    for a network of our own training.

    It computes in float32: in bfloat16 the hypotheses move by decimetres.
    """

    network: PaperNetwork
    origin: Origin | None = None

    @property
    def config(self) -> PaperConfig:
        """The network's configuration."""
        return self.network.config

    @property
    def says_heading(self) -> bool:
        """Whether its hypotheses tell headings apart."""
        return self.origin is None or self.origin.says_heading

    @property
    def is_metric(self) -> bool:
        """Whether a chip must have its gsd: no, it sees pixels."""
        return False

    @property
    def wants_north(self) -> bool:
        """Whether it was trained on panoramas with north in their middle."""
        return not self.says_heading

    @property
    def limits(self) -> tuple[str, ...]:
        """As `Model.limits`."""
        own = () if self.origin is None else self.origin.limits
        return (*(f"the model {self.model_name!r} {limit}" for limit in own), *super().limits)

    def misfit(self, camera: Camera) -> str | None:
        """As `Model.misfit`; a converted network sees every photo in the shape of its own."""
        if self.origin is None or self.origin.suits(camera):
            return None
        return (
            f"the model {self.model_name!r} was trained on {self.origin.photos}; another photo is "
            "squeezed into their shape, and its answer means little"
        )

    def views(
        self, pixels: NDArray[np.uint8], camera: Camera, *, heading_deg: float | None = None
    ) -> Images:
        """As `Model.views`; a converted network sees the whole photo, squeezed to its ground image.

        A panorama of a known heading is rolled to north for a network that was trained so.
        """
        if self.origin is None:
            return super().views(pixels, camera, heading_deg=heading_deg)
        if self.wants_north and camera.is_full_circle and heading_deg is not None:
            pixels = north_in_the_middle(pixels, heading_deg)
        size = (self.config.canvas_width_px, self.config.canvas_height_px)
        # Pillow's bilinear filter widens with the reduction, so that nothing aliases.
        squeezed = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
        canvases = np.array([np.asarray(squeezed)])
        return canvases, np.ones(canvases.shape[:3], dtype=np.bool_)

    def encode_photo(
        self, pixels: NDArray[np.uint8], camera: Camera, *, heading_deg: float | None = None
    ) -> PaperGround:
        """As `Model.encode_photo`; a squeezed photo does not show how much it sees."""
        code = self.encode_photos(*self.views(pixels, camera, heading_deg=heading_deg))
        if self.origin is None:
            return code
        share = torch.full_like(code.visible_share, min(camera.hfov_deg / 360.0, 1.0))
        return replace(code, visible_share=share)

    @torch.inference_mode()
    def encode(self, chips: NDArray[np.uint8], valid: Bool) -> AerialCodes:
        """As `Model.encode`: one descriptor, the cells with imagery, and the patches."""
        code = self.network.encode_aerial(self.to_device(chips), self.to_device(valid))
        cells = places_with_imagery(valid, NUM_COARSE**2).reshape(-1, NUM_COARSE, NUM_COARSE)
        return AerialCodes(
            descriptors=to_half(code.descriptors),
            coarse=cells.astype(np.float16),
            fine=to_half(code.patches),
        )

    @torch.inference_mode()
    def encode_photos(self, canvases: NDArray[np.uint8], visible: Bool) -> PaperGround:
        """As `Model.encode_photos`."""
        return self.network.encode_ground(self.to_device(canvases), self.to_device(visible))

    def cells_with_imagery(self, features: ChipFeatures) -> Bool:
        """As `Model.cells_with_imagery`: the coarse features are these cells."""
        return np.asarray(features.read_coarse().float().cpu().numpy() > 0.5)

    def match(
        self,
        code: PhotoCode,
        features: ChipFeatures,
        *,
        has_imagery: Bool | None = None,
        log_prior: NDArray[np.float32] | None = None,
    ) -> Evidence:
        """As `Model.match`: the mixture of the hypotheses in the most similar chips."""
        assert isinstance(code, PaperGround)
        logit = self.calibration.similarity_scale * self.cosine(code, features)
        of_chip = logsumexp(logit, axis=1)
        if has_imagery is None:
            has_imagery = np.ones((len(of_chip), NUM_COARSE, NUM_COARSE), dtype=np.bool_)
        chosen = best_chips(of_chip, NUM_DECODED, log_prior=log_prior)
        # Of a decoded chip each view brings its own hypotheses, at its own share of the mass.
        share = logit[chosen] - of_chip[chosen, None]
        evidence = evidence_of(
            of_chip,
            self.decode(code, chosen, features, share),
            self.spread,
            has_imagery=has_imagery,
            coarse_m=self.chip_m / CELLS_PER_CHIP,
            log_prior=log_prior,
        )
        return replace(evidence, visible_share=float(code.visible_share.mean()))

    def cosine(self, code: PaperGround, features: ChipFeatures) -> NDArray[np.float64]:
        """Similarity `(R, M)` of R chips to the M views of a photo."""
        references = np.asarray(features.read_descriptors())[:, 0].astype(np.float64)
        return np.asarray(references @ code.descriptor.double().cpu().numpy().T)

    def best_in_chip(self, code: PhotoCode, features: ChipFeatures) -> NDArray[np.float64]:
        """As `Model.best_in_chip`: the most confident hypothesis, also outside the central half."""
        assert isinstance(code, PaperGround)
        num_views = len(code.descriptor)
        share = np.full((1, num_views), -np.log(num_views))
        found = self.decode(code, np.zeros(1, np.int64), features, share)
        pose = np.array(found.pose[0, found.log_weight[0].argmax()], dtype=np.float64)
        if not self.says_heading:
            pose[2] = np.nan
        return pose

    @property
    def spread(self) -> Spread:
        """Of one hypothesis."""
        heading_deg = self.calibration.heading_sigma_deg if self.says_heading else None
        return Spread(self.calibration.position_sigma_m, heading_deg)

    @torch.inference_mode()
    def decode(
        self, code: PaperGround, chips: Int, features: ChipFeatures, log_share: NDArray[np.float64]
    ) -> PoseSet:
        """Hypotheses of every view in some chips.

        Args:
            code: of M views.
            chips: `(U,)` of the features' R.
            features: of the chips.
            log_share: `(U, M)` of each view in a chip's mass.
        """
        one_by_one = zip(code.descriptor, code.pose_token, code.visible_share, strict=True)
        views = [PaperGround(*(value[None] for value in view)) for view in one_by_one]
        weights, poses = [], []
        for start in range(0, len(chips), DECODED_AT_ONCE):
            part = slice(start, start + DECODED_AT_ONCE)
            patches = features.read_fine(chips[part]).to(code.pose_token.dtype)
            found = [self.network.decode(view, patches) for view in views]
            logit = torch.stack([f.logit.double().log_softmax(-1) for f in found], dim=1)
            pose = torch.stack([hypothesis_poses(f.pose.double(), self.chip_m) for f in found], 1)
            log_weight = logit.cpu().numpy() + log_share[part, :, None]
            weights.append(log_weight.reshape(len(log_weight), -1))
            poses.append(pose.flatten(1, 2).cpu().numpy())
        return PoseSet(chips, np.concatenate(weights), np.concatenate(poses))


def north_in_the_middle(panorama: NDArray[np.uint8], heading_deg: float) -> NDArray[np.uint8]:
    """A full panorama `(H, W, 3)` turned so that its middle column looks north.

    What stood in the middle, at bearing `heading_deg`, moves right by that angle.
    """
    return np.roll(panorama, round(heading_deg / 360.0 * panorama.shape[1]), axis=1)
