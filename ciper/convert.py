"""Convert a checkpoint of the authors' code into a model like any other.

The file does not tell how large a chip is on the ground, so the data set that it was trained on
must be named. Nothing is trained or rounded: the weights stay float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from ciper.checkpoint import read_safetensors, save_checkpoint
from ciper.config import to_dict
from ciper.errors import CheckpointError, ConfigError, OutputError
from ciper.model.calibration import Calibration
from ciper.model.paper import PaperConfig, PaperNetwork
from ciper.model.released import Dataset, Origin, read_released

# Sides of chips in metres: 640 px of VIGOR at 0.111 m/px, the mean of its four cities (0.101 to
# 0.118); KITTI's and Ford's 512-px centre crops.
SIDES_M: Mapping[Dataset, float] = {"vigor": 640 * 0.111, "kitti": 100.27, "ford": 112.6}
# What `--gsd` counts: pixels along a chip as the data set has it.
SIDES_PX: Mapping[Dataset, int] = {"vigor": 640, "kitti": 512, "ford": 512}
# Published medians of the decoder's errors, metres and degrees: VIGOR and KITTI cross-area, Ford's
# Log1; of chips turned to within 10 deg of the heading, and of chips turned anyhow. VIGOR's metres
# were counted with 512 px for 640, and its headings never varied.
MEDIANS: Mapping[tuple[Dataset, float], tuple[float, float | None]] = {
    ("vigor", 180.0): (4.79 * 640 / 512, None),
    ("kitti", 10.0): (6.44, 1.06),
    ("kitti", 180.0): (11.33, 4.48),
    ("ford", 10.0): (10.14, 0.63),
    ("ford", 180.0): (9.96, 0.62),
}
# In standard deviations: medians of the length of an error in the plane, and of an angle's size.
RAYLEIGH_MEDIAN, HALF_NORMAL_MEDIAN = 1.1774, 0.6745
LARGEST_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        config: of the network.
        num_parameters: of the network.
        differences: largest absolute difference from what the authors' network computes, by
            output; empty if nothing was compared.
    """

    config: PaperConfig
    num_parameters: int
    differences: Mapping[str, float]

    @property
    def is_right(self) -> bool:
        """Whether no difference is too large (NaN is), so that the file was written."""
        return all(value <= LARGEST_DIFFERENCE for value in self.differences.values())


def convert(
    source: Path,
    out: Path,
    dataset: str,
    *,
    gsd: float | None = None,
    heading_range_deg: float = 180.0,
    verify: Path | None = None,
) -> Conversion:
    """Writes a released checkpoint as weights that every verb takes.

    Args:
        source: the authors' `.pth` file; a `config.json` beside it is read too.
        out: weights file to write; it is not written if the comparison fails.
        dataset: what it was trained on: vigor, kitti or ford.
        gsd: metres per pixel of a chip as the data set has it (VIGOR's 640 px, otherwise the
            512-px crop); None takes the published one.
        heading_range_deg: to within which KITTI's and Ford's chips had been turned to the photo's
            heading in its training: 10, or 180 for any heading. No file tells.
        verify: inputs and the outputs of the authors' network, to compare with.

    Raises:
        ConfigError: another data set, an impossible gsd, or another range of headings.
        CheckpointError: a file cannot be read or is of another network.
        OutputError: `out` is one of the inputs or cannot be written.
    """
    origin = Origin(_known(dataset), _side_m(_known(dataset), gsd), heading_range_deg)
    calibration = _start(origin)
    _check_out(out, (source, verify))
    released = read_released(source, side_m=origin.side_m)
    network = PaperNetwork(released.config)
    network.load_state_dict(released.weights)
    conversion = Conversion(
        config=released.config,
        num_parameters=sum(p.numel() for p in network.parameters()),
        differences={} if verify is None else differences_from(network.eval(), verify),
    )
    if conversion.is_right:
        header = {
            "config": {"model": "paper", "paper": to_dict(released.config)},
            "origin": to_dict(origin),
            "calibration": to_dict(calibration),
            "epoch": released.epoch,
        }
        state = {f"model.{name}": value for name, value in released.weights.items()}
        save_checkpoint(out, state, header)
    return conversion


def _check_out(out: Path, inputs: Iterable[Path | None]) -> None:
    for path in inputs:
        if path is not None and out.exists() and path.exists() and out.samefile(path):
            raise OutputError(
                f"{out} is {path} itself, which is read; expected another file for the weights"
            )


def _start(origin: Origin) -> Calibration:
    """Spreads that a hypothesis has by the published errors; nothing else is known."""
    held = MEDIANS.get((origin.dataset, origin.heading_range_deg))
    if held is None:
        ranges = ", ".join(f"{deg:g}" for dataset, deg in MEDIANS if dataset == origin.dataset)
        raise ConfigError(
            f"--heading-range {origin.heading_range_deg:g}: {origin.dataset} has no such training; "
            f"expected {ranges}"
        )
    position_m, heading_deg = held
    start = Calibration(position_sigma_m=position_m / RAYLEIGH_MEDIAN, is_fitted=False)
    if heading_deg is None:
        return start
    return replace(start, heading_sigma_deg=heading_deg / HALF_NORMAL_MEDIAN)


def _known(dataset: str) -> Dataset:
    for name in get_args(Dataset):
        if dataset == name:
            known: Dataset = name
            return known
    raise ConfigError(
        f"--dataset {dataset!r} is unknown; expected one of {', '.join(get_args(Dataset))}: it "
        "decides how large a chip is and how photos are shown to the network"
    )


def _side_m(dataset: Dataset, gsd: float | None) -> float:
    if gsd is None:
        return SIDES_M[dataset]
    if not (isfinite(gsd) and gsd > 0):
        raise ConfigError(f"--gsd {gsd:g} is no size of a pixel; expected metres above 0")
    return gsd * SIDES_PX[dataset]


# ------------------------------------------------------------------------------------- comparison

INPUTS = ("ground", "aerial")
OUTPUTS = (
    "ground_descriptor", "ground_pose_token", "aerial_descriptor", "aerial_pose_token",
    "aerial_patches", "pred_logits", "pred_boxes",
)  # fmt: skip


def differences_from(network: PaperNetwork, expected: Path) -> dict[str, float]:
    """Largest absolute difference per output from what a file says; NaN if one is not a number.

    Args:
        network: in evaluation mode.
        expected: safetensors with `ground (B, 3, h, w)` and `aerial (B, 3, H, W)`, normalised, and
            the outputs of the authors' network for them, as `outputs_of` names them.

    Raises:
        CheckpointError: the file cannot be read, or is of a network of other sizes.
    """
    held = read_safetensors(expected)
    missing = [name for name in (*INPUTS, *OUTPUTS) if name not in held]
    if missing:
        raise CheckpointError(f"{expected}: lacks {', '.join(missing)}; expected all of them.")
    config = network.config
    for name, size in (
        ("ground", (3, config.canvas_height_px, config.canvas_width_px)),
        ("aerial", (3, config.chip_px, config.chip_px)),
    ):
        if tuple(held[name].shape[1:]) != size or len(held[name]) != len(held["ground"]):
            raise CheckpointError(
                f"{expected}: {name} has shape {tuple(held[name].shape)}; expected (B, "
                f"{', '.join(map(str, size))}) of this network."
            )
    found = outputs_of(network, held["ground"].float(), held["aerial"].float())
    return {name: _difference(expected, name, found[name], held[name]) for name in OUTPUTS}


def _difference(expected: Path, name: str, found: Tensor, said: Tensor) -> float:
    if found.shape != said.shape:
        raise CheckpointError(
            f"{expected}: {name} has shape {tuple(said.shape)}; the network gives "
            f"{tuple(found.shape)}."
        )
    return float((found.double() - said.double()).abs().max())


@torch.inference_mode()
def outputs_of(network: PaperNetwork, ground: Tensor, aerial: Tensor) -> dict[str, Tensor]:
    """Everything that the authors' network computes for pairs, by the names of their outputs.

    Descriptors are not brought to unit length.

    Args:
        network: in evaluation mode.
        ground: `(B, 3, h, w)` normalised.
        aerial: `(B, 3, H, W)` normalised.
    """
    photos = network.ground_tokens(_as_seen(ground))
    chips = network.aerial_tokens(_as_seen(aerial))
    found = network.decode(network.ground_code(photos, torch.ones(len(ground))), chips.patches)
    return {
        "ground_descriptor": network.ground_features(photos),
        "ground_pose_token": photos.pose_token,
        "aerial_descriptor": network.aerial_features(chips),
        "aerial_pose_token": chips.pose_token,
        "aerial_patches": chips.patches,
        "pred_logits": found.logit,
        "pred_boxes": found.pose,
    }


def _as_seen(image: Tensor) -> Tensor:
    """`(B, 3, H, W)` to `(B, H, W, 4)`: all of it visible."""
    return torch.cat([image, torch.ones_like(image[:, :1])], dim=1).permute(0, 2, 3, 1)
