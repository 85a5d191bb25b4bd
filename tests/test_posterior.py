from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from posterior_helpers import Floats, peak, posterior_from, row_of_chips

from ciper.geo import LocalFrame, heading_error_deg, wrap_signed_deg
from ciper.metrics import coverage
from ciper.posterior import (
    UNKNOWN_SPREAD_DEG,
    Hypothesis,
    Places,
    Posterior,
    needed_scale,
    scaled_spread,
    shortest_arc,
)
from ciper.refinement import Refinement

TWO = row_of_chips(2)


def total_mass(posterior: Posterior) -> float:
    return float(posterior.coarse.sum() + np.exp(posterior.refinement.log_prob).sum())


@pytest.mark.parametrize(
    ("x_m", "y_m", "heading_deg"),
    [(40.0, 17.0, 40.0), (-45.0, 21.0, 130.0), (-21.0, -18.0, 221.0), (13.0, -25.0, 310.0)],
)
def test_the_mode_is_the_peak_in_every_quadrant(x_m: float, y_m: float, heading_deg: float) -> None:
    posterior = posterior_from(TWO, peak(x_m, y_m, heading_deg))
    mode = posterior.mode
    assert mode.x_m == pytest.approx(x_m, abs=0.5)
    assert mode.y_m == pytest.approx(y_m, abs=0.5)
    assert abs(heading_error_deg(mode.heading_deg, heading_deg)) < 1.0
    assert mode.chip == int(x_m > 0)
    assert total_mass(posterior) == pytest.approx(1.0)
    assert posterior.place_prob.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.5])
def test_masses_sum_to_one_also_over_many_overlapping_windows(floor: float) -> None:
    wide = peak(5.0, 3.0, 100.0, sigma_m=12.0, sigma_deg=30.0)
    posterior = posterior_from(TWO, wide, floor=floor)
    assert total_mass(posterior) == pytest.approx(1.0)
    assert posterior.place_prob.sum() == pytest.approx(1.0)


def test_the_floor_is_spread_over_what_is_possible() -> None:
    def only_west(x: Floats, y: Floats, heading: Floats) -> Floats:
        return np.asarray(np.where(x < 0, peak(-30.0, 0.0, 0.0)(x, y, heading), -np.inf))

    posterior = posterior_from(TWO, only_west, floor=0.3)
    west, east = posterior.place_prob.sum(axis=(1, 2))
    assert (west, east) == (pytest.approx(1.0), 0.0)
    far_corner = posterior.place_prob[0, -1, -1]
    assert far_corner == pytest.approx(0.3 / 32**2, rel=1e-6)


def test_overlapping_windows_count_a_cell_once() -> None:
    """A flat likelihood must stay flat where windows overlap."""
    places = row_of_chips(1)
    refinement = Refinement(
        chip=np.array([0, 0]),
        heading=np.array([0, 0]),
        row=np.array([5, 7]),
        column=np.array([5, 5]),
        log_prob=np.zeros((2, 9, 6, 6)),
    )
    posterior = Posterior.from_logits(places, np.zeros((1, 32, 16, 16)), refinement)
    # 3 x 3 coarse cells about row 5 and row 7: fine rows 8..17 together, once each.
    inside = posterior.place_prob[0, 8:18, 8:14]
    assert inside.shape == (10, 6)
    np.testing.assert_allclose(inside, inside[0, 0])
    assert total_mass(posterior) == pytest.approx(1.0)


def test_a_window_that_the_fine_level_confirms_gains_on_cells_that_were_not_refined() -> None:
    """Windows around three equal peaks; the fine level adds 5 to the first, nothing to the rest."""
    coarse = np.full((1, 32, 16, 16), -8.0, dtype=np.float32)
    chosen = np.array([0, 8, 16]), np.array([4, 4, 11]), np.array([4, 11, 4])
    coarse[0, chosen[0], chosen[1], chosen[2]] = 0.0

    def posterior(added: float) -> Posterior:
        fine = np.zeros((3, 9, 6, 6))
        fine[0] += added
        refinement = Refinement(np.zeros(3, dtype=np.int64), *chosen, log_prob=fine)
        return Posterior.from_logits(row_of_chips(1), coarse, refinement)

    plain, confirmed = posterior(0.0), posterior(5.0)
    first = [float(np.exp(p.refinement.log_prob[0]).sum()) for p in (plain, confirmed)]
    rest = [float(p.coarse.sum()) for p in (plain, confirmed)]
    assert first[1] / first[0] > 2.0
    assert first[1] / rest[1] == pytest.approx(first[0] / rest[0] * np.exp(5.0), rel=1e-3)


def test_credible_levels_are_uniform_on_the_posteriors_own_samples() -> None:
    one, other = peak(-20.0, 5.0, 350.0, sigma_m=5.0), peak(30.0, -12.0, 80.0, sigma_m=9.0)

    def both(x: Floats, y: Floats, heading: Floats) -> Floats:
        return np.asarray(np.logaddexp(one(x, y, heading), other(x, y, heading) - 1.0))

    posterior = posterior_from(TWO, both, floor=0.05)
    samples = posterior.sample(2000, np.random.default_rng(0))
    masses = np.array([posterior.highest_density_masses(x, y) for x, y, _ in samples])
    denser, credible = masses.T
    for level in (0.25, 0.5, 0.75, 0.9):
        assert coverage(denser, credible, level) == pytest.approx(level, abs=0.035)
    distance = np.hypot(samples[:, 0] - posterior.mode.x_m, samples[:, 1] - posterior.mode.y_m)
    for level in (0.5, 0.9):
        # A circle of places holds slightly more or less at its rim.
        assert np.mean(distance <= posterior.radius_m(level) + 1) == pytest.approx(level, abs=0.05)
    within = [posterior.prob_within(r, posterior.mode.x_m, posterior.mode.y_m) for r in (5, 20)]
    for radius, prob in zip((5, 20), within, strict=True):
        assert np.mean(distance <= radius) == pytest.approx(prob, abs=0.05)


def test_samples_have_the_moments_of_their_peak() -> None:
    posterior = posterior_from(TWO, peak(-30.0, 8.0, 2.0, sigma_m=4.0, sigma_deg=6.0))
    samples = posterior.sample(4000, np.random.default_rng(1))
    turn = wrap_signed_deg(samples[:, 2] - 2.0)
    assert samples[:, 0].mean() == pytest.approx(-30.0, abs=0.3)
    assert samples[:, 1].mean() == pytest.approx(8.0, abs=0.3)
    assert turn.mean() == pytest.approx(0.0, abs=0.6)
    # Cells widen a Gaussian by a twelfth of their square.
    assert samples[:, 0].std() == pytest.approx(np.hypot(4.0, 2.0 / 12**0.5), rel=0.1)
    assert turn.std() == pytest.approx(6.0, rel=0.15)
    assert ((samples[:, 2] >= 0) & (samples[:, 2] < 360)).all()
    assert posterior.heading_sigma_deg == pytest.approx(6.0, rel=0.15)


@pytest.mark.parametrize("heading_deg", [0.0, 359.4, 0.7, 180.0])
def test_headings_wrap(heading_deg: float) -> None:
    posterior = posterior_from(TWO, peak(20.0, 0.0, heading_deg, sigma_deg=5.0))
    assert 0 <= posterior.mode.heading_deg < 360
    assert abs(heading_error_deg(posterior.mode.heading_deg, heading_deg)) < 0.7
    assert posterior.heading_sigma_deg == pytest.approx(5.0, rel=0.2)


def test_an_unknown_heading_has_a_wide_spread() -> None:
    posterior = posterior_from(TWO, peak(20.0, 0.0, 0.0, sigma_deg=1e6))
    assert posterior.heading_sigma_deg > 100


@pytest.mark.parametrize("shift", [0, 3, 7])
def test_shortest_arcs_by_hand(shift: int) -> None:
    even = np.ones(8)
    assert shortest_arc(even, 0.25) == pytest.approx(2.0)
    peaks = np.roll([4.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0, 1.0], shift)
    assert shortest_arc(peaks, 0.25) == pytest.approx(0.5)  # half of the highest
    assert shortest_arc(peaks, 0.625) == pytest.approx(2.0)  # the highest and its neighbour
    assert shortest_arc(peaks, 0.75) == pytest.approx(3.0)  # these two and one further, or four
    assert shortest_arc(peaks, 1 - 1e-9) == pytest.approx(5.0)  # all but the three empty cells


def test_a_floor_does_not_make_a_sharp_heading_uncertain() -> None:
    sharp = two_places(0.5)
    half = replace(sharp, heading_scale=0.5)
    assert half.heading_sigma_deg == pytest.approx(sharp.heading_sigma_deg / 2, rel=0.01)
    assert replace(sharp, heading_scale=1e6).heading_sigma_deg == 180.0
    assert sharp.heading_sigma_deg == pytest.approx(0.683 * 2.8125 / 2, rel=0.01)
    floor = np.full((1, 32, 16, 16), 0.03 / 32 / 256)
    fine = replace(sharp.refinement, log_prob=np.log(0.97) + sharp.refinement.log_prob)
    posterior = Posterior(sharp.places, floor, fine)
    # In one fine cell 2.8 deg wide; 0.683 of the mass is 0.70 of what lies there.
    assert posterior.heading_sigma_deg == pytest.approx(0.683 / 0.97 * 2.8125 / 2, rel=0.01)


def test_spreads_are_scaled_the_less_the_less_is_known() -> None:
    assert scaled_spread(0.0, 0.4) == 0.0
    assert scaled_spread(UNKNOWN_SPREAD_DEG / 2, 0.25) == pytest.approx(UNKNOWN_SPREAD_DEG / 4)
    assert scaled_spread(UNKNOWN_SPREAD_DEG, 0.25) == pytest.approx(122.9, abs=0.1)
    for half_deg in (0.5, 5.0, 50.0, 100.0):
        scale = needed_scale(half_deg, 7.0)
        assert scaled_spread(half_deg, scale) == pytest.approx(7.0)
    assert np.isnan(needed_scale(120.0, 7.0))
    # A heading that nobody knows is never called known, whatever the scale.
    unknown = posterior_from(TWO, peak(20.0, 0.0, 0.0, sigma_deg=1e6))
    for scale in (0.3, 1.0, 3.0):
        assert replace(unknown, heading_scale=scale).heading_sigma_deg > 115


def two_places(prob: float) -> Posterior:
    """All mass in one window of one chip: in its mode's place and one 20 m east of it."""
    refinement = Refinement(
        chip=np.zeros(2, int),
        heading=np.zeros(2, int),
        row=np.array([8, 8]),
        column=np.array([4, 9]),
        log_prob=np.full((2, 9, 6, 6), -np.inf),
    )
    refinement.log_prob[0, 4, 2, 2] = np.log(prob)
    refinement.log_prob[1, 4, 2, 2] = np.log(1 - prob)
    return Posterior(row_of_chips(1), np.zeros((1, 32, 16, 16)), refinement)


def test_radii_and_levels_by_hand() -> None:
    posterior = two_places(0.6)
    mode = posterior.mode
    # Column 4 begins 32 - 16 = 16 m west of the centre; row 8 begins at the centre.
    assert mode.x_m == pytest.approx(-15.0)
    assert mode.y_m == pytest.approx(-1.0)
    assert posterior.radius_m(0.5) == 1.0
    assert posterior.radius_m(0.9) == pytest.approx(20.0)
    assert posterior.prob_within(5.0, mode.x_m, mode.y_m) == pytest.approx(0.6)
    assert posterior.prob_within(20.5, mode.x_m, mode.y_m) == pytest.approx(1.0)
    assert posterior.highest_density_masses(mode.x_m, mode.y_m) == pytest.approx((0.0, 0.6))
    assert posterior.highest_density_masses(5.0, -1.0) == pytest.approx((0.6, 1.0))
    assert posterior.log_density(mode.x_m, mode.y_m) == pytest.approx(np.log(0.6 / 4))
    assert posterior.log_density(10.0, 20.0) == -np.inf
    assert [h.prob for h in posterior.hypotheses] == [pytest.approx(0.6), pytest.approx(0.4)]


def test_a_place_outside_has_no_density_and_lies_in_no_region() -> None:
    posterior = posterior_from(TWO, peak(20.0, 0.0, 0.0))
    for x_m, y_m in ((66.0, 0.0), (0.0, -34.0), (-500.0, 0.0)):
        assert posterior.place_at(x_m, y_m) is None
        assert posterior.highest_density_masses(x_m, y_m) == (1.0, 1.0)
        assert posterior.log_density(x_m, y_m) == -np.inf
    assert posterior.place_at(-63.0, 31.0) == (0, 0, 0)
    assert posterior.place_at(63.0, -31.0) == (1, 31, 31)


def test_a_product_is_the_product_of_densities() -> None:
    west, east = peak(-30.0, 5.0, 20.0), peak(30.0, 5.0, 200.0)

    def both(x: Floats, y: Floats, heading: Floats) -> Floats:
        return np.asarray(np.logaddexp(west(x, y, heading), east(x, y, heading)))

    posterior = posterior_from(TWO, both, floor=0.01)
    assert posterior.place_prob[0].sum() == pytest.approx(0.5, abs=0.01)

    def near_east(x: Floats, y: Floats) -> Floats:
        return np.where(x > 0, 0.0, np.log(0.25))

    product = posterior.times(near_east, lambda heading, _: np.zeros_like(heading))
    masses = product.place_prob.sum(axis=(1, 2))
    np.testing.assert_allclose(masses, [0.2, 0.8], atol=0.01)
    assert total_mass(product) == pytest.approx(1.0)
    assert product.mode.x_m == pytest.approx(30.0, abs=0.5)

    def south(heading: Floats, _: float) -> Floats:
        return np.where(abs(wrap_signed_deg(heading - 180)) < 90, 0.0, -np.inf)

    turned = posterior.times(lambda x, _: np.zeros_like(x), south)
    assert turned.place_prob[1].sum() > 0.98
    assert turned.mode.heading_deg == pytest.approx(200.0, abs=1.0)


def test_what_is_outside_changes_nothing_inside() -> None:
    posterior = posterior_from(TWO, peak(20.0, 0.0, 0.0))
    before, place_prob = posterior.mode, posterior.place_prob
    other = posterior.with_outside(0.75)
    assert (other.outside_prob, posterior.outside_prob) == (0.75, 0.0)
    assert other.mode is before
    assert other.place_prob is place_prob


@pytest.mark.parametrize("lon", [24.0, 180.0, -180.0, 179.9995])
@pytest.mark.parametrize("lat", [-45.0, 0.0, 70.0])
def test_positions_keep_their_place_on_the_globe(lat: float, lon: float) -> None:
    places = row_of_chips(4, lat=lat, lon=lon)
    for chip in range(4):
        hypothesis = Hypothesis(places.x_m[chip] + 21.0, places.y_m[chip] - 13.0, 10.0, 1.0, chip)
        pose = places.pose(hypothesis)
        own = LocalFrame(lat=float(places.lat[chip]), lon=float(places.lon[chip]))
        dx, dy = own.to_local(lat=pose.lat, lon=pose.lon)
        assert float(dx) == pytest.approx(21.0, abs=1e-6)
        assert float(dy) == pytest.approx(-13.0, abs=1e-6)
        x_m, y_m = places.to_local(lat=pose.lat, lon=pose.lon)
        assert x_m == pytest.approx(hypothesis.x_m, abs=1e-6)
        assert y_m == pytest.approx(hypothesis.y_m, abs=1e-6)


def test_cities_far_apart_keep_their_north() -> None:
    """The common plane is turned by degrees about them; the answers must not be."""
    lat, lon = np.array([60.0, 60.0]), np.array([5.0, 35.0])
    places = Places.around(lat, lon)
    for chip in (0, 1):
        hypothesis = Hypothesis(places.x_m[chip], places.y_m[chip] + 30.0, 0.0, 1.0, chip)
        pose = places.pose(hypothesis)
        assert pose.lon == pytest.approx(lon[chip], abs=1e-7)
        assert pose.lat > 60.0002
