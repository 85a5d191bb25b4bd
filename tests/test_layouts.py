"""Simulated data sets: what the readers find in them is where the cameras were put."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from ciper.camera import Camera, pixels_from_rays
from ciper.cli import app
from ciper.data.datasets import ProtocolOptions, read_protocol
from ciper.data.poses import PhotoPose, read_poses
from ciper.data.preprocess import read_photo
from ciper.data.protocol import AerialImage, Protocol, Sample
from ciper.errors import ConfigError
from ciper.geo import LocalFrame, forward, heading_error_deg, right
from ciper.layouts import ford, kitti, town, vigor
from ciper.simulate import Shot, SimulateConfig, simulate, take_photo

# A small city where cameras may stand, and so is the next one.
SEED = 6
SIZE_M = 120.0
HALF_PIXEL_M = 0.5 * 0.1133  # of VIGOR's coarser one of the two cities
NUM_PHOTOS = 16


@pytest.fixture(scope="module")
def blank_photos() -> Iterator[None]:
    """Photos without content: where they were taken is tested here, not what they show."""

    def take_nothing(_scene: object, shot: Shot, _rng: object) -> NDArray[np.uint8]:
        return np.zeros((shot.camera.height_px, shot.camera.width_px, 3), np.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(town, "take_photo", take_nothing)
        yield


def make(folder: Path, layout: str, *, has_whole_offsets: bool = True) -> Path:
    config = SimulateConfig(
        seed=SEED,
        size_m=SIZE_M,
        num_photos=NUM_PHOTOS,
        layout=layout,
        has_whole_offsets=has_whole_offsets,
    )
    made = simulate(folder / layout, config)
    assert (made.num_photos, made.aerial) == (NUM_PHOTOS, None)
    assert made.poses == folder / layout / "truth.csv"
    return made.out


@pytest.fixture(scope="module")
def vigor_root(tmp_path_factory: pytest.TempPathFactory, blank_photos: None) -> Path:
    return make(tmp_path_factory.mktemp("whole"), "vigor")


@pytest.fixture(scope="module")
def kitti_root(tmp_path_factory: pytest.TempPathFactory, blank_photos: None) -> Path:
    return make(tmp_path_factory.mktemp("layouts"), "kitti")


@pytest.fixture(scope="module")
def ford_root(tmp_path_factory: pytest.TempPathFactory, blank_photos: None) -> Path:
    return make(tmp_path_factory.mktemp("layouts"), "ford")


def truth_of(root: Path, protocol: Protocol) -> list[tuple[Sample, PhotoPose]]:
    truth = {pose.photo: pose for pose in read_poses(root / "truth.csv")}
    return [(sample, truth[sample.photo]) for sample in protocol.samples]


def error_m(sample: Sample, pose: PhotoPose) -> NDArray[np.float64]:
    """East and north from the true camera to the sample's."""
    lat, lon = sample.position
    return np.array(LocalFrame(lat=pose.lat, lon=pose.lon).to_local(lat=lat, lon=lon))


def turn_deg(sample: Sample, pose: PhotoPose) -> float:
    assert pose.heading_deg is not None
    return abs(float(heading_error_deg(sample.heading_deg, pose.heading_deg)))


def quadrants(poses: tuple[PhotoPose, ...]) -> set[int]:
    return {int((pose.heading_deg or 0.0) // 90.0) for pose in poses}


# ----------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("reading", ["highlyaccurate", "ciper"])
def test_kitti_comes_back(kitti_root: Path, reading: str) -> None:
    seen = []
    for split, part, num in (("test1", "train", 8), ("test1", "test", 4), ("test2", "test", 4)):
        options = ProtocolOptions(split=split, part=part, reading=reading)  # type: ignore[arg-type]
        pairs = truth_of(kitti_root, read_protocol(f"kitti:{kitti_root}", options))
        assert len(pairs) == num
        for sample, pose in pairs:
            assert np.abs(error_m(sample, pose)).max() < 0.05
            assert turn_deg(sample, pose) < 0.05
            assert sample.camera.hfov_deg == pytest.approx(pose.hfov_deg, abs=1e-4) or (
                sample.camera.focal_px in (718.856, 721.5377)
            )
            seen.append(pose)
    assert len({pose.photo for pose in seen}) == NUM_PHOTOS
    assert quadrants(tuple(seen)) == {0, 1, 2, 3}


@pytest.mark.parametrize("reading", ["highlyaccurate", "ciper"])
def test_ford_comes_back(ford_root: Path, reading: str) -> None:
    seen = []
    for split in ("log1", "log2"):
        for part in ("train", "test"):
            options = ProtocolOptions(split=split, part=part, reading=reading)  # type: ignore[arg-type]
            pairs = truth_of(ford_root, read_protocol(f"ford:{ford_root}", options))
            assert len(pairs) == NUM_PHOTOS / 4
            for sample, pose in pairs:
                assert np.abs(error_m(sample, pose)).max() < 0.05
                assert turn_deg(sample, pose) < 0.05
                # The camera is off the body, which is off the image's middle.
                assert np.hypot(sample.x_m, sample.y_m) < 8.0 * math.sqrt(2.0) + 2.2
                seen.append(pose)
    assert len({pose.photo for pose in seen}) == NUM_PHOTOS
    assert quadrants(tuple(seen)) == {0, 1, 2, 3}


@pytest.mark.parametrize("labels", ["corrected", "original"])
def test_vigor_comes_back(vigor_root: Path, labels: str) -> None:
    seen, signs = set(), set()
    for part in ("train", "test"):
        options = ProtocolOptions(part=part, labels=labels)  # type: ignore[arg-type]
        protocol = read_protocol(f"vigor:{vigor_root}", options)
        for sample, pose in truth_of(vigor_root, protocol):
            assert np.abs(error_m(sample, pose)).max() <= HALF_PIXEL_M
            assert turn_deg(sample, pose) < 1e-6
            # The camera is in the central half of its chip.
            assert max(abs(sample.x_m), abs(sample.y_m)) <= sample.image.side_m / 4.0 + 0.06
            signs.add((sample.x_m > 0.0, sample.y_m > 0.0))
            seen.add(pose.photo)
    assert len(seen) == NUM_PHOTOS
    assert len(signs) == 4


def test_vigor_comes_back_exactly_with_fractions_of_pixels(
    tmp_path: Path, vigor_root: Path, blank_photos: None
) -> None:
    root = make(tmp_path, "vigor", has_whole_offsets=False)
    for split, city in (("same_area", ""), ("cross_area", "Chicago")):
        protocol = read_protocol(f"vigor:{root}", ProtocolOptions(split=split))
        assert protocol.samples
        for sample, pose in truth_of(root, protocol):
            assert np.abs(error_m(sample, pose)).max() < 0.01
            assert sample.name.startswith(city)
    # The original labels know whole pixels only, and the rest of the city is the same.
    for name in ("splits/Chicago/pano_label_balanced.txt", "truth.csv"):
        assert (root / name).read_text() == (vigor_root / name).read_text()


def test_a_turned_panorama_comes_back(vigor_root: Path) -> None:
    options = ProtocolOptions(heading_noise_deg=180.0, part="train")
    protocol = read_protocol(f"vigor:{vigor_root}", options)
    for sample, _ in truth_of(vigor_root, protocol):
        # North is in the middle of the file.
        assert float(heading_error_deg(sample.heading_deg, sample.turn_deg)) == pytest.approx(0.0)


# ------------------------------------------------------------------------------------------ files


def test_vigor_labels_name_the_chips_that_are_there(vigor_root: Path) -> None:
    for city, (_, gsd) in vigor.CITIES.items():
        labels = vigor_root / "splits__corrected" / city
        chips = (labels / "satellite_list.txt").read_text().splitlines()
        assert sorted(chips) == sorted(p.name for p in (vigor_root / city / "satellite").iterdir())
        lines = (labels / "pano_label_balanced__corrected.txt").read_text().splitlines()
        assert len(lines) == NUM_PHOTOS / 2
        for line in lines:
            panorama, *rest = line.split(" ")
            assert (vigor_root / city / "panorama" / panorama).is_file()
            assert panorama.endswith(",.jpg") and len(panorama.split(",")[0]) == 22
            assert len(set(rest[0::3])) == 4 and set(rest[0::3]) <= set(chips)
            assert all(word.endswith(".0") for k in (1, 2) for word in rest[k::3])
            # Two rows and columns, at most half of a chip apart, as the names say.
            first, *others = rest[0::3]
            frame = LocalFrame(lat=float(first.split("_")[1]), lon=float(first[:-4].split("_")[2]))
            lat, lon = (
                [float(chip[:-4].split("_")[k]) for chip in [first, *others]] for k in (1, 2)
            )
            x, y = frame.to_local(lat=np.array(lat), lon=np.array(lon))
            rows, columns = (np.array(rest[k::3], dtype=float) for k in (1, 2))
            # A chip farther east has the camera farther west: a larger d1.
            np.testing.assert_allclose(columns - columns[0], x / gsd, atol=1.01)
            np.testing.assert_allclose(rows - rows[0], y / gsd, atol=1.01)
            assert 0.0 < np.abs(x).max() <= 320 * gsd + 0.01


def test_kitti_packets_and_calibrations(kitti_root: Path) -> None:
    packets = sorted(kitti_root.glob("raw/*/*/oxts/data/*.txt"))
    assert len(packets) == NUM_PHOTOS
    assert all(len(packet.read_text().split()) == 30 for packet in packets)
    for date, width_px, p_rect in (
        ("2011_10_03", 1241, (718.856, 607.1928, 185.2157)),
        ("2011_09_26", 1242, (721.5377, 609.5593, 172.854)),
    ):
        text = (kitti_root / "raw" / date / "calib_cam_to_cam.txt").read_text()
        entries = dict(line.split(": ") for line in text.splitlines())
        matrix = np.array(entries["P_rect_02"].split(), dtype=float).reshape(3, 4)
        np.testing.assert_allclose([matrix[0, 0], matrix[0, 2], matrix[1, 2]], p_rect)
        assert float(entries["S_rect_02"].split()[0]) == width_px
        photo = next(kitti_root.glob(f"raw/{date}/*/image_02/data/*.png"))
        assert read_photo(photo).shape[1] == width_px
    with Image.open(next(kitti_root.glob("satellite/*/*/*.png"))) as image:
        assert image.size == (1280, 1280)
    for name, num in (("train", 8), ("test1", 4), ("test2", 4)):
        rows = [
            line.split() for line in (kitti_root / f"{name}_files.txt").read_text().splitlines()
        ]
        assert len(rows) == num
        assert all(len(row) == (1 if name == "train" else 4) for row in rows)
        assert all(abs(float(label)) <= 1.0 for row in rows for label in row[1:])


@pytest.mark.parametrize(
    ("heading_deg", "yaw_deg"), [(0, 90), (90, 0), (180, -90), (225, -135), (315, 135)]
)
def test_yaw_is_counter_clockwise_from_east(heading_deg: float, yaw_deg: float) -> None:
    fields = kitti._oxts_fields(49.0, 8.4, heading_deg=heading_deg, pitch_deg=1.0, roll_deg=2.0)
    assert fields[:2] == ["49.0000000000000", "8.4000000000000"]
    # A nose that is up is a negative pitch there.
    expected = np.deg2rad([2.0, -1.0, yaw_deg])
    np.testing.assert_allclose(np.array(fields[3:6], dtype=float), expected, atol=1e-12)


def test_gsd_of_the_tiles() -> None:
    assert town.tile_gsd(49.015) == pytest.approx(0.19583, abs=5e-6)
    assert town.tile_gsd(42.3) == pytest.approx(0.2208, abs=5e-5)


def test_ford_lines_stand_where_they_are_looked_for(ford_root: Path) -> None:
    for date, log, num_others, num_words in (
        ("2017-10-26", "Log1", 4500, 9),
        ("2017-08-04", "Log1", 0, 12),
        ("2017-10-26", "Log2", 0, 9),
        ("2017-08-04", "Log2", 0, 12),
    ):
        folder = ford_root / date / "V2" / log
        ending = "" if num_words == 9 else "_test"
        lines = (folder / f"grd_sat_quaternion_latlon{ending}.txt").read_text().splitlines()
        names = [line.split(" ")[0] for line in lines]
        assert len(lines) == num_others + NUM_PHOTOS / 4 and len(set(names)) == len(names)
        assert all(len(line.split(" ")) == num_words for line in lines)
        for index, line in enumerate(lines):
            photo = folder / f"{date}-V2-{log}-FL" / names[index].replace(".txt", ".png")
            chip = folder / "SatelliteMaps_18" / ("_".join(line.split(" ")[7:9]) + ".png")
            assert photo.is_file() == chip.is_file() == (index >= num_others)


# --------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("heading_deg", [35.0, 125.0, 215.0, 305.0])
def test_ford_camera_sees_points_where_its_calibration_says(heading_deg: float) -> None:
    """A point through quaternion, rotation and K, by hand, is where the simulated camera has it."""
    rng = np.random.default_rng(int(heading_deg))
    body = ford._random_body(0, rng)
    body = replace(body, turn=type(body.turn).from_euler("ZYX", [heading_deg, 1.2, -0.9], True))
    camera_heading_deg, camera = ford._camera_on(body)
    assert abs(float(heading_error_deg(camera_heading_deg, heading_deg - 5.0))) < 0.1
    in_camera = np.stack([rng.uniform(-0.7, 0.7, 20), rng.uniform(-0.5, 0.3, 20), np.ones(20)])
    north, east, down = body.turn.as_matrix() @ ford.camera_to_body().as_matrix() @ in_camera
    ahead, aside = forward(camera_heading_deg), right(camera_heading_deg)
    level = np.stack([east, north])
    u, v, is_visible = pixels_from_rays(camera, np.stack([aside @ level, ahead @ level, -down], 1))
    assert is_visible.all()
    # K counts from the centre of the first pixel, the camera from its corner.
    np.testing.assert_allclose(u, 945.4 * in_camera[0] + 855.5 + 0.5, atol=1e-6)
    np.testing.assert_allclose(v, 945.4 * in_camera[1] + 566.4 + 0.5, atol=1e-6)


def test_ford_camera_looks_left_and_down() -> None:
    to_the_right, down, ahead = ford.camera_to_body().as_matrix().T
    assert ahead == pytest.approx([0.99559, -0.08710, 0.03490], abs=1e-5)
    assert to_the_right == pytest.approx([0.08716, 0.99619, 0.0], abs=1e-5)
    assert down[2] == pytest.approx(math.cos(math.radians(2.0)))


@pytest.fixture(scope="module")
def small_town() -> town.Town:
    return town.build_town(LocalFrame(lat=61.0, lon=25.0), SEED, SIZE_M, gsd=0.25)


def test_aerial_images_show_places_where_they_are(small_town: town.Town, tmp_path: Path) -> None:
    """Bright spots at known metres come back at those metres to a twentieth of a pixel."""
    spots_m = np.array([[-9.0, 12.0], [14.0, 8.5], [11.0, -13.5], [-12.5, -7.0]])
    middle_m = np.array([52.3, 66.9])
    pixels = np.zeros((480, 480, 3), np.uint8)
    for x, y in spots_m + middle_m:
        column, row = round(x / 0.25), round((SIZE_M - y) / 0.25)
        pixels[row - 4 : row + 4, column - 4 : column + 4] = 255
    painted = replace(small_town, picture=Image.fromarray(pixels))
    lat, lon = painted.geographic(*middle_m)
    image = AerialImage(tmp_path / "chip.png", lat, lon, 0.1, 400)
    painted.save_aerial(image)
    seen = read_photo(image.path)[..., 0].astype(float)
    v, u = np.mgrid[0.5:400, 0.5:400]
    x, y = (u - 200.0) * 0.1, (200.0 - v) * 0.1
    for spot in spots_m:
        # The square's middle is on a corner of the picture's pixels.
        square = np.round((spot + middle_m) / 0.25) * 0.25 - middle_m
        weights = seen * (np.hypot(x - spot[0], y - spot[1]) < 3.0)
        found = [np.average(axis, weights=weights) for axis in (x, y)]
        np.testing.assert_allclose(found, square, atol=0.005)


def test_metres_and_degrees_of_a_town_are_inverse(small_town: town.Town) -> None:
    assert small_town.geographic(60.0, 60.0) == pytest.approx((61.0, 25.0), abs=1e-12)
    lat, lon = small_town.geographic(10.0, 110.0)
    assert lat > 61.0 and lon < 25.0
    assert small_town.metres(lat=lat, lon=lon) == pytest.approx((10.0, 110.0), abs=1e-6)


def test_a_principal_point_moves_the_photo(small_town: town.Town) -> None:
    """24 pixels to the right of the middle, 10 above: so much content comes in at the left."""
    x, y = town.camera_places(small_town, 1, SEED)[0]
    middle = Camera("pinhole", 160, 320, 70.0)
    moved = replace(middle, principal_px=(160.0 + 24.0, 80.0 - 10.0))
    photos = [
        take_photo(
            small_town.scene,
            Shot(float(x), float(y), 40.0, 1.7, camera),
            np.random.default_rng(3),
        ).astype(float)
        for camera in (middle, moved)
    ]
    assert np.abs(photos[0][10:, :-24] - photos[1][:-10, 24:]).mean() < 6.0
    assert np.abs(photos[0] - photos[1]).mean() > 12.0


# ---------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "cityscapes"}, "--layout cityscapes; expected vigor, kitti, ford"),
        ({"layout": "vigor", "camera": "nadir"}, "leave --camera and --rasters out"),
        ({"layout": "ford", "rasters": ("x.tif",)}, "leave --camera and --rasters out"),
        ({"layout": "kitti", "num_photos": 3}, "num_photos 3 is too few.*4 or more"),
    ],
)
def test_what_a_layout_refuses(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SimulateConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [["--camera", "panorama"], ["--rasters", "x.tif"]])
def test_the_command_refuses_other_cameras(tmp_path: Path, options: list[str]) -> None:
    arguments = ["simulate", str(tmp_path / "out"), "--layout", "vigor", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "error: --layout vigor" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_writes_and_says_what_next(tmp_path: Path, blank_photos: None) -> None:
    out = tmp_path / "out"
    arguments = ["simulate", str(out), "--layout", "vigor", "--size-m", "100"]
    result = CliRunner().invoke(app, [*arguments, "--num-photos", "4"])
    assert result.exit_code == 0, result.output
    assert f"wrote 4 photos and {out / 'truth.csv'}" in result.stderr
    assert f"ciper data check vigor:{out}" in result.stderr
    assert len(read_protocol(f"vigor:{out}").samples) == 2
