from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from ciper.camera import (
    Camera,
    CameraOverrides,
    Projection,
    assumed_cameras,
    camera_from_photo,
    hfov_from_focal_35mm,
    pixels_from_rays,
    rays_from_pixels,
)
from ciper.errors import CameraError, PhotoError
from ciper.metadata import (
    PhotoMetadata,
    oriented_size_px,
    photo_exif,
    read_metadata,
)
from ciper.xmp import gpano_xmp

HALF = math.sqrt(0.5)


def _sphere(**changes: Any) -> Camera:
    return Camera("equirectangular", 100, 200, 360.0, **changes)


def _pinhole(**changes: Any) -> Camera:
    return Camera("pinhole", 100, 200, 90.0, **changes)


# ------------------------------------------------------------------------------------------- rays


@pytest.mark.parametrize(
    ("u", "v", "ray"),
    [
        (100, 50, (0, 1, 0)),
        (150, 50, (1, 0, 0)),
        (50, 50, (-1, 0, 0)),
        (0, 50, (0, -1, 0)),
        (200, 50, (0, -1, 0)),
        (100, 0, (0, 0, 1)),
        (100, 100, (0, 0, -1)),
        (125, 25, (0.5, 0.5, HALF)),
        (75, 75, (-0.5, 0.5, -HALF)),
    ],
)
def test_rays_of_a_level_sphere(u: float, v: float, ray: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(rays_from_pixels(_sphere(), u, v), ray, atol=1e-12)


@pytest.mark.parametrize(
    ("u", "v", "ray"),
    [
        (100, 50, (0, 1, 0)),
        (200, 50, (HALF, HALF, 0)),
        (0, 50, (-HALF, HALF, 0)),
        (100, 0, (0, 2 / math.sqrt(5), 1 / math.sqrt(5))),
        (100, 100, (0, 2 / math.sqrt(5), -1 / math.sqrt(5))),
    ],
)
def test_rays_of_a_level_pinhole(u: float, v: float, ray: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(rays_from_pixels(_pinhole(), u, v), ray, atol=1e-12)


@pytest.mark.parametrize("make", [_sphere, _pinhole])
def test_pitch_lifts_and_roll_lowers_the_right_side(make: Any) -> None:
    lifted = rays_from_pixels(make(pitch_deg=30.0), 100, 50)
    np.testing.assert_allclose(lifted, (0, math.cos(math.pi / 6), 0.5), atol=1e-12)
    right_side = rays_from_pixels(make(roll_deg=10.0), 150, 50)
    left_side = rays_from_pixels(make(roll_deg=10.0), 50, 50)
    assert right_side[0] > 0 > right_side[2]
    assert left_side[0] < 0 < left_side[2]
    if make is _sphere:
        ray = (math.cos(math.radians(10)), 0, -math.sin(math.radians(10)))
        np.testing.assert_allclose(right_side, ray, atol=1e-12)


def test_principal_point_off_the_middle() -> None:
    """f = 100 px; the axis 10 px left of the middle and 20 px above it."""
    camera = _pinhole(principal_px=(90.0, 30.0))
    assert rays_from_pixels(camera, 90, 30) == pytest.approx(np.array([0, 1, 0]))
    assert rays_from_pixels(camera, 190, 30) == pytest.approx(np.array([HALF, HALF, 0]))
    assert rays_from_pixels(camera, 90, 130) == pytest.approx(np.array([0, HALF, -HALF]))
    rays = np.array([[1, 1, 0], [-1, 1, 0], [0, 1, 0.31], [0, 1, -0.6]])
    u, v, is_visible = pixels_from_rays(camera, rays)
    assert u == pytest.approx([190, -10, 90, 90])
    assert v == pytest.approx([30, 30, -1, 90])
    assert is_visible.tolist() == [True, False, False, True]
    with pytest.raises(CameraError, match="no principal point"):
        _sphere(principal_px=(90.0, 30.0))


def test_a_calibration_in_pixels_makes_a_pinhole() -> None:
    """KITTI's rectified left colour camera: 81 degrees, the axis 11 px left of the middle."""
    said = CameraOverrides(focal_px=721.5377, principal_px=(610.0593, 173.354))
    camera = camera_from_photo(Image.new("RGB", (1242, 375)), said)
    assert (camera.projection, camera.is_assumed) == ("pinhole", False)
    assert camera.focal_px == pytest.approx(721.5377)
    assert camera.hfov_deg == pytest.approx(81.42, abs=0.02)
    left, right = rays_from_pixels(camera, [0, 1242], [173.354, 173.354])
    assert left[0] / left[1] == pytest.approx(-610.0593 / 721.5377)
    assert right[0] / right[1] == pytest.approx(631.9407 / 721.5377)
    # Even a photo twice as wide as high, which otherwise would be taken for a sphere.
    assert camera_from_photo(Image.new("RGB", (200, 100)), said).projection == "pinhole"


def test_nadir_camera_has_its_heading_at_the_top() -> None:
    nadir = Camera("pinhole", 100, 200, 90.0, pitch_deg=-90.0)
    np.testing.assert_allclose(rays_from_pixels(nadir, 100, 50), (0, 0, -1), atol=1e-12)
    top, right = rays_from_pixels(nadir, 100, 0), rays_from_pixels(nadir, 200, 50)
    np.testing.assert_allclose(top / -top[2], (0, 0.5, -1), atol=1e-12)
    np.testing.assert_allclose(right / -right[2], (1, 0, -1), atol=1e-12)


def test_default_vertical_range_has_square_pixels_and_the_horizon_in_the_middle() -> None:
    assert Camera("equirectangular", 128, 512, 360.0).vertical_range_deg == (45.0, -45.0)
    assert Camera("equirectangular", 100, 200, 90.0).vertical_range_deg == (22.5, -22.5)
    assert Camera("equirectangular", 501, 1000, 360.0).vertical_range_deg == (90.0, -90.0)


CAMERAS = st.one_of(
    st.builds(
        Camera,
        st.just("pinhole"),
        st.integers(10, 300),
        st.integers(10, 300),
        st.floats(5.0, 150.0),
        pitch_deg=st.floats(-90, 90),
        roll_deg=st.floats(-180, 180),
    ),
    st.builds(
        Camera,
        st.just("equirectangular"),
        st.integers(10, 300),
        st.integers(10, 300),
        st.floats(10.0, 360.0),
        vfov_top_deg=st.floats(5.0, 80.0),
        vfov_bottom_deg=st.floats(-80.0, 0.0),
        pitch_deg=st.floats(-90, 90),
        roll_deg=st.floats(-180, 180),
    ),
)


@settings(max_examples=100, deadline=None)
@given(CAMERAS, st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_round_trip_of_any_camera(camera: Camera, across: float, down: float) -> None:
    u, v = across * camera.width_px, down * camera.height_px
    rays = rays_from_pixels(camera, [u, u], [v, v])
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1.0)
    found_u, found_v, is_visible = pixels_from_rays(camera, 3.0 * rays)
    assert is_visible.all()
    np.testing.assert_allclose(found_u, u, atol=1e-5)
    np.testing.assert_allclose(found_v, v, atol=1e-5)


def test_visibility() -> None:
    ahead, behind, right, up = (0, 1, 0), (0, -1, 0), (1, 0.5, 0), (0, 0.5, 1)
    assert pixels_from_rays(_pinhole(), [ahead, behind, right, up])[2].tolist() == [1, 0, 0, 0]
    assert pixels_from_rays(_sphere(), [ahead, behind, right, up])[2].all()
    strip = Camera("equirectangular", 50, 100, 90.0)
    assert pixels_from_rays(strip, [ahead, behind, right, up])[2].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("projection", "hfov_deg", "changes", "message"),
    [
        ("fisheye", 90.0, {}, "fisheye"),
        ("pinhole", 180.0, {}, "180"),
        ("pinhole", math.nan, {}, "nan"),
        ("pinhole", 90.0, {"vfov_top_deg": 10.0}, "no vertical range"),
        ("equirectangular", 361.0, {}, "361"),
        ("equirectangular", 90.0, {"vfov_top_deg": 10.0}, "both"),
        ("equirectangular", 90.0, {"vfov_top_deg": 0.0, "vfov_bottom_deg": 1.0}, "impossible"),
        ("pinhole", 90.0, {"pitch_deg": 91.0}, "pitch 91"),
        ("pinhole", 90.0, {"roll_deg": math.nan}, "roll nan"),
    ],
)
def test_contradictions_are_refused(
    projection: Projection, hfov_deg: float, changes: dict[str, float], message: str
) -> None:
    with pytest.raises(CameraError, match=message):
        Camera(projection, 100, 200, hfov_deg, **changes)  # type: ignore[arg-type]


def test_too_high_a_panorama_is_refused() -> None:
    with pytest.raises(CameraError, match="120 degrees up"):
        Camera("equirectangular", 200, 300, 360.0)


# ---------------------------------------------------------------------------------------- metadata


def _saved(image: Image.Image, **options: Any) -> Image.Image:
    """The image after a trip through a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize(
    ("lat", "lon", "heading_deg", "hfov_deg"),
    [
        (60.169857, 24.938379, 12.3456, 90.0),
        (-33.868820, 151.209290, 359.9999, 75.0),
        (40.712776, -74.005974, 0.0, 63.4),
        (-54.801912, -68.302951, 181.25, None),
    ],
)
def test_exif_round_trip(
    lat: float, lon: float, heading_deg: float, hfov_deg: float | None
) -> None:
    exif = photo_exif(heading_deg=heading_deg, lat=lat, lon=lon, hfov_deg=hfov_deg)
    photo = _saved(Image.new("RGB", (640, 480)), exif=exif)
    metadata = read_metadata(photo)
    assert metadata.problems == ()
    assert metadata.lat == pytest.approx(lat, abs=1e-9)
    assert metadata.lon == pytest.approx(lon, abs=1e-9)
    assert metadata.heading_deg == pytest.approx(heading_deg, abs=1e-4)
    assert not metadata.heading_is_magnetic
    camera = camera_from_photo(photo)
    assert camera.projection == "pinhole" and (camera.height_px, camera.width_px) == (480, 640)
    assert camera.is_assumed == (hfov_deg is None)
    assert camera.hfov_deg == pytest.approx(hfov_deg or 75.0, abs=1e-3)


def test_magnetic_heading_is_reported() -> None:
    exif = photo_exif(heading_deg=45.0, lat=1.0, lon=2.0)
    exif.get_ifd(0x8825)[16] = "M"
    metadata = read_metadata(_saved(Image.new("RGB", (64, 48)), exif=exif))
    assert (metadata.heading_deg, metadata.heading_is_magnetic) == (45.0, True)


def test_focal_length_belongs_to_the_long_side() -> None:
    assert hfov_from_focal_35mm(18.0, size_px=(480, 640)) == pytest.approx(90.0)
    narrow = math.degrees(2 * math.atan(0.75))
    assert hfov_from_focal_35mm(18.0, size_px=(640, 480)) == pytest.approx(narrow)


def test_focal_length_of_a_rotated_photo() -> None:
    exif = photo_exif(heading_deg=45.0, lat=1.0, lon=2.0, hfov_deg=90.0)
    exif[0x0112] = 6  # stored lying on its side: upright it is 48 wide, 64 high
    photo = _saved(Image.new("RGB", (64, 48)), exif=exif)
    assert oriented_size_px(photo) == (64, 48)
    camera = camera_from_photo(photo)
    assert (camera.height_px, camera.width_px) == (64, 48)
    assert camera.hfov_deg == pytest.approx(math.degrees(2 * math.atan(0.75)), abs=1e-3)


def test_phone_focal_length_uses_the_35_mm_tag() -> None:
    exif = photo_exif(heading_deg=45.0, lat=1.0, lon=2.0)
    camera_ifd = exif.get_ifd(0x8769)
    camera_ifd[0x920A], camera_ifd[0xA405] = 4.25, 27
    camera = camera_from_photo(_saved(Image.new("RGB", (64, 48)), exif=exif))
    assert camera.hfov_deg == pytest.approx(math.degrees(2 * math.atan(18 / 27)))


def test_gpano_round_trip_of_a_sphere() -> None:
    xmp = gpano_xmp(heading_deg=123.25, size_px=(512, 1024), tilt_deg=(2.5, -3.5))
    photo = _saved(Image.new("RGB", (1024, 512)), xmp=xmp)
    assert read_metadata(photo).heading_deg == pytest.approx(123.25)
    expected = Camera(
        "equirectangular", 512, 1024, 360.0, 90.0, -90.0, pitch_deg=2.5, roll_deg=-3.5
    )
    camera = camera_from_photo(photo)
    assert camera.pitch_deg == pytest.approx(2.5) and camera.roll_deg == pytest.approx(-3.5)
    np.testing.assert_allclose(
        rays_from_pixels(camera, [3, 800], [9, 400]), rays_from_pixels(expected, [3, 800], [9, 400])
    )


def test_gpano_round_trip_of_a_strip() -> None:
    xmp = gpano_xmp(
        heading_deg=300.0, size_px=(400, 1000), hfov_deg=180.0, vertical_range_deg=(30.0, -42.0)
    )
    photo = _saved(Image.new("RGB", (1000, 400)), xmp=xmp)
    camera = camera_from_photo(photo)
    assert read_metadata(photo).heading_deg == pytest.approx(300.0)
    assert camera.hfov_deg == pytest.approx(180.0)
    assert camera.vertical_range_deg == pytest.approx((30.0, -42.0), abs=0.1)


def _gpano(width_px: int, height_px: int, **tags: object) -> Image.Image:
    """A photo with XMP-GPano as attributes (the other common spelling)."""
    text = " ".join(f'GPano:{name}="{value}"' for name, value in tags.items())
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"/>'
        '<rdf:Description rdf:about="" '
        f'xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" {text}/>'
        "</rdf:RDF></x:xmpmeta>"
    )
    return _saved(Image.new("RGB", (width_px, height_px)), xmp=xmp.encode())


CROP = {
    "FullPanoWidthPixels": 4000,
    "FullPanoHeightPixels": 2000,
    "CroppedAreaImageWidthPixels": 1000,
    "CroppedAreaImageHeightPixels": 500,
    "CroppedAreaLeftPixels": 2500,
    "CroppedAreaTopPixels": 600,
}


def test_gpano_strip_right_of_the_sphere_s_middle() -> None:
    """Its centre column is 3000 of 4000: a quarter turn right of the sphere's middle."""
    photo = _gpano(1000, 500, ProjectionType="equirectangular", PoseHeadingDegrees=350, **CROP)
    metadata, camera = read_metadata(photo), camera_from_photo(photo)
    assert metadata.heading_deg == pytest.approx(80.0)
    assert camera.hfov_deg == pytest.approx(90.0)
    assert camera.vertical_range_deg == pytest.approx((36.0, -9.0))


def test_gpano_strip_that_was_resized_later() -> None:
    photo = _gpano(250, 125, ProjectionType="equirectangular", **CROP)
    camera = camera_from_photo(photo)
    assert (camera.height_px, camera.width_px, camera.hfov_deg) == (125, 250, 90.0)
    assert camera.vertical_range_deg == pytest.approx((36.0, -9.0))


@pytest.mark.parametrize(("pitch_deg", "roll_deg"), [(0, 0), (10, 0), (0, 8), (-7, 5), (12, -30)])
def test_tilted_strip_sees_what_the_tilted_sphere_sees(pitch_deg: int, roll_deg: int) -> None:
    photo = _gpano(
        1000,
        500,
        ProjectionType="equirectangular",
        PoseHeadingDegrees=20,
        PosePitchDegrees=pitch_deg,
        PoseRollDegrees=roll_deg,
        **CROP,
    )
    sphere = Camera("equirectangular", 2000, 4000, 360.0, pitch_deg=pitch_deg, roll_deg=roll_deg)
    u, v = np.array([10.0, 500.0, 930.0]), np.array([20.0, 250.0, 490.0])
    strip_rays = rays_from_pixels(camera_from_photo(photo), u, v)
    heading_deg = read_metadata(photo).heading_deg
    assert heading_deg is not None
    turn = math.radians(heading_deg - 20.0)
    turned = np.stack(
        [
            strip_rays[:, 0] * math.cos(turn) + strip_rays[:, 1] * math.sin(turn),
            -strip_rays[:, 0] * math.sin(turn) + strip_rays[:, 1] * math.cos(turn),
            strip_rays[:, 2],
        ],
        axis=-1,
    )
    np.testing.assert_allclose(turned, rays_from_pixels(sphere, u + 2500, v + 600), atol=1e-9)


def test_unsupported_projection() -> None:
    photo = _gpano(400, 200, ProjectionType="cylindrical")
    with pytest.raises(CameraError, match="cylindrical"):
        camera_from_photo(photo)
    camera = camera_from_photo(photo, CameraOverrides(projection="pinhole", hfov_deg=80.0))
    assert (camera.projection, camera.hfov_deg) == ("pinhole", 80.0)


def test_broken_metadata_are_listed_not_fatal() -> None:
    broken = _saved(Image.new("RGB", (64, 48)), xmp=b"<x:xmpmeta><unclosed>")
    assert any("XMP cannot be parsed" in line for line in read_metadata(broken).problems)
    bomb = b'<!DOCTYPE a [<!ENTITY b "c">]><x>&b;</x>'
    assert read_metadata(_saved(Image.new("RGB", (64, 48)), xmp=bomb)).problems
    nan = _gpano(400, 200, ProjectionType="equirectangular", PoseHeadingDegrees="NaN")
    assert read_metadata(nan).heading_deg is None
    assert any("PoseHeadingDegrees" in line for line in read_metadata(nan).problems)
    outside = CROP | {"CroppedAreaImageWidthPixels": 9000}
    photo = _gpano(400, 200, ProjectionType="equirectangular", **outside)
    assert any("does not fit" in line for line in read_metadata(photo).problems)
    assert camera_from_photo(photo).hfov_deg == 360.0


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage!", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\0\0"], ids=repr
)
def test_damaged_exif_is_a_problem_and_no_more(exif: bytes) -> None:
    photo = _saved(Image.new("RGB", (64, 48)), exif=exif)
    metadata = read_metadata(photo)
    assert any(line.startswith("EXIF is damaged") for line in metadata.problems)
    assert metadata == PhotoMetadata(problems=metadata.problems)
    assert oriented_size_px(photo) == (48, 64)
    assert camera_from_photo(photo).is_assumed


def test_exif_with_any_damage_is_read() -> None:
    whole = photo_exif(heading_deg=30.0, lat=1.0, lon=2.0, hfov_deg=70.0).tobytes()
    rng = np.random.default_rng(0)
    photo = Image.new("RGB", (64, 48))
    for length in (*range(6, len(whole), 7), *[len(whole)] * 200):
        damaged = bytearray(whole[:length])
        damaged[rng.integers(6, len(whole)) % length] ^= 1 << int(rng.integers(8))
        photo.info["exif"] = bytes(damaged)
        read_metadata(photo)


def test_deeply_nested_xmp_is_a_problem_and_no_more() -> None:
    xmp = b"<a>" * 3000 + b"</a>" * 3000
    metadata = read_metadata(_saved(Image.new("RGB", (64, 48)), xmp=xmp))
    assert metadata.problems == ("XMP cannot be parsed (it is nested too deeply)",)


def test_exif_with_zero_denominators() -> None:
    exif = photo_exif(heading_deg=45.0, lat=1.0, lon=2.0)
    exif.get_ifd(0x8825)[17] = IFDRational(0, 0)
    metadata = read_metadata(_saved(Image.new("RGB", (64, 48)), exif=exif))
    assert metadata.heading_deg is None
    assert metadata.problems
    assert metadata.lat == pytest.approx(1.0)


# ----------------------------------------------------------------------------------- rule of thumb


@pytest.mark.parametrize(
    ("size", "projection", "is_assumed"),
    [
        ((400, 200), "equirectangular", False),
        ((400, 202), "equirectangular", False),
        ((400, 205), "pinhole", True),
        ((640, 480), "pinhole", True),
        ((512, 128), "pinhole", True),
    ],
)
def test_photos_without_metadata(size: tuple[int, int], projection: str, is_assumed: bool) -> None:
    camera = camera_from_photo(Image.new("RGB", size))
    assert (camera.projection, camera.is_assumed) == (projection, is_assumed)
    assert camera.hfov_deg == (75.0 if is_assumed else 360.0)


def test_assumed_cameras() -> None:
    landscape = camera_from_photo(Image.new("RGB", (640, 480)))
    assert [c.hfov_deg for c in assumed_cameras(landscape)] == [60.0, 68.0, 75.0, 83.0, 90.0]
    portrait = camera_from_photo(Image.new("RGB", (480, 640)))
    widest = assumed_cameras(portrait)[-1]
    assert widest.hfov_deg == pytest.approx(math.degrees(2 * math.atan(0.75)))
    known = camera_from_photo(Image.new("RGB", (640, 480)), CameraOverrides(hfov_deg=50.0))
    assert assumed_cameras(known) == (known,)


def test_overrides_win() -> None:
    wide = camera_from_photo(Image.new("RGB", (512, 128)), CameraOverrides(hfov_deg=360.0))
    assert wide.projection == "equirectangular" and wide.vertical_range_deg == (45.0, -45.0)
    strip = CameraOverrides(vfov_top_deg=10.0, vfov_bottom_deg=-20.0, hfov_deg=120.0)
    with pytest.raises(CameraError, match="no vertical range"):
        camera_from_photo(Image.new("RGB", (512, 128)), strip)
    tilted = CameraOverrides(pitch_deg=-90.0, roll_deg=3.0)
    nadir = camera_from_photo(Image.new("RGB", (640, 480)), tilted)
    assert (nadir.pitch_deg, nadir.roll_deg) == (-90.0, 3.0)


def test_missing_photo(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="does not exist"):
        camera_from_photo(tmp_path / "none.jpg")
