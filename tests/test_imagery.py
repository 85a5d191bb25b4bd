"""Tiles from a server on this machine that behaves well, badly and strangely."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from gallery_helpers import geographic, write_city
from imagery_helpers import (
    HALF_M,
    Answer,
    FakeClock,
    Script,
    TileServer,
    encoded,
    mercator,
    raster_tiles,
    serving,
    world_png,
)
from rasterio.warp import transform_bounds
from scipy import ndimage
from typer.testing import CliRunner, Result

from ciper.cli import app
from ciper.errors import (
    AccessRefusedError,
    CiperError,
    ConfigError,
    ImageryError,
    NoImageryError,
    OutputError,
)
from ciper.gallery.inspect import inspect_raster
from ciper.gallery.raster import Raster, read_chip
from ciper.imagery.fetch import FetchConfig, Fetched, fetch
from ciper.imagery.grid import Tile, web_mercator
from ciper.imagery.place import Bounds
from ciper.imagery.polite import Manners

ZOOM = 17
# About 3 x 3 tiles in each quadrant of the world.
PLACES = {
    "north-east": Bounds(24.93, 60.165, 24.935, 60.168),
    "north-west": Bounds(-122.42, 37.77, -122.416, 37.773),
    "south-west": Bounds(-58.385, -34.606, -58.381, -34.603),
    "south-east": Bounds(151.205, -33.868, 151.209, -33.865),
}
HELSINKI = PLACES["north-east"]


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits, and no proxy stands between the tests and this machine."""
    seconds: list[float] = []
    monkeypatch.setattr("ciper.imagery.polite.Clock", lambda: FakeClock(seconds))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return seconds


@pytest.fixture(scope="module")
def shared_server() -> Iterator[TileServer]:
    with serving() as server:
        yield server


@pytest.fixture
def server(shared_server: TileServer) -> TileServer:
    """Without the memory of other tests."""
    shared_server.asked.clear()
    shared_server.script = lambda path, before: None
    shared_server.draw = world_png
    return shared_server


def take(folder: Path, source: str, bounds: Bounds = HELSINKI, **settings: Any) -> Fetched:
    """Fetch into a folder, with its cache."""
    settings = {"zoom": ZOOM, "cache": folder / "cache", "max_tiles": 200, **settings}
    config = FetchConfig(bounds, source, **settings)
    return fetch(config, folder / "a.tif", progress=lambda *_: None, say=lambda _: None)


def read(path: Path) -> tuple[Any, Any, Any]:
    """RGB (H, W, 3), mask (H, W), transform."""
    with rasterio.open(path) as dataset:
        return np.moveaxis(dataset.read(), 0, -1), dataset.dataset_mask() > 0, dataset.transform


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# ---------------------------------------------------------------------------------------- the file


def expected_pixels(bounds: Bounds, zoom: int, side_px: int = 256) -> tuple[int, int, int, int]:
    """First column and row and last column and row below a place, by the spherical formulas."""
    scale = side_px * 2**zoom / (2 * HALF_M)
    left, bottom = mercator(bounds.south, bounds.west)
    right, top = mercator(bounds.north, bounds.east)
    return (
        math.floor((left + HALF_M) * scale),
        math.floor((HALF_M - top) * scale),
        math.ceil((right + HALF_M) * scale) - 1,
        math.ceil((HALF_M - bottom) * scale) - 1,
    )


@pytest.mark.parametrize("quadrant", PLACES)
@pytest.mark.parametrize("kind", ["xyz", "tms", "512 px"])
def test_every_pixel_is_where_it_belongs(
    server: TileServer, tmp_path: Path, quadrant: str, kind: str
) -> None:
    bounds, side_px = PLACES[quadrant], 512 if kind == "512 px" else 256
    flip = kind == "tms"
    server.draw = lambda z, x, y: world_png(z, x, 2**z - 1 - y if flip else y, side_px)
    row = "{-y}" if flip else "{y}"
    fetched = take(tmp_path, f"{server.url}/{{z}}/{{x}}/{row}.png", bounds)
    rgb, is_valid, transform = read(fetched.out)
    left, top, right, bottom = expected_pixels(bounds, ZOOM, side_px)
    assert rgb.shape == (bottom - top + 1, right - left + 1, 3)
    assert is_valid.all()
    row_px, col_px = np.meshgrid(
        np.arange(top, bottom + 1), np.arange(left, right + 1), indexing="ij"
    )
    blue = col_px // 256 % 16 * 16 + row_px // 256 % 16
    np.testing.assert_array_equal(rgb, np.stack([col_px % 256, row_px % 256, blue], axis=-1))
    # The corners of the place lie in the corner pixels of the file.
    for lat, lon, u, v in [
        (bounds.north, bounds.west, 0, 0),
        (bounds.north, bounds.east, rgb.shape[1] - 1, 0),
        (bounds.south, bounds.west, 0, rgb.shape[0] - 1),
        (bounds.south, bounds.east, rgb.shape[1] - 1, rgb.shape[0] - 1),
    ]:
        x, y = mercator(lat, lon)
        found = ((x - transform.c) / transform.a, (y - transform.f) / transform.e)
        assert found == pytest.approx((u + 0.5, v + 0.5), abs=0.5)


def test_the_file_is_cloud_optimised_and_says_what_it_is(
    server: TileServer, tmp_path: Path
) -> None:
    fetched = take(tmp_path, f"{server.url}/{{z}}/{{x}}/{{y}}.png", zoom=18, license="CC0 1.0")
    with rasterio.open(fetched.out) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.compression.name == "deflate"
        assert dataset.crs == "EPSG:3857"
        assert dataset.overviews(1) == [2, 4]
        tags = dataset.tags()
        assert dataset.dtypes == ("uint8",) * 3
    assert tags["SOURCE"] == f"{server.url}/{{z}}/{{x}}/{{y}}.png"
    assert tags["LICENSE"] == tags["TIFFTAG_COPYRIGHT"] == "CC0 1.0"
    assert (tags["ZOOM"], tags["AREA_OR_POINT"]) == ("18", "Area")
    assert len(tags["FETCHED"]) == len("2026-01-31")
    # 156543.034 cos(60.1665) / 2^18, on the sphere.
    assert fetched.frame.gsd == pytest.approx(0.2971, rel=5e-3)
    assert "gsd 0.298 m (Web Mercator's 0.597 are no metres)" in str(fetched)
    assert all(agent.startswith("ciper/") for agent in server.agents)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "cache"]


def test_jpeg_tiles_stay_jpeg_and_keep_their_mask(server: TileServer, tmp_path: Path) -> None:
    gap = web_mercator().matrix(ZOOM).tile_at(lat=HELSINKI.north, lon=HELSINKI.west)

    def draw(z: int, x: int, y: int) -> bytes | None:
        if Tile(y, x) == gap:
            return None
        return encoded(np.full((256, 256, 3), (40, 90, 160), np.uint8), "JPEG", quality=95)

    server.draw = draw
    fetched = take(tmp_path, f"{server.url}/{{z}}/{{x}}/{{y}}.jpg")
    rgb, is_valid, _ = read(fetched.out)
    with rasterio.open(fetched.out) as dataset:
        assert dataset.compression.name == "jpeg"
    left, top, _, _ = expected_pixels(HELSINKI, ZOOM)
    expected = np.ones(is_valid.shape, np.bool_)
    expected[: (gap.row + 1) * 256 - top, : (gap.col + 1) * 256 - left] = False
    np.testing.assert_array_equal(is_valid, expected)
    # Blocks of JPEG that hold a piece of the gap are not quite right.
    inner = np.asarray(ndimage.binary_erosion(expected, np.ones((33, 33)), border_value=1))
    assert np.abs(rgb[inner] - np.array([40.0, 90.0, 160.0])).max() <= 4
    assert fetched.missing == pytest.approx(1 - expected.mean())


@pytest.mark.parametrize("name", ["NZTM2000Quad", "WorldCRS84Quad", "WGS1984Quad"])
def test_other_grids(server: TileServer, tmp_path: Path, name: str) -> None:
    wellington = Bounds(174.775, -41.29, 174.778, -41.288)
    fetched = take(
        tmp_path, f"{server.url}/{{TileMatrix}}/{{TileCol}}/{{TileRow}}", wellington,
        tile_matrix_set=name, zoom=15,
    )  # fmt: skip
    rgb, _, transform = read(fetched.out)
    # Origin and size of a pixel of zoom 15 as the standard and Land Information New Zealand say.
    if name == "NZTM2000Quad":
        left, top, pixel = -3260586.7284, 10438190.1652, 39135.75848201011 / 2**15
    else:
        left, top, pixel = -180.0, 90.0, 180.0 / 256 / 2**15
    assert (transform.a, transform.e) == pytest.approx((pixel, -pixel))
    col, row = (transform.c - left) / pixel, (top - transform.f) / pixel
    assert (col, row) == (pytest.approx(round(col), abs=1e-3), pytest.approx(round(row), abs=1e-3))
    assert rgb[0, 0, :2].tolist() == [round(col) % 256, round(row) % 256]
    lat, lon = (-41.289, 174.7765)
    with rasterio.open(fetched.out) as dataset:
        west, south, east, north = transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds)
    assert west < wellington.west < lon < wellington.east < east
    assert south < wellington.south < lat < wellington.north < north


# ------------------------------------------------------------------------------------------- faults


def once(answer: Answer) -> Script:
    """The first tile is answered so, once."""

    def script(path: str, before: int) -> Answer | None:
        script.first = script.first or path  # type: ignore[attr-defined]
        return answer if path == script.first and not before else None  # type: ignore[attr-defined]

    script.first = ""  # type: ignore[attr-defined]
    return script


HTML = Answer(b"<html><head><title>x</title></head><b>Quota</b> used up</html>", 200, "text/html")
WHOLE = world_png(3, 1, 1)


@pytest.mark.parametrize(
    ("answer", "wait_s"),
    [
        (Answer(status=500), 0.5),
        (Answer(status=503, headers={"Retry-After": "7"}), 7.0),
        (Answer(status=429, headers={"Retry-After": formatdate(4102444800, usegmt=True)}), None),
        (Answer(status=429), 0.5),
        (HTML, 0.5),
        (Answer(b"\x89PNG nonsense"), 0.5),
        (Answer(WHOLE[:-200]), 0.5),
        (Answer(WHOLE, sent_bytes=100), 0.5),
        (Answer(WHOLE, delay_s=0.5), 0.5),
        (Answer(b""), 0.5),
    ],
    ids=[
        "500", "503 in seconds", "429 in 2100", "429", "HTML", "nonsense", "cut image",
        "cut body", "slow", "empty",
    ],
)  # fmt: skip
def test_a_fault_that_passes(
    server: TileServer, tmp_path: Path, slept: list[float], answer: Answer, wait_s: float | None
) -> None:
    server.script = once(answer)
    manners = Manners(timeout_s=0.25)
    if wait_s is None:
        with pytest.raises(ImageryError, match=r"asks to come back in 21,600 s"):
            take(tmp_path, f"{server.url}/{{z}}/{{x}}/{{y}}", manners=manners)
        return
    fetched = take(tmp_path, f"{server.url}/{{z}}/{{x}}/{{y}}", manners=manners)
    assert fetched.missing == 0.0
    assert sorted(server.counts.values()) == [1] * 8 + [2]
    assert wait_s <= max(slept) < wait_s * 2
    left, top, _, _ = expected_pixels(HELSINKI, ZOOM)
    assert read(fetched.out)[0][0, 0, :2].tolist() == [left % 256, top % 256]


def test_redirections_are_followed(server: TileServer, tmp_path: Path) -> None:
    def script(path: str, before: int) -> Answer | None:
        if not path.startswith("/old"):
            return None
        return Answer(status=302, headers={"Location": path.removeprefix("/old")})

    server.script = script
    assert take(tmp_path, f"{server.url}/old/{{z}}/{{x}}/{{y}}").missing == 0.0
    server.script = lambda path, before: Answer(status=302, headers={"Location": path})
    with pytest.raises(ImageryError, match=r"redirect"):
        take(tmp_path, f"{server.url}/round/{{z}}/{{x}}/{{y}}")


@pytest.mark.parametrize(
    ("answer", "error", "message", "most"),
    [
        (Answer(status=403), AccessRefusedError, r"refuses with status 403; .*Check the key", 1),
        (
            Answer(b'{"message": "no token"}', 401, "application/json"),
            AccessRefusedError,
            r'status 401 \(\{"message": "no token"\}\)',
            1,
        ),
        (Answer(status=400), ImageryError, r"status 400; expected 200. Check --source", 1),
        (Answer(status=500), ImageryError, r"status 500 \(5 attempts\)", 5),
        (HTML, ImageryError, r"status 200 with no image, called text/html \(Quota used up\)", 5),
    ],
)
def test_a_fault_that_stays(
    server: TileServer,
    tmp_path: Path,
    answer: Answer,
    error: type[CiperError],
    message: str,
    most: int,
) -> None:
    server.script = lambda path, before: answer
    (tmp_path / "a.tif").write_bytes(b"older")
    with pytest.raises(error, match=message):
        take(tmp_path, f"{server.url}/{{z}}/{{x}}/{{y}}")
    assert len(server.asked) == most
    assert (tmp_path / "a.tif").read_bytes() == b"older"


def test_no_server_at_all(tmp_path: Path) -> None:
    with serving() as server:
        url = server.url
    with pytest.raises(ImageryError, match=r"NewConnectionError.*\(5 attempts\).*the same command"):
        take(tmp_path, f"{url}/{{z}}/{{x}}/{{y}}")
    assert not (tmp_path / "a.tif").exists()


@pytest.mark.parametrize("status", [404, 204, 410])
def test_where_nothing_is(server: TileServer, tmp_path: Path, status: int) -> None:
    """Nothing in the western column of tiles: it is masked, and never asked for again."""
    west = web_mercator().matrix(ZOOM).tiles_over(HELSINKI).left
    nothing = Answer(status=status)
    server.script = lambda path, before: nothing if f"/{west}/" in path else None
    source = f"{server.url}/{{z}}/{{x}}/{{y}}"
    fetched = take(tmp_path, source)
    rgb, is_valid, _ = read(fetched.out)
    left = expected_pixels(HELSINKI, ZOOM)[0]
    num_missing = (west + 1) * 256 - left
    assert not is_valid[:, :num_missing].any()
    assert is_valid[:, num_missing:].all()
    assert (rgb[~is_valid] == 0).all()
    assert "without imagery" in str(fetched)
    server.asked.clear()
    take(tmp_path, source)
    assert server.asked == []


def test_most_of_it_missing(server: TileServer, tmp_path: Path) -> None:
    place = Bounds(24.93, 60.165, 24.96, 60.175)
    east = web_mercator().matrix(ZOOM).tiles_over(place).right - 3
    server.script = lambda path, before: (
        Answer(status=404) if int(path.split("/")[2]) < east else None
    )
    source = f"{server.url}/{{z}}/{{x}}/{{y}}"
    with pytest.raises(NoImageryError, match=r"no imagery of 5\d% .* or more at zoom 17.*allow-m"):
        take(tmp_path, source, place)
    num_tiles = web_mercator().matrix(ZOOM).tiles_over(place).num
    # It is given up when half is known to be missing.
    assert 0.5 * num_tiles < len(server.asked) < 0.8 * num_tiles
    fetched = take(tmp_path, source, place, is_missing_allowed=True)
    assert 0.7 < fetched.missing < 1.0
    assert len(server.asked) == num_tiles
    server.script = lambda path, before: Answer(status=404)
    with pytest.raises(NoImageryError, match=r"has no imagery of"):
        take(tmp_path / "none", source, is_missing_allowed=True)


# ---------------------------------------------------------------------------------------- its use


def test_chips_are_those_of_the_raster_behind_the_tiles(tmp_path: Path) -> None:
    """UTM at a server, Web Mercator on the way, true metres in a chip: the same pixels."""
    city = write_city(tmp_path / "city.tif", east=460_000.0, north=5_600_000.0)
    lat, lon = geographic("EPSG:32633", 460_100.0, 5_599_900.0)
    bounds = Bounds(lon - 0.001, lat - 0.0006, lon + 0.001, lat + 0.0006)
    with serving(raster_tiles(city)) as server:
        fetched = take(tmp_path, f"{server.url}/{{z}}/{{x}}/{{y}}", bounds, zoom=None)
    chips = []
    for path in (city, fetched.out):
        with Raster(inspect_raster(path)) as raster:
            rgb, is_valid = read_chip(raster, lat=lat, lon=lon, size_px=160)
        assert is_valid.all()
        chips.append(rgb.astype(np.float64))
    error = np.abs(chips[0] - chips[1]).mean()
    others = [np.abs(np.roll(chips[0], 1, axis) - chips[1])[2:, 2:].mean() for axis in (0, 1)]
    assert error < 3.0
    assert min(others) > 2.5 * error


@pytest.mark.slow
def test_photos_are_found_on_fetched_tiles(tmp_path: Path) -> None:
    """A synthetic city behind a server of tiles; the shipped model."""
    made = run(
        "simulate", tmp_path / "city", "--seed", "41", "--size-m", "400", "--num-photos", "8"
    )
    assert made.exit_code == 0, made.output
    aerial = tmp_path / "city" / "aerial.tif"
    with rasterio.open(aerial) as dataset:
        bounds = Bounds(*transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds))
    with serving(raster_tiles(aerial)) as server:
        fetched = take(tmp_path, f"{server.url}/{{z}}/{{x}}/{{y}}", bounds, zoom=None)
    aerial.unlink()
    gallery = tmp_path / "gallery"
    assert run("index", fetched.out, "--out", gallery).exit_code == 0
    found = run(
        "evaluate", tmp_path / "city" / "poses.csv", "--gallery", gallery, "--out", tmp_path / "r"
    )
    assert found.exit_code == 0, found.output
    figures = json.loads((tmp_path / "r" / "metrics.json").read_text())["end_to_end"]
    assert figures["recall@3m"] >= 0.75
    assert figures["heading_median_deg"] < 3.0


# ------------------------------------------------------------------------------- politeness, memory


def test_a_second_fetch_asks_for_nothing(server: TileServer, tmp_path: Path) -> None:
    source = f"{server.url}/{{z}}/{{x}}/{{y}}"
    first = take(tmp_path, source).out.read_bytes()
    assert len(server.asked) == len(set(server.asked)) == 9
    server.asked.clear()
    assert take(tmp_path, source).out.read_bytes() == first
    # A part of the place, too.
    take(tmp_path, source, Bounds(24.931, 60.166, 24.932, 60.167))
    assert server.asked == []


def test_an_interrupted_fetch_asks_for_the_rest(server: TileServer, tmp_path: Path) -> None:
    source = f"{server.url}/{{z}}/{{x}}/{{y}}"

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    config = FetchConfig(HELSINKI, source, zoom=ZOOM, cache=tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        fetch(config, tmp_path / "a.tif", progress=interrupt, say=lambda _: None)
    assert 7 <= len(server.asked) <= 9
    assert not (tmp_path / "a.tif").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_after_an_interruption(server: TileServer, tmp_path: Path) -> None:
    source = f"{server.url}/{{z}}/{{x}}/{{y}}"
    server.script = lambda path, before: Answer(status=403) if len(server.asked) > 4 else None
    with pytest.raises(AccessRefusedError):
        take(tmp_path, source)
    done = set(server.asked[:4])
    server.asked.clear()
    server.script = lambda path, before: None
    assert take(tmp_path, source).missing == 0.0
    assert len(server.asked) == 5
    assert not done & set(server.asked)


def test_no_more_at_a_time_than_allowed(tmp_path: Path) -> None:
    with serving() as server:
        png = world_png(ZOOM, 0, 0)
        server.script = lambda path, before: Answer(png, delay_s=0.02)
        take(tmp_path, f"{server.url}/{{z}}/{{x}}/{{y}}", manners=Manners(num_connections=3))
        assert 2 <= server.most_at_once <= 3


def test_a_proxy(server: TileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    assert take(tmp_path, "http://tiles.invalid/{z}/{x}/{y}").missing == 0.0
    assert all(path.startswith("http://tiles.invalid/17/") for path in server.asked)


def test_a_tile_that_was_damaged_on_the_disk(server: TileServer, tmp_path: Path) -> None:
    source = f"{server.url}/{{z}}/{{x}}/{{y}}"
    take(tmp_path, source)
    tile = sorted(tmp_path.rglob("*.tile"))[-1]
    tile.write_bytes(tile.read_bytes()[:-100])
    with pytest.raises(ImageryError, match=rf"{tile.name}: holds a damaged image .*Delete the fil"):
        take(tmp_path, source)
    tile.unlink()
    server.asked.clear()
    assert take(tmp_path, source).missing == 0.0
    assert len(server.asked) == 1


def test_keys_stay_secret(
    server: TileServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MAP_KEY", "s3cr3t+key/")
    out, cache = tmp_path / "a.tif", tmp_path / "cache"
    template = f"{server.url}/{{z}}/{{x}}/{{y}}?k=${{MAP_KEY}}&access_token=0therS3cret"
    arguments: list[str | Path] = [
        "imagery", "fetch", "--bbox", str(HELSINKI), "--source", template, "--out", out,
        "--zoom", "16", "--cache", cache,
    ]  # fmt: skip
    good = run(*arguments)
    assert good.exit_code == 0, good.output
    assert all("?k=s3cr3t+key/&access_token=0therS3cret" in path for path in server.asked)
    server.script = lambda path, before: Answer(path.encode(), 403, "text/plain")
    refused = run(*arguments[:-4], "--zoom", "15", "--cache", cache)
    assert refused.exit_code == 2
    assert "k=${MAP_KEY}&access_token=***" in refused.output
    server.script = lambda path, before: Answer(status=302, headers={"Location": path})
    failed = run(*arguments[:-4], "--zoom", "14", "--cache", cache)
    assert failed.exit_code == 2
    told = [good.output, refused.output, failed.output, caplog.text, *map(str, cache.rglob("*"))]
    told += [p.read_bytes().decode("latin1") for p in (out, *cache.rglob("*")) if p.is_file()]
    assert "urllib3" in caplog.text
    for secret in ("s3cr3t", "0therS3cret"):
        assert not any(secret in text for text in told)
    with rasterio.open(out) as dataset:
        assert dataset.tags()["SOURCE"].endswith("?k=${MAP_KEY}&access_token=***")


# ------------------------------------------------------------------------------------ zoom and size


def test_too_many_tiles(server: TileServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is 304 tiles at zoom 20; .* most 200: --zoom 19 w"):
        take(tmp_path, f"{server.url}/{{z}}/{{x}}/{{y}}", zoom=20)
    with pytest.raises(ConfigError, match=r"--zoom 99: WebMercatorQuad has the zooms 0 to 24"):
        take(tmp_path, f"{server.url}/{{z}}/{{x}}/{{y}}", zoom=99)
    assert server.asked == []


@pytest.mark.parametrize(
    ("side_px", "finest", "zoom"), [(256, 30, 18), (512, 30, 17), (256, 16, 16), (512, 16, 16)]
)
def test_a_zoom_is_chosen(
    server: TileServer, tmp_path: Path, side_px: int, finest: int, zoom: int
) -> None:
    # At 60 degrees zoom 18 has 0.298 m, zoom 17 twice that.
    tile = world_png(1, 0, 0, side_px)
    server.draw = lambda z, x, y: tile if z <= finest else None
    fetched = take(tmp_path, f"{server.url}/{{z}}/{{x}}/{{y}}", zoom=None)
    assert fetched.frame.gsd == pytest.approx(0.298 * 2 ** (18 - zoom) * 256 / side_px, rel=0.01)


def test_no_zoom_at_all(server: TileServer, tmp_path: Path) -> None:
    server.draw = lambda z, x, y: None
    with pytest.raises(NoImageryError, match=r"no tile in the middle of .* at zoom 18 or below"):
        take(tmp_path, f"{server.url}/{{z}}/{{x}}/{{y}}", zoom=None)
    assert len(server.asked) < 12


def test_tiles_of_several_sizes(server: TileServer, tmp_path: Path) -> None:
    odd = web_mercator().matrix(ZOOM).tile_at(lat=HELSINKI.south, lon=HELSINKI.east)
    server.draw = lambda z, x, y: world_png(z, x, y, 512 if Tile(y, x) == odd else 256)
    with pytest.raises(ImageryError, match=r"is 512 x 512 px, the tiles before it are 256 x 256"):
        take(tmp_path, f"{server.url}/{{z}}/{{x}}/{{y}}")


# ------------------------------------------------------------------------------------- command line


def test_the_command(server: TileServer, tmp_path: Path) -> None:
    result = run(
        "imagery", "fetch", "--bbox", str(HELSINKI), "--source", f"{server.url}/{{z}}/{{x}}/{{y}}",
        "--out", tmp_path / "new" / "a.tif", "--zoom", "17", "--cache", tmp_path / "cache",
        "--license", "CC BY 4.0",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert "zoom 17, 9 tiles (1 of them in" in lines[0]
    assert "0.3 megapixels of 0.595 m, at least 2 s" in lines[0]
    assert lines[1].startswith("note: you must have the right to download and keep this imagery")
    assert "(the file will say: CC BY 4.0)" in lines[1]
    assert lines[-2].startswith(f"wrote {tmp_path / 'new' / 'a.tif'}: 467 x 563 px, gsd 0.595 m")
    assert lines[-1].startswith("next: ciper index ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--bbox": "24,60,25"}, "--bbox '24,60,25': expected numbers as W,S,E,N."),
        ({"--bbox": "60,24,61,25,3"}, "expected numbers as W,S,E,N."),
        ({"--bbox": "24.9,60.2,24.8,60.3"}, "is in another order: its west, east are 24.9, 24.8"),
        ({"--rate": "fast"}, "--rate 'fast': expected requests per second above 0"),
        ({"--rate": "0"}, "--rate '0'"),
        ({"--out": "a.png"}, "--out a.png: expected a name that ends in .tif"),
        ({"--out": "."}, "expected a name that ends in .tif"),
        ({"--asset": "visual"}, "--asset visual is of STAC items"),
        ({"--source": "stac:nowhere.json"}, "--zoom 17 is of tiles; leave it out"),
        ({"--source": "nonsense"}, "'nonsense' is no address of tiles"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {
        "--bbox": "24.9,60.1,25.0,60.2", "--source": "https://h.org/{z}/{x}/{y}",
        "--out": "a.tif", "--zoom": "17", **change,
    }  # fmt: skip
    result = run("imagery", "fetch", *(word for pair in options.items() for word in pair))
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_an_interruption_says_how_to_go_on(
    server: TileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ciper.imagery.fetch.fetch", interrupted)
    result = run(
        "imagery", "fetch", "--bbox", str(HELSINKI), "--source", f"{server.url}/{{z}}/{{x}}/{{y}}",
        "--out", tmp_path / "a.tif",
    )  # fmt: skip
    assert result.exit_code == 130
    assert "tiles are kept in cache/imagery; the same command goes on" in result.stderr


def test_a_library_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ciper.imagery.http", raising=False)
    monkeypatch.setitem(sys.modules, "urllib3", None)
    result = run(
        "imagery", "fetch", "--bbox", str(HELSINKI), "--source", "https://h.org/{z}/{x}/{y}",
        "--out", tmp_path / "a.tif", "--cache", tmp_path / "cache",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "needs urllib3, which is not installed; run: pip install 'ciper-geo[imagery]'" in (
        result.stderr
    )


def test_a_place_to_write_that_is_taken(server: TileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = FetchConfig(HELSINKI, f"{server.url}/{{z}}/{{x}}/{{y}}", cache=tmp_path / "file")
    with pytest.raises(OutputError, match=r"free some space or choose another --cache"):
        fetch(config, tmp_path / "a.tif", progress=lambda *_: None, say=lambda _: None)
    with pytest.raises(OutputError, match=r"cannot write beside"):
        fetch(config, tmp_path / "file" / "a.tif", progress=lambda *_: None, say=lambda _: None)
    assert server.asked == []
