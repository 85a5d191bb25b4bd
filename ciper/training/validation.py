"""Validation during training: how good the weights are on places that nobody trains or tests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ciper.data.batches import Pairs
from ciper.model.matcher import MatchConfig, best_pose, match_codes
from ciper.model.network import AerialCode, GroundCode, Network
from ciper.model.paper import PaperNetwork
from ciper.model.set_criterion import select
from ciper.training.gradients import autocast, encode, take
from ciper.training.recipe import OptimConfig

Float = NDArray[np.floating[Any]]

# Of one chip few modes need a closer look.
ONE_CHIP = MatchConfig(num_windows=4)
WITHIN_M = 6.0


@dataclass(frozen=True)
class Best:
    """The best validation of a run so far: its score (lower is better) and its step.

    `num_since` validations have come after it, `is_new` tells whether it is the latest one.
    """

    score: float | None = None
    step: int = 0
    num_since: int = 0

    @property
    def is_new(self) -> bool:
        """Whether the last validation was the best one."""
        return self.num_since == 0

    def after(self, score: float, step: int) -> Best:
        """What is known after one more validation; NaN is never better."""
        is_better = score < (float("inf") if self.score is None else self.score)
        if is_better:
            return Best(score, step)
        return replace(self, num_since=self.num_since + 1)


@torch.no_grad()
def validate(
    network: nn.Module,
    criterion: nn.Module,
    pairs: Pairs,
    config: OptimConfig,
    device: torch.device,
) -> dict[str, float]:
    """Losses, statistics and errors of the answers on the validation pairs.

    The pairs, their augmentation and the criterion's choices are the same every time; as many
    photos become pinhole views as at the end of the run. Batches are of equal size, or nearly:
    losses, which depend on it, can be compared.

    Returns:
        By name: means of losses and statistics over the pairs, `pose_figures` of all pairs
        together in place of the statistics of the same names, and "score", which early stopping
        compares.
    """
    photos = pairs.sample(0, config.validate_pairs)
    parts = np.array_split(photos, -(-len(photos) // config.batch_size))
    was_training = network.training
    network.eval()
    rows, found, true = [], [], []
    for index, part in enumerate(parts):
        batch = pairs.pairs(part, (0, index), narrow_share=config.narrow_share[1])
        moved = batch.to(device)
        with autocast(device, config.precision):
            ground, aerial = encode(network, moved)
            losses, stats = criterion(
                network, ground, aerial, moved, torch.Generator().manual_seed(index)
            )
            found.append(true_chip_poses(network, ground, aerial))
        true.append(batch.pose.numpy().astype(np.float64))
        rows.append({name: float(value) for name, value in {**losses, **stats}.items()})
    network.train(was_training)
    metrics = {
        **_means(rows, [len(part) for part in parts]),
        **pose_figures(np.concatenate(found), np.concatenate(true)),
    }
    return {**metrics, "score": score(metrics)}


def _means(rows: Sequence[Mapping[str, float]], sizes: Sequence[int]) -> dict[str, float]:
    return {name: float(np.average([row[name] for row in rows], weights=sizes)) for name in rows[0]}


def true_chip_poses(network: nn.Module, ground: Any, aerial: Any) -> Float:
    """The network's answers when each photo is held against its own chip alone.

    That is the pose of highest evidence, in fine cells and by the refiner's judgement, or the most
    confident hypothesis.

    Args:
        network: ours or the paper's, in evaluation mode.
        ground: codes of B photos.
        aerial: codes of B chips.

    Returns:
        `(B, 3)` x_m, y_m, heading_deg.
    """
    if isinstance(network, PaperNetwork):
        pose = select(network.decode(ground, aerial.patches), network.config.side_m)
        return np.asarray(pose.float().cpu().numpy(), dtype=np.float64)
    assert isinstance(network, Network)
    return np.stack(
        [_own_pose(network, ground, aerial, index) for index in range(len(aerial.coarse))]
    )


def _own_pose(network: Network, ground: GroundCode, aerial: AerialCode, index: int) -> Float:
    photo, chip = take(ground, index, index + 1), take(aerial, index, index + 1)
    return best_pose(match_codes(network, photo, chip, config=ONE_CHIP))[1]


def pose_figures(found: Float, true: Float) -> dict[str, float]:
    """Errors of poses `(N, 3)`, under the names of the criteria's statistics."""
    distance_m = np.hypot(*(found - true)[:, :2].T)
    turn_deg = np.abs((found[:, 2] - true[:, 2] + 180) % 360 - 180)
    return {
        "position_median_m": float(np.median(distance_m)),
        "within_6m": float((distance_m < WITHIN_M).mean()),
        "heading_median_deg": float(np.median(turn_deg)),
    }


def score(metrics: Mapping[str, float]) -> float:
    """Median position error in metres over the share of photos that find their chip.

    A tenth less error counts as much as a tenth more photos whose chip is right.
    """
    return metrics["position_median_m"] / max(metrics["chip_right"], 1e-3)
