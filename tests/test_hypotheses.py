"""Hypotheses become one posterior: places by hand, masses that sum up, chips of several sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyproj
import pytest
from numpy.typing import NDArray

from ciper.geo import LocalFrame, heading_error_deg
from ciper.localize import posterior_of
from ciper.model.calibration import PosteriorShape
from ciper.model.hypotheses import (
    TINY,
    PoseSet,
    Spread,
    apart,
    best_chips,
    cell_mass,
    evidence_of,
)
from ciper.model.load import Calibration
from ciper.model.matcher import Evidence, MatchConfig
from ciper.posterior import Places, Posterior
from ciper.prior import Heading, Prior

Floats = NDArray[np.float64]
GEOD = pyproj.Geod(ellps="WGS84")
LAT, LON = -33.9, 151.2
SIDES_M = (71.04, 100.27, 112.6, 128.0)


def chips_in_a_row(num_chips: int, chip_m: float) -> Places:
    """From west to east, half a chip apart, the first one's centre at (LAT, LON)."""
    x = np.arange(num_chips) * chip_m / 2
    lat, lon = LocalFrame(lat=LAT, lon=LON).to_geographic(x=x, y=0 * x)
    return Places.around(lat, lon, chip_m=chip_m)


def pose_set(*poses: tuple[float, float, float], chip: int = 0, logits: Any = None) -> PoseSet:
    """Hypotheses in one chip; equally weighted without logits."""
    weight = np.exp(np.zeros(len(poses)) if logits is None else np.asarray(logits, np.float64))
    log_weight = np.log(weight / weight.sum())[None]
    return PoseSet(np.array([chip]), log_weight, np.array([poses], dtype=np.float64))


def evidence(
    chip_logit: list[float], poses: PoseSet, spread: Spread, chip_m: float, **options: Any
) -> Evidence:
    options.setdefault("has_imagery", np.ones((len(chip_logit), 16, 16), dtype=np.bool_))
    return evidence_of(np.array(chip_logit), poses, spread, coarse_m=chip_m / 32, **options)


def posterior(
    chip_logit: list[float], poses: PoseSet, spread: Spread, chip_m: float, **options: Any
) -> Posterior:
    found = evidence(chip_logit, poses, spread, chip_m, **options)
    places = chips_in_a_row(len(chip_logit), chip_m)
    return posterior_of(found, places, Calibration(wide=PosteriorShape(floor=1e-4)))


@pytest.mark.parametrize("chip_m", SIDES_M)
@pytest.mark.parametrize(
    ("x_m", "y_m", "heading_deg"),
    [(9.3, 12.1, 41.0), (-11.7, 6.4, 317.0), (-7.2, -14.9, 222.0), (15.5, -8.8, 128.0)],
)
def test_the_mode_is_the_hypothesis_in_every_quadrant(
    x_m: float, y_m: float, heading_deg: float, chip_m: float
) -> None:
    """The place on the globe is computed anew, by a geodesic from the chip's centre."""
    found = posterior([2.0, 0.0], pose_set((x_m, y_m, heading_deg)), Spread(1.2, 3.0), chip_m)
    azimuth, distance_m = np.degrees(np.arctan2(x_m, y_m)), np.hypot(x_m, y_m)
    lon, lat, _ = GEOD.fwd(LON, LAT, azimuth, distance_m)
    pose = found.places.pose(found.mode)
    _, _, error_m = GEOD.inv(lon, lat, pose.lon, pose.lat)
    assert error_m < 0.35
    assert abs(heading_error_deg(pose.heading_deg, heading_deg)) < 0.8
    assert found.mode.chip == 0
    assert found.place_prob.sum() == pytest.approx(1.0)
    assert found.heading_sigma_deg < 60


@pytest.mark.parametrize("chip_m", SIDES_M)
def test_spreads_are_metres_whatever_the_chip(chip_m: float) -> None:
    found = posterior([0.0], pose_set((0.0, 0.0, 0.0)), Spread(4.0, 10.0), chip_m)
    # Half of a two-dimensional Gaussian lies within 1.1774 sigma, 90 % within 2.1460 sigma.
    assert found.radius_m(0.5) == pytest.approx(1.1774 * 4.0, abs=0.6)
    assert found.radius_m(0.9) == pytest.approx(2.1460 * 4.0, abs=0.6)
    assert found.heading_sigma_deg == pytest.approx(10.0, rel=0.15)
    assert found.places.fine_m == pytest.approx(chip_m / 64)
    # The mean over a cell that begins at the peak: exp(-r^2 / 2 sigma^2), r^2 = 2 width^2 / 3.
    density = np.log(1 / (2 * np.pi * 4.0**2)) - (chip_m / 64) ** 2 / 3 / 4.0**2
    assert found.log_density(0.0, 0.0) == pytest.approx(density, abs=0.04)


def test_a_cells_mass_is_that_of_its_parts() -> None:
    offset = np.linspace(-40.0, 40.0, 41)
    for sigma in (0.3, 2.0, 30.0):
        whole = cell_mass(offset, sigma, 2.0)
        parts = sum(cell_mass(offset + d, sigma, 0.5) for d in (-0.75, -0.25, 0.25, 0.75))
        np.testing.assert_allclose(parts, whole, rtol=1e-9, atol=4 * TINY)
    assert cell_mass(np.arange(-40.0, 41.0), 3.0, 1.0).sum() == pytest.approx(1.0)
    assert (cell_mass(np.array([-1e4, 1e4]), 0.1, 1.0) > 0).all()


def test_the_mass_of_a_chip_is_its_softmax_and_of_a_pose_its_confidence() -> None:
    """Two chips decoded: logits ln 3 and 0; in the first two poses at logits ln 4 and 0."""
    poses = PoseSet(
        chip=np.array([0, 2]),
        log_weight=np.log([[0.8, 0.2], [0.5, 0.5]]),
        pose=np.array([[(-10.0, 9.0, 45.0), (12.0, -8.0, 200.0)], [(0.0, 0.0, 90.0)] * 2]),
    )
    found = evidence([np.log(3.0), -50.0, 0.0], poses, Spread(1.0, 2.0), 128.0)
    mass = np.exp(found.coarse.astype(np.float64))
    by_chip = mass.sum((1, 2, 3))
    np.testing.assert_allclose(by_chip, [0.75, 0.0, 0.25], atol=1e-6)
    assert mass[0, :, :8, :8].sum() == pytest.approx(0.75 * 0.8, rel=1e-6)
    assert mass[0, :, 8:, 8:].sum() == pytest.approx(0.75 * 0.2, rel=1e-6)
    # North-west quarter, heading 45: step 4 and, at a spread of 2 deg, hardly any other.
    assert mass[0, 4, :8, :8].sum() == pytest.approx(0.6, rel=0.01)


def test_windows_hold_what_their_coarse_cells_hold() -> None:
    found = evidence([0.0], pose_set((3.0, -5.0, 77.0)), Spread(3.0, 8.0), 100.0)
    best = 0
    h, i, j = found.heading[best], found.row[best], found.column[best]
    fine = np.exp(found.fine[best].astype(np.float64))
    coarse = np.exp(found.coarse[0].astype(np.float64))[:, i - 1 : i + 2, j - 1 : j + 2]
    # The middle coarse heading is the fine steps -1..1 and half of those at -2 and 2.
    share = np.array([0, 0, 0.5, 1, 1, 1, 0.5, 0, 0])
    summed = (fine * share[:, None, None]).sum(0).reshape(3, 2, 3, 2).sum((1, 3))
    np.testing.assert_allclose(summed, coarse[h], rtol=0.02)


@pytest.mark.parametrize("heading_deg", [5.6, 12.0, 84.4, 140.625, 199.7, 354.4])
@pytest.mark.parametrize("sigma_deg", [0.9, 1.6, 25.0])
def test_windows_take_from_their_neighbours_what_they_hold(
    heading_deg: float, sigma_deg: float
) -> None:
    """At the border of two coarse headings a narrow hypothesis must not count one and a half."""
    pose = (10.0, -6.0, heading_deg)
    both = PoseSet(np.array([0, 1]), np.zeros((2, 1)), np.array([[pose], [(2.0, 2.0, 0.0)]]))
    found = posterior([np.log(3.0), 0.0], both, Spread(3.0, sigma_deg), 128.0)
    np.testing.assert_allclose(found.place_prob.sum((1, 2)), [0.75, 0.25], atol=2e-4)
    assert sum(h.prob for h in found.hypotheses) <= 1 + 1e-9


def test_modes_of_broad_hypotheses_are_apart() -> None:
    """Two broad hypotheses in one chip are two modes, and no third one comes between."""
    poses = pose_set((20.0, 20.0, 40.0), (-20.0, -20.0, 220.0), logits=[np.log(1.5), 0.0])
    spread = Spread(8.5, 20.0)
    found = evidence([0.0], poses, spread, 112.6)
    config = apart(spread, 112.6 / 32)
    assert (config.apart_cells, config.apart_headings) == (5, 4)
    assert apart(Spread(0.1, None), 4.0) == MatchConfig()
    for a in range(len(found.chip)):
        for b in range(a):
            turn = abs(found.heading[a] - found.heading[b])
            assert (
                abs(found.row[a] - found.row[b]) >= 5
                or abs(found.column[a] - found.column[b]) >= 5
                or min(turn, 32 - turn) >= 4
            )
    first, second = posterior([0.0], poses, spread, 112.6).hypotheses[:2]
    assert np.hypot(first.x_m - 20, first.y_m - 20) < 2.5
    assert np.hypot(second.x_m + 20, second.y_m + 20) < 2.5


def test_chips_that_were_not_decoded_are_even() -> None:
    has_imagery = np.ones((2, 16, 16), dtype=np.bool_)
    has_imagery[1, :, 4:] = False
    found = evidence(
        [0.0, 0.0], pose_set((0.0, 0.0, 0.0)), Spread(2.0, 5.0), 71.04, has_imagery=has_imagery
    )
    assert np.isneginf(found.coarse[1][:, :, 4:]).all()
    np.testing.assert_allclose(found.coarse[1][:, :, :4], np.log(0.5 / (32 * 64)), rtol=1e-5)


def test_a_hypothesis_outside_of_the_central_half_is_lost_to_the_chip() -> None:
    """50 m east of the first chip's centre is the second chip's business."""
    found = evidence([0.0, 0.0], pose_set((50.0, 0.0, 0.0)), Spread(3.0, 5.0), 128.0)
    mass = np.exp(found.coarse.astype(np.float64)).sum((1, 2, 3))
    assert mass[0] < 1e-8
    assert np.isfinite(found.coarse).all()
    answer = posterior_of(found, chips_in_a_row(2, 128.0), Calibration())
    assert answer.mode.chip == 1


def test_no_imagery_no_mass() -> None:
    has_imagery = np.ones((1, 16, 16), dtype=np.bool_)
    has_imagery[:, :8] = False
    poses = pose_set((5.0, 1.0, 0.0))
    found = posterior([0.0], poses, Spread(4.0, 5.0), 71.04, has_imagery=has_imagery)
    assert found.place_prob[0, :16].sum() == 0
    assert found.place_prob.sum() == pytest.approx(1.0)
    assert found.mode.y_m < 0


# ------------------------------------------------------------------------------- unknown headings


def test_without_headings_the_windows_are_distinct_places() -> None:
    poses = pose_set((10.0, 10.0, 10.0), (-10.0, -10.0, 170.0), logits=[1.0, 0.0])
    found = evidence([0.0], poses, Spread(2.0, None), 71.04)
    assert not found.says_heading
    places = set(zip(found.row.tolist(), found.column.tolist(), strict=True))
    assert len(places) == len(found.chip) > 10
    # Every heading has the same mass.
    np.testing.assert_allclose(found.coarse, found.coarse[:, :1].repeat(32, axis=1))
    answer = posterior([0.0], poses, Spread(2.0, None), 71.04)
    assert not answer.says_heading
    assert answer.heading_sigma_deg == np.inf
    assert answer.mode.x_m == pytest.approx(10.0, abs=0.5)
    assert answer.mode.y_m == pytest.approx(10.0, abs=0.5)
    assert answer.place_prob.sum() == pytest.approx(1.0)


def test_without_headings_a_hypothesis_has_the_mass_of_all_headings() -> None:
    """Three coarse cells are 12 m, six standard deviations to either side of a cell's middle."""
    poses = PoseSet(
        chip=np.array([0, 1]),
        log_weight=np.log([[0.8, 0.2], [0.5, 0.5]]),
        pose=np.array([[(10.0, 10.0, 45.0), (-14.0, -6.0, 45.0)], [(2.0, 2.0, 90.0)] * 2]),
    )
    chip_logit = [np.log(3.0), 0.0]
    found = evidence(chip_logit, poses, Spread(1.0, None), 128.0)
    mass = np.exp(found.coarse.astype(np.float64)).sum((1, 2, 3))
    np.testing.assert_allclose(mass, [0.75, 0.25], rtol=1e-5)
    answer = posterior(chip_logit, poses, Spread(1.0, None), 128.0)
    np.testing.assert_allclose(answer.place_prob.sum((1, 2)), [0.75, 0.25], atol=1e-4)
    best = answer.hypotheses[:3]
    assert [h.prob for h in best] == pytest.approx([0.6, 0.25, 0.15], abs=1e-3)
    assert [h.chip for h in best] == [0, 1, 0]
    assert sum(h.prob for h in answer.hypotheses) <= 1 + 1e-9
    # The same with headings, each known well.
    known = posterior(chip_logit, poses, Spread(1.0, 1.0), 128.0)
    assert [h.prob for h in known.hypotheses[:3]] == pytest.approx([0.6, 0.25, 0.15], abs=1e-3)


@pytest.mark.parametrize("heading_deg", [0.0, 90.0, 201.3])
def test_without_headings_a_prior_still_leaves_an_answer(heading_deg: float) -> None:
    places = chips_in_a_row(2, 71.04)
    prior = Prior(places, heading=Heading(heading_deg, 2.0))
    found = evidence(
        [1.0, 0.0], pose_set((8.0, -6.0, 77.0)), Spread(2.0, None), 71.04,
        log_prior=prior.on_coarse_cells,
    )  # fmt: skip
    answer = posterior_of(found, places, Calibration()).times(prior.log_position, prior.log_heading)
    x_m, y_m = answer.places.x_m[0], answer.places.y_m[0]
    assert answer.mode.x_m - x_m == pytest.approx(8.0, abs=0.6)
    assert answer.mode.y_m - y_m == pytest.approx(-6.0, abs=0.6)
    assert abs(heading_error_deg(answer.mode.heading_deg, heading_deg)) < 3.0


# ----------------------------------------------------------------------------------- best chips


def test_the_best_chips_are_similar_and_possible() -> None:
    logit = np.array([5.0, 1.0, 4.0, 3.0])
    assert best_chips(logit, 2).tolist() == [0, 2]
    assert best_chips(logit, 9).tolist() == [0, 1, 2, 3]
    log_prior = np.zeros((4, 32, 16, 16), dtype=np.float32)
    log_prior[0] = -9.0
    log_prior[2, :, 3:] = -1e9  # a part of it is still possible
    assert best_chips(logit, 2, log_prior=log_prior).tolist() == [2, 3]


def test_batched_is_single() -> None:
    """A chip's evidence does not depend on which others are decoded, up to their common mass."""
    spread, poses = Spread(3.0, 9.0), [(4.0, 5.0, 6.0), (-9.0, 3.0, 100.0)]
    both = PoseSet(
        np.array([0, 1]),
        np.log(np.full((2, 2), 0.5)),
        np.array([poses, [(1.0, 1.0, 1.0), (2.0, -9.0, 300.0)]]),
    )
    together = evidence([0.3, 0.1], both, spread, 112.6)
    alone = evidence([0.3, 0.1], pose_set(*poses), spread, 112.6)
    np.testing.assert_array_equal(together.coarse[0], alone.coarse[0])
