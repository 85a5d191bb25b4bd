"""Validation during training: how good the weights are on cities that nobody trains or tests on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from ciper.data.synthetic import SyntheticPairs
from ciper.training.gradients import autocast, encode
from ciper.training.recipe import OptimConfig


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
    pairs: SyntheticPairs,
    config: OptimConfig,
    device: torch.device,
) -> dict[str, float]:
    """Losses and statistics on the validation pairs, means over the batches.

    The pairs, their augmentation and the criterion's choices are the same every time; as many
    photos become pinhole views as at the end of the run.

    Returns:
        By name; "score" is what early stopping compares.
    """
    size = min(config.batch_size, len(pairs.photos))
    num_batches = max(1, min(config.validate_pairs, len(pairs.photos)) // size)
    was_training = network.training
    network.eval()
    rows = []
    for index in range(num_batches):
        batch = pairs.batch(index, size, narrow_share=config.narrow_share[1]).to(device)
        with autocast(device, config.precision):
            losses, stats = criterion(
                network, *encode(network, batch), batch, torch.Generator().manual_seed(index)
            )
        rows.append({name: float(value) for name, value in {**losses, **stats}.items()})
    network.train(was_training)
    means = {name: sum(row[name] for row in rows) / num_batches for name in rows[0]}
    return {**means, "score": score(means)}


def score(means: dict[str, float]) -> float:
    """Median position error in metres over the share of photos that find their chip.

    A tenth less error counts as much as a tenth more photos whose chip is right.
    """
    return means["position_median_m"] / max(means["chip_right"], 1e-3)
