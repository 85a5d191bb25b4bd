from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from gallery_helpers import FakeEncoder, real_data, write_city, write_raster
from numpy.typing import NDArray

from ciper.errors import (
    ConfigError,
    GalleryError,
    GalleryModelMismatchError,
    OutputError,
    RasterError,
)
from ciper.gallery.search import DescriptorIndex
from ciper.gallery.shards import AerialCodes
from ciper.gallery.store import Gallery
from ciper.index import IndexOptions, build_index

OPTIONS = IndexOptions(shard_chips=10, batch_size=4)
APPEND = IndexOptions(shard_chips=10, batch_size=4, append=True)


@pytest.fixture
def city(tmp_path: Path) -> Path:
    return write_city(tmp_path / "city.tif", east=380_000, north=5_820_000, size_px=800)


def features(gallery: Gallery) -> dict[str, NDArray[np.float16]]:
    return {name: gallery.fine[i] for i, name in enumerate(gallery.chips.ids)}


def assert_same(one: Path, other: Path) -> None:
    """The same chips with the same features, in whatever order."""
    first, second = features(Gallery.open(one)), features(Gallery.open(other))
    assert first.keys() == second.keys()
    for name, fine in first.items():
        # Blocks of other extents round a few pixels otherwise.
        np.testing.assert_allclose(fine, second[name], atol=2e-3)


def test_indexing_reports_and_shows_its_progress(city: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    encoder = FakeEncoder()
    report = build_index(
        [city], tmp_path / "gallery", encoder, OPTIONS, lambda *step: steps.append(step)
    )
    assert (
        report.num_chips
        == report.num_encoded
        == encoder.num_chips
        == len(Gallery.open(report.path, encoder.model_hash))
    )
    assert report.num_resumed == 0
    assert report.num_rasters == 1
    assert report.area_km2 == pytest.approx(report.num_chips * 0.064**2)
    assert steps[0] == (0, steps[-1][1])
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]


def test_the_same_command_again_changes_nothing(city: Path, tmp_path: Path) -> None:
    out, encoder = tmp_path / "gallery", FakeEncoder()
    first = build_index([city], out, encoder, OPTIONS)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    again = build_index([city], out, encoder, OPTIONS)
    assert again.num_encoded == 0
    assert again.num_resumed == first.num_chips == encoder.num_chips
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.*")} == before


def test_another_command_does_not_overwrite_a_gallery(city: Path, tmp_path: Path) -> None:
    out = tmp_path / "gallery"
    build_index([city], out, FakeEncoder(), OPTIONS)
    other = write_city(tmp_path / "other.tif", east=381_000, north=5_820_000)
    with pytest.raises(OutputError, match=r"already holds a gallery of other rasters.*--append"):
        build_index([other], out, FakeEncoder(), OPTIONS)
    with pytest.raises(OutputError, match="folder with other files"):
        build_index([city], tmp_path, FakeEncoder(), OPTIONS)
    with pytest.raises(OutputError, match="is a file; expected a folder"):
        build_index([city], city, FakeEncoder(), OPTIONS)


class Interrupted(FakeEncoder):
    """Stops like Ctrl-C after some chips."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def encode(self, chips: NDArray[np.uint8], valid: NDArray[np.bool_]) -> AerialCodes:
        if self.num_chips >= self.after:
            raise KeyboardInterrupt
        return super().encode(chips, valid)


def test_finished_shards_survive_ctrl_c(city: Path, tmp_path: Path) -> None:
    out = tmp_path / "gallery"
    with pytest.raises(KeyboardInterrupt):
        build_index([city], out, Interrupted(30), OPTIONS)
    assert list((out / "shards").iterdir())
    with pytest.raises(GalleryError, match="unfinished"):
        Gallery.open(out)
    for encoder, options in (
        (FakeEncoder("0" * 64), OPTIONS),
        (FakeEncoder(), IndexOptions(stride_m=32.0)),
    ):
        with pytest.raises(OutputError, match="unfinished gallery of another command"):
            build_index([city], out, encoder, options)
    encoder = FakeEncoder()
    report = build_index([city], out, encoder, OPTIONS)
    assert report.num_resumed > 0
    assert report.num_resumed + encoder.num_chips == report.num_chips
    build_index([city], tmp_path / "whole", FakeEncoder(), OPTIONS)
    assert_same(out, tmp_path / "whole")


def test_the_same_command_again_finishes_though_a_raster_was_touched(
    city: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gallery"
    with pytest.raises(KeyboardInterrupt):
        build_index([city], out, Interrupted(30), OPTIONS)
    os.utime(city, ns=(1, 1))
    report = build_index([city], out, FakeEncoder(), OPTIONS)
    assert len(Gallery.open(out)) == report.num_chips
    named = {record.file.name for record in Gallery.open(out).manifest.shards}
    assert {f"shards/{path.name}" for path in (out / "shards").iterdir()} == named


def test_a_run_that_got_nowhere_is_begun_again(city: Path, tmp_path: Path) -> None:
    out = tmp_path / "gallery"
    with pytest.raises(KeyboardInterrupt):
        build_index([city], out, Interrupted(30), OPTIONS)
    (out / "unfinished.json").unlink()
    (out / ".unfinished.json.1.tmp").touch()
    assert build_index([city], out, FakeEncoder(), OPTIONS).num_resumed > 0
    (tmp_path / "empty" / "shards").mkdir(parents=True)
    build_index([city], tmp_path / "empty", FakeEncoder(), OPTIONS)
    # Finished shards are called so too, but not these.
    (tmp_path / "weights" / "shards").mkdir(parents=True)
    (tmp_path / "weights" / "shards" / "model-1.safetensors").touch()
    with pytest.raises(OutputError, match="folder with other files"):
        build_index([city], tmp_path / "weights", FakeEncoder(), OPTIONS)


def test_folders_that_may_not_be_read(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "gallery").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\)"):
        build_index([city], tmp_path / "gallery", FakeEncoder(), OPTIONS)


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_finishing_keeps_no_shard_open(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_open: list[int] = []
    build = DescriptorIndex.build

    def counted(descriptors: NDArray[np.float16]) -> DescriptorIndex:
        num_open.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
        return build(descriptors)

    monkeypatch.setattr(DescriptorIndex, "build", counted)
    for name, size in (("few", 1000), ("many", 1)):
        options = IndexOptions(shard_chips=size, batch_size=4)
        build_index([city], tmp_path / name, FakeEncoder(), options)
    assert len(list((tmp_path / "many" / "shards").iterdir())) > 15
    assert num_open[1] - num_open[0] < 5
    assert_same(tmp_path / "few", tmp_path / "many")


def test_a_full_disk_keeps_what_is_finished(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sync, count = tmp_path / "gallery", os.fsync, 0

    def full_later(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full_later)
    with pytest.raises(OutputError, match=r"disk is full.*same command again"):
        build_index([city], out, FakeEncoder(), OPTIONS)
    monkeypatch.undo()
    num_kept = len(list((out / "shards").iterdir()))
    assert num_kept >= 2
    assert all(path.suffix == ".safetensors" for path in (out / "shards").iterdir())
    report = build_index([city], out, FakeEncoder(), OPTIONS)
    assert report.num_resumed > 0
    assert len(Gallery.open(out)) == report.num_chips


SLOW_RUN = """
import sys, time
from pathlib import Path
from ciper.index import IndexOptions, build_index
from gallery_helpers import FakeEncoder

class Slow(FakeEncoder):
    def encode(self, chips, valid):
        time.sleep(0.05)
        return super().encode(chips, valid)

options = IndexOptions(shard_chips=10, batch_size=4)
build_index([sys.argv[1]], Path(sys.argv[2]), Slow(), options)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_a_killed_run_is_continued(city: Path, tmp_path: Path) -> None:
    out = tmp_path / "gallery"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(city), str(out)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2]))},
    )
    deadline = time.monotonic() + 60
    while len(list((out / "shards").glob("*.safetensors"))) < 2:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    with pytest.raises(GalleryError, match="unfinished"):
        Gallery.open(out)
    shards = sorted((out / "shards").glob("*.safetensors"))
    (out / "shards" / ".half.tmp").write_bytes(b"half a shard")
    shards[0].write_bytes(shards[0].read_bytes()[:-7])  # and one was damaged on top
    encoder = FakeEncoder()
    report = build_index([city], out, encoder, OPTIONS)
    assert 0 < report.num_resumed < report.num_chips
    assert report.num_resumed + encoder.num_chips == report.num_chips
    names = {Path(record.file.name).name for record in Gallery.open(out).manifest.shards}
    assert {path.name for path in (out / "shards").iterdir()} == names
    build_index([city], tmp_path / "whole", FakeEncoder(), OPTIONS)
    assert_same(out, tmp_path / "whole")


def test_appended_rasters_give_what_indexing_all_of_them_gives(city: Path, tmp_path: Path) -> None:
    east = write_city(tmp_path / "east.tif", east=380_400, north=5_820_000, size_px=500, seed=1)
    out, encoder = tmp_path / "gallery", FakeEncoder()
    first = build_index([city], out, encoder, OPTIONS)
    encoder = FakeEncoder()
    second = build_index([east], out, encoder, APPEND)
    assert second.num_rasters == 2
    assert second.num_chips > first.num_chips
    # The chips at the old border are encoded again, the others are kept.
    assert second.num_chips - first.num_chips < encoder.num_chips < second.num_chips
    build_index([city, east], tmp_path / "whole", FakeEncoder(), OPTIONS)
    assert_same(out, tmp_path / "whole")
    assert build_index([east], out, FakeEncoder(), APPEND).num_encoded == 0
    assert build_index([city, east], out, FakeEncoder(), OPTIONS).num_encoded == 0
    chips = Gallery.open(out).chips
    assert set(chips.rasters.tolist()) == {0, 1}


def test_an_interrupted_append_leaves_the_old_gallery_as_it_was(city: Path, tmp_path: Path) -> None:
    east = write_city(tmp_path / "east.tif", east=380_400, north=5_820_000, size_px=500, seed=1)
    out = tmp_path / "gallery"
    first = build_index([city], out, FakeEncoder(), OPTIONS)
    before = features(Gallery.open(out))
    with pytest.raises(KeyboardInterrupt):
        build_index([east], out, Interrupted(16), APPEND)
    gallery = Gallery.open(out)
    assert len(gallery) == first.num_chips
    after = features(gallery)
    assert all((after[name] == fine).all() for name, fine in before.items())
    report = build_index([east], out, FakeEncoder(), APPEND)
    assert report.num_resumed > 0
    build_index([city, east], tmp_path / "whole", FakeEncoder(), OPTIONS)
    assert_same(out, tmp_path / "whole")


def test_what_cannot_be_appended_to_says_why(city: Path, tmp_path: Path) -> None:
    east = write_city(tmp_path / "east.tif", east=380_400, north=5_820_000, size_px=400)
    out = tmp_path / "gallery"
    build_index([city], out, FakeEncoder(), OPTIONS)
    with pytest.raises(GalleryModelMismatchError, match="Append with its own model"):
        build_index([east], out, FakeEncoder("0" * 64), APPEND)
    with pytest.raises(ConfigError, match="chips of 128 m every 64 m"):
        build_index([east], out, FakeEncoder(), IndexOptions(stride_m=32, append=True))
    city.unlink()
    with pytest.raises(GalleryError, match=r"city\.tif: the raster has gone"):
        build_index([east], out, FakeEncoder(), APPEND)


def test_grids_that_do_not_fit_the_model_are_refused(city: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"chip_m=64 is 128 px.*expects 256 px: use --chip-m 128"):
        build_index([city], tmp_path / "g", FakeEncoder(), IndexOptions(chip_m=64, stride_m=32))
    with pytest.raises(ConfigError, match="batch_size=0; expected at least 1"):
        IndexOptions(batch_size=0)


class OddEncoder(FakeEncoder):
    """Chips of New York's VIGOR size: 640 px of 0.113248 m, as 256 px."""

    gsd = 0.113248 * 640 / 256


def test_the_advised_size_is_taken(city: Path, tmp_path: Path) -> None:
    wrong = IndexOptions(chip_m=128 * OddEncoder.gsd, stride_m=64 * OddEncoder.gsd)
    with pytest.raises(ConfigError, match=r"use --chip-m [\d.]+\.$") as caught:
        build_index([city], tmp_path / "g", OddEncoder(), wrong)
    advised = float(str(caught.value).rpartition(" ")[2].rstrip("."))
    assert advised == 72.4787
    options = IndexOptions(chip_m=advised, stride_m=round(advised / 2, 4))
    told = build_index([city], tmp_path / "told", OddEncoder(), options)
    header = Gallery.open(tmp_path / "told").header
    assert (header.chip_m, header.stride_m) == (256 * OddEncoder.gsd, 128 * OddEncoder.gsd)
    # The same command without the options finds everything done.
    again = build_index([city], tmp_path / "told", OddEncoder())
    assert (again.num_encoded, again.num_resumed) == (0, told.num_chips)


def test_rasters_without_imagery_are_an_error_and_empty_squares_are_left_out(
    tmp_path: Path,
) -> None:
    transform = Affine(0.5, 0, 380_000, 0, -0.5, 5_820_000)
    empty = np.zeros((3, 600, 600), np.uint8)
    path = write_raster(
        tmp_path / "empty.tif", empty, crs="EPSG:32633", transform=transform, nodata=0
    )
    with pytest.raises(RasterError, match="holds imagery"):
        build_index([path], tmp_path / "none", FakeEncoder(), OPTIONS)
    empty[:, :300, :300] = 99
    part = write_raster(
        tmp_path / "part.tif", empty, crs="EPSG:32633", transform=transform, nodata=0
    )
    report = build_index([part], tmp_path / "part", FakeEncoder(), OPTIONS)
    assert report.num_chips < 20  # 150 m x 150 m of 300 m x 300 m
    assert (Gallery.open(report.path).chips.valid_fractions > 0).all()


def test_missing_rasters_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RasterError, match="does not exist"):
        build_index([tmp_path / "none.tif"], tmp_path / "gallery", FakeEncoder())
    assert not (tmp_path / "gallery").exists()


def test_real_rasters_of_two_zones_become_one_gallery(tmp_path: Path) -> None:
    naip = real_data() / "naip"
    patterns = [str(naip / "long_beach_2020_1?.tif"), str(naip / "chico_2020_1?.tif")]
    report = build_index(patterns, tmp_path / "gallery", FakeEncoder())
    gallery = Gallery.open(report.path)
    assert report.num_rasters >= 10
    # 153.6 m squares that lie apart: 5.76 cells each and those that the border cuts.
    assert 8 <= report.num_chips / report.num_rasters <= 16
    assert (gallery.chips.lat < 35).any()
    assert (gallery.chips.lat > 39).any()
    for index in np.argsort(-gallery.chips.valid_fractions)[:5].tolist():
        rgb, is_valid = gallery.read_chip(index)
        assert is_valid.mean() == pytest.approx(gallery.chips.valid_fractions[index])
        assert rgb[is_valid].std() > 5
