from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import torch
from gallery_helpers import geographic
from model_helpers import SmallWorld, write_tiny_weights
from PIL import Image
from posterior_helpers import row_of_chips

from ciper.camera import CameraOverrides
from ciper.errors import GalleryError, GalleryModelMismatchError, GeoError, PhotoError
from ciper.geo import LocalFrame, heading_error_deg
from ciper.index import build_index
from ciper.localize import (
    Localizer,
    confidence_features,
    crs_name,
    judge,
    logistic,
    posterior_of,
)
from ciper.model.calibration import PosteriorShape
from ciper.model.load import Calibration, load_model
from ciper.model.matcher import Evidence
from ciper.model.network import GroundCode
from ciper.posterior import scaled_spread
from ciper.prior import Heading, Near, Prior


@pytest.fixture(scope="module")
def localizer(small_world: SmallWorld) -> Localizer:
    return Localizer(small_world.gallery, small_world.weights, "cpu")


def test_an_answer_has_everything(localizer: Localizer, small_world: SmallWorld) -> None:
    query = small_world.poses[0]
    found = localizer.localize(query.photo, camera=query.camera_overrides)
    posterior = found.posterior
    assert found.photo == str(query.photo)
    assert posterior.place_prob.sum() == pytest.approx(1.0)
    assert found.chips.tolist() == list(range(len(localizer.gallery)))
    assert found.chip_evidence.shape == found.chips.shape
    assert 0 <= found.confidence <= 1
    assert found.camera.projection == "equirectangular"
    assert found.seconds > 0
    # The same place in the raster's CRS and on the globe.
    assert found.crs.startswith("EPSG:32")
    lat, lon = geographic(found.crs, found.x_m, found.y_m)
    assert lat == pytest.approx(found.pose.lat)
    assert lon == pytest.approx(found.pose.lon)
    best = found.hypothesis_pose(posterior.mode)
    assert best == found.pose


def test_the_same_photo_has_the_same_answer(localizer: Localizer, small_world: SmallWorld) -> None:
    photo = small_world.poses[1].photo
    one, other = localizer.localize(photo), localizer.localize(str(photo))
    assert one.pose == other.pose
    assert one.confidence == other.confidence
    encoded = localizer.read(photo)
    assert localizer.answer(encoded).pose == one.pose
    judged = localizer.judge(localizer.match(encoded.code))
    assert judged.posterior.mode == one.posterior.mode
    assert judged.features == one.features


def test_nobody_is_where_there_is_no_imagery(localizer: Localizer, small_world: SmallWorld) -> None:
    """The chips reach beyond the raster; the posterior must not."""
    posterior = localizer.localize(small_world.poses[0].photo).posterior
    x, y = posterior.place_xy
    lat, lon = posterior.places.frame.to_geographic(x=x, y=y)
    raster = localizer.gallery.rasters[0]
    to_raster = pyproj.Transformer.from_crs("EPSG:4326", raster.crs, always_xy=True)
    east, north = to_raster.transform(lon, lat)
    a, _, left, _, e, top = raster.transform[:6]
    u, v = (east - left) / a, (north - top) / e
    # Descriptors' places are 8 m wide, windows reach 4 m beyond them, grid north is not true.
    margin = 14.0 / abs(a)
    is_far = (u < -margin) | (v < -margin) | (u > raster.width + margin)
    is_far |= v > raster.height + margin
    assert is_far.any()
    assert posterior.place_prob[is_far].sum() == 0


def test_a_position_prior_keeps_the_answer_near(
    localizer: Localizer, small_world: SmallWorld
) -> None:
    query = small_world.poses[2]
    near = Near(query.lat, query.lon, 20.0)
    found = localizer.localize(query.photo, near=near)
    frame = LocalFrame(lat=query.lat, lon=query.lon)
    assert np.hypot(*frame.to_local(lat=found.pose.lat, lon=found.pose.lon)) < 32
    assert len(found.chips) < len(localizer.gallery)
    x_m, y_m = found.posterior.places.to_local(lat=query.lat, lon=query.lon)
    assert found.posterior.prob_within(35.0, x_m, y_m) > 0.9


@pytest.mark.parametrize("heading_deg", [0.0, 100.0, 225.0, 359.0])
def test_a_heading_prior_keeps_the_heading(
    localizer: Localizer, small_world: SmallWorld, heading_deg: float
) -> None:
    found = localizer.localize(small_world.poses[2].photo, heading=Heading(heading_deg, 3.0))
    assert abs(heading_error_deg(found.pose.heading_deg, heading_deg)) < 20
    assert found.posterior.heading_sigma_deg < 20


def test_a_place_outside_is_refused(localizer: Localizer, small_world: SmallWorld) -> None:
    query = small_world.poses[0]
    with pytest.raises(GalleryError, match=r"has no chip within .* check --near"):
        localizer.localize(query.photo, near=Near(query.lat + 1.0, query.lon, 100.0))


def test_priors_by_hand() -> None:
    places = row_of_chips(2)
    assert Prior(places).on_coarse_cells is None
    lat, lon = places.frame.to_geographic(x=2.0, y=-2.0)
    near = Prior(places, Near(float(lat), float(lon), 10.0)).on_coarse_cells
    assert near is not None
    # Row 8, column 0 of the eastern chip has its centre at (2, -2).
    assert near[1, 0, 8, 0] == 0
    assert near[1, 31, 8, 2] == 0  # 8 m away
    assert near[1, 0, 8, 3] == pytest.approx(-0.5 * 2.0**2, rel=1e-3)  # 12 m: two softnesses out
    heading = Prior(places, heading=Heading(0.0, 20.0)).on_coarse_cells
    assert heading is not None
    variance = 20.0**2 + 11.25**2 / 12
    assert heading[0, 0, 3, 3] == 0
    assert heading[0, 31, 3, 3] == heading[0, 1, 3, 3] == pytest.approx(-0.5 * 11.25**2 / variance)


def test_a_sharp_heading_acts_inside_a_window(
    localizer: Localizer, small_world: SmallWorld
) -> None:
    query = small_world.poses[0]
    answer = localizer.localize(query.photo, heading=Heading(123.0, 2.0))
    assert heading_error_deg(answer.pose.heading_deg, 123.0) == pytest.approx(0.0, abs=4.0)
    assert answer.posterior.heading_sigma_deg < 5.0


def test_a_prior_binds_the_floor_too(localizer: Localizer, small_world: SmallWorld) -> None:
    query = small_world.poses[0]
    answer = localizer.localize(query.photo, near=Near(query.lat, query.lon, 10.0))
    x_m, y_m = answer.posterior.places.to_local(lat=query.lat, lon=query.lon)
    assert answer.posterior.prob_within(20.0, x_m, y_m) > 0.999


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Near(float("nan"), 0.0, 10.0), GeoError, "latitude nan"),
        (lambda: Near(0.0, 200.0, 10.0), GeoError, "longitude 200"),
        (lambda: Near(0.0, 0.0, -1.0), GalleryError, "radius -1"),
        (lambda: Near(0.0, 0.0, float("inf")), GalleryError, "radius inf"),
        (lambda: Heading(float("nan"), 5.0), GalleryError, "--heading is nan,5"),
        (lambda: Heading(10.0, 0.0), GalleryError, "positive standard deviation"),
        (lambda: Heading(10.0, float("nan")), GalleryError, "positive standard deviation"),
    ],
)
def test_impossible_priors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_another_models_gallery_is_refused(small_world: SmallWorld, tmp_path: Path) -> None:
    other = write_tiny_weights(tmp_path / "other.safetensors", seed=9)
    with pytest.raises(GalleryModelMismatchError, match="Index again with this model"):
        Localizer(small_world.gallery, other, "cpu")


def test_a_photo_that_is_none_is_refused(localizer: Localizer, tmp_path: Path) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"")
    with pytest.raises(PhotoError):
        localizer.localize(photo)


def test_an_unknown_field_of_view_is_averaged_over(localizer: Localizer, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    encoded = localizer.read(tmp_path / "a.png")
    assert encoded.camera.is_assumed
    assert len(encoded.code.descriptor) == 5
    told = localizer.read(tmp_path / "a.png", camera=CameraOverrides(hfov_deg=80.0))
    assert not told.camera.is_assumed
    assert len(told.code.descriptor) == 1
    assert localizer.answer(encoded).posterior.place_prob.sum() == pytest.approx(1.0)


def test_the_outcome_follows_the_probability(small_world: SmallWorld) -> None:
    model = load_model(small_world.weights, "cpu")
    photo = small_world.poses[0].photo
    for constant, is_in in ((-3.0, False), (3.0, True)):
        calibration = Calibration(in_gallery=(constant, 0.0, 0.0, 0.0, 0.0))
        localizer = Localizer(small_world.gallery, replace(model, calibration=calibration))
        found = localizer.localize(photo)
        assert found.is_in_gallery is is_in
        assert found.posterior.outside_prob == pytest.approx(1 / (1 + np.exp(constant)))


def test_galleries_are_searched_at_a_glance(
    localizer: Localizer, small_world: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = localizer.read(small_world.poses[0].photo)
    every = localizer.match(encoded.code)
    monkeypatch.setattr("ciper.localize.MAX_EXHAUSTIVE_CHIPS", 10)
    monkeypatch.setattr("ciper.localize.NUM_SHORTLIST", 4)
    # The glance is the evidence itself, at every second row, column and heading.
    thin = every.evidence.coarse[:, ::2, ::2, ::2]
    wanted = np.log(np.exp(thin.astype(np.float64)).sum((1, 2, 3)))
    chips = np.arange(len(localizer.gallery))
    scores = localizer.model.glance(encoded.code, localizer.features(chips), localizer._has_imagery)
    assert scores == pytest.approx(wanted, abs=0.02)
    found = localizer.answer(encoded)
    assert found.chips.tolist() == sorted(np.argsort(-wanted)[:4].tolist())
    assert found.posterior.place_prob.shape == (4, 32, 32)


def test_a_gallery_names_its_model(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "weights" / "tiny" / "model.safetensors"
    shipped.parent.mkdir(parents=True)
    shutil.copy(small_world.weights, shipped)
    monkeypatch.setattr("ciper.checkpoint._SHIPPED", tmp_path / "weights")
    build_index([small_world.raster], tmp_path / "gallery", load_model("tiny", "cpu"))
    assert Localizer(tmp_path / "gallery").model.model_name == "tiny"
    # Of weights that are not shipped the name is no file: the usual ones are tried.
    shutil.move(shipped.parent, tmp_path / "weights" / "ground")
    assert Localizer(tmp_path / "gallery").model.model_name == "ground"


def test_photos_from_above_get_a_shorter_list_of_their_own(
    localizer: Localizer, small_world: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = localizer.read(small_world.poses[0].photo).code
    assert isinstance(code, GroundCode)
    from_above = replace(code, is_plan=torch.ones_like(code.is_plan))
    chips = np.arange(len(localizer.gallery))
    monkeypatch.setattr("ciper.localize.MAX_EXHAUSTIVE_FROM_ABOVE", len(chips))
    assert localizer.candidates(from_above, chips).tolist() == chips.tolist()
    monkeypatch.setattr("ciper.localize.MAX_EXHAUSTIVE_FROM_ABOVE", len(chips) - 1)
    monkeypatch.setattr("ciper.localize.NUM_SHORTLIST_FROM_ABOVE", 3)
    assert localizer.candidates(code, chips).tolist() == chips.tolist()
    scores = localizer.model.glance(code, localizer.features(chips), localizer._has_imagery)
    assert scores is not None
    found = localizer.candidates(from_above, chips)
    assert found.tolist() == sorted(np.argsort(-scores)[:3].tolist())
    assert localizer.match(from_above).evidence.matched_share == 3 / len(chips)
    assert localizer.match(code).evidence.matched_share == 1.0


def test_large_galleries_are_searched_by_descriptor(
    localizer: Localizer, small_world: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ciper.localize.MAX_EXHAUSTIVE_CHIPS", 10)
    monkeypatch.setattr("ciper.localize.MAX_GLANCED_CHIPS", 10)
    monkeypatch.setattr("ciper.localize.NUM_SHORTLIST", 4)
    encoded = localizer.read(small_world.poses[0].photo)
    found = localizer.answer(encoded)
    best, similarity = localizer.retrieve(encoded.code, 4)
    assert found.chips.tolist() == sorted(best.tolist())
    assert (np.diff(similarity) <= 0).all()
    assert found.posterior.place_prob.shape == (4, 32, 32)


def test_confidence_features_by_hand() -> None:
    coarse = np.full((1, 32, 16, 16), -8.0, dtype=np.float32)
    coarse[0, 0, 8, 8], coarse[0, 8, 3, 3] = 3.0, 1.0
    fine = np.full((2, 9, 6, 6), -np.inf, dtype=np.float32)
    fine[0, 4, 2, 2], fine[1, 4, 2, 2] = 7.0, 1.5
    places = np.zeros(2, dtype=np.int64)
    chosen = np.array([0, 8]), np.array([8, 3]), np.array([8, 3])
    evidence = Evidence(coarse, places, *chosen, fine)
    posterior = posterior_of(evidence, row_of_chips(1), Calibration(wide=PosteriorShape(floor=0.0)))
    mass, above, confirmed, share = confidence_features(evidence, posterior, None)
    assert share == 1.0
    assert mass > 1.0
    mean = np.log(np.exp(coarse.astype(float)).mean())
    assert above == pytest.approx(3.0 - mean, abs=1e-4)
    assert confirmed == pytest.approx(4.0 - (4.0 + 0.5) / 2)
    # Of a shortlist, the mean is that over all chips that could have been matched.
    some = replace(evidence, matched_share=0.25)
    assert confidence_features(some, posterior, None)[1] == pytest.approx(above + np.log(4))
    # A prior that leaves everything changes nothing.
    flat = np.full_like(coarse, -1.25)
    assert confidence_features(evidence, posterior, flat) == pytest.approx(
        (mass, above, confirmed, 1.0)
    )


def test_stated_spreads_of_headings_are_those_of_the_calibration(
    localizer: Localizer, small_world: SmallWorld
) -> None:
    found = localizer.match(localizer.read(small_world.poses[0].photo).code)
    told = replace(found, prior=replace(found.prior, heading=Heading(90.0, 10.0)))
    shape = PosteriorShape(heading_scale=0.5)
    plain, halved = Calibration(), Calibration(wide=shape, narrow=shape)
    spreads = [judge(found.evidence, found.prior, c).posterior for c in (plain, halved)]
    assert spreads[1].heading_scale == 0.5
    assert spreads[1].heading_sigma_deg == pytest.approx(
        scaled_spread(spreads[0].heading_sigma_deg, 0.5)
    )
    # What was told is as sure as it was told to be.
    same = [
        judge(found.evidence, told.prior, c).posterior.heading_sigma_deg for c in (plain, halved)
    ]
    assert same[0] == same[1]


def test_logistic_by_hand() -> None:
    assert logistic((0.0, 1.0, 2.0, 3.0), (1.0, 1.0, -1.0)) == pytest.approx(0.5)
    assert logistic((1e9, 0.0), (0.0,)) == pytest.approx(1.0)


def test_names_of_crs() -> None:
    assert crs_name(pyproj.CRS.from_epsg(32633).to_wkt()) == "EPSG:32633"
    local = LocalFrame(lat=10.0, lon=20.0).crs.to_wkt()
    assert crs_name(local) == local
