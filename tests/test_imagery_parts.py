"""Places, grids, addresses, pictures and patience, without any server."""

from __future__ import annotations

import io
import math
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagery_helpers import FakeClock, world_png
from PIL import Image

from ciper.errors import ConfigError, GeoError, ImageryError
from ciper.imagery.grid import Tile, load_grid, web_mercator
from ciper.imagery.http import _retry_after_s
from ciper.imagery.picture import NotAPictureError, decode
from ciper.imagery.place import Bounds
from ciper.imagery.polite import Client, Manners, Reply, Throttle
from ciper.imagery.source import TileSource


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        ((25.0, 60.0, 24.0, 61.0), r"another order: its west, east are 25, 24"),
        ((24.0, 61.0, 25.0, 60.0), r"another order: its south, north are 61, 60"),
        ((24.0, 60.0, 24.0, 61.0), r"is empty"),
        ((179.0, -18.0, -179.0, -17.0), r"antimeridian .* fetch both sides"),
        ((179.0, -18.0, 181.0, -17.0), r"antimeridian"),
        ((24.0, 60.0, 25.0, 95.0), r"latitude 95.0 is not a number in \[-90, 90\]"),
        ((24.0, float("nan"), 25.0, 60.0), r"latitude nan"),
    ],
)
def test_a_place_that_is_none(bbox: tuple[float, float, float, float], message: str) -> None:
    with pytest.raises(GeoError, match=message):
        Bounds(*bbox)


def test_a_place_that_no_tile_shows() -> None:
    matrix = web_mercator().matrix(17)
    with pytest.raises(GeoError, match=r"Web Mercator ends at latitude 85\.0511"):
        matrix.tiles_over(Bounds(10, 84, 11, 86))
    with pytest.raises(GeoError, match=r"is 0\.00\d+ x 0\.0\d+ pixels there; expected at least"):
        matrix.tiles_over(Bounds(10, 50, 10.00000001, 50.0000001))


@pytest.mark.parametrize(
    ("lat", "lon", "col", "row"),
    # By hand: zoom 2 is 4 x 4 tiles of 90 degrees; rows end at 66.51, 0 and -66.51 degrees.
    [(70, 10, 2, 0), (10, 100, 3, 1), (-10, -100, 0, 2), (-70, -10, 1, 3), (66.52, -179, 0, 0)],
)
def test_tiles_by_hand(lat: float, lon: float, col: int, row: int) -> None:
    assert web_mercator().matrix(2).tile_at(lat=lat, lon=lon) == Tile(row, col)


def test_a_place_that_ends_with_a_tile_needs_no_other() -> None:
    lat = math.degrees(math.atan(math.sinh(math.pi / 2)))
    spans = [
        web_mercator().matrix(2).tiles_over(Bounds(west, south, west + 90, south + lat))
        for west, south in [(-90.0, 0.0), (0.0, 0.0), (-90.0, -lat), (0.0, -lat)]
    ]
    assert [(s.left, s.top, s.num) for s in spans] == [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1)]


def test_gsd_is_of_true_metres() -> None:
    matrix = web_mercator().matrix(19)
    for lat in (0.1, 37.77, 60.17, -33.9):
        sphere_m = 156543.034 * math.cos(math.radians(lat)) / 2**19
        assert matrix.gsd(Bounds(9, lat - 0.01, 9.01, lat + 0.01)) == pytest.approx(sphere_m, 5e-3)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("https://h.org/{z}/{x}/{y}@2x.jpg", "https://h.org/3/3/5@2x.jpg"),
        ("https://h.org/{z}/{x}/{-y}", "https://h.org/3/3/2"),
        ("https://{s}.h.org/{z}/{x}/{y}", "https://c.h.org/3/3/5"),
        ("https://{switch:t0,t1,t2,t3}.h.org/{zoom}/{x}/{y}", "https://t0.h.org/3/3/5"),
        ("https://h.org/a{q}.jpeg?g=1", "https://h.org/a213.jpeg?g=1"),
        (
            "https://h.org/ortho/EPSG:3857:{TileMatrix}/{TileRow}/{TileCol}.png",
            "https://h.org/ortho/EPSG:3857:3/5/3.png",
        ),
        (
            "https://h.org/wmts?service=WMTS&layer=a&tilematrixset=g&format=image/png",
            "https://h.org/wmts?SERVICE=WMTS&REQUEST=GetTile&VERSION=1.0.0&TILEMATRIX=3&TILEROW=5"
            "&TILECOL=3&layer=a&tilematrixset=g&format=image/png",
        ),
    ],
)
def test_addresses_of_a_tile(template: str, expected: str) -> None:
    # Column 3 and row 5 of zoom 3: 213 is the example of Bing's documentation.
    source = TileSource.parse(template)
    assert source.url(web_mercator().matrix(3), Tile(5, 3)) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("https://h.org/{z}/{x}/{y}?key={apikey}", r"\{apikey\} is unknown.* write \$\{APIKEY\}"),
        ("https://h.org/{z}/{x}.png", r"does not say where zoom, column and row go"),
        ("h.org/{z}/{x}/{y}", r"is no address of tiles; expected https://"),
        ("https://me:secret@h.org/{z}/{x}/{y}", r"a name and a password stand before the host"),
        ("https://h.org/{z}/{x}/{y}?k=${NOT_SET}", r"variable NOT_SET is not set"),
        ("https://h.org/wmts?service=wmts&layer=a", r"names no LAYER or no TILEMATRIXSET"),
    ],
)
def test_templates_that_are_none(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        TileSource.parse(template)
    assert "secret" not in str(caught.value)


def test_a_grid_from_a_file(tmp_path: Path) -> None:
    import morecantile

    path = tmp_path / "mine.json"
    path.write_text(morecantile.tms.get("NZTM2000Quad").model_dump_json(exclude_none=True))
    grid, named = load_grid(str(path)), load_grid("NZTM2000Quad")
    assert grid.matrices == named.matrices
    # Origin as Land Information New Zealand gives it: easting, northing.
    assert (grid.matrix(0).transform.c, grid.matrix(0).transform.f) == pytest.approx(
        (-3260586.7284, 10438190.1652)
    )
    assert grid.name.startswith("mine-")


def test_grids_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"NoGrid is unknown; expected one of .*NZTM2000Quad"):
        load_grid("NoGrid")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"a\.json cannot be read .*TileMatrixSet 2\.0 as JSON"):
        load_grid(str(tmp_path / "a.json"))
    with pytest.raises(ConfigError, match=r"not of equal tiles counted from the top"):
        load_grid("GNOSISGlobalGrid")


def test_colours_of_all_kinds() -> None:
    grey = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1))
    rgba = np.dstack([grey, grey.T, grey, np.where(grey < 128, 0, 255).astype(np.uint8)])

    def seen(image: Image.Image, kind: str = "PNG", **options: Any) -> Any:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return decode(buffer.getvalue())

    as_grey = seen(Image.fromarray(grey))
    np.testing.assert_array_equal(as_grey.rgb, np.dstack([grey] * 3))
    assert as_grey.is_valid.all()
    assert not as_grey.is_lossy
    deep = seen(Image.fromarray(grey.astype(np.uint16) * 257))
    np.testing.assert_array_equal(deep.rgb, as_grey.rgb)
    with_alpha = seen(Image.fromarray(rgba))
    np.testing.assert_array_equal(with_alpha.is_valid, grey >= 128)
    assert (with_alpha.rgb[grey < 128] == 0).all()
    np.testing.assert_array_equal(with_alpha.rgb[..., 1][grey >= 128], grey.T[grey >= 128])
    np.testing.assert_array_equal(seen(Image.fromarray(rgba), "WEBP", lossless=True).rgb,
                                  with_alpha.rgb)  # fmt: skip
    palette = Image.fromarray(grey // 16).convert("L")
    palette.putpalette([v for i in range(16) for v in (i, 200, 16 * i)])
    shown = seen(palette, transparency=0)
    assert shown.rgb[0, 3].tolist() == [3, 200, 48]
    np.testing.assert_array_equal(shown.is_valid, grey > 0)
    assert seen(Image.fromarray(grey > 100)).rgb[0, 15].tolist() == [255, 255, 255]
    cmyk = seen(Image.fromarray(rgba[..., :3]).convert("CMYK"), "JPEG", quality=100)
    assert cmyk.is_lossy
    assert cmyk.is_valid.all()
    for body in (b"", b"<html>", world_png(3, 1, 1)[:-200]):
        with pytest.raises(NotAPictureError):
            decode(body)


def test_a_date_to_come_back_at() -> None:
    soon = formatdate(time.time() + 30, usegmt=True)
    assert _retry_after_s(soon) == pytest.approx(30, abs=3)
    assert _retry_after_s("Fri, 31 Dec 1999 23:59:59 GMT") == 0.0
    assert _retry_after_s("tomorrow") is None
    assert _retry_after_s(None) is None


def test_requests_start_at_equal_distances() -> None:
    clock = FakeClock()
    throttle = Throttle(4.0, clock)
    starts = []
    for _ in range(5):
        throttle.wait()
        starts.append(clock.now())
    assert starts == [0.0, 0.25, 0.5, 0.75, 1.0]
    throttle.pause(3.0)
    throttle.wait()
    assert clock.now() == 4.0


def test_every_request_waits_for_its_turn() -> None:
    clock, starts = FakeClock(), []

    class Moody:
        """Fails every third time."""

        def get(self, url: str) -> Reply:
            starts.append(clock.now())
            return Reply(200 if len(starts) % 3 else 500, b"")

    client = Client(Moody(), Manners(rate_per_s=2.0), hide=str, clock=clock)
    for i in range(8):
        client.get(f"http://h/{i}", lambda reply: None)
    assert len(starts) == 11
    assert min(np.diff(starts)) == pytest.approx(0.5)
    assert clock.now() < 8.0


def test_waiting_grows_and_ends() -> None:
    clock = FakeClock()

    class Broken:
        def get(self, url: str) -> Reply:
            return Reply(503, b"")

    client = Client(Broken(), Manners(rate_per_s=1e9), hide=str, clock=clock)
    with pytest.raises(ImageryError, match=r"status 503 \(5 attempts\)"):
        client.get("http://h/1", lambda reply: None)
    waits = [wait for wait in clock.slept if wait > 0.1]
    assert len(waits) == 4
    assert all(0.5 * 2**i <= wait <= 0.75 * 2**i for i, wait in enumerate(waits))
