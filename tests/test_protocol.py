from __future__ import annotations

from pathlib import Path

import pytest

from ciper.camera import CameraOverrides
from ciper.data.datasets import ProtocolOptions, parse_spec, read_protocol
from ciper.data.protocol import AerialImage, Cut, Sample, Told
from ciper.errors import ConfigError, DatasetError
from ciper.geo import LocalFrame

IMAGE = AerialImage(Path("aerial.png"), lat=49.0, lon=8.4, gsd=0.2, side_px=1280)


def _sample(x_m: float, y_m: float, heading_deg: float, cut: Cut) -> Sample:
    return Sample(
        "one",
        Path("photo.png"),
        CameraOverrides(),
        x_m,
        y_m,
        heading_deg,
        IMAGE,
        cut,
        Told(0.0, 10.0, 20.0),
    )


@pytest.mark.parametrize(
    ("x_m", "y_m", "heading_deg", "up_deg", "pose"),
    [
        (3.0, 4.0, 100.0, 0.0, (3.0, 4.0, 100.0)),
        # East is up: what lies north is to the left, what lies west is below.
        (3.0, 4.0, 100.0, 90.0, (-4.0, 3.0, 10.0)),
        (-3.0, 4.0, 80.0, 90.0, (-4.0, -3.0, 350.0)),
        (-3.0, -4.0, 200.0, 180.0, (3.0, 4.0, 20.0)),
        (3.0, -4.0, 10.0, 270.0, (-4.0, -3.0, 100.0)),
    ],
)
def test_pose_in_a_turned_chip(
    x_m: float, y_m: float, heading_deg: float, up_deg: float, pose: tuple[float, float, float]
) -> None:
    sample = _sample(x_m, y_m, heading_deg, Cut(0.0, 0.0, up_deg, side_m=100.0))
    assert sample.pose == pytest.approx(pose)


def test_pose_in_a_shifted_chip_that_is_turned() -> None:
    # 10 m east and 5 m south of the chip's centre, which lies elsewhere in the image.
    sample = _sample(12.0, -1.0, 45.0, Cut(2.0, 4.0, 90.0, side_m=100.0))
    assert sample.pose == pytest.approx((5.0, 10.0, 315.0))


def test_position_on_earth() -> None:
    lat, lon = _sample(30.0, -40.0, 0.0, Cut(0.0, 0.0, 0.0, 100.0)).position
    x, y = LocalFrame(lat=49.0, lon=8.4).to_local(lat=lat, lon=lon)
    assert (float(x), float(y)) == pytest.approx((30.0, -40.0), abs=1e-6)


def test_specs() -> None:
    assert parse_spec("VIGOR:some/where") == ("vigor", Path("some/where"))
    assert parse_spec("poses.csv") is None
    assert parse_spec("C:/data/poses.csv") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"split": "test1"},
            "--split test1: vigor has none such; expected same_area, cross_area",
        ),
        ({"seed": -1}, "--seed -1 is negative"),
        ({"fov_deg": 5.0}, "--fov 5; expected 10 to 360"),
        ({"heading_noise_deg": 181.0}, "--heading-noise 181; expected 0 to 180"),
    ],
)
def test_impossible_choices(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_protocol(f"vigor:{tmp_path}", ProtocolOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("vigor", ProtocolOptions(reading="ciper"), "--protocol ciper: vigor has no such choice"),
        ("kitti", ProtocolOptions(fov_deg=90.0), "--fov 90.0: kitti has no such choice"),
        ("ford", ProtocolOptions(labels="original"), "--labels original: ford has no such choice"),
    ],
)
def test_choices_of_another_data_set(
    spec: str, options: ProtocolOptions, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_protocol(f"{spec}:{tmp_path}", options)
    with pytest.raises(ConfigError, match="names no folder"):
        parse_spec(f"{spec}:")


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere is no folder"):
        read_protocol(f"kitti:{tmp_path / 'nowhere'}")
    with pytest.raises(ConfigError, match="names no data set"):
        read_protocol("poses.csv")
