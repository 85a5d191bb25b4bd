from __future__ import annotations

import numpy as np
import pytest

from ciper.geo import LocalFrame
from ciper.geodesic import moved, offset_m


@pytest.mark.parametrize(
    ("lat", "lon"), [(40.7, -74.0), (49.0, 8.4), (-33.9, 151.2), (60.0, 180.0)]
)
@pytest.mark.parametrize(("x_m", "y_m"), [(30.0, 20.0), (-30.0, 20.0), (-3e3, -4e3), (5.0, -9.0)])
def test_the_same_metres_as_a_local_frame(lat: float, lon: float, x_m: float, y_m: float) -> None:
    there = moved(lat=lat, lon=lon, x_m=x_m, y_m=y_m)
    expected = LocalFrame(lat=lat, lon=lon).to_geographic(x=x_m, y=y_m)
    assert there[0] == pytest.approx(float(expected[0]), abs=1e-10)
    assert np.cos(np.deg2rad(there[1] - expected[1])) == pytest.approx(1.0, abs=1e-15)
    back = offset_m(lat=lat, lon=lon, to_lat=there[0], to_lon=there[1])
    assert back == pytest.approx(np.array([x_m, y_m]), abs=1e-5)


def test_many_at_once_and_one_against_many() -> None:
    lat, lon = moved(lat=[40.0, 50.0], lon=8.0, x_m=[1.0, 2.0], y_m=-3.0)
    assert lat.shape == lon.shape == (2,)
    away = offset_m(lat=40.0, lon=8.0, to_lat=lat, to_lon=lon)
    assert away.shape == (2, 2)
    assert away[0] == pytest.approx(np.array([1.0, -3.0]), abs=1e-6)
    assert moved(lat=1.0, lon=2.0, x_m=0.0, y_m=0.0) == pytest.approx((1.0, 2.0))
