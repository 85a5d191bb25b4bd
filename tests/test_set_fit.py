from __future__ import annotations

import numpy as np
import pytest

from ciper.model.set_fit import HEADING_SIGMAS_DEG, POSITION_SIGMAS_M, Seen, fit_scale, fit_spread


def photo(distance_m: list[float], turn_deg: list[float], log_weight: list[float]) -> Seen:
    return Seen(
        cosine=np.zeros((2, 1)),
        chip=0,
        log_weight=np.array(log_weight),
        distance_m=np.array(distance_m),
        turn_deg=np.array(turn_deg),
    )


def photos(num: int, sigma_m: float, sigma_deg: float, *, num_wrong: int = 0) -> list[Seen]:
    """The first of two hypotheses, of 80 %, scatters about the truth; some are far off."""
    rng = np.random.default_rng(0)
    seen = []
    for i in range(num):
        distance = np.hypot(*rng.normal(scale=sigma_m, size=2))
        turn = rng.normal(scale=sigma_deg)
        if i < num_wrong:
            distance, turn = rng.uniform(20, 40), rng.uniform(-180, 180)
        far = float(rng.uniform(20, 40))
        seen.append(photo([float(distance), far], [float(turn), 90.0], np.log([0.8, 0.2]).tolist()))
    return seen


@pytest.mark.parametrize("says_heading", [True, False])
@pytest.mark.parametrize("num_wrong", [0, 40])
def test_spreads_are_those_that_made_the_hypotheses(num_wrong: int, says_heading: bool) -> None:
    found = fit_spread(
        photos(400, 2.5, 6.0, num_wrong=num_wrong), half_m=32.0, says_heading=says_heading
    )
    # Neighbours of the grid are 17 and 19 % apart.
    assert found.position_m == pytest.approx(2.5, rel=0.2)
    if says_heading:
        assert found.heading_deg == pytest.approx(6.0, rel=0.2)
    else:
        assert found.heading_deg is None


def test_one_wrong_hypothesis_among_right_ones_is_no_spread() -> None:
    seen = [photo([1.0, 30.0], [1.0, 170.0], [np.log(0.5)] * 2) for _ in range(50)]
    found = fit_spread(seen, half_m=32.0, says_heading=True)
    # Of errors of exactly 1 m in the plane: sigma^2 = 1/2; of 1 deg: sigma^2 = 1.
    nearest = POSITION_SIGMAS_M[np.abs(np.log(POSITION_SIGMAS_M / 0.5**0.5)).argmin()]
    assert found.position_m == pytest.approx(nearest, rel=0.2)
    nearest = HEADING_SIGMAS_DEG[np.abs(np.log(HEADING_SIGMAS_DEG)).argmin()]
    assert found.heading_deg == pytest.approx(nearest, rel=0.2)


@pytest.mark.parametrize("scale", [5.0, 20.0, 80.0])
@pytest.mark.parametrize("num_views", [1, 3])
def test_the_scale_is_that_which_drew_the_chips(scale: float, num_views: int) -> None:
    rng = np.random.default_rng(1)
    seen = []
    for _ in range(1500):
        cosine = rng.uniform(-0.3, 0.6, size=(20, num_views))
        prob = np.exp(scale * cosine).sum(1)
        # A tenth of the photos misleads, as the fit takes it to be.
        prob = prob / prob.sum() * 0.9 + 0.1 / len(cosine)
        chip = int(rng.choice(len(cosine), p=prob))
        seen.append(Seen(cosine, chip, np.zeros(1), np.zeros(1), np.zeros(1)))
    assert fit_scale(seen) == pytest.approx(scale, rel=0.2)
