from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from model_helpers import SmallWorld
from PIL import Image
from posterior_helpers import peak, posterior_from

from ciper.data.poses import PhotoPose
from ciper.data.preprocess import read_photo
from ciper.drawing import heat_rgba, round_length
from ciper.errors import OutputError
from ciper.geo import LocalFrame, Pose
from ciper.localize import Localization, Localizer
from ciper.model.load import Calibration
from ciper.picture import (
    MAX_ROWS,
    _column_of,
    _draw_hypotheses,
    _heat_about_answer,
    _Scene,
    answer_picture,
    format_position,
)


@pytest.fixture(scope="module")
def localizer(small_world: SmallWorld) -> Localizer:
    return Localizer(small_world.gallery, small_world.weights, "cpu")


@pytest.fixture(scope="module")
def found(localizer: Localizer, small_world: SmallWorld) -> Localization:
    return localizer.localize(small_world.poses[0].photo)


def sharp(found: Localization, pose: PhotoPose) -> Localization:
    """The answer as a good model would give it."""
    places = found.posterior.places
    x_m, y_m = places.to_local(lat=pose.lat, lon=pose.lon)
    posterior = posterior_from(places, peak(x_m, y_m, pose.heading_deg or 0.0), num_windows=4)
    return replace(found, posterior=posterior, pose=places.pose(posterior.mode), confidence=0.9)


def test_a_picture_is_written_at_once(
    found: Localization, localizer: Localizer, small_world: SmallWorld, tmp_path: Path
) -> None:
    query = small_world.poses[0]
    path = tmp_path / "new" / "answer.png"
    answer_picture(sharp(found, query), localizer, read_photo(query.photo), path, truth=query)
    with Image.open(path) as image:
        assert image.size == (1650, 990)
        pixels = np.asarray(image.convert("RGB"))
    # Photo and imagery are there: most of the picture is not paper.
    assert np.mean(np.abs(pixels.astype(int) - [250, 249, 246]).max(axis=2) > 8) > 0.5
    assert [p.name for p in path.parent.iterdir()] == ["answer.png"]


def test_many_hypotheses_stay_above_the_legend(
    found: Localization, localizer: Localizer, small_world: SmallWorld
) -> None:
    pose = small_world.poses[0]
    whole = _Scene.of(sharp(found, pose), localizer.gallery, top=5, truth=pose)
    many = SimpleNamespace(hypotheses=whole.posterior.hypotheses[:1] * 40)
    for num, last in ((MAX_ROWS, f"{MAX_ROWS}"), (40, f"... and {41 - MAX_ROWS} more")):
        scene: Any = SimpleNamespace(
            posterior=many, hypotheses=whole.hypotheses[:1] * num, truth=whole.truth
        )
        ax = Figure().add_axes((0.0, 0.0, 1.0, 1.0))
        _draw_hypotheses(ax, scene)
        rows = {text.get_text(): text.get_position()[1] for text in ax.texts}
        assert rows[last] > rows["truth"] + 0.06
        assert ("more" in last) == (f"{MAX_ROWS}" not in rows)


def test_a_photo_from_elsewhere_is_drawn_as_such(
    found: Localization, localizer: Localizer, small_world: SmallWorld, tmp_path: Path
) -> None:
    photo = read_photo(small_world.poses[0].photo)
    far = Pose(lat=found.pose.lat + 0.01, lon=found.pose.lon, heading_deg=0.0)
    for name, outside_prob in (("in", 0.1), ("out", 0.9)):
        answer = replace(found, posterior=found.posterior.with_outside(outside_prob))
        answer_picture(answer, localizer, photo, tmp_path / f"{name}.png", truth=far)
    is_red = {}
    for name in ("in", "out"):
        with Image.open(tmp_path / f"{name}.png") as image:
            is_red[name] = int((np.asarray(image.convert("RGB")) == [192, 57, 43]).all(2).sum())
    assert is_red["in"] == 0
    assert is_red["out"] > 5000


def test_imagery_that_is_gone_is_said(
    found: Localization, small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    localizer = Localizer(small_world.gallery, small_world.weights, "cpu")
    gone = replace(localizer.gallery.rasters[0], path=str(tmp_path / "gone.tif"))
    localizer.gallery.rasters = (gone,)
    photo = read_photo(small_world.poses[0].photo)
    answer_picture(found, localizer, photo, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_only_pngs_in_places_that_can_be_written(
    found: Localization, localizer: Localizer, small_world: SmallWorld, tmp_path: Path
) -> None:
    photo = read_photo(small_world.poses[0].photo)
    with pytest.raises(OutputError, match=r"expected a name that ends in \.png"):
        answer_picture(found, localizer, photo, tmp_path / "a.jpg")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        answer_picture(found, localizer, photo, tmp_path / "file" / "a.png")


def test_the_heat_map_lies_where_the_mass_is(found: Localization) -> None:
    """A second peak 40 m east and 20 m north of the answer shows up there."""
    places = found.posterior.places
    middle = int(np.argmin(np.hypot(places.x_m, places.y_m)))
    x_m, y_m = float(places.x_m[middle]) + 3.0, float(places.y_m[middle]) - 5.0
    one, other = peak(x_m, y_m, 10.0), peak(x_m + 40.0, y_m + 20.0, 10.0)
    posterior = posterior_from(
        places, lambda x, y, h: np.asarray(np.logaddexp(one(x, y, h), other(x, y, h) - 1.0))
    )
    alpha = _heat_about_answer(posterior)[..., 3]
    assert alpha.shape == (400, 400)
    # Half a metre a pixel, north up, the answer in the middle.
    near_answer, near_other = alpha[196:204, 196:204], alpha[156:164, 276:284]
    assert near_answer.max() > 0.7
    assert near_other.max() > 0.5
    assert alpha[236:244, 276:284].max() < 0.05


def test_heat_is_clear_below_four_decades() -> None:
    rgba = heat_rgba(np.array([1.0, 0.1, 1e-4, 1e-9, 0.0]), 1.0)
    assert (np.diff(rgba[:3, 3]) < 0).all()
    assert rgba[2:, 3].tolist() == [0, 0, 0]


def test_lengths_of_scale_bars() -> None:
    assert [round_length(v) for v in (50.0, 49.9, 19.0, 7.3, 1234.0)] == [50, 20, 10, 5, 1000]


def test_positions_are_written_with_their_hemispheres() -> None:
    assert format_position(Pose(-14.5, 80.25, 0.0)) == "14.500000° S, 80.250000° E"
    assert format_position(Pose(14.5, -80.25, 0.0)) == "14.500000° N, 80.250000° W"


def test_columns_of_compass_marks(found: Localization) -> None:
    panorama = found.camera
    width = panorama.width_px
    assert _column_of(panorama, 0.0) == width / 2
    assert _column_of(panorama, 90.0) == pytest.approx(width * 0.75)
    assert _column_of(panorama, -90.0) == pytest.approx(width * 0.25)
    pinhole = replace(panorama, projection="pinhole", hfov_deg=90.0, vfov_top_deg=None,
                      vfov_bottom_deg=None)  # fmt: skip
    assert _column_of(pinhole, 45.0) == pytest.approx(width)
    assert _column_of(pinhole, 46.0) is None
    assert _column_of(replace(pinhole, pitch_deg=-90.0), 0.0) is None


def test_frames_and_calibration_do_not_move_the_picture(
    found: Localization, localizer: Localizer
) -> None:
    """The heat map is drawn about the mode, the imagery about the pose: the same place."""
    assert localizer.model.calibration == Calibration(is_fitted=False)
    frame = LocalFrame(lat=found.pose.lat, lon=found.pose.lon)
    mode = found.posterior.mode
    chip = found.posterior.places
    x_m, y_m = frame.to_local(lat=chip.lat[mode.chip], lon=chip.lon[mode.chip])
    assert float(x_m) == pytest.approx(chip.x_m[mode.chip] - mode.x_m, abs=1e-3)
    assert float(y_m) == pytest.approx(chip.y_m[mode.chip] - mode.y_m, abs=1e-3)
