"""The objective: labels by hand, which chips are wrong, and that one batch can be learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_helpers import TINY, make_batch

from ciper.errors import TrainingError
from ciper.model.criterion import (
    Criterion,
    CriterionConfig,
    coarse_labels,
    coarse_loss,
    linear_labels,
    near_truth,
    true_windows,
    unravel,
    wrong_chips,
    wrong_mode_windows,
)
from ciper.model.network import Network
from ciper.train import LossWeights, OptimConfig, Run, TrainConfig


def test_linear_labels_share_between_the_two_nearest_bins() -> None:
    labels = linear_labels(torch.tensor([0.0, 1.25, 9.0, -2.0]), 4)
    expected = [[1, 0, 0, 0], [0, 0.75, 0.25, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert torch.allclose(labels, torch.tensor(expected))


def test_linear_labels_wrap_around_the_circle() -> None:
    labels = linear_labels(torch.tensor([3.5, 4.0, -0.25]), 4, wraps=True)
    expected = [[0.5, 0, 0, 0.5], [1, 0, 0, 0], [0.75, 0, 0, 0.25]]
    assert torch.allclose(labels, torch.tensor(expected))


@pytest.mark.parametrize(
    ("x", "y", "heading", "row", "column", "step"),
    [
        (30.0, 30.0, 0.0, 0, 15, 0),
        (-30.0, 30.0, 90.0, 0, 0, 8),
        (-30.0, -30.0, 180.0, 15, 0, 16),
        (30.0, -30.0, 348.75, 15, 15, 31),
        (2.0, -2.0, 270.0, 8, 8, 24),
    ],
)
def test_coarse_labels_in_all_quadrants(
    x: float, y: float, heading: float, row: int, column: int, step: int
) -> None:
    labels = coarse_labels(torch.tensor([[x, y, heading]]))
    best = unravel(labels.flatten(1).argmax(1), labels.shape[1:])
    assert [int(i) for i in best] == [step, row, column]
    assert labels.sum() == pytest.approx(1.0)


def test_coarse_loss_is_the_log_of_all_poses_when_nothing_is_known() -> None:
    volume, negatives = torch.zeros(3, 32, 16, 16), torch.zeros(3, 2, 16, 8, 8)
    loss = coarse_loss(volume, negatives, torch.zeros(3, 3))
    assert float(loss) == pytest.approx(np.log(32 * 256 + 2 * 16 * 64))


def test_true_windows_hold_the_truth() -> None:
    pose = make_batch(64).pose
    windows, labels = true_windows(pose, torch.Generator().manual_seed(0))
    assert torch.allclose(labels.sum(1), torch.ones(64))
    step, row, column = unravel(labels.argmax(1), torch.Size((9, 7, 7)))
    x = (windows.column + column - 3 + 0.5 - 32) * 2.0
    y = (32 - (windows.row + row - 3) - 0.5) * 2.0
    heading = (windows.heading + step - 4) * 2.8125
    turn = (heading - pose[:, 2] + 180) % 360 - 180
    assert (x - pose[:, 0]).abs().max() <= 1.0 + 1e-4
    assert (y - pose[:, 1]).abs().max() <= 1.0 + 1e-4
    assert turn.abs().max() <= 1.41


def test_near_truth_is_kept_out_of_the_wrong_modes() -> None:
    pose = torch.tensor([[10.0, -6.0, 45.0]])
    volume = coarse_labels(pose) * 9.0
    volume[0, 20, 3, 3] = 1.0
    windows = wrong_mode_windows(
        volume.masked_fill(near_truth(pose, CriterionConfig()), -torch.inf),
        torch.Generator().manual_seed(0),
    )
    assert int(windows.row) // 2 - 8 == 3
    assert int(windows.column) // 2 - 8 == 3
    assert abs(int(windows.heading) - 80) <= 1


def test_overlapping_chips_of_a_city_are_no_negatives() -> None:
    batch = replace(
        make_batch(4),
        city=torch.tensor([0, 0, 0, 1]),
        centre_m=torch.tensor([[0.0, 0.0], [70.0, 0.0], [200.0, 0.0], [0.0, 0.0]]),
        camera_m=torch.tensor([[5.0, 0.0], [75.0, 0.0], [205.0, 0.0], [5.0, 0.0]]),
    )
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    assert wrong_chips(batch).int().tolist() == expected


def test_losses_are_named_finite_and_differentiable() -> None:
    torch.manual_seed(0)
    network = Network(TINY)
    criterion = Criterion(CriterionConfig(num_negative_chips=2))
    batch = make_batch(4)
    ground = network.encode_ground(batch.canvas, batch.is_visible)
    aerial = network.encode_aerial(batch.chip, batch.is_valid)
    losses, stats = criterion(network, ground, aerial, batch, torch.Generator().manual_seed(0))
    assert set(losses) == set(LossWeights.__dataclass_fields__)
    torch.stack(list(losses.values())).sum().backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None]
    assert missing == []
    assert all(bool(torch.isfinite(s)) for s in stats.values())


@pytest.mark.slow
def test_one_batch_is_overfitted(tmp_path: object) -> None:
    config = TrainConfig(train=OptimConfig(num_steps=100, warmup_steps=5, lr=2e-3))
    run = Run(config, tmp_path, "cpu")  # type: ignore[arg-type]
    batch = make_batch(4)
    first = run.advance(batch)
    for _ in range(99):
        last = run.advance(batch)
    assert last["coarse"] < 0.4 * first["coarse"]
    assert last["position_median_m"] < 4.0


def test_a_loss_that_is_not_finite_names_itself(tmp_path: object) -> None:
    run = Run(TrainConfig(network=TINY), tmp_path, "cpu")  # type: ignore[arg-type]
    with torch.no_grad():
        run.network.get_parameter("retrieval_log_scale").fill_(torch.nan)
    with pytest.raises(TrainingError, match="'retrieval' is nan at step 0"):
        run.advance(make_batch(2))
