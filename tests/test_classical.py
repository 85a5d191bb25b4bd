from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray

from ciper.classical import ClassicalAnswer, Method
from ciper.classical.correlation import Grid, Spectra, edges, score_surfaces, templates_of
from ciper.classical.sift import SiftConfig, SiftMatching
from ciper.classical.template import TemplateConfig, TemplateMatching
from ciper.errors import ConfigError, DependencyError
from ciper.gallery.inspect import inspect_raster
from ciper.gallery.raster import Mosaic, read_chip
from ciper.geo import geographic_from_crs, heading_error_deg

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]

GSD, SIZE_PX = 0.5, 256
METHODS: dict[str, Callable[[], Method]] = {
    "edges": TemplateMatching,
    "grey": lambda: TemplateMatching(TemplateConfig(features="grey")),
    "sift": SiftMatching,
    "flann": lambda: SiftMatching(SiftConfig(search="flann")),
}
ALL = pytest.mark.parametrize("name", METHODS)


def _method(name: str) -> Method:
    if name in ("sift", "flann"):
        pytest.importorskip("cv2", reason="OpenCV is not installed")
    return METHODS[name]()


@cache
def _ground(seed: int, size_px: int = 512) -> NDArray[np.float64]:
    """Ground 256 m wide with structure of all sizes."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(3, size_px, size_px))
    layers = [scipy.ndimage.gaussian_filter(noise[i], 2.0 * 2**i) for i in range(3)]
    total = sum(layer / layer.std() for layer in layers)
    return np.asarray(np.clip(128 + 35 * np.asarray(total), 1, 255))


def _view(ground: NDArray[np.float64], x_m: float, y_m: float, heading_deg: float) -> Rgb:
    """The square of ground about (x, y) metres from its middle, up = the heading."""
    middle = (np.arange(SIZE_PX) + 0.5 - SIZE_PX / 2) * GSD
    right, ahead = middle[None, :], -middle[:, None]
    sin, cos = math.sin(math.radians(heading_deg)), math.cos(math.radians(heading_deg))
    east, north = x_m + right * cos + ahead * sin, y_m - right * sin + ahead * cos
    half = ground.shape[0] / 2
    grey = scipy.ndimage.map_coordinates(
        ground, [half - north / GSD - 0.5, half + east / GSD - 0.5], order=1
    )
    return np.repeat((grey + 0.5).astype(np.uint8)[..., None], 3, axis=2)


def _visible(width_m: float = 90.0, height_m: float = 68.0) -> Mask:
    """What a photo of so many metres shows."""
    middle = np.abs(np.arange(SIZE_PX) + 0.5 - SIZE_PX / 2) * GSD
    return np.asarray((middle[:, None] < height_m / 2) & (middle < width_m / 2))


def _gallery() -> tuple[Rgb, Mask]:
    """Four places, then a chip without imagery and one of a single colour."""
    chips = np.zeros((6, SIZE_PX, SIZE_PX, 3), np.uint8)
    for i in range(4):
        chips[i] = _view(_ground(i), 0.0, 0.0, 0.0)
    chips[5] = 140
    is_valid = np.ones(chips.shape[:3], np.bool_)
    is_valid[4] = False
    return chips, is_valid


@pytest.fixture(scope="module")
def prepared() -> Callable[[str], Method]:
    """Methods that know the gallery, each prepared once."""
    known: dict[str, Method] = {}

    def get(name: str) -> Method:
        if name not in known:
            known[name] = _method(name)
            known[name].prepare(*_gallery(), GSD)
        return known[name]

    return get


def _check(answer: ClassicalAnswer, chip: int, x_m: float, y_m: float, heading_deg: float) -> None:
    assert answer.chip == chip and answer.is_found
    assert (answer.x_m, answer.y_m) == pytest.approx((x_m, y_m), abs=0.5)
    assert abs(float(heading_error_deg(answer.heading_deg, heading_deg))) < 1.0
    assert 0.0 <= answer.heading_deg < 360.0
    assert answer.score == answer.scores.max() == answer.scores[chip]
    assert np.isfinite(answer.scores).all() and answer.scores.shape == (6,)


@ALL
@pytest.mark.parametrize(
    ("x_m", "y_m", "heading_deg"),
    [(20.0, 10.0, 0.0), (-15.0, 25.5, 90.0), (-20.0, -12.25, 200.0), (12.0, -30.0, 314.0),
     (0.0, 0.0, 357.0)],
)  # fmt: skip
def test_poses_in_all_quadrants_come_back(
    prepared: Callable[[str], Method], name: str, x_m: float, y_m: float, heading_deg: float
) -> None:
    plan, is_visible = _view(_ground(2), x_m, y_m, heading_deg), _visible()
    plan[~is_visible] = 0
    _check(prepared(name).locate(plan, is_visible), 2, x_m, y_m, heading_deg)


@ALL
@pytest.mark.parametrize("half", ["left", "lower"])
def test_half_of_a_photo_is_enough(prepared: Callable[[str], Method], name: str, half: str) -> None:
    is_visible = _visible(100.0, 100.0)
    side = slice(0, 128) if half == "left" else slice(128, 256)
    is_visible[(slice(None), side) if half == "left" else (side,)] = False
    plan = _view(_ground(1), 14.0, -9.0, 130.0)
    # What is hidden must not count, whatever the array holds there.
    plan[~is_visible] = np.random.default_rng(0).integers(0, 256, (int((~is_visible).sum()), 3))
    _check(prepared(name).locate(plan, is_visible), 1, 14.0, -9.0, 130.0)


@ALL
def test_colours_of_another_day_are_no_obstacle(
    prepared: Callable[[str], Method], name: str
) -> None:
    plan = (60 + 0.4 * _view(_ground(3), -8.0, 16.0, 45.0)).astype(np.uint8)
    _check(prepared(name).locate(plan, _visible()), 3, -8.0, 16.0, 45.0)


@ALL
def test_a_chip_with_holes_still_answers(name: str) -> None:
    chips, is_valid = _gallery()
    is_valid[2, :, 150:] = False  # east of 11 m there is no imagery
    chips[~is_valid] = 0
    method = _method(name)
    method.prepare(chips, is_valid, GSD)
    _check(method.locate(_view(_ground(2), -10.0, 4.0, 70.0), _visible()), 2, -10.0, 4.0, 70.0)


@ALL
@pytest.mark.parametrize("case", ["black", "grey", "nothing visible"])
def test_a_photo_without_structure_is_not_found(
    prepared: Callable[[str], Method], name: str, case: str
) -> None:
    plan = np.full((SIZE_PX, SIZE_PX, 3), 0 if case == "black" else 128, np.uint8)
    is_visible = _visible() if case != "nothing visible" else np.zeros(plan.shape[:2], np.bool_)
    answer = prepared(name).locate(plan, is_visible)
    assert not answer.is_found and answer.chip == -1
    assert math.isnan(answer.x_m) and math.isnan(answer.y_m) and math.isnan(answer.heading_deg)
    assert answer.score == 0.0
    np.testing.assert_array_equal(answer.scores, np.zeros(6))


@ALL
def test_chips_without_imagery_or_structure_score_nothing(
    prepared: Callable[[str], Method], name: str
) -> None:
    scores = prepared(name).locate(_view(_ground(0), 3.0, 4.0, 10.0), _visible()).scores
    assert scores[4] == scores[5] == 0.0
    assert scores[0] > 2.0 * scores[1:].max()


@ALL
def test_threads_change_nothing(prepared: Callable[[str], Method], name: str) -> None:
    if name in ("sift", "flann"):
        pytest.importorskip("cv2")
        search: Literal["exact", "flann"] = "flann" if name == "flann" else "exact"
        method: Method = SiftMatching(SiftConfig(num_threads=2, search=search))
    else:
        method = TemplateMatching(TemplateConfig(features=name, num_threads=2))  # type: ignore[arg-type]
    method.prepare(*_gallery(), GSD)
    plan = _view(_ground(2), 5.0, -11.0, 250.0)
    ours, theirs = method.locate(plan, _visible()), prepared(name).locate(plan, _visible())
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    assert (ours.chip, ours.x_m, ours.heading_deg) == (theirs.chip, theirs.x_m, theirs.heading_deg)


@ALL
def test_wrong_use_is_refused(name: str) -> None:
    method, (chips, is_valid) = _method(name), _gallery()
    with pytest.raises(ConfigError, match="no gallery was prepared"):
        method.locate(chips[0], is_valid[0])
    with pytest.raises(ConfigError, match=r"chips have shape \(256, 256, 3\)"):
        method.prepare(chips[0], is_valid[0], GSD)
    with pytest.raises(ConfigError, match=r"is_valid has shape \(5, 256, 256\)"):
        method.prepare(chips, is_valid[:5], GSD)
    with pytest.raises(ConfigError, match="gsd 0"):
        method.prepare(chips, is_valid, 0.0)
    method.prepare(chips[4:], is_valid[4:], GSD)
    with pytest.raises(ConfigError, match=r"shape \(128, 256, 3\)"):
        method.locate(chips[0, :128], is_valid[0, :128])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"gsd": 0.0}, "gsd 0.0"), ({"num_rotations": 2}, "num_rotations 2"),
     ({"features": "colour"}, "features 'colour'"), ({"min_overlap": 0.0}, "min_overlap 0.0"),
     ({"num_threads": 0}, "num_threads 0")],
)  # fmt: skip
def test_settings_of_templates_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TemplateConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"ratio": 1.5}, "ratio 1.5"), ({"max_scale_change": 0.5}, "max_scale_change 0.5"),
     ({"num_threads": 0}, "num_threads 0"), ({"search": "slow"}, "search 'slow'")],
)  # fmt: skip
def test_settings_of_sift_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SiftConfig(**settings)  # type: ignore[arg-type]


def test_without_opencv_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DependencyError, match=r'pip install "ciper-geo\[baselines\]"'):
        SiftMatching().prepare(*_gallery(), GSD)


def test_scores_are_the_normalised_correlations() -> None:
    """Against sums over pixels at single offsets, with a hole in the chip."""
    grid = Grid.of(SIZE_PX, GSD, 1.2)
    is_valid = np.ones((SIZE_PX, SIZE_PX), np.bool_)
    is_valid[:90, 100:] = False
    grey, mask = grid.reduce(_view(_ground(0), 0.0, 0.0, 0.0), is_valid)
    chip, chip_mask = grid.pad(edges(grey, mask, grid.gsd)), grid.pad(mask)
    grey, mask = grid.reduce(_view(_ground(0), 6.0, 3.0, 0.0), _visible())
    photo, photo_mask = grid.pad(edges(grey, mask, grid.gsd)), grid.pad(mask)
    unpadded = np.concatenate([edges(grey, mask, grid.gsd), mask[None]])
    surface = score_surfaces(
        grid,
        Spectra.of(chip[None], chip_mask[None])[0],
        templates_of(grid, unpadded, np.zeros(1)),
        min_overlap=0.3,
    )[0]
    for right, down in [(5, -3), (0, 0), (-20, 11), (30, 30), (-30, -30), (17, -28)]:
        moved, shown = (np.roll(image, (down, right), (-2, -1)) for image in (photo, photo_mask))
        overlap = (shown * chip_mask).sum() / photo_mask.sum()
        energy = (chip**2 * shown).sum() * (moved**2 * chip_mask).sum()
        expected = overlap * (chip * moved).sum() / math.sqrt(energy) if overlap > 0.35 else 0.0
        if not 0.25 < overlap < 0.35:
            found = surface[down + grid.reach_px, right + grid.reach_px]
            assert found == pytest.approx(expected, abs=0.01)


# ---------------------------------------------------------------------------------- real imagery


@cache
def _squares(year: int, num_places: int, x_m: float, y_m: float) -> list[tuple[Rgb, Mask]]:
    """Squares of real imagery about points so far from the middle of their place."""
    if "CIPER_REAL_DATA" not in os.environ:
        pytest.skip("CIPER_REAL_DATA is not set: it names the folder of real imagery")
    folder = Path(os.environ["CIPER_REAL_DATA"]) / "naip"
    squares = []
    for place in range(num_places):
        info = inspect_raster(folder / f"chico_{year}_{place}.tif")
        a, b, c, d, e, f = info.transform
        u, v = info.width / 2 + x_m / a, info.height / 2 + y_m / e
        lat, lon = geographic_from_crs(info.crs, a * u + b * v + c, d * u + e * v + f)
        with Mosaic([info]) as mosaic:
            squares.append(read_chip(mosaic, lat=float(lat), lon=float(lon)))
    return squares


@ALL
@pytest.mark.slow
def test_real_places_are_found_in_the_same_and_another_year(name: str) -> None:
    """20 places of 2020; photos of some of them, 9 m east and 6 m south, looking east."""
    chips = _squares(2020, 20, 0.0, 0.0)
    method = _method(name)
    method.prepare(np.stack([c for c, _ in chips]), np.stack([v for _, v in chips]), GSD)
    for year, place, within_m in [(2020, 3, 0.6), (2020, 11, 0.6), (2018, 8, 2.0), (2018, 16, 2.0)]:
        square, _ = _squares(year, 20, 9.0, -6.0)[place]
        # East is up: turned counter-clockwise.
        answer = method.locate(np.rot90(square).copy(), _visible(70.0, 52.0))
        assert answer.chip == place
        # Steps of UTM, whose north is off by a degree here: 0.2 m.
        assert (answer.x_m, answer.y_m) == pytest.approx((9.0, -6.0), abs=within_m)
        assert abs(float(heading_error_deg(answer.heading_deg, 90.0))) < 1.5
