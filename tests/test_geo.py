from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Geod
from rasterio.transform import Affine

from ciper import geo
from ciper.errors import GeoError
from ciper.geo import GeoImage, LocalFrame, Pose

PLACES = [(60.17, 24.94), (-33.87, 151.21), (40.71, -74.0), (-54.8, -68.3), (0.0, 180.0)]


@pytest.mark.parametrize(
    ("heading_deg", "ahead", "to_the_right"),
    [
        (0.0, (0, 1), (1, 0)),
        (90.0, (1, 0), (0, -1)),
        (180.0, (0, -1), (-1, 0)),
        (270.0, (-1, 0), (0, 1)),
        (30.0, (0.5, 0.8660254), (0.8660254, -0.5)),
        (225.0, (-0.70710678, -0.70710678), (-0.70710678, 0.70710678)),
    ],
)
def test_forward_and_right(
    heading_deg: float, ahead: tuple[float, float], to_the_right: tuple[float, float]
) -> None:
    np.testing.assert_allclose(geo.forward(heading_deg), ahead, atol=1e-8)
    np.testing.assert_allclose(geo.right(heading_deg), to_the_right, atol=1e-8)


def test_bearing_in_all_quadrants() -> None:
    dx, dy = [0, 1, 1, 1, 0, -1, -1, -1], [1, 1, 0, -1, -1, -1, 0, 1]
    np.testing.assert_allclose(geo.bearing_deg(dx, dy), np.arange(8) * 45.0)


def test_wrapping() -> None:
    angles = [-540.0, -180.0, -1.0, 0.0, 180.0, 359.0, 360.0, 725.0]
    np.testing.assert_allclose(geo.wrap_deg(angles), [180, 180, 359, 0, 180, 359, 0, 5])
    np.testing.assert_allclose(geo.wrap_signed_deg(angles), [-180, -180, -1, 0, -180, -1, 0, 5])
    assert geo.wrap_deg(-1e-20) == 0.0
    assert geo.heading_error_deg(10.0, 350.0) == 20.0
    assert geo.heading_error_deg(350.0, 10.0) == -20.0


@settings(max_examples=50)
@given(st.floats(-1e4, 1e4))
def test_bearing_undoes_forward(heading_deg: float) -> None:
    ahead = geo.forward(heading_deg)
    error_deg = geo.heading_error_deg(geo.bearing_deg(ahead[0], ahead[1]), heading_deg)
    assert abs(float(error_deg)) < 1e-6
    assert 0.0 <= float(geo.wrap_deg(heading_deg)) < 360.0


def test_pose_wraps_its_heading() -> None:
    assert Pose(lat=1.0, lon=2.0, heading_deg=-90.0).heading_deg == 270.0


@pytest.mark.parametrize(
    ("lat", "lon", "heading_deg", "message"),
    [
        (91.0, 0.0, 0.0, "latitude 91"),
        (float("nan"), 0.0, 0.0, "latitude nan"),
        (0.0, 181.0, 0.0, "longitude 181"),
        (0.0, float("inf"), 0.0, "longitude inf"),
        (0.0, 0.0, float("nan"), "heading nan"),
    ],
)
def test_pose_refuses_nonsense(lat: float, lon: float, heading_deg: float, message: str) -> None:
    with pytest.raises(GeoError, match=message):
        Pose(lat=lat, lon=lon, heading_deg=heading_deg)


# ---------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize(("lat", "lon"), PLACES)
@pytest.mark.parametrize("bearing_deg", [0.0, 90.0, 180.0, 270.0, 37.0, 211.0])
def test_local_frame_agrees_with_geodesics(lat: float, lon: float, bearing_deg: float) -> None:
    frame = LocalFrame(lat=lat, lon=lon)
    for distance_m in (100.0, 5000.0):
        target_lon, target_lat, _ = Geod(ellps="WGS84").fwd(lon, lat, bearing_deg, distance_m)
        x, y = frame.to_local(lat=target_lat, lon=target_lon)
        expected = distance_m * geo.forward(bearing_deg)
        np.testing.assert_allclose([float(x), float(y)], expected, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(PLACES), st.floats(-5000, 5000), st.floats(-5000, 5000))
def test_local_round_trip(place: tuple[float, float], x: float, y: float) -> None:
    frame = LocalFrame(lat=place[0], lon=place[1])
    lat, lon = frame.to_geographic(x=x, y=y)
    np.testing.assert_allclose(frame.to_local(lat=lat, lon=lon), (x, y), atol=1e-3)


def test_frames_compare_by_origin() -> None:
    assert LocalFrame(lat=1.0, lon=2.0) == LocalFrame(lat=1.0, lon=2.0)
    assert len({LocalFrame(lat=1.0, lon=2.0), LocalFrame(lat=1.0, lon=2.0)}) == 1
    pose = LocalFrame(lat=60.0, lon=25.0).pose(x=0.0, y=0.0, heading_deg=400.0)
    assert (round(pose.lat, 9), round(pose.lon, 9), pose.heading_deg) == (60.0, 25.0, 40.0)


@pytest.mark.parametrize(
    ("epsg", "lat", "lon"),
    [(32635, 60.17, 24.94), (32756, -33.87, 151.21), (2263, 40.71, -74.0), (4326, 60.17, 24.94)],
)
def test_local_from_crs_knows_units_and_axes(epsg: int, lat: float, lon: float) -> None:
    """100 m north-east of the origin, through degrees and through the CRS, is the same point."""
    frame = LocalFrame(lat=lat, lon=lon)
    first, second = frame.crs_from_local(f"EPSG:{epsg}")([0.0, 30.0], [0.0, 40.0])
    x, y = frame.local_from_crs(epsg)(first, second)
    np.testing.assert_allclose((x, y), ([0, 30], [0, 40]), atol=1e-5)
    step = np.hypot(np.diff(first), np.diff(second))[0]
    expected = {2263: 50.0 / 0.3048006096, 4326: None}.get(epsg, 50.0)
    if expected is None:
        assert abs(first[0] - lon) < 1e-9 and abs(second[0] - lat) < 1e-9  # lon first, always
    else:
        assert step == pytest.approx(expected, rel=6e-4)  # UTM's scale is 0.9996 to 1.001


def test_unknown_crs_is_refused() -> None:
    with pytest.raises(GeoError, match="EPSG:99999"):
        LocalFrame(lat=0.0, lon=0.0).local_from_crs("EPSG:99999")


@pytest.mark.parametrize(
    ("epsg", "lat", "lon", "sign"),
    [
        (32635, 60.17, 24.94, -1),  # west of zone 35's meridian (27 E), northern hemisphere
        (32635, 60.17, 29.0, +1),
        (32756, -33.87, 151.21, +1),  # west of 153 E, southern hemisphere
        (32756, -33.87, 155.0, -1),
    ],
)
def test_grid_convergence_of_utm(epsg: int, lat: float, lon: float, sign: int) -> None:
    central_deg = {32635: 27.0, 32756: 153.0}[epsg]
    # Leading term of the series for a transverse Mercator projection (tan(dlon) sin(lat)).
    expected = np.rad2deg(
        np.arctan(np.tan(np.deg2rad(lon - central_deg)) * np.sin(np.deg2rad(lat)))
    )
    convergence_deg = geo.grid_convergence_deg(epsg, lat=lat, lon=lon)
    assert convergence_deg == pytest.approx(float(expected), abs=2e-3)
    assert np.sign(convergence_deg) == sign


def test_grid_convergence_turns_a_displacement() -> None:
    """A step along grid north, measured on the ground, bears as the convergence says."""
    lat, lon, epsg = 60.17, 24.94, 32635
    frame = LocalFrame(lat=lat, lon=lon)
    east, north = frame.crs_from_local(epsg)(0.0, 0.0)
    x, y = frame.local_from_crs(epsg)(east, north + 10.0)
    convergence_deg = geo.grid_convergence_deg(epsg, lat=lat, lon=lon)
    error_deg = geo.heading_error_deg(geo.bearing_deg(x, y), convergence_deg)
    assert abs(float(error_deg)) < 1e-4


def test_grid_convergence_of_other_systems() -> None:
    assert geo.grid_convergence_deg(4326, lat=60.0, lon=25.0) == pytest.approx(0.0, abs=1e-6)
    assert geo.grid_convergence_deg(3857, lat=60.0, lon=25.0) == pytest.approx(0.0, abs=1e-6)
    # New York is in feet; its central meridian is 74 W.
    assert geo.grid_convergence_deg(2263, lat=40.7, lon=-74.0) == pytest.approx(0.0, abs=1e-6)
    assert geo.grid_convergence_deg(2263, lat=40.7, lon=-73.8) == pytest.approx(0.13, abs=0.01)


def test_utm_crs() -> None:
    assert geo.utm_crs(lat=60.0, lon=24.9).to_epsg() == 32635
    assert geo.utm_crs(lat=-34.0, lon=151.0).to_epsg() == 32756
    assert geo.utm_crs(lat=1.0, lon=-180.0).to_epsg() == 32601
    assert geo.utm_crs(lat=1.0, lon=180.0).to_epsg() == 32660
    with pytest.raises(GeoError, match="no UTM zone"):
        geo.utm_crs(lat=85.0, lon=0.0)


# ----------------------------------------------------------------------------------------- images


def test_chip_hand_values() -> None:
    x, y = geo.chip_xy_from_pixel([0, 4, 0, 4, 2], [0, 0, 4, 4, 2], 4, 0.5)
    np.testing.assert_array_equal(x, [-1, 1, -1, 1, 0])
    np.testing.assert_array_equal(y, [1, 1, -1, -1, 0])
    # A chip that is wider than high: height 2, width 6.
    np.testing.assert_allclose(geo.chip_xy_from_pixel(6, 0, (2, 6), 0.5), (1.5, 0.5))


@given(st.floats(-100, 100), st.floats(-100, 100), st.integers(1, 99), st.integers(1, 99))
@settings(max_examples=30)
def test_chip_round_trip(u: float, v: float, height_px: int, width_px: int) -> None:
    x, y = geo.chip_xy_from_pixel(u, v, (height_px, width_px), 0.3)
    np.testing.assert_allclose(
        geo.pixel_from_chip_xy(x, y, (height_px, width_px), 0.3), (u, v), atol=1e-9
    )


def _image(transform: Affine, epsg: int, height_px: int = 20, width_px: int = 30) -> GeoImage:
    size_px = (height_px, width_px)
    array = np.zeros((height_px, width_px, 3), dtype=np.uint8)
    gsd = geo.gsd_m(transform, epsg, size_px=size_px)
    return GeoImage(array, transform, CRS.from_epsg(epsg), gsd)


def test_geo_image_pixels() -> None:
    image = _image(Affine(0.5, 0, 385000.0, 0, -0.5, 6672000.0), 32635)
    assert image.size_px == (20, 30)
    np.testing.assert_allclose(image.crs_from_pixel(0, 0), (385000.0, 6672000.0))
    np.testing.assert_allclose(image.crs_from_pixel(30, 20), (385015.0, 6671990.0))
    np.testing.assert_allclose(image.pixel_from_crs(385001.0, 6671999.0), (2.0, 2.0))
    assert image.gsd == pytest.approx(0.5, rel=6e-4)


def test_geo_image_rotated_transform_round_trip() -> None:
    # Turned 30 degrees anticlockwise: u points along (cos 30, sin 30), v along (sin 30, -cos 30).
    transform = Affine(0.4330127, 0.25, 385000.0, 0.25, -0.4330127, 6672000.0)
    image = _image(transform, 32635)
    frame = LocalFrame(lat=60.17, lon=24.94)
    u, v = np.array([0.0, 30.0, 7.25]), np.array([0.0, 20.0, 3.5])
    x, y = image.local_from_pixel(frame, u, v)
    np.testing.assert_allclose(image.pixel_from_local(frame, x, y), (u, v), atol=1e-4)
    assert image.gsd == pytest.approx(0.5, rel=6e-4)


def test_gsd_of_degrees_feet_and_web_mercator() -> None:
    # 1e-5 degrees at 60 N: 1.114 m north, 0.558 m east.
    degrees = _image(Affine(1e-5, 0, 24.94, 0, -1e-5, 60.0), 4326)
    assert degrees.gsd == pytest.approx(np.sqrt(1.114117 * 0.558), rel=1e-3)
    feet = _image(Affine(1.0, 0, 987000.0, 0, -1.0, 200000.0), 2263)
    assert feet.gsd == pytest.approx(0.3048, rel=1e-3)
    # Web Mercator stretches by 1 / cos(60 deg) = 2.
    mercator = _image(Affine(1.0, 0, 2776000.0, 0, -1.0, 8399737.9), 3857)
    assert mercator.gsd == pytest.approx(0.5, rel=5e-3)


def test_geo_image_refuses_nonsense() -> None:
    good = np.zeros((4, 4, 3), dtype=np.uint8)
    crs = CRS.from_epsg(32635)
    with pytest.raises(GeoError, match=r"expected \(height, width, bands\)"):
        GeoImage(good[..., 0], Affine.identity(), crs, 0.5)
    with pytest.raises(GeoError, match=r"gsd 0\.0 m/px"):
        GeoImage(good, Affine.identity(), crs, 0.0)
    with pytest.raises(GeoError, match="onto a line"):
        GeoImage(good, Affine(0, 0, 0, 0, 1, 0), crs, 0.5)
