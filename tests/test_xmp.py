from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from ciper.camera import camera_from_photo
from ciper.metadata import photo_exif, read_metadata
from ciper.xmp import drone_xmp


def with_xmp(xmp: bytes) -> Image.Image:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, "JPEG", xmp=xmp)
    return Image.open(buffer)


# As the drones write it: signed numbers as attributes of one description.
ATTRIBUTES = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="DJI Meta Data"
 xmlns:drone-dji="http://www.dji.com/drone-dji/1.0/" drone-dji:AbsoluteAltitude="+512.30"
 drone-dji:RelativeAltitude="+60.20" drone-dji:GimbalRollDegree="+0.00"
 drone-dji:GimbalYawDegree="-97.50" drone-dji:GimbalPitchDegree="-89.90"
 drone-dji:FlightYawDegree="-95.10"/></rdf:RDF></x:xmpmeta>"""


def test_a_drone_tells_heading_tilt_and_height() -> None:
    found = read_metadata(with_xmp(ATTRIBUTES))
    assert (found.heading_deg, found.pitch_deg, found.height_m) == (262.5, -89.9, 60.2)
    assert not found.heading_is_magnetic and not found.problems
    camera = camera_from_photo(with_xmp(ATTRIBUTES))
    assert camera.projection == "pinhole" and camera.looks_down and camera.height_m == 60.2


@pytest.mark.parametrize("heading_deg", [0.0, 45.5, 179.0, 181.0, 359.5])
def test_round_trip(heading_deg: float) -> None:
    xmp = drone_xmp(heading_deg=heading_deg, pitch_deg=-88.25, height_m=54.5)
    found = read_metadata(with_xmp(xmp))
    assert found.heading_deg == pytest.approx(heading_deg)
    assert (found.pitch_deg, found.height_m) == (-88.25, 54.5)


def test_what_makes_no_sense_is_left_out() -> None:
    below = ATTRIBUTES.replace(b"+60.20", b"-3.00")
    assert read_metadata(with_xmp(below)).height_m is None
    broken = read_metadata(with_xmp(ATTRIBUTES.replace(b"+60.20", b"unknown")))
    assert broken.height_m is None and broken.pitch_deg == -89.9
    assert broken.problems == ("XMP RelativeAltitude 'unknown' is not a number",)
    below_ground = read_metadata(with_xmp(below))
    assert below_ground.problems == ("XMP RelativeAltitude -3 is not above the place of take-off",)
    over = read_metadata(with_xmp(ATTRIBUTES.replace(b'RollDegree="+0.00', b'RollDegree="180.0')))
    assert over.heading_deg is None and over.pitch_deg == -89.9
    # A gimbal may stand a tenth of a degree beyond straight down.
    beyond = ATTRIBUTES.replace(b"-89.90", b"-90.10")
    assert read_metadata(with_xmp(beyond)).pitch_deg == -90.0


def test_the_heading_of_the_gimbal_wins_over_exif(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = photo_exif(heading_deg=10.0, lat=1.0, lon=2.0, hfov_deg=60.0)
    xmp = drone_xmp(heading_deg=200.0, pitch_deg=-90.0, height_m=50.0)
    Image.new("RGB", (64, 48)).save(path, exif=exif, xmp=xmp)
    assert read_metadata(path).heading_deg == pytest.approx(200.0)
    assert read_metadata(path).lat == pytest.approx(1.0)
