from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pytest
from affine import Affine
from gallery_helpers import FakeEncoder, geographic, write_city

from ciper.errors import (
    GalleryDamagedError,
    GalleryError,
    GalleryModelMismatchError,
    OutputError,
)
from ciper.gallery import store
from ciper.gallery.inspect import inspect_raster
from ciper.gallery.manifest import Manifest
from ciper.gallery.raster import Raster, read_chip
from ciper.gallery.shards import FileRecord, find_shard, write_atomically
from ciper.gallery.store import Gallery
from ciper.index import IndexOptions, build_index

OPTIONS = IndexOptions(shard_chips=10)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_city(folder / "city.tif", east=380_000, north=5_820_000, size_px=640)
    build_index([folder / "city.tif"], folder / "gallery", FakeEncoder(), OPTIONS)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of a gallery that may be damaged."""
    return Path(shutil.copytree(made / "gallery", tmp_path / "gallery"))


def test_a_gallery_opens_with_its_chips_and_features(made: Path) -> None:
    gallery = Gallery.open(made / "gallery", "f" * 64)
    num_chips = len(gallery)
    assert num_chips == len(gallery.chips) > 20
    assert gallery.header.model_name == "fake"
    assert (gallery.header.chip_m, gallery.header.stride_m, gallery.header.gsd) == (128, 64, 0.5)
    assert gallery.descriptors.shape == (num_chips, 16, 3)
    assert gallery.coarse.shape == (num_chips, 3, 32, 32)
    assert gallery.fine.shape == (num_chips, 3, 64, 64)
    assert gallery.fine.dtype == np.float16
    assert len(list((made / "gallery" / "shards").iterdir())) > 1
    assert not (made / "gallery" / "unfinished.json").exists()


def test_features_are_indexed_like_one_array(made: Path) -> None:
    coarse = Gallery.open(made / "gallery").coarse
    whole = np.asarray(coarse)
    assert whole.shape == coarse.shape
    chips = np.array([5, 0, len(coarse) - 1, 5])
    np.testing.assert_array_equal(coarse[3], whole[3])
    np.testing.assert_array_equal(coarse[-1], whole[-1])
    np.testing.assert_array_equal(coarse[chips], whole[chips])
    np.testing.assert_array_equal(coarse[chips.reshape(2, 2)], whole[chips.reshape(2, 2)])
    np.testing.assert_array_equal(coarse[2:9:3], whole[2:9:3])
    np.testing.assert_array_equal(coarse[2:5, 1], whole[2:5, 1])
    np.testing.assert_array_equal(coarse[4, :, 3], whole[4, :, 3])
    assert np.asarray(coarse, dtype=np.float32).dtype == np.float32
    with pytest.raises(IndexError):
        coarse[len(coarse)]


def test_every_chip_has_the_features_of_its_own_pixels(made: Path) -> None:
    gallery, encoder = Gallery.open(made / "gallery"), FakeEncoder()
    for index in range(0, len(gallery), 7):
        rgb, is_valid = gallery.read_chip(index)
        codes = encoder.encode(rgb[None], is_valid[None])
        assert is_valid.mean() == pytest.approx(gallery.chips.valid_fractions[index], abs=1e-6)
        np.testing.assert_allclose(gallery.fine[index], codes.fine[0], atol=2e-3)
        np.testing.assert_allclose(gallery.descriptors[index], codes.descriptors[0], atol=4e-3)
    chips, similarity = gallery.index.search(gallery.descriptors[4, 2], 3)
    assert similarity[0, 0] == pytest.approx(1, abs=2e-3)
    assert chips.shape == (1, 3)


def test_chips_are_found_by_place(made: Path) -> None:
    gallery = Gallery.open(made / "gallery")
    lat, lon = geographic("EPSG:32633", 380_160, 5_819_840)
    index = int(gallery.nearest_chips(lat=lat, lon=lon)[0])
    distance = np.hypot(
        (gallery.chips.lat - lat) * 111_300,
        (gallery.chips.lon - lon) * 111_300 * np.cos(np.radians(lat)),
    )
    assert index == distance.argmin()
    near = gallery.chips_within(lat=lat, lon=lon, radius_m=0)
    assert near.tolist() == [index]
    circle = gallery.chips_within(lat=lat, lon=lon, radius_m=70)
    assert circle[0] == index
    assert set(np.flatnonzero(distance < 70)) <= set(circle.tolist())
    assert distance[circle].max() < 70 + 32 * 2**0.5 + 1
    assert gallery.nearest_chips(lat=[0.0, lat], lon=[0.0, lon]).tolist() == [-1, index]


def test_the_table_opens_in_geopandas(made: Path) -> None:
    gallery = Gallery.open(made / "gallery")
    frame = geopandas.read_parquet(made / "gallery" / "chips.parquet")
    assert frame.crs.to_epsg() == 4326
    assert frame["chip"].tolist() == list(gallery.chips.ids)
    metric = frame.to_crs("EPSG:32633")
    assert metric.area.between(0.998 * 128**2, 1.002 * 128**2).all()
    center = frame.geometry.iloc[3].centroid
    assert (center.y, center.x) == pytest.approx(
        (gallery.chips.lat[3], gallery.chips.lon[3]), abs=1e-8
    )
    assert frame["raster"].unique().tolist() == [str(made / "city.tif")]
    assert frame["valid_fraction"].between(0.005, 1).all()


def test_areas_are_read_again_for_pictures(made: Path) -> None:
    gallery = Gallery.open(made / "gallery")
    lat, lon = geographic("EPSG:32633", 380_100, 5_819_900)
    rgb, is_valid = gallery.read_area(lat=lat, lon=lon, size_px=80, gsd=0.7)
    with Raster(inspect_raster(made / "city.tif")) as raster:
        expected, _ = read_chip(raster, lat=lat, lon=lon, size_px=80, gsd=0.7)
    np.testing.assert_array_equal(rgb, expected)
    assert is_valid.all()
    assert not gallery.read_area(lat=0.0, lon=0.0, size_px=16, gsd=1.0)[1].any()


def test_chips_of_rasters_that_have_gone_are_a_clear_error(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "city.tif", tmp_path / "city.tif")
    build_index([tmp_path / "city.tif"], tmp_path / "gallery", FakeEncoder())
    gallery = Gallery.open(tmp_path / "gallery")
    os.utime(tmp_path / "city.tif", (0, 0))
    with pytest.raises(
        GalleryError, match=r"city\.tif: the raster has changed since it was indexed"
    ):
        gallery.read_chip(0)
    (tmp_path / "city.tif").unlink()
    with pytest.raises(GalleryError, match=r"city\.tif: the raster has gone"):
        gallery.read_chip(0)


def test_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(
        GalleryModelMismatchError, match=r"made by model 'fake' \(ffffffffffff\).*000"
    ):
        Gallery.open(folder, "0" * 64)


def test_what_is_no_gallery_says_why(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="does not exist"):
        Gallery.open(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(GalleryError, match="is not a gallery"):
        Gallery.open(tmp_path / "other")
    (folder / "manifest.json").unlink()
    (folder / "unfinished.json").write_text("{}")
    with pytest.raises(GalleryError, match="finish it by running the same `ciper index` command"):
        Gallery.open(folder)


@pytest.mark.parametrize("where", ["manifest.json", "chips.parquet", "descriptors.faiss", "shards"])
@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_damaged_files_are_named_and_refused(folder: Path, where: str, damage: str) -> None:
    path = folder / where
    if path.is_dir():
        path = sorted(path.iterdir())[1]
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    expected = (
        GalleryError if (where, damage) == ("manifest.json", "missing") else GalleryDamagedError
    )
    with pytest.raises(expected, match=path.name.replace(".", r"\.")):
        Gallery.open(folder)


def test_few_shards_are_open_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Gallery.open(folder).fine[:]
    monkeypatch.setattr(store, "MAX_OPEN_SHARDS", 2)
    gallery = Gallery.open(folder)
    assert len(gallery.manifest.shards) > 3
    for _ in range(2):
        np.testing.assert_array_equal(gallery.fine[:], expected)
    assert len(gallery.fine._shards._files) == 2


def test_manifests_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(GalleryError, match=r"manifest\.json: cannot be read \(Permission denied\)"):
        Gallery.open(folder)
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(GalleryError, match=r"gallery: cannot be read \(Permission denied\)"):
        Gallery.open(folder)


def test_features_of_large_galleries_are_checked_on_first_use(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "DEEP_CHECK_BYTES", 0)
    gallery = Gallery.open(folder)
    path = folder / gallery.manifest.shards[1].file.name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    gallery = Gallery.open(folder)
    assert gallery.fine[0].shape == (3, 64, 64)
    with pytest.raises(GalleryDamagedError, match="checksum"):
        gallery.fine[len(gallery) - 1 :], gallery.fine[:]


def test_other_versions_and_other_manifests_are_refused(folder: Path) -> None:
    body = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**body, "version": 99}))
    with pytest.raises(GalleryError, match="has format version 99; expected 1"):
        Gallery.open(folder)
    (folder / "manifest.json").write_text(json.dumps({**body, "num_chips": 3}))
    with pytest.raises(GalleryDamagedError, match="the manifest is damaged"):
        Gallery.open(folder)
    (folder / "manifest.json").write_text('{"format": "something"}')
    with pytest.raises(GalleryError, match="is not the manifest of a gallery"):
        Gallery.open(folder)


def test_a_reader_finds_what_a_killed_append_left_under_its_other_name(folder: Path) -> None:
    num_chips = len(Gallery.open(folder))
    # Killed between the manifest and the renaming ...
    (folder / "chips.parquet").rename(folder / "chips.parquet.next")
    (folder / "chips.parquet").write_bytes(b"the table of before")
    assert len(Gallery.open(folder)) == num_chips
    # ... and before the manifest.
    (folder / "chips.parquet.next").rename(folder / "chips.parquet")
    (folder / "chips.parquet.next").write_bytes(b"the table of after")
    assert len(Gallery.open(folder)) == num_chips


def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="the disk is full; expected room"):
        write_atomically(tmp_path / "file", b"data")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomically(tmp_path / "none" / "file", b"data")


def test_damaged_shards_of_an_earlier_run_are_passed_over(folder: Path) -> None:
    record = Manifest.read(folder).shards[0].file
    key = Path(record.name).name.split("-")[0]
    assert find_shard(folder, key) == FileRecord(record.name, record.num_bytes, record.sha256)
    data = bytearray((folder / record.name).read_bytes())
    data[-1] ^= 1
    (folder / record.name).write_bytes(data)
    assert find_shard(folder, key) is None


def test_manifests_come_back(made: Path) -> None:
    manifest = Manifest.read(made / "gallery")
    assert json.loads(manifest.to_json()) == json.loads(
        (made / "gallery/manifest.json").read_text()
    )
    assert Affine(*manifest.rasters[0].transform).a == 0.5
