"""The two-way refiner: geometry of what it reads, and what its losses teach."""

from __future__ import annotations

import math

import pytest
import torch

from ciper.model.decoder import COARSE, FINE, TemplateSpec, Windows
from ciper.model.refine import (
    Candidates,
    Refined,
    Refiner,
    RefinerConfig,
    features_along_rays,
    log_cell_mass,
    ranking_loss,
    refined_pose_loss,
    window_candidates,
)

SMALL = RefinerConfig(width=16, depth=2, num_heads=2)


def camera(x_m: float, y_m: float, heading_deg: float) -> Candidates:
    zero = torch.zeros(1, dtype=torch.long)
    return Candidates(zero, zero, torch.tensor([[x_m, y_m, heading_deg]]))


def spot(spec: TemplateSpec, x_m: float, y_m: float) -> torch.Tensor:
    """A map whose first (scalar) pair is 1 in the cell that holds a point."""
    cells = 32 if spec is COARSE else 64
    level = torch.zeros(1, spec.num_channels, cells, cells)
    column = int(x_m / spec.cell_m + cells / 2)
    level[0, 0, int(cells / 2 - y_m / spec.cell_m), column] = 1.0
    return level


@pytest.mark.parametrize("spec", [COARSE, FINE])
@pytest.mark.parametrize(
    ("heading_deg", "bearing_deg"), [(20.0, 70.0), (110.0, -20.0), (200.0, -110.0), (300.0, 150.0)]
)
def test_a_thing_to_the_east_is_seen_at_its_bearing_and_range(
    spec: TemplateSpec, heading_deg: float, bearing_deg: float
) -> None:
    # The camera stands 11.25 m west of the middle of a cell: its bearing is 90 deg less heading.
    x_m, y_m = 8.0 + spec.cell_m / 2 - 11.25, -20.0 - spec.cell_m / 2
    read = features_along_rays(spot(spec, 8.0, -20.0), spec, camera(x_m, y_m, heading_deg))[
        0, :, :, 0
    ]
    column, ring = divmod(int(read.argmax()), len(spec.ring_m))
    step_deg = 360.0 / spec.num_columns
    assert (column + 0.5) * step_deg - 180.0 == pytest.approx(bearing_deg, abs=step_deg)
    assert abs(spec.ring_m[ring] - 11.25) < 1.0


def test_direction_channels_are_read_in_the_frame_of_the_ray() -> None:
    # A feature of frequency 1 that points east (its second component) everywhere.
    level = torch.zeros(1, COARSE.num_channels, 32, 32)
    level[0, COARSE.num_channels // 2 + 4] = 1.0
    read = features_along_rays(level, COARSE, camera(0.0, 0.0, 90.0))[0]
    ahead = read[31:33, 0].mean(0)  # the columns beside the heading, which looks east
    left = read[15:17, 0].mean(0)  # those that look north
    assert ahead[4] == pytest.approx(1.0, abs=0.01)
    assert ahead[12] == pytest.approx(0.0, abs=0.1)
    # East is to the right of a ray to the north.
    assert left[4] == pytest.approx(0.0, abs=0.1)
    assert left[12] == pytest.approx(1.0, abs=0.01)


def test_the_mean_pose_of_a_window_by_hand() -> None:
    index = torch.zeros(1, dtype=torch.long)
    windows = Windows(index, index, index + 20, index + 40, index + 127)
    fine = torch.full((1, 9, 7, 7), -50.0)
    # One step of heading on, half a row down, one column to the right.
    fine[0, 5, 3, 4] = fine[0, 5, 4, 4] = 3.0
    pose = window_candidates(windows, fine).pose[0]
    assert pose[0] == pytest.approx((41 - 31.5) * 2.0, abs=1e-4)
    assert pose[1] == pytest.approx((31.5 - 20.5) * 2.0, abs=1e-4)
    assert pose[2] == pytest.approx(0.0, abs=1e-3)


def inputs(num_photos: int, num_chips: int) -> tuple[tuple[torch.Tensor, ...], ...]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    polar = tuple(
        random(num_photos, s.num_columns, len(s.ring_m), s.num_channels) for s in (COARSE, FINE)
    )
    maps = (random(num_chips, 16, 32, 32), random(num_chips, 16, 64, 64))
    return polar, maps


def refiner(config: RefinerConfig = SMALL) -> Refiner:
    torch.manual_seed(0)
    made = Refiner(config)
    for layer in (made.head, made.to_weights):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return made.eval()


def test_an_untrained_refiner_says_nothing_and_moves_nothing() -> None:
    polar, maps = inputs(1, 1)
    candidates = camera(3.0, -4.0, 350.0)
    refined = Refiner(SMALL)(polar, maps, candidates)
    assert float(refined.logit.detach()) == 0.0
    torch.testing.assert_close(refined.pose, candidates.pose)


@torch.no_grad()
def test_one_hypothesis_does_not_depend_on_the_others() -> None:
    polar, maps = inputs(2, 3)
    pose = torch.tensor([[3.0, -4.0, 10.0], [-20.0, 9.0, 200.0], [0.0, 0.0, 359.0]])
    all_three = Candidates(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1]), pose)
    together = refiner()(polar, maps, all_three)
    for i in range(3):
        one = Candidates(*(t[i : i + 1] for t in (all_three.photo, all_three.chip, pose)))
        alone = refiner()(polar, maps, one)
        for name in ("logit", "pose", "log_spread"):
            torch.testing.assert_close(
                getattr(together, name)[i], getattr(alone, name)[0], rtol=1e-4, atol=1e-4
            )


@torch.no_grad()
def test_turning_the_world_turns_the_answer() -> None:
    # A quarter turn clockwise of map and camera; the photo sees the same.
    polar, (coarse, fine) = inputs(1, 1)
    still = Refiner(SMALL).eval()
    torch.nn.init.normal_(still.head.weight, std=0.1)

    def scalars(level: torch.Tensor) -> torch.Tensor:
        kept = level.clone()
        kept[:, [4, 5, 6, 7, 12, 13, 14, 15]] = 0.0  # directions would have to turn as well
        return kept

    maps = scalars(coarse), scalars(fine)
    turned = tuple(torch.rot90(level, -1, (2, 3)) for level in maps)
    here = still(polar, maps, camera(6.0, 10.0, 40.0))
    there = still(polar, turned, camera(10.0, -6.0, 130.0))
    assert float(there.logit) == pytest.approx(float(here.logit), abs=1e-3)
    step, turned_step = here.pose[0] - torch.tensor([6.0, 10.0, 40.0]), there.pose[0]
    turned_step = turned_step - torch.tensor([10.0, -6.0, 130.0])
    # (east, north) becomes (north, -east).
    assert float(turned_step[0]) == pytest.approx(float(step[1]), abs=1e-3)
    assert float(turned_step[1]) == pytest.approx(-float(step[0]), abs=1e-3)
    assert float(turned_step[2]) == pytest.approx(float(step[2]), abs=1e-3)


def test_ranking_loss_by_hand() -> None:
    # Two photos, three hypotheses each, the true one first.
    logit = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    refined = Refined(
        torch.tensor([2.0, 0.0, 0.0, 0.0, 0.0, 0.0]), torch.zeros(6, 3), torch.zeros(6, 2)
    )
    first = math.log(math.exp(2) + math.exp(1) + math.exp(-1)) - 2.0
    second = math.log(math.exp(1) + 2.0) - 1.0
    assert float(ranking_loss(logit, refined)) == pytest.approx((first + second) / 2)


def test_pose_loss_by_hand_and_only_within_reach() -> None:
    candidates = Candidates(
        torch.arange(2), torch.arange(2), torch.tensor([[0.0, 0.0, 359.0], [50.0, 0.0, 0.0]])
    )
    refined = Refined(
        torch.zeros(2),
        torch.tensor([[1.0, -2.0, 358.0], [0.0, 0.0, 0.0]]),
        torch.tensor([[math.log(2.0), math.log(4.0)], [9.0, 9.0]]),
    )
    pose = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    expected = (1.0 + 2.0) / 2.0 + 2 * math.log(2.0) + 4.0 / 4.0 + math.log(4.0)
    assert float(refined_pose_loss(candidates, refined, pose)) == pytest.approx(expected)


@pytest.mark.parametrize(("spread_m", "spread_deg"), [(0.2, 0.3), (1.0, 2.0)])
def test_a_window_spreads_a_pose_so_that_its_mean_is_the_pose(
    spread_m: float, spread_deg: float
) -> None:
    index = torch.zeros(1, dtype=torch.long)
    windows = Windows(index, index, index + 20, index + 40, index + 127)
    pose = torch.tensor([[(40.3 - 31.5) * 2.0, (31.5 - 19.6) * 2.0, 358.5]])
    spread = torch.tensor([[math.log(spread_m), math.log(spread_deg)]])
    share = log_cell_mass(windows, Refined(torch.zeros(1), pose, spread))
    assert float(share.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    found = window_candidates(windows, share).pose[0]
    assert float(found[0]) == pytest.approx(float(pose[0, 0]), abs=0.05)
    assert float(found[1]) == pytest.approx(float(pose[0, 1]), abs=0.05)
    assert float(found[2]) == pytest.approx(358.5, abs=0.1)


def test_a_wider_spread_leaves_less_in_the_best_cell() -> None:
    index = torch.zeros(1, dtype=torch.long)
    windows = Windows(index, index, index + 32, index + 32, index)
    best = [
        float(
            log_cell_mass(
                windows, Refined(torch.zeros(1), torch.tensor([[1.0, -1.0, 0.0]]), s)
            ).max()
        )
        for s in (torch.tensor([[math.log(b), math.log(b)]]) for b in (0.3, 1.0, 3.0))
    ]
    assert best == sorted(best, reverse=True)
