"""Everything through the command line, on a small city and with untrained weights."""

from __future__ import annotations

import csv
import io
import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_helpers import write_raster
from model_helpers import SmallWorld, write_tiny_weights
from PIL import Image
from typer.testing import CliRunner, Result

from ciper.cli import app
from ciper.localize import Localizer

JSON_KEYS = [
    "photo", "lat", "lon", "heading_deg", "radius_50_m", "radius_90_m", "heading_sigma_deg",
    "confidence", "crs", "x_m", "y_m", "hypotheses", "seconds", "camera", "in_gallery_prob",
    "outcome",
]  # fmt: skip


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result) -> str:
    """The one line of an error that has a name; nothing else was written."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def options(small_world: SmallWorld) -> list[str]:
    gallery, weights = str(small_world.gallery), str(small_world.weights)
    return ["--gallery", gallery, "--model", weights, "--device", "cpu"]


def localize(photos: list[Path], options: list[str], *more: str | Path) -> Result:
    return run("localize", *photos, *options, *more)


# ------------------------------------------------------------------------------------- good input


def test_from_a_city_to_answers_and_a_report(tmp_path: Path) -> None:
    weights = write_tiny_weights(tmp_path / "tiny.safetensors", seed=2)
    city, gallery, report = tmp_path / "city", tmp_path / "gallery", tmp_path / "report"
    made = run("simulate", city, "--seed", "11", "--size-m", "200", "--num-photos", "2")
    assert made.exit_code == 0, made.output
    indexed = run("index", city / "aerial.tif", "--out", gallery, "--model", weights)
    assert indexed.exit_code == 0, indexed.output

    picture = tmp_path / "pictures" / "answer.png"
    found = run(
        "localize", city / "photos", "--gallery", gallery, "--model", weights, "--json",
        "--picture", picture, "--top", "3",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    answers = json.loads(found.stdout)
    assert [Path(answer["photo"]).name for answer in answers] == [f"0000{i}.jpg" for i in range(2)]
    for answer in answers:
        assert list(answer) == JSON_KEYS
        assert len(answer["hypotheses"]) == 3
        assert set(answer["hypotheses"][0]) == {"lat", "lon", "heading_deg", "prob", "chip"}
        assert answer["radius_50_m"] <= answer["radius_90_m"]
    names = sorted(path.name for path in picture.parent.iterdir())
    assert names == [f"answer-0000{i}.png" for i in range(2)]

    judged = run(
        "evaluate", city / "poses.csv", "--out", report, "--gallery", gallery, "--model", weights,
        "--near-error", "20", "--near-radius", "40",
    )  # fmt: skip
    assert judged.exit_code == 0, judged.output
    assert judged.stderr.splitlines()[-1] == f"wrote {report / 'report.md'}"
    figures = json.loads((report / "metrics.json").read_text())
    assert figures["num_queries"] == 2
    assert figures["end_to_end_near"]["near_radius_m"] == 40
    assert (report / "per_query.parquet").is_file()


def test_forms_of_output(small_world: SmallWorld, options: list[str]) -> None:
    photo = small_world.poses[0].photo
    text = localize([photo], options)
    assert text.exit_code == 0
    assert text.stdout.startswith(f"{photo}: ")
    collection = json.loads(localize([photo], options, "--geojson").stdout)
    lon, lat = collection["features"][0]["geometry"]["coordinates"]
    (row,) = csv.DictReader(io.StringIO(localize([photo], options, "--csv").stdout))
    assert float(row["lat"]) == pytest.approx(lat)
    assert float(row["lon"]) == pytest.approx(lon)


def test_priors_of_the_command_line(small_world: SmallWorld, options: list[str]) -> None:
    query = small_world.poses[0]
    near, heading = f"--near={query.lat},{query.lon},25", "--heading=123,2"
    result = localize([query.photo], options, "--json", near, heading)
    (answer,) = json.loads(result.stdout)
    assert answer["heading_deg"] == pytest.approx(123, abs=15)
    assert answer["lat"] == pytest.approx(query.lat, abs=4e-4)


def test_photos_of_every_kind_are_answered(
    small_world: SmallWorld, options: list[str], tmp_path: Path
) -> None:
    with Image.open(small_world.poses[0].photo) as photo:
        rgb = photo.convert("RGB").resize((512, 256))
    grey = np.asarray(rgb.convert("L"))
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg")
    rgb.convert("P").save(tmp_path / "palette.png")
    rgb.convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif)
    result = localize([tmp_path], options, "--json")
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)
    assert len(answers) == 5
    # All are 2:1 once they are upright: panoramas.
    assert {answer["camera"] for answer in answers} == {"equirectangular"}


def test_an_assumed_camera_is_said_once(
    small_world: SmallWorld, options: list[str], tmp_path: Path
) -> None:
    with Image.open(small_world.poses[0].photo) as photo:
        for name in ("a.png", "b.png"):
            photo.convert("RGB").crop((0, 0, 320, 240)).save(tmp_path / name)
    result = localize([tmp_path], options, "--json")
    assert result.stderr.count("do not tell their field of view") == 1
    assert [answer["camera"] for answer in json.loads(result.stdout)] == ["assumed"] * 2
    told = localize([tmp_path / "a.png"], options, "--json", "--hfov", "70")
    assert "field of view" not in told.stderr


# -------------------------------------------------------------------------------------- bad input


def test_a_broken_photo_does_not_cost_the_others(
    small_world: SmallWorld, options: list[str], tmp_path: Path
) -> None:
    good = small_world.poses[0].photo
    truncated, huge = tmp_path / "cut.jpg", tmp_path / "huge.png"
    truncated.write_bytes(good.read_bytes()[:2000])
    huge.write_bytes(png_header(30_000, 30_000))
    (tmp_path / "empty.jpg").touch()
    photos = [truncated, good, tmp_path / "empty.jpg", huge, tmp_path / "missing.jpg"]
    result = localize(photos, options, "--json")
    assert result.exit_code == 2
    assert [answer["photo"] for answer in json.loads(result.stdout)] == [str(good)]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    for photo, line in zip((truncated, photos[2], huge, photos[4]), errors, strict=True):
        assert str(photo) in line


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG of any size; its pixels are not there."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_no_photos(options: list[str], tmp_path: Path) -> None:
    assert "holds no photo" in refused(localize([tmp_path], options))
    assert "no photo matches" in refused(localize([tmp_path / "*.jpg"], options))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--near", "nan,0,100"], "latitude nan"),
        (["--near", "91,0,100"], "latitude 91"),
        (["--near", "60,25"], "expected numbers as LAT,LON,RADIUS_M"),
        (["--near", "60,25,-5"], "radius -5"),
        (["--heading", "10"], "expected numbers as DEG,SIGMA"),
        (["--heading", "10,0"], "positive standard deviation"),
        (["--picture", "a.jpg"], "expected a name that ends in .png"),
        (["--json", "--csv"], "one form of output"),
        (["--near", "1,1,100"], "has no chip within"),
    ],
)
def test_impossible_options(
    small_world: SmallWorld, options: list[str], more: list[str], message: str
) -> None:
    assert message in refused(localize([small_world.poses[0].photo], options, *more))


def test_another_models_gallery(small_world: SmallWorld, tmp_path: Path) -> None:
    other = write_tiny_weights(tmp_path / "other.safetensors", seed=8)
    result = run(
        "localize", small_world.poses[0].photo, "--gallery", small_world.gallery, "--model", other
    )
    assert "was made by model 'tiny'" in refused(result)


def test_damaged_galleries(small_world: SmallWorld, tmp_path: Path) -> None:
    photo, weights = small_world.poses[0].photo, small_world.weights
    flipped = shutil.copytree(small_world.gallery, tmp_path / "flipped")
    shard = next((flipped / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    line = refused(run("localize", photo, "--gallery", flipped, "--model", weights))
    assert shard.name in line
    half = shutil.copytree(small_world.gallery, tmp_path / "half")
    (half / "manifest.json").unlink()
    assert str(half) in refused(run("localize", photo, "--gallery", half, "--model", weights))
    nothing = tmp_path / "nothing"
    assert str(nothing) in refused(run("localize", photo, "--gallery", nothing, "--model", weights))


def test_rasters_that_cannot_be_indexed(small_world: SmallWorld, tmp_path: Path) -> None:
    from affine import Affine

    def index(raster: Path) -> str:
        gallery = tmp_path / "gallery"
        line = refused(run("index", raster, "--out", gallery, "--model", small_world.weights))
        assert not (gallery / "manifest.json").exists()
        return line

    array = np.zeros((3, 64, 64), dtype=np.uint8)
    nowhere = write_raster(
        tmp_path / "nowhere.tif", array, crs=None, transform=Affine(0.5, 0, 0, 0, -0.5, 0)
    )
    assert "nowhere.tif" in index(nowhere)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(small_world.raster.read_bytes()[:3000])
    assert "cut.tif" in index(cut)
    (tmp_path / "text.tif").write_text("no raster")
    assert "text.tif" in index(tmp_path / "text.tif")


def test_tables_that_make_no_sense(
    small_world: SmallWorld, options: list[str], tmp_path: Path
) -> None:
    table, out = tmp_path / "poses.csv", tmp_path / "report"
    table.write_text("photo,lat,lon\na.jpg,nan,24\n")
    assert "poses.csv line 2" in refused(run("evaluate", table, "--out", out, *options))
    assert "--gallery" in refused(run("evaluate", "vigor:/data", "--out", out, *options))
    assert "--gallery" in refused(run("evaluate", small_world.table, "--out", out))
    (out / "mine").mkdir(parents=True)
    line = refused(run("evaluate", small_world.table, "--out", out, *options))
    assert "is not a report" in line


def test_ctrl_c_leaves_with_130(
    small_world: SmallWorld, options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Localizer, "read", interrupt)
    monkeypatch.setattr(Localizer, "read_posed", interrupt)
    result = localize([small_world.poses[0].photo], options)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted; nothing that was finished is lost"
    result = run("evaluate", small_world.table, "--out", tmp_path / "report", *options)
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []
