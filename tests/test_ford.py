from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ciper.camera import camera_from_photo
from ciper.data.datasets import Part, ProtocolOptions, Reading
from ciper.data.ford import image_gsd, read_ford
from ciper.data.ford_labels import mercator_offset_m
from ciper.data.ford_rig import parse_yaml, read_rig
from ciper.data.protocol import Protocol, Sample
from ciper.errors import ConfigError, DatasetError
from ciper.geo import LocalFrame

LAT, LON = "42.3000", "-83.210"
DAY = {"train": "2017-10-26", "test": "2017-08-04"}
FILE = {"train": "grd_sat_quaternion_latlon.txt", "test": "grd_sat_quaternion_latlon_test.txt"}
LEVER_M = (2.0, -0.5, -1.2)
QUADRANTS_DEG = (30.0, 120.0, 210.0, 300.0)
# Camera x, y and z are body y, z and x: a third of a turn about the diagonal.
OPTICAL = np.array([0.5, 0.5, 0.5, 0.5])

Quaternion = NDArray[np.float64]


def _turn(axis: str, angle_deg: float) -> Quaternion:
    quaternion = np.zeros(4)
    quaternion[0] = math.cos(math.radians(angle_deg) / 2.0)
    quaternion["wxyz".index(axis)] = math.sin(math.radians(angle_deg) / 2.0)
    return quaternion


def _times(a: Quaternion, b: Quaternion) -> Quaternion:
    """Hamilton's product: first b, then a."""
    scalar = a[0] * b[0] - a[1:] @ b[1:]
    return np.array([scalar, *(a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:]))])


def _attitude(yaw_deg: float, pitch_deg: float = 0.0, roll_deg: float = 0.0) -> Quaternion:
    """Yaw clockwise from north, then pitch up, then roll right side down."""
    tilt = _times(_turn("y", pitch_deg), _turn("x", roll_deg))
    return _times(_turn("z", yaw_deg), tilt)


def _extrinsics(quaternion: Quaternion = OPTICAL, position_m: Sequence[float] = LEVER_M) -> str:
    w, x, y, z = quaternion.tolist()
    return (
        "child_frame_id: camera_front_left\n"
        "header: {frame_id: body, seq: 0, stamp: {nsecs: 0, secs: 0}}\n"
        "transform:\n"
        f"  rotation: {{w: {w}, x: {x}, y: {y}, z: {z}}}\n"
        "  translation:\n"
        f"    x: {position_m[0]}\n    y: {position_m[1]}\n    z: {position_m[2]}\n"
    )


def _line(
    name: str = "150.txt",
    quaternion: Sequence[float] | Quaternion = (1.0, 0.0, 0.0, 0.0),
    place: tuple[float | str, float | str] = (LAT, LON),
    moves: Sequence[float | str] = (),
) -> str:
    return " ".join(str(field) for field in (name, *quaternion, *place, LAT, LON, *moves))


def _write(
    root: Path,
    lines: Sequence[str],
    *,
    part: Part = "test",
    log: str = "Log1",
    day: str | None = None,
    body: str | None = None,
) -> Path:
    """A root with one drive, whose photos and chip are empty files; returns the label file."""
    day = day or DAY[part]
    folder = root / day / "V2" / log
    photos, chips = folder / f"{day}-V2-{log}-FL", folder / "SatelliteMaps_18"
    calibration = root / "Calibration-V2" / "V2"
    for path in (photos, chips, calibration):
        path.mkdir(parents=True, exist_ok=True)
    for line in lines:
        (photos / line.split()[0].replace(".txt", ".png")).touch()
    (chips / f"{LAT}_{LON}.png").touch()
    (calibration / "cameraFrontLeft_body.yaml").write_text(body or _extrinsics())
    labels = folder / FILE[part]
    labels.write_text("\n".join(lines) + "\n")
    return labels


def _read(root: Path, *, split: str = "log1", **options: object) -> Protocol:
    return read_ford(root, split, ProtocolOptions(**options))  # type: ignore[arg-type]


def _only(root: Path, **options: object) -> Sample:
    (sample,) = read_ford(root, "log1", ProtocolOptions(**options)).samples  # type: ignore[arg-type]
    return sample


def _angle_deg(a_deg: float, b_deg: float) -> float:
    return abs((a_deg - b_deg + 180.0) % 360.0 - 180.0)


# ------------------------------------------------------------------------------------------ poses


@pytest.mark.parametrize(
    ("yaw_deg", "x_m", "y_m"),
    [(0.0, -0.5, 2.0), (90.0, 2.0, 0.5), (180.0, 0.5, -2.0), (270.0, -2.0, -0.5)],
)
def test_camera_stands_ahead_and_left_of_the_body(
    tmp_path: Path, yaw_deg: float, x_m: float, y_m: float
) -> None:
    _write(tmp_path, [_line(quaternion=_attitude(yaw_deg), moves=(0, 0, 0))])
    sample = _only(tmp_path)
    assert (sample.x_m, sample.y_m) == pytest.approx((x_m, y_m), abs=1e-9)
    assert _angle_deg(sample.heading_deg, yaw_deg) < 1e-9
    assert sample.camera.pitch_deg == pytest.approx(0.0, abs=1e-9)
    assert sample.camera.roll_deg == pytest.approx(0.0, abs=1e-9)


def test_the_lever_arm_tilts_with_the_body(tmp_path: Path) -> None:
    # Nose straight east and 30 degrees up: the camera 2 m ahead is 2 cos 30 m east; the 1.2 m above
    # the body's plane are 1.2 sin 30 m back.
    _write(tmp_path, [_line(quaternion=_attitude(90.0, pitch_deg=30.0), moves=(0, 0, 0))])
    sample = _only(tmp_path)
    assert sample.x_m == pytest.approx(1.7320508 - 0.6, abs=1e-6)
    assert sample.y_m == pytest.approx(0.5, abs=1e-6)
    assert sample.camera.pitch_deg == pytest.approx(30.0, abs=1e-9)


@pytest.mark.parametrize("yaw_deg", QUADRANTS_DEG)
@pytest.mark.parametrize(("pitch_deg", "roll_deg"), [(6.0, -4.0), (-3.0, 5.0)])
def test_known_cameras_come_back(
    tmp_path: Path, yaw_deg: float, pitch_deg: float, roll_deg: float
) -> None:
    frame = LocalFrame(lat=float(LAT), lon=float(LON))
    body_m = np.array([-12.0, 9.0])
    place = tuple(float(value) for value in frame.to_geographic(x=body_m[0], y=body_m[1]))
    ahead, across = math.radians(yaw_deg), math.radians(yaw_deg + 90.0)
    # The body is level, so the lever arm is 1.7 m ahead less 0.4 m to the right; the mount tilts.
    lever_m = 1.7 * np.array([math.sin(ahead), math.cos(ahead)])
    lever_m -= 0.4 * np.array([math.sin(across), math.cos(across)])
    line = _line(quaternion=_attitude(yaw_deg), place=(place[0], place[1]), moves=(0.3, -0.7, 0.5))
    mount = _times(_times(_turn("y", pitch_deg), _turn("x", roll_deg)), OPTICAL)
    _write(tmp_path, [line], body=_extrinsics(mount, (1.7, -0.4, -1.3)))
    for reading in ("highlyaccurate", "ciper"):
        sample = _only(tmp_path, reading=reading)
        assert math.dist((sample.x_m, sample.y_m), tuple(body_m + lever_m)) < 0.05
        x_m, y_m = frame.to_local(lat=sample.position[0], lon=sample.position[1])
        assert math.dist((float(x_m), float(y_m)), tuple(body_m + lever_m)) < 0.05
        assert _angle_deg(sample.heading_deg, yaw_deg) < 0.05
        assert sample.camera.pitch_deg == pytest.approx(pitch_deg, abs=0.05)
        assert sample.camera.roll_deg == pytest.approx(roll_deg, abs=0.05)


@pytest.mark.parametrize("yaw_deg", QUADRANTS_DEG)
def test_tilt_of_the_vehicle_is_the_cameras(tmp_path: Path, yaw_deg: float) -> None:
    _write(tmp_path, [_line(quaternion=_attitude(yaw_deg, 6.0, -4.0), moves=(0, 0, 0))])
    sample = _only(tmp_path)
    assert _angle_deg(sample.heading_deg, yaw_deg) < 1e-9
    assert sample.camera.pitch_deg == pytest.approx(6.0)
    assert sample.camera.roll_deg == pytest.approx(-4.0)


def test_long_quaternions_are_normalised(tmp_path: Path) -> None:
    _write(tmp_path, [_line(quaternion=1.009 * _attitude(120.0), moves=(0, 0, 0))])
    sample = _only(tmp_path)
    assert sample.heading_deg == pytest.approx(120.0)
    assert math.hypot(sample.x_m, sample.y_m) == pytest.approx(math.hypot(2.0, 0.5))


# ------------------------------------------------------------------------------------------ chips

CENTRED = _extrinsics(position_m=(0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("yaw_deg", "moves", "centre_m", "up_deg"),
    [
        # Driving north, 20 m left of the centre is west of it: the centre lies east.
        (0.0, (1, 0, 0), (20.0, 0.0), 0.0),
        (0.0, (0, 1, 0), (0.0, -20.0), 0.0),
        # Driving east, left is north and above is east.
        (90.0, (1, 0, 0), (0.0, -20.0), 90.0),
        (90.0, (0, 1, 0), (-20.0, 0.0), 90.0),
        (180.0, (1, 0, 0), (-20.0, 0.0), 180.0),
        (180.0, (0, -1, 0), (0.0, -20.0), 180.0),
        (270.0, (-1, 0, 0), (0.0, -20.0), 270.0),
        (270.0, (0, 1, 0), (20.0, 0.0), 270.0),
        # Counter-clockwise by 10 degrees: what was 10 degrees clockwise is up now.
        (0.0, (0, 0, 1), (0.0, 0.0), 10.0),
        (355.0, (0, 0, 1), (0.0, 0.0), 5.0),
        (5.0, (0, 0, -1), (0.0, 0.0), 355.0),
    ],
)
def test_cut_by_hand(
    tmp_path: Path,
    yaw_deg: float,
    moves: Sequence[float],
    centre_m: tuple[float, float],
    up_deg: float,
) -> None:
    _write(tmp_path, [_line(quaternion=_attitude(yaw_deg), moves=moves)], body=CENTRED)
    for reading in ("highlyaccurate", "ciper"):
        cut = _only(tmp_path, reading=reading).cut
        assert (cut.x_m, cut.y_m) == pytest.approx(centre_m, abs=1e-9)
        assert _angle_deg(cut.up_deg, up_deg) < 1e-9


# u, v, theta of 20 m, 20 m and 10 degrees -> the body right and up of the chip's centre, m.
# highlyaccurate: (-10, 5) turned by +9 degrees (cos .987688, sin .156434) is
# (-9.87688 - 0.78217, -1.56434 + 4.93844); ciper shifts at last, so nothing turns the shift.
WORKED = [
    ((0.5, 0.25, 0.9), (-10.65906, 3.37410), (-10.0, 5.0), 351.0),
    ((0.5, -0.25, -0.9), (-10.65906, -3.37410), (-10.0, -5.0), 9.0),
    ((-0.5, 0.25, 0.9), (9.09471, 6.50278), (10.0, 5.0), 351.0),
    ((-0.5, -0.25, -0.9), (9.09471, -6.50278), (10.0, -5.0), 9.0),
    ((0.5, 0.25, -0.9), (-9.09471, 6.50278), (-10.0, 5.0), 9.0),
    ((-0.5, -0.25, 0.9), (10.65906, -3.37410), (10.0, -5.0), 351.0),
]


@pytest.mark.parametrize("yaw_deg", QUADRANTS_DEG)
@pytest.mark.parametrize(("moves", "highlyaccurate_m", "ciper_m", "heading_deg"), WORKED)
def test_worked_examples_of_both_readings(
    tmp_path: Path,
    yaw_deg: float,
    moves: Sequence[float],
    highlyaccurate_m: tuple[float, float],
    ciper_m: tuple[float, float],
    heading_deg: float,
) -> None:
    place = (float(LAT) + 1e-4, float(LON) - 2e-4)
    line = _line(quaternion=_attitude(yaw_deg), place=place, moves=moves)
    _write(tmp_path, [line], body=CENTRED)
    readings: dict[Reading, tuple[float, float]] = {
        "highlyaccurate": highlyaccurate_m,
        "ciper": ciper_m,
    }
    for reading, expected_m in readings.items():
        pose = _only(tmp_path, reading=reading).pose
        assert pose == pytest.approx((*expected_m, heading_deg), abs=1e-4)


def test_the_camera_leads_the_body_in_the_chip(tmp_path: Path) -> None:
    # The body at (-10, 5) looks 9 degrees to the left of up: 2 m ahead are (-0.312869, 1.975377),
    # and 0.5 m to its left are (-0.493844, -0.078217).
    line = _line(quaternion=_attitude(210.0), moves=(0.5, 0.25, 0.9))
    _write(tmp_path, [line])
    x_m, y_m, heading_deg = _only(tmp_path, reading="ciper").pose
    assert (x_m, y_m) == pytest.approx((-10.806713, 6.897160), abs=1e-5)
    assert heading_deg == pytest.approx(351.0)


def _publish(yaw_deg: float, offset_px: tuple[float, float], moves: Sequence[float]) -> Image.Image:
    """The published steps on pixels: the body to the middle, heading up, shift, turn; 0.2 m/px."""
    side_px = 500
    image = Image.new("F", (side_px, side_px))
    column, row = (int(side_px / 2 + offset) for offset in offset_px)
    image.paste(1.0, (column - 2, row - 2, column + 2, row + 2))

    def shift(image: Image.Image, u_px: float, v_px: float) -> Image.Image:
        matrix = (1.0, 0.0, u_px, 0.0, 1.0, v_px)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=bilinear)

    bilinear = Image.Resampling.BILINEAR
    image = shift(image, *offset_px).rotate(yaw_deg, resample=bilinear)
    image = shift(image, moves[0] * 100.0, moves[1] * 100.0)
    return image.rotate(moves[2] * 10.0, resample=bilinear)


@pytest.mark.parametrize("yaw_deg", QUADRANTS_DEG)
def test_highlyaccurate_agrees_with_its_steps_on_pixels(tmp_path: Path, yaw_deg: float) -> None:
    moves = (0.6, -0.8, 0.9)
    _write(tmp_path, [_line(quaternion=_attitude(yaw_deg), moves=moves)], body=CENTRED)
    array = np.asarray(_publish(yaw_deg, (40.0, -30.0), moves))
    rows, columns = np.mgrid[: array.shape[0], : array.shape[1]] + 0.5
    x_m = float((columns * array).sum() / array.sum() - 250.0) * 0.2
    y_m = float(250.0 - (rows * array).sum() / array.sum()) * 0.2
    assert _only(tmp_path).pose[:2] == pytest.approx((x_m, y_m), abs=0.05)


@pytest.mark.parametrize("noise_deg", [0.0, 10.0, 45.0, 180.0])
@pytest.mark.parametrize("reading", ["highlyaccurate", "ciper"])
def test_what_is_told_is_true(tmp_path: Path, reading: Reading, noise_deg: float) -> None:
    rng = np.random.default_rng(5)
    mount = _times(_turn("z", -7.0), _times(_turn("y", -6.0), OPTICAL))
    lines = []
    for i in range(200):
        attitude = _attitude(rng.uniform(0, 360), *rng.uniform(-5, 5, 2))
        # Half of the shifts lie in the corners, and half of those are turned as far as it goes.
        corner = rng.choice([-1.0, 1.0], 2) if i % 2 else rng.uniform(-1, 1, 2)
        theta = rng.choice([-1.0, 1.0]) if i % 4 == 3 else rng.uniform(-1, 1)
        lines.append(_line(f"{i}.txt", attitude, moves=(*corner.tolist(), theta)))
    _write(tmp_path, lines, body=_extrinsics(mount))
    samples = _read(tmp_path, reading=reading, heading_noise_deg=noise_deg).samples
    poses = np.array([sample.pose for sample in samples])
    told = samples[0].told
    assert np.abs(poses[:, :2]).max() <= told.within_m
    # Not much looser than need be: some corner comes within a lever arm and a metre of it.
    assert np.abs(poses[:, :2]).max() >= told.within_m - 4.0
    for sample, (_, _, heading_deg) in zip(samples, poses, strict=True):
        assert sample.told.heading_within_deg == noise_deg
        assert _angle_deg(heading_deg, sample.told.heading_deg) <= noise_deg + 1e-9
        # The camera looks 7 degrees to the left of where the vehicle drives.
        assert _angle_deg(sample.told.heading_deg, 353.0) < 2.0


def test_image_and_chip_have_the_maps_scale(tmp_path: Path) -> None:
    _write(tmp_path, [_line(moves=(0, 0, 0))])
    sample = _only(tmp_path)
    # 2 pi 6378137 / 256 = 156543.03392 m/px at zoom 0; / 2^19 = 0.2985821; cos 42.3 = 0.7396311.
    assert sample.image.gsd == pytest.approx(0.2208406, abs=1e-6)
    assert image_gsd(0.0) * 2**19 == pytest.approx(156543.03392)
    assert (sample.image.lat, sample.image.lon) == (42.3, -83.21)
    assert sample.image.side_px == 1280
    assert sample.image.path.name == "42.3000_-83.210.png"
    assert sample.cut.side_m == pytest.approx(512 * 0.2208406, abs=1e-3)


def test_mercator_metres_beside_wgs84() -> None:
    frame = LocalFrame(lat=42.35, lon=-83.2)
    for x_m, y_m in ((100.0, 0.0), (0.0, 100.0), (-100.0, 0.0), (0.0, -100.0)):
        lat, lon = frame.to_geographic(x=x_m, y=y_m)
        east_m, north_m = mercator_offset_m(lat=lat, lon=lon, origin_lat=42.35, origin_lon=-83.2)
        # The sphere is 0.15 % smaller than the ellipsoid eastward and 0.22 % larger northward.
        assert east_m == pytest.approx(0.99848 * x_m, abs=2e-3)
        assert north_m == pytest.approx(1.00215 * y_m, abs=2e-3)


# ----------------------------------------------------------------------------------------- frames


def test_protocol_of_the_test_part(tmp_path: Path) -> None:
    lines = [_line(f"{i}.txt", moves=(0.1, 0.2, 0.3)) for i in range(3)]
    _write(tmp_path, lines)
    protocol = _read(tmp_path, heading_noise_deg=20.0, reading="ciper")
    folder = tmp_path / "2017-08-04" / "V2" / "Log1"
    first = protocol.samples[0]
    assert protocol.dataset == "ford" and not protocol.has_gallery
    assert first.name == "2017-08-04/V2/Log1/0.png"
    assert first.photo == folder / "2017-08-04-V2-Log1-FL" / "0.png"
    assert first.image.path == folder / "SatelliteMaps_18" / "42.3000_-83.210.png"
    assert first.image is protocol.samples[2].image
    assert protocol.settings == {
        "split": "log1",
        "part": "test",
        "day": "2017-08-04",
        "reading": "ciper",
        "heading_noise_deg": "20",
        "seed": "0",
    }
    notes = " / ".join(protocol.notes)
    assert "3 frames instead of the published 2100" in notes
    assert "(2.00, -0.50) m ahead and to the right" in notes
    assert "80 degrees" in notes


def test_training_moves_depend_on_seed_and_name_alone(tmp_path: Path) -> None:
    lines = [_line(f"{i}.txt") for i in range(40)]
    _write(tmp_path / "all", lines, part="train")
    _write(tmp_path / "some", lines[:5:-3], part="train")
    cuts = {s.name: s.cut for s in _read(tmp_path / "all", part="train", seed=4).samples}
    for sample in _read(tmp_path / "some", part="train", seed=4).samples:
        assert sample.cut == cuts[sample.name]
    other = {s.name: s.cut for s in _read(tmp_path / "all", part="train", seed=5).samples}
    assert all(cuts[name] != other[name] for name in cuts)
    ups_deg = [(cut.up_deg + 180.0) % 360.0 - 180.0 for cut in cuts.values()]
    assert min(ups_deg) < -5.0 and max(ups_deg) > 5.0 and max(map(abs, ups_deg)) <= 10.0


def test_training_frames_of_log1(tmp_path: Path) -> None:
    labels = _write(tmp_path, [_line("1.txt"), _line("2.txt")], part="train")
    protocol = _read(tmp_path, part="train")
    assert len(protocol.samples) == 2
    assert "ends before the published training frames" in protocol.notes[0]
    # Lines that are not asked for are not read, whatever they hold.
    labels.write_text("0.txt\n" * 4500 + f"{_line('1.txt')}\n{_line('2.txt')}\n")
    protocol = _read(tmp_path, part="train")
    assert [sample.photo.name for sample in protocol.samples] == ["1.png", "2.png"]
    assert "2 frames instead of the published 4000" in protocol.notes[0]


def test_training_frames_of_log2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [*range(3150), *range(6000, 9200), *range(11000, 15000)]
    labels = _write(tmp_path, [_line("0.txt")], part="train", log="Log2")
    labels.write_text("\n".join(_line(f"{i}.txt") for i in range(15010)))
    # Ten thousand empty files take many seconds to make on a busy disk; their listing is enough.
    photos, listed = labels.parent / "2017-10-26-V2-Log2-FL", Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        names = (folder / f"{i}.png" for i in wanted)
        return names if folder == photos else listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    started_s = time.process_time()
    protocol = _read(tmp_path, split="log2", part="train")
    assert time.process_time() - started_s < 2.0
    assert [int(sample.photo.stem) for sample in protocol.samples] == wanted
    assert len(protocol.samples) == 10350
    assert not any("published 10350" in note for note in protocol.notes)


def test_other_logs_have_all_their_frames(tmp_path: Path) -> None:
    lines = [_line(f"{i}.txt") for i in range(6)]
    for split, day in (("log4", "2017-10-26"), ("log5", "2017-08-04"), ("log6", "2017-08-04")):
        _write(tmp_path, lines, part="train", log=split.capitalize(), day=day)
        protocol = _read(tmp_path, split=split, part="train")
        assert len(protocol.samples) == 6
        assert "all 6 frames" in protocol.notes[0]
    for split, day in (("log4", "2017-08-04"), ("log5", "2017-10-26"), ("log6", "2017-10-26")):
        _write(tmp_path, [f"{lines[0]} 0 0 0"], log=split.capitalize(), day=day)
        assert _read(tmp_path, split=split).samples[0].name == f"{day}/V2/{split.title()}/0.png"


def test_log3_is_not_trained_on_what_it_is_tested_on(tmp_path: Path) -> None:
    lines = [_line(f"{i}.txt") for i in range(6)]
    _write(tmp_path, lines, part="train", log="Log3", day=DAY["test"])
    tested = _write(tmp_path, [f"{line} 0 0 0" for line in lines[2:4]], log="Log3")
    trained = [s.photo.stem for s in _read(tmp_path, split="log3", part="train").samples]
    assert trained == ["0", "1", "4", "5"]
    tested.write_text("\n".join(f"{line} 0 0 0" for line in lines))
    with pytest.raises(DatasetError, match="names only photos that"):
        _read(tmp_path, split="log3", part="train")


# -------------------------------------------------------------------------------------- bad input

GOOD = _line("0.txt", moves=(0, 0, 0))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (_line(moves=(0, 0)), "line 2 has 11 fields; expected 12"),
        (_line(moves=(0, 0, 0, 0)), "line 2 has 13 fields; expected 12"),
        (_line(), "line 2 has 9 fields; expected 12"),
        ("", "line 2 has 0 fields"),
        (_line(moves=(0, 0, "nan")), "line 2: .*expected finite numbers"),
        (_line(place=("inf", LON), moves=(0, 0, 0)), "line 2: .*expected finite numbers"),
        (_line(moves=(0, "x", 0)), "line 2: .*'x'; expected a photo and 11 numbers"),
        (_line(quaternion=(0.9, 0, 0, 0), moves=(0, 0, 0)), "line 2: .*length is 0.9; expected 1"),
        (_line(quaternion=(0, 0, 0, 0), moves=(0, 0, 0)), "line 2: .*length is 0; expected 1"),
        (_line(moves=(0, 1.01, 0)), r"line 2: shift .*1.01.*expected numbers in \[-1, 1\]"),
        (_line(moves=(0, 0, -7)), "line 2: shift and rotation .*-7"),
        (_line(place=("42.305", LON), moves=(0, 0, 0)), "line 2: .* lies 557 m from the position"),
        (_line(place=(-97.1, 42.3), moves=(0, 0, 0)), "line 2: .*are they swapped"),
        (_line("0.txt", moves=(0, 0, 0)), "line 2: 0.png is on line 1 already"),
        (_line(quaternion=_attitude(3, 90), moves=(0, 0, 0)), "line 2: .*makes the vehicle look"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, bad: str, message: str) -> None:
    labels = _write(tmp_path, [GOOD, GOOD.replace("0.txt", "150.txt")])
    labels.write_text(f"{GOOD}\n{bad}\n{_line('9.txt', moves=(0, 0, 0))}\n")
    (labels.parent / "2017-08-04-V2-Log1-FL" / "9.png").touch()
    with pytest.raises(DatasetError, match=f"{FILE['test']} {message}") as error:
        _read(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    labels = _write(tmp_path, [GOOD])
    labels.write_text(f"{GOOD}\n{_line('7.txt', moves=(0, 0, 0))}\n")
    with pytest.raises(DatasetError, match=r"line 2: 7.png is not in .*Log1-FL; expected"):
        _read(tmp_path)
    # The same number in another spelling is another file.
    labels.write_text(GOOD.replace("42.3000 ", "42.30 "))
    with pytest.raises(DatasetError, match=r"line 1: 42.30_-83.210.png is not in .*Maps_18;"):
        _read(tmp_path)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    _write(tmp_path, [_line()], part="train")
    with pytest.raises(DatasetError, match=r"2017-08-04 is missing; .*the test drive of Log1"):
        _read(tmp_path)
    labels = _write(tmp_path, [GOOD])
    with pytest.raises(DatasetError, match="Log2 is missing"):
        _read(tmp_path, split="log2")
    with pytest.raises(ConfigError, match=r"log7.*log6"):
        _read(tmp_path, split="log7")
    labels.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DatasetError, match="is not UTF-8"):
        _read(tmp_path)
    labels.unlink()
    with pytest.raises(DatasetError, match=f"{FILE['test']} cannot be read"):
        _read(tmp_path)
    (tmp_path / "Calibration-V2" / "V2" / "cameraFrontLeft_body.yaml").unlink()
    with pytest.raises(DatasetError, match=r"V2/cameraFrontLeft_body.yaml is missing"):
        _read(tmp_path)


def test_a_camera_that_looks_up_has_no_heading(tmp_path: Path) -> None:
    # Without the optical turn the camera's z is the body's: straight down.
    upright = _extrinsics(np.array([1.0, 0.0, 0.0, 0.0]))
    _write(tmp_path, [GOOD], body=upright)
    with pytest.raises(DatasetError, match=r"line 1: .*makes the camera look straight up or down"):
        _read(tmp_path)


# ------------------------------------------------------------------------------------ calibration

OPENCV = """%YAML:1.0
---
# forward, right and down of the body from right, down and forward of the camera
R: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 0., 0., 1.,
           1., 0., 0.,   # the camera's x is the body's y
           0., 1., 0. ]
T: !!opencv-matrix
   rows: 3
   cols: 1
   dt: d
   data: [ 2.0, -5.0e-01, -1.2 ]
"""
ROS_BLOCK = """child_frame_id: "camera_front_left"
header:
  frame_id: body
  stamp:
    secs: 0
transform:
  rotation:
    w: 0.5
    x: 0.5
    y: 0.5
    z: 0.5
  translation:
    x: 2.0
    y: -0.5
    z: -1.2
"""
MATRIX = """transform:
- [0, 0, 1, 2.0]
- [1, 0, 0, -0.5]
- [0, 1, 0, -1.2]
- [0, 0, 0, 1]
"""
MATRIX_DATA = "transform: {rows: 4, cols: 4, data: [0,0,1,2, 1,0,0,-0.5, 0,1,0,-1.2, 0,0,0,1]}\n"


def _calibrate(root: Path, text: str, name: str = "cameraFrontLeft_body.yaml") -> Path:
    folder = root / "Calibration-V2"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("text", [OPENCV, ROS_BLOCK, MATRIX, MATRIX_DATA, _extrinsics()])
def test_all_forms_of_extrinsics(tmp_path: Path, text: str) -> None:
    _calibrate(tmp_path, text)
    rig = read_rig(tmp_path)
    np.testing.assert_allclose(rig.body_from_camera, [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-12)
    np.testing.assert_allclose(rig.position_m, LEVER_M)
    assert rig.focal_px is None and rig.principal_px is None


@pytest.mark.parametrize(
    "text",
    [
        "K: [975.0, 0.0, 830.5, 0.0, 976.0, 429.0, 0.0, 0.0, 1.0]\nD: []\nheight: 860\n",
        "height: 860\nK:\n- 975.0\n- 0.0\n- 830.5\n- 0\n- 976\n- 429\n- 0\n- 0\n- 1\nwidth: 1656\n",
        "camera_matrix:\n  rows: 3\n  cols: 3\n  data: [975, 0, 830.5, 0, 976, 429, 0, 0, 1]\n",
        "K: [[975, 0, 830.5],\n    [0, 976, 429],\n    [0, 0, 1]]\n",
        "fx: 975\nfy: 976\ncx: 830.5\ncy: 429\n",
    ],
)
def test_all_forms_of_intrinsics(tmp_path: Path, text: str) -> None:
    _write(tmp_path, [GOOD])
    _calibrate(tmp_path, text, "cameraFrontLeftIntrinsics.yaml")
    protocol = _read(tmp_path)
    said = protocol.samples[0].camera
    assert (said.focal_px, said.principal_px, said.hfov_deg) == (975.0, (831.0, 429.5), None)
    assert not any("intrinsics" in note for note in protocol.notes)
    camera = camera_from_photo(Image.new("RGB", (1656, 860)), said)
    assert camera.focal_px == pytest.approx(975.0)
    assert camera.axis_px == (831.0, 429.5) and not camera.is_assumed


def test_without_intrinsics_the_field_of_view_is_assumed(tmp_path: Path) -> None:
    _write(tmp_path, [GOOD])
    camera = camera_from_photo(Image.new("RGB", (1656, 860)), _only(tmp_path).camera)
    assert camera.hfov_deg == 80.0 and camera.axis_px == (828.0, 430.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("just words\n", "line 1: 'just words' is not understood"),
        ("a: 1\n  b: 2\n", "line 2: 'b: 2' is not understood"),
        ("a:\n  b: 1\n c: 2\n", "line 3: 'c: 2' is not understood"),
        ("a: 1\na: 2\n", "line 2: 'a: 2' is not understood"),
        ("a: &anchor 1\n", "line 1: .* is not understood"),
        ("a: [1, 2\nb: 3\n", "line 1: .* is not understood"),
        ("a: [1, 2]]\n", "line 1: .* is not understood"),
        ("a: |\n  text\n", "line 1: .* is not understood"),
        ("a: 1\n---\nb: 2\n", "line 2: '---' is not understood"),
        ("\ta: 1\n", "line 1: .* is not understood"),
        ("transform:\n  rotation: {w: 1, x: 0, y: 0, z: 0}\n", "has no translation or T"),
        ("translation: [1, 2, 3]\n", "has no rotation or R; .* found translation"),
        (_extrinsics().replace("w: 0.5", "w: half"), "w is 'half'; expected 1 number"),
        (_extrinsics().replace("w: 0.5", "w: .nan"), "w is '.nan'; expected 1 number"),
        (_extrinsics().replace("w: 0.5", "w: 0.9"), "rotation's length is 1.249; expected 1"),
        (_extrinsics().replace("    z: -1.2\n", ""), "translation is .*; expected 3 finite"),
        (MATRIX.replace("[1, 0, 0, -0.5]", "[-1, 0, 0, -0.5]"), "is no rotation"),
        (MATRIX.replace("[0, 0, 0, 1]", "[1, 2, 3, 1]"), "last row is not 0 0 0 1"),
        (MATRIX.replace("- [0, 0, 0, 1]\n", ""), "transform is .*expected 16 finite numbers"),
    ],
)
def test_bad_extrinsics(tmp_path: Path, text: str, message: str) -> None:
    path = _calibrate(tmp_path, text)
    with pytest.raises(DatasetError, match=f"{path.name}.*{message}"):
        read_rig(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("D: [0, 0, 0]\n", "has no K or camera_matrix"),
        ("K: [975, 0, 830]\n", "expected 9 finite numbers"),
        ("fx: -3\nfy: -3\ncx: 1\ncy: 1\n", "expected positive ones"),
        ("fx: 975\nfy: 1200\ncx: 1\ncy: 1\n", "975 and 1200 px; .*square pixels"),
    ],
)
def test_bad_intrinsics(tmp_path: Path, text: str, message: str) -> None:
    _calibrate(tmp_path, _extrinsics())
    _calibrate(tmp_path, text, "cameraFrontLeftIntrinsics.yaml")
    with pytest.raises(DatasetError, match=f"Intrinsics.yaml.*{message}"):
        read_rig(tmp_path)


def test_yaml_values(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("a: 'x y'   # why\nb: {c: [1, -2.5e-3], d: {e: word}}\nf:\ng:\n  - 1\n  - 2\n")
    assert parse_yaml(path) == {
        "a": "x y",
        "b": {"c": ["1", "-2.5e-3"], "d": {"e": "word"}},
        "f": "",
        "g": ["1", "2"],
    }
