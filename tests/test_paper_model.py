"""Set prediction behind the verbs: convert, index, localize and evaluate, from files to answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import torch
from gallery_helpers import FakeEncoder, geographic, write_city
from model_helpers import TINY_PAPER, write_tiny_weights
from numpy.typing import NDArray
from PIL import Image
from released_helpers import SMALL, write_released
from typer.testing import CliRunner, Result

from ciper.calibrate import calibrate, seen_of
from ciper.calibration_cities import CalibrateConfig, with_cameras_of
from ciper.camera import Camera
from ciper.cli import app
from ciper.convert import convert
from ciper.data.poses import PhotoPose, read_poses, write_poses
from ciper.data.preprocess import read_photo
from ciper.errors import ConfigError
from ciper.geo import heading_error_deg
from ciper.index import build_index
from ciper.localize import Localizer, posterior_of
from ciper.model.calibration import PosteriorShape
from ciper.model.load import Calibration, PaperModel, load_model
from ciper.model.model import ChipFeatures
from ciper.model.paper import PaperGround, resize
from ciper.model.paper_model import north_in_the_middle
from ciper.model.released import Origin
from ciper.model.two_way import Hypotheses
from ciper.posterior import Places
from ciper.prior import Heading, Near

EAST, NORTH, SIDE_M = 380_000.0, 5_820_000.0, 150.0


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raster of 150 m, a panorama and an ordinary photo, and a released file."""
    folder = tmp_path_factory.mktemp("paper")
    write_city(folder / "aerial.tif", east=EAST, north=NORTH, size_px=300)
    rng, poses = np.random.default_rng(0), []
    for number, size in enumerate(((256, 128), (160, 120))):
        small = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        photo = folder / f"{number}.jpg"
        Image.fromarray(small).resize(size).save(photo)
        lat, lon = geographic("EPSG:32633", EAST + 60.0 + 20 * number, NORTH - 75.0)
        poses.append(PhotoPose(photo, lat=lat, lon=lon, heading_deg=70.0))
    write_poses(folder / "poses.csv", poses)
    write_released(folder / "model.pth")
    for dataset in ("vigor", "kitti"):
        convert(folder / "model.pth", folder / f"{dataset}.safetensors", dataset)
    return folder


@pytest.fixture(scope="module", params=["vigor", "kitti"])
def converted(world: Path, request: pytest.FixtureRequest) -> tuple[str, Path, Path]:
    """A data set, its converted weights, and the gallery that they made of the raster."""
    dataset, gallery = request.param, world / f"gallery-{request.param}"
    weights = world / f"{dataset}.safetensors"
    result = run("index", world / "aerial.tif", "--out", gallery, "--model", weights)
    assert result.exit_code == 0, result.stderr
    return dataset, weights, gallery


# --------------------------------------------------------------------------------- from end to end


def test_an_index_has_chips_of_the_models_size(converted: tuple[str, Path, Path]) -> None:
    dataset, weights, folder = converted
    localizer = Localizer(folder, weights, "cpu")
    header, side_m = localizer.gallery.header, {"vigor": 71.04, "kitti": 100.27}[dataset]
    assert header.chip_m == pytest.approx(side_m)
    assert header.stride_m == pytest.approx(side_m / 2)
    num_chips = len(localizer.gallery)
    assert (SIDE_M / side_m * 2) ** 2 <= num_chips <= (SIDE_M / side_m * 2 + 1.9) ** 2
    assert localizer.gallery.descriptors.shape == (num_chips, 1, SMALL.descriptor_dim)
    assert localizer.gallery.coarse.shape == (num_chips, 16, 16)
    assert localizer.gallery.fine.shape == (num_chips, 36, 48)
    length = np.linalg.norm(localizer.gallery.descriptors[:].astype(np.float64), axis=2)
    np.testing.assert_allclose(length, 1.0, atol=2e-3)


def test_a_photo_is_localized(world: Path, converted: tuple[str, Path, Path]) -> None:
    dataset, weights, gallery = converted
    result = run(
        "localize", world / "0.jpg", world / "1.jpg", "--gallery", gallery, "--model", weights,
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    answers = json.loads(result.stdout)
    assert len(answers) == 2
    for answer in answers:
        if answer["outcome"] == "located":
            assert 52.0 < answer["lat"] < 53.0
        assert answer["radius_50_m"] <= answer["radius_90_m"] < 150
        assert answer["confidence"] is None
        assert sum(h["prob"] for h in answer["hypotheses"]) <= 1 + 1e-9
        headings = [h["heading_deg"] for h in answer["hypotheses"]]
        is_known = [h is not None and 0 <= h < 360 for h in headings]
        assert all(is_known) if dataset == "kitti" else not any(is_known)
        assert (answer["heading_sigma_deg"] is None) is (dataset == "vigor")
    assert ("says nothing of headings" in result.stderr) is (dataset == "vigor")
    assert f"the model '{dataset}' is not calibrated" in result.stderr
    trained = {"vigor": "full panoramas", "kitti": "photos about 80 deg wide"}[dataset]
    # One of the two photos is a panorama, the other an ordinary one.
    assert result.stderr.count(f"was trained on {trained}; another photo is squeezed") == 1
    assert "(2 photos)" not in result.stderr
    text = run("localize", world / "0.jpg", "--gallery", gallery, "--model", weights)
    assert "confidence unknown" in text.stdout
    if "not in this gallery" not in text.stdout:
        assert ("heading unknown" in text.stdout) is (dataset == "vigor")


def test_the_answer_lies_on_the_raster(world: Path, converted: tuple[str, Path, Path]) -> None:
    _, weights, gallery = converted
    found = Localizer(gallery, weights, "cpu").localize(world / "0.jpg")
    assert found.posterior.place_prob.sum() == pytest.approx(1.0)
    to_raster = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True)
    x, y = found.posterior.place_xy
    lat, lon = found.posterior.places.frame.to_geographic(x=x, y=y)
    east, north = to_raster.transform(lon, lat)
    # A coarse cell of 3.2 m counts if any of its pixels does, a window reaches one further.
    margin = 12.0
    is_far = (east < EAST - margin) | (east > EAST + SIDE_M + margin)
    is_far |= (north > NORTH + margin) | (north < NORTH - SIDE_M - margin)
    assert is_far.any()
    assert found.posterior.place_prob[is_far].sum() == 0


def test_priors_bind(world: Path, converted: tuple[str, Path, Path]) -> None:
    dataset, weights, gallery = converted
    localizer = Localizer(gallery, weights, "cpu")
    lat, lon = geographic("EPSG:32633", EAST + 75.0, NORTH - 75.0)
    found = localizer.localize(
        world / "0.jpg", near=Near(lat, lon, 15.0), heading=Heading(250.0, 3.0)
    )
    x_m, y_m = found.posterior.places.to_local(lat=lat, lon=lon)
    assert found.posterior.prob_within(25.0, x_m, y_m) > 0.95
    assert abs(heading_error_deg(found.pose.heading_deg, 250.0)) < 15
    assert found.says_heading is (dataset == "kitti")


def check_evaluation(world: Path, converted: tuple[str, Path, Path], out: Path) -> None:
    dataset, weights, gallery = converted
    result = run(
        "evaluate", world / "poses.csv", "--out", out, "--gallery", gallery, "--model", weights,
        "--near-error", "20",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["num_queries"] == 2
    assert figures["chip_m"] == pytest.approx({"vigor": 71.04, "kitti": 100.27}[dataset])
    for block in ("pose", "end_to_end", "end_to_end_near"):
        assert 0 < figures[block]["median_m"] < 150
        told = figures[block]["heading_median_deg"]
        assert told is None if dataset == "vigor" else 0 <= told <= 180
    assert figures["pose"]["lateral_median_m"] is not None
    # The camera is in the chip's central half, and so is the answer.
    assert figures["pose"]["median_m"] < figures["chip_m"] / 2 * 2**0.5
    assert 0 <= figures["calibration"]["coverage_90"] <= 1
    warned = " ".join(figures["warnings"])
    assert ("says nothing of headings" in warned) is (dataset == "vigor")
    turned = "the headings of the table turned 2 of 2 photos to north"
    assert (turned in warned) is (dataset == "vigor")
    assert "is not calibrated" in warned
    assert f"1 of 2 photos: the model '{dataset}' was trained on" in warned


@pytest.mark.parametrize("converted", ["vigor"], indirect=True)
def test_photos_are_evaluated(
    world: Path,
    converted: tuple[str, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Drawing takes nine tenths of the time; the slow test draws.
    monkeypatch.setattr("ciper.plots.draw_all", lambda *_, **__: {})
    monkeypatch.setattr("ciper.report.answer_picture", lambda *_, **__: None)
    check_evaluation(world, converted, tmp_path / "report")


@pytest.mark.slow
def test_evaluations_are_drawn(
    world: Path, converted: tuple[str, Path, Path], tmp_path: Path
) -> None:
    check_evaluation(world, converted, tmp_path / "report")
    assert len(list((tmp_path / "report" / "cases").iterdir())) == 2


@pytest.mark.slow
def test_a_set_prediction_model_is_calibrated(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    config = CalibrateConfig(seeds=(5, 6), size_m=220.0, num_photos=3)
    steps: list[str] = []
    fitted = calibrate(
        world / "vigor.safetensors", out, config, cache=tmp_path / "cache",
        progress=lambda what, *_: steps.append(what),
    )  # fmt: skip
    # Its training had panoramas alone.
    assert not list((tmp_path / "cache").glob("*pinhole*"))
    assert {"hypotheses, city 1", "posterior, city 2", "confidence, city 2"} <= set(steps)
    model = load_model(out, "cpu")
    assert model.calibration == fitted
    assert fitted.is_fitted
    start = load_model(world / "vigor.safetensors", "cpu").calibration
    assert fitted.position_sigma_m != start.position_sigma_m
    assert fitted.heading_sigma_deg == Calibration().heading_sigma_deg
    assert not any("not calibrated" in limit for limit in model.limits)


def test_calibrating_needs_the_cameras_of_the_training(world: Path) -> None:
    both = CalibrateConfig()
    assert with_cameras_of(model_of(world, "vigor"), both).cameras == ("panorama",)
    assert with_cameras_of(model_of(world, "kitti"), both).cameras == ("pinhole:90",)
    narrow = CalibrateConfig(cameras=("pinhole:40",))
    with pytest.raises(ConfigError, match="cameras pinhole:40 do not suit the model 'kitti'"):
        with_cameras_of(model_of(world, "kitti"), narrow)


def test_what_is_seen_of_a_photo_by_hand(world: Path) -> None:
    """The fit's errors are those of the poses that the network gives in the true chip."""
    model = model_of(world, "kitti")
    build_index([world / "aerial.tif"], world / "gallery-seen", model)
    localizer = Localizer(world / "gallery-seen", model)
    photo = read_poses(world / "poses.csv")[1]
    seen = seen_of(model, localizer, photo)
    assert seen is not None
    chips, code = localizer.gallery.chips, localizer.read_posed(photo).code
    assert isinstance(code, PaperGround)
    cosine = localizer.gallery.descriptors[:][:, 0] @ code.descriptor[0].numpy()
    np.testing.assert_allclose(seen.cosine[:, 0], cosine, atol=1e-4)
    assert np.exp(seen.log_weight).sum() == pytest.approx(1.0)
    geod = pyproj.Geod(ellps="WGS84")
    azimuth, _, distance_m = geod.inv(
        chips.lon[seen.chip], chips.lat[seen.chip], photo.lon, photo.lat
    )
    chosen = np.array([seen.chip])
    poses = model.decode(
        code, chosen, localizer.features(np.arange(len(chips.lat))), np.zeros((1, 1))
    ).pose[0]
    x_m, y_m = distance_m * np.sin(np.radians(azimuth)), distance_m * np.cos(np.radians(azimuth))
    expected = np.hypot(poses[:, 0] - x_m, poses[:, 1] - y_m)
    np.testing.assert_allclose(seen.distance_m, expected, atol=0.02)
    np.testing.assert_allclose(seen.turn_deg, heading_error_deg(poses[:, 2], 70.0), atol=1e-3)


# ------------------------------------------------------------------------------- poses by hand


class FakeNetwork:
    """Says for every pair what it was told: K hypotheses of the authors' form."""

    config = replace(SMALL, chip_px=64, gsd=100.0 / 64)

    def __init__(self, logit: list[float], pose: list[tuple[float, ...]]) -> None:
        self.logit, self.pose = torch.tensor(logit), torch.tensor(pose)
        self.num_chips: list[int] = []

    def decode(self, ground: PaperGround, patches: torch.Tensor) -> Hypotheses:
        num = len(patches)
        self.num_chips.append(num)
        return Hypotheses(self.logit.expand(num, -1), self.pose.expand(num, -1, -1))


def fake_model(logit: list[float], pose: list[tuple[float, ...]], **options: Any) -> PaperModel:
    network: Any = FakeNetwork(logit, pose)
    calibration = Calibration(
        wide=PosteriorShape(floor=1e-4), position_sigma_m=1.0, heading_sigma_deg=3.0
    )
    return PaperModel(network, "fake", "0" * 64, calibration, **options)


def features_of(cosine: list[float]) -> ChipFeatures:
    """Chips whose similarity to a photo of descriptor (1, 0) is told."""
    pairs = [(c, (1 - c * c) ** 0.5) for c in cosine]
    return ChipFeatures(
        read_descriptors=lambda: np.array(pairs, dtype=np.float16)[:, None],
        read_coarse=lambda: torch.ones(len(cosine), 16, 16),
        read_fine=lambda chips: torch.zeros(len(chips), 4, 8),
    )


def code_of(num_views: int = 1) -> PaperGround:
    descriptor = torch.tensor([[1.0, 0.0]]).expand(num_views, -1)
    return PaperGround(descriptor, torch.zeros(num_views, 8), torch.ones(num_views))


@pytest.mark.parametrize(
    ("pose", "east_m", "north_m", "heading_deg"),
    [
        # 0.12 S up is 12 m north, 0.07 S right is 7 m east. The angle less 180 deg is counted
        # counter-clockwise from up: 180 looks north, 90 east, 0 south, 270 west.
        ((-0.12, 0.07, -1.0, 0.0), 7.0, 12.0, 0.0),
        ((0.10, 0.15, 0.0, 1.0), 15.0, -10.0, 90.0),
        ((0.09, -0.05, 3.0, 0.0), -5.0, -9.0, 180.0),
        ((-0.04, -0.17, 0.0, -2.0), -17.0, 4.0, 270.0),
        ((-0.11, 0.11, -(0.5**0.5), 0.5**0.5), 11.0, 11.0, 45.0),
    ],
)
@pytest.mark.parametrize("lat", [60.0, -20.0])
def test_a_hypothesis_becomes_a_place_on_the_globe(
    pose: tuple[float, ...], east_m: float, north_m: float, heading_deg: float, lat: float
) -> None:
    """Three chips in a row; the middle one is the most similar to the photo."""
    model = fake_model([4.0, -4.0], [pose, (0.2, 0.2, 1.0, 0.0)])
    geod = pyproj.Geod(ellps="WGS84")
    lons = [geod.fwd(10.0, lat, 90.0, x)[0] for x in (-50.0, 0.0, 50.0)]
    places = Places.around(np.full(3, lat), np.array(lons), chip_m=100.0)
    evidence = model.match(code_of(), features_of([0.1, 0.9, 0.2]))
    found = posterior_of(evidence, places, model.calibration)
    pose_found = found.places.pose(found.mode)
    lon, north_lat, _ = geod.fwd(10.0, lat, np.degrees(np.arctan2(east_m, north_m)),
                                 np.hypot(east_m, north_m))  # fmt: skip
    assert geod.inv(lon, north_lat, pose_found.lon, pose_found.lat)[2] < 0.4
    assert abs(heading_error_deg(pose_found.heading_deg, heading_deg)) < 0.5
    assert found.mode.chip == 1
    assert found.mode.prob > 0.9


def test_chips_weigh_by_similarity_and_only_the_best_are_decoded() -> None:
    model = fake_model([0.0], [(0.0, 0.0, 1.0, 0.0)])
    cosine = np.linspace(0.9, 0.0, 100)
    evidence = model.match(code_of(), features_of(cosine.tolist()))
    network: Any = model.network
    assert sum(network.num_chips) == 64
    assert max(network.num_chips) == 16
    mass = np.exp(evidence.coarse.astype(np.float64))
    expected = np.exp(20 * cosine.astype(np.float16).astype(float))
    np.testing.assert_allclose(mass.sum((1, 2, 3)), expected / expected.sum(), rtol=1e-4)
    assert mass[63].max() > 1e3 * mass[64].max()
    assert mass[99].max() == pytest.approx(mass[99].min())


def test_several_views_are_averaged() -> None:
    model = fake_model([0.0, 1.0], [(0.1, 0.1, 1.0, 0.0), (-0.1, 0.0, 1.0, 1.0)])
    one = model.match(code_of(1), features_of([0.5, 0.1]))
    three = model.match(code_of(3), features_of([0.5, 0.1]))
    np.testing.assert_allclose(three.coarse, one.coarse, rtol=1e-5)
    np.testing.assert_array_equal(three.row, one.row)


class FakeViews(FakeNetwork):
    """Every view has one hypothesis of its own, which its token tells: 20 m east of the last."""

    def decode(self, ground: PaperGround, patches: torch.Tensor) -> Hypotheses:
        east = (0.2 * ground.pose_token[:, 0] - 0.1).expand(len(patches))
        pose = torch.stack([0 * east, east, -torch.ones_like(east), 0 * east], dim=1)
        return Hypotheses(torch.zeros(len(patches), 1), pose[:, None])


def test_views_weigh_by_their_own_similarity() -> None:
    """By hand: e^(s c), with s = 20, over both views and both chips."""
    network: Any = FakeViews([0.0], [(0.0,) * 4])
    calibration = Calibration(position_sigma_m=1.0, heading_sigma_deg=3.0)
    model = PaperModel(network, "fake", "0" * 64, calibration)
    # View 0 is like chip 0 (1.0 and 0.8), view 1 like chip 1 (0.8 and 0.96).
    descriptor = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    code = PaperGround(descriptor, torch.tensor([[0.0], [1.0]]), torch.tensor([0.2, 0.6]))
    references = np.array([[[1.0, 0.0]], [[0.6, 0.8]]], dtype=np.float16)
    features = replace(features_of([0.0, 0.0]), read_descriptors=lambda: references)
    evidence = model.match(code, features)
    mass = np.exp(20 * (np.array([[1.0, 0.8], [0.6, 0.96]]) - 1.0))
    mass /= mass.sum()
    coarse = np.exp(evidence.coarse.astype(np.float64))
    np.testing.assert_allclose(coarse.sum((1, 2, 3)), mass.sum(1), rtol=5e-3)
    # 10 m west of the middle are columns 0 to 7: the first view's hypothesis.
    np.testing.assert_allclose(coarse[:, :, :, :8].sum((1, 2, 3)), mass[:, 0], rtol=5e-3)
    np.testing.assert_allclose(coarse[:, :, :, 8:].sum((1, 2, 3)), mass[:, 1], rtol=5e-3)
    assert evidence.visible_share == pytest.approx(0.4)


# ------------------------------------------------------------------------------- photos and chips


def banded(width: int = 512) -> NDArray[np.uint8]:
    """A panorama whose red says the bearing from the middle: 0 at the left edge, 255 right."""
    red = np.linspace(0, 255, width).astype(np.uint8)
    return np.broadcast_to(red[None, :, None], (width // 2, width, 3)).copy()


@pytest.mark.parametrize("heading_deg", [0.0, 90.0, 180.0, 271.0])
def test_panoramas_are_turned_to_north(heading_deg: float) -> None:
    panorama = np.zeros((4, 360, 3), dtype=np.uint8)
    # An object due east: its bearing from the heading is 90 - heading, to the right.
    column = round(180 + 90 - heading_deg) % 360
    panorama[:, column] = 255
    turned = north_in_the_middle(panorama, heading_deg)
    assert np.flatnonzero(turned[0, :, 0]).tolist() == [270]


def model_of(world: Path, dataset: str) -> PaperModel:
    model = load_model(world / f"{dataset}.safetensors", "cpu")
    assert isinstance(model, PaperModel)
    return model


def test_photos_enter_whole_and_squeezed(world: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    camera = Camera("pinhole", height_px=120, width_px=160, hfov_deg=75.0, is_assumed=True)
    canvases, visible = model_of(world, "kitti").views(photo, camera)
    assert canvases.shape == (1, 32, 128, 3)
    assert visible.all()
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(photo).permute(2, 0, 1)[None].float(), (32, 128),
        mode="bilinear", antialias=True,
    )  # fmt: skip
    difference = np.abs(canvases[0].astype(float) - expected[0].permute(1, 2, 0).numpy())
    assert difference.max() <= 1.0


def test_nothing_aliases_when_a_photo_is_squeezed(world: Path) -> None:
    """A checkerboard finer than the ground image is grey in it."""
    rows, columns = np.indices((128, 512))
    board = np.where((rows + columns) % 2, 255, 0).astype(np.uint8)
    camera = Camera("pinhole", height_px=128, width_px=512, hfov_deg=80.0)
    squeezed = model_of(world, "kitti").views(np.stack([board] * 3, -1), camera)[0]
    assert np.abs(squeezed.astype(float) - 127.5).max() < 3
    # So it is in training, where canvases are made smaller for the network.
    ones = torch.from_numpy(board)[None, ..., None].float()
    assert (resize(ones, (32, 128)) - 127.5).abs().max() < 3


@pytest.mark.parametrize(
    ("dataset", "camera", "share"),
    [
        ("vigor", Camera("equirectangular", height_px=64, width_px=128, hfov_deg=360.0), 1.0),
        ("kitti", Camera("pinhole", height_px=48, width_px=96, hfov_deg=81.0), 81 / 360),
    ],
)
def test_a_squeezed_photo_sees_what_its_camera_sees(
    world: Path, dataset: str, camera: Camera, share: float
) -> None:
    pixels = np.zeros((camera.height_px, camera.width_px, 3), dtype=np.uint8)
    code = model_of(world, dataset).encode_photo(pixels, camera)
    assert code.visible_share.tolist() == pytest.approx([share])


def test_a_tables_headings_turn_panoramas(world: Path, converted: tuple[str, Path, Path]) -> None:
    """`evaluate` shows a panorama of heading 70 as the same panorama, turned, of heading 0."""
    dataset, weights, gallery = converted
    localizer = Localizer(gallery, weights, "cpu")
    east = read_poses(world / "poses.csv")[0]
    turned = north_in_the_middle(read_photo(east.photo), 70.0)
    Image.fromarray(turned).save(world / "turned.png")
    north = replace(east, photo=world / "turned.png", heading_deg=None)
    aware, expected = (localizer.read_posed(pose).code.descriptor for pose in (east, north))
    unaware = localizer.read_posed(replace(east, heading_deg=None)).code.descriptor
    assert torch.allclose(aware, expected, atol=1e-5) is (dataset == "vigor")
    assert torch.allclose(aware, unaware, atol=1e-5) is (dataset == "kitti")


def test_only_a_model_of_aligned_panoramas_turns_them(world: Path) -> None:
    camera = Camera(projection="equirectangular", height_px=256, width_px=512, hfov_deg=360.0)
    for dataset, is_turned in (("vigor", True), ("kitti", False)):
        model = model_of(world, dataset)
        plain, _ = model.views(banded(), camera)
        east, _ = model.views(banded(), camera, heading_deg=90.0)
        assert np.array_equal(plain, east) is not is_turned
        # The heading, 127 in the middle, moves a quarter to the right.
        assert int(plain[0, 0, 64, 0]) == pytest.approx(127, abs=2)
        assert int(east[0, 0, 96, 0]) == pytest.approx(127 if is_turned else 191, abs=2)


def test_batched_is_single(world: Path) -> None:
    model, rng = model_of(world, "kitti"), np.random.default_rng(1)
    chips = rng.integers(0, 255, (3, 48, 48, 3), dtype=np.uint8)
    valid = np.ones((3, 48, 48), dtype=np.bool_)
    valid[1, :, :18] = False
    codes = model.encode(chips, valid)
    for i in range(3):
        one = model.encode(chips[i : i + 1], valid[i : i + 1])
        np.testing.assert_allclose(one.descriptors[0], codes.descriptors[i], atol=1e-3)
        np.testing.assert_allclose(one.fine[0], codes.fine[i], atol=5e-3)
        np.testing.assert_array_equal(one.coarse[0], codes.coarse[i])
    # 6 of the 24 central columns hold nothing: the western 4 of 16 cells.
    assert (codes.coarse[1][:, :4] == 0).all()
    assert (codes.coarse[1][:, 4:] == 1).all()


# ------------------------------------------------------------------------- networks of our training


def test_a_paper_network_of_our_training_sees_canvases(world: Path, tmp_path: Path) -> None:
    path = write_tiny_weights(tmp_path / "ours.safetensors", config=TINY_PAPER)
    model = load_model(path, "cpu")
    assert isinstance(model, PaperModel)
    assert model.says_heading
    assert model.chip_m == 128.0
    assert (model.canvas.height_px, model.canvas.width_px) == (128, 512)
    build_index([world / "aerial.tif"], tmp_path / "gallery", model)
    localizer = Localizer(tmp_path / "gallery", model)
    encoded = localizer.read(world / "1.jpg")
    assert len(encoded.code.descriptor) == 5  # an unknown field of view
    found = localizer.answer(encoded)
    assert found.posterior.place_prob.sum() == pytest.approx(1.0)
    assert found.says_heading


def test_an_encoder_that_is_no_model_indexes_as_before(world: Path, tmp_path: Path) -> None:
    report = build_index([world / "aerial.tif"], tmp_path / "gallery", FakeEncoder())
    assert report.num_chips >= 4


def test_an_origin_decides_the_spread(world: Path) -> None:
    vigor, kitti = model_of(world, "vigor"), model_of(world, "kitti")
    assert vigor.origin == Origin("vigor", 640 * 0.111)
    assert vigor.spread.heading_deg is None
    assert kitti.spread.heading_deg == kitti.calibration.heading_sigma_deg
    assert vigor.spread.position_m < kitti.spread.position_m
