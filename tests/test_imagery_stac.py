"""Items of STAC catalogues: local ones, and from a server that serves parts of files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from gallery_helpers import write_raster
from imagery_helpers import Answer, FakeClock, TileServer, serving
from numpy.typing import NDArray
from typer.testing import CliRunner

from ciper.cli import app
from ciper.errors import CiperError, ConfigError, ImageryError, NoImageryError
from ciper.imagery.fetch import FetchConfig, Fetched, fetch
from ciper.imagery.place import Bounds

# UTM zone 35N: 0.5 m pixels from here to the east and to the south.
EAST, NORTH, GSD, SIDE_PX = 385_000.0, 6_672_000.0, 0.5, 1200
_GEOGRAPHIC = pyproj.Transformer.from_crs("EPSG:32635", "EPSG:4326", always_xy=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ciper.imagery.polite.Clock", FakeClock)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@cache
def pixels(num_bands: int = 3) -> NDArray[np.uint8]:
    """Every pixel tells its column and row; a fourth band is no colour."""
    row, col = np.meshgrid(np.arange(SIDE_PX), np.arange(SIDE_PX), indexing="ij")
    bands = [col % 251, row % 241, col // 251 * 8 + row // 241, row % 7]
    return np.stack(bands[:num_bands]).astype(np.uint8)


def write_image(path: Path, array: NDArray[Any], *, east: float = EAST, **profile: Any) -> Path:
    profile = {"tiled": True, "blockxsize": 256, "blockysize": 256, **profile}
    transform = Affine(GSD, 0, east, 0, -GSD, NORTH)
    return write_raster(path, array, crs="EPSG:32635", transform=transform, **profile)


def bounds_of(left: float, top: float, right: float, bottom: float) -> Bounds:
    """A place inside of these pixels, and not inside of fewer, but for the turn of the grid."""
    lon, lat = _GEOGRAPHIC.transform(
        [EAST + left * GSD, EAST + right * GSD], [NORTH - top * GSD, NORTH - bottom * GSD]
    )
    return Bounds(lon[0], lat[1], lon[1], lat[0])


PLACE = bounds_of(300, 400, 700, 900)


def item(
    href: str,
    name: str = "a",
    *,
    east: float = EAST,
    date: str = "2020-06-01T10:00:00Z",
    **more: Any,
) -> dict[str, Any]:
    side_m = SIDE_PX * GSD
    corners = [(east, NORTH), (east + side_m, NORTH), (east + side_m, NORTH - side_m)]
    ring = [_GEOGRAPHIC.transform(*c) for c in [*corners, (east, NORTH - side_m), (east, NORTH)]]
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": date, "license": "CC-BY-4.0"},
        "links": [], "assets": {"visual": {"href": href, "type": "image/tiff; geotiff"}}, **more,
    }  # fmt: skip


def write_json(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def take(folder: Path, source: str | Path, bounds: Bounds = PLACE, **settings: Any) -> Fetched:
    config = FetchConfig(bounds, f"stac:{source}", cache=folder / "cache", **settings)
    return fetch(config, folder / "out.tif", progress=lambda *_: None, say=lambda _: None)


def read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[int, int]]:
    """Bands, mask, and column and row of the first pixel in `pixels`."""
    with rasterio.open(path) as dataset:
        assert dataset.crs == "EPSG:32635"
        first = (dataset.transform.c - EAST) / GSD, (NORTH - dataset.transform.f) / GSD
        assert first == pytest.approx(np.round(first), abs=1e-6)
        mask = dataset.dataset_mask() > 0
        return dataset.read(), mask, (round(first[0]), round(first[1]))


def assert_right(path: Path) -> None:
    """Exactly the pixels of the image, a little more than the place on every side."""
    found, is_valid, (left, top) = read(path)
    _, height, width = found.shape
    assert is_valid.all()
    np.testing.assert_array_equal(found, pixels()[:, top : top + height, left : left + width])
    # The grid is turned by 1.8 degrees: 16 px over 500, 12 over 400.
    assert 280 <= left <= 300
    assert 385 <= top <= 400
    assert 700 <= left + width <= 720
    assert 900 <= top + height <= 915


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_image(tmp_path / "a.tif", pixels())
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[TileServer]:
    with serving(files=folder) as server:
        yield server


@pytest.mark.parametrize("num_bands", [3, 4])
@pytest.mark.parametrize("how", ["path", "file://", "absolute"])
def test_a_local_item(tmp_path: Path, num_bands: int, how: str) -> None:
    image = write_image(
        tmp_path / "a b.tif", pixels(num_bands), photometric="RGB", alpha="unspecified"
    )
    href = {"path": "./a b.tif", "file://": image.as_uri(), "absolute": str(image)}[how]
    path = write_json(tmp_path / "item.json", item(href))
    fetched = take(tmp_path, path.as_uri() if how == "file://" else path)
    assert_right(fetched.out)
    assert fetched.frame.gsd == pytest.approx(0.5, rel=1e-3)
    with rasterio.open(fetched.out) as dataset:
        tags = dataset.tags()
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert tags["ITEMS"] == "a"
    assert tags["DATE"] == "2020-06-01T10:00:00Z"
    assert tags["LICENSE"] == "CC-BY-4.0"


def test_only_blocks_below_the_place_are_read(folder: Path, server: TileServer) -> None:
    write_json(folder / "item.json", item("../files/a.tif"))
    fetched = take(folder, f"{server.url}/files/item.json", bounds_of(300, 300, 400, 400))
    found, is_valid, (left, top) = read(fetched.out)
    assert is_valid.all()
    _, height, width = found.shape
    np.testing.assert_array_equal(found, pixels()[:, top : top + height, left : left + width])
    sizes = [re.match(r"bytes=(\d+)-(\d+)", text) for text in server.ranges]
    num_bytes = sum(int(size[2]) - int(size[1]) + 1 for size in sizes if size is not None)
    assert 0 < num_bytes < (folder / "a.tif").stat().st_size / 3
    assert all(agent.startswith("ciper/") for agent in server.agents)


def test_items_fill_each_other(tmp_path: Path) -> None:
    """Two halves of a place; the newer one on top, its missing pixels from the older one."""
    split = EAST + 500 * GSD
    write_image(tmp_path / "west.tif", np.full((3, SIDE_PX, 500), 10, np.uint8))
    write_image(tmp_path / "east.tif", np.full((3, SIDE_PX, 1000), 20, np.uint8), east=split - 100)
    west = item("west.tif", "west", east=EAST - 350, date="2021-01-01")
    east = item("east.tif", "east", east=split - 100, date="2019-01-01")
    far = item("far.tif", "far", east=EAST + 50_000, date="2023-01-01")
    path = write_json(
        tmp_path / "c.json", {"type": "FeatureCollection", "features": [east, far, west]}
    )
    fetched = take(tmp_path, path)
    found, is_valid, (left, _) = read(fetched.out)
    assert is_valid.all()
    assert (found[:, :, : 500 - left] == 10).all()
    assert (found[:, :, 500 - left :] == 20).all()
    with rasterio.open(fetched.out) as dataset:
        assert dataset.tags()["ITEMS"] == "west, east"
        assert dataset.tags()["DATE"] == "2021-01-01, 2019-01-01"


def test_the_newest_item_that_shows_all(folder: Path) -> None:
    features = [item("a.tif", name, date=f"20{name}-01-01") for name in ("18", "22", "20")]
    features.append(item("half.tif", "half", east=EAST + 250, date="2024-01-01"))
    path = write_json(folder / "c.json", {"type": "FeatureCollection", "features": features})
    fetched = take(folder, path)
    assert_right(fetched.out)
    with rasterio.open(fetched.out) as dataset:
        assert dataset.tags()["ITEMS"] == "22"


def test_what_an_image_does_not_show(tmp_path: Path) -> None:
    """Off its edge, and where its own mask says so: masked."""
    mask = np.full((SIDE_PX, SIDE_PX), 255, np.uint8)
    mask[600:700] = 0
    write_image(tmp_path / "a.tif", pixels(), mask=mask)
    path = write_json(tmp_path / "item.json", item("a.tif"))
    fetched = take(tmp_path, path, bounds_of(-100, 500, 400, 900))
    found, is_valid, (left, top) = read(fetched.out)
    rows, cols = np.arange(found.shape[1]) + top, np.arange(found.shape[2]) + left
    expected = ((rows < 600) | (rows >= 700))[:, None] & (cols >= 0)
    np.testing.assert_array_equal(is_valid, expected)
    assert (found[:, ~is_valid] == 0).all()
    assert fetched.missing == pytest.approx(1 - expected.mean())
    with pytest.raises(NoImageryError, match=r"\d+% of the place has no imagery"):
        take(tmp_path, path, bounds_of(-1000, 500, 400, 900))


def test_a_search(folder: Path, server: TileServer) -> None:
    """The place is asked for, and further pages are followed."""
    pages = {
        "1": {"type": "FeatureCollection", "features": [item(f"{server.url}/files/no.tif", east=0)],
              "links": [{"rel": "next", "href": "/search?page=2"}]},
        "2": {"type": "FeatureCollection", "features": [item(f"{server.url}/files/a.tif", "b")]},
    }  # fmt: skip

    def script(path: str, before: int) -> Answer | None:
        if not path.startswith("/search"):
            return None
        page = pages["2" if "page=2" in path else "1"]
        return Answer(json.dumps(page).encode(), content_type="application/geo+json")

    server.script = script
    assert_right(take(folder, f"{server.url}/search?collections=x").out)
    first = unquote(server.asked[0])
    assert first.startswith("/search?collections=x&bbox=")
    asked = [float(n) for n in first.split("bbox=")[1].partition("&")[0].split(",")]
    assert asked == pytest.approx([PLACE.west, PLACE.south, PLACE.east, PLACE.north], abs=1e-6)
    assert first.endswith("&limit=100")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"assets": {"thumb": {"href": "a"}}}, ConfigError, r"has the assets thumb; expected vis"),
        ({"assets": {"visual": {"href": "no.tif"}}}, ImageryError, r"no\.tif cannot be read"),
        (
            {"assets": {"visual": {"href": "s3://b/a.tif"}}},
            ImageryError,
            r"s3://b/a\.tif: is an im",
        ),
        ({"type": "Collection"}, ImageryError, r"is a STAC Collection; expected an item"),
        ({"geometry": None}, ImageryError, r"item a: says nothing of its place"),
        ({"geometry": None, "bbox": [0, 0, 1, 1]}, NoImageryError, r"none of its 1 items shows"),
        ({"geometry": None, "bbox": [0, 0, 5, 1, 1, 9]}, NoImageryError, r"none of its 1 items"),
    ],
)
def test_items_of_no_use(
    folder: Path, change: dict[str, Any], error: type[CiperError], message: str
) -> None:
    path = write_json(folder / "item.json", {**item("a.tif"), **change})
    with pytest.raises(error, match=message):
        take(folder, path)
    assert not (folder / "out.tif").exists()


def test_files_of_no_use(folder: Path) -> None:
    deep = write_image(folder / "deep.tif", pixels().astype(np.uint16))
    path = write_json(folder / "item.json", item(deep.name))
    with pytest.raises(ImageryError, match=r"3 bands of uint16 \(\w+\); expected 8-bit colours"):
        take(folder, path)
    (folder / "text.json").write_text("no json")
    with pytest.raises(ImageryError, match=r"text\.json: holds no JSON object"):
        take(folder, folder / "text.json")
    with pytest.raises(ImageryError, match=r"none\.json: cannot be read \(No such file"):
        take(folder, folder / "none.json")
    whole = write_json(folder / "item.json", item("a.tif"))
    with pytest.raises(ConfigError, match=r"has the assets visual; expected nir"):
        take(folder, whole, asset="nir")
    with pytest.raises(
        ConfigError, match=r"is 0 megapixels, as much as 4 tiles; expected at most 2"
    ):
        take(folder, whole, max_tiles=2)


def test_a_server_does_not_name_files_of_ones_own(folder: Path, server: TileServer) -> None:
    for href in ((folder / "a.tif").as_uri(), "/vsizip/a.zip", str(folder / "a.tif")):
        write_json(folder / "item.json", item(href))
        with pytest.raises(ImageryError, match=r"cannot be read"):
            take(folder, f"{server.url}/files/item.json")


def test_signatures_stay_secret(
    folder: Path, server: TileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAC_KEY", "s3cr3t")
    address = f"stac:{server.url}/files/item.json?k=${{STAC_KEY}}"
    arguments = ["imagery", "fetch", "--bbox", str(PLACE), "--source", address]
    for image, status in (("a.tif", 0), ("gone.tif", 2)):
        href = f"{server.url}/files/{image}?se=2030&sig=0therS3cret"
        write_json(folder / "item.json", item(href))
        result = CliRunner().invoke(app, [*arguments, "--out", str(folder / "out.tif")])
        assert result.exit_code == status, result.output
        assert "S3cret" not in result.output
        assert "s3cr3t" not in result.output
    assert any(path.endswith("item.json?k=s3cr3t") for path in server.asked)
    assert any(path.endswith("a.tif?se=2030&sig=0therS3cret") for path in server.asked)
    text = (folder / "out.tif").read_bytes().decode("latin1")
    assert "s3cr3t" not in text
    assert "S3cret" not in text
    assert "item.json?k=${STAC_KEY}" in text
