from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import real_data

from ciper.camera import CameraOverrides
from ciper.data.datasets import Labels, ProtocolOptions, read_protocol
from ciper.data.protocol import Protocol
from ciper.data.vigor import (
    CITIES,
    SPLIT_CITIES,
    fitted_gsd,
    label_path,
    published_counts,
    read_chip_list,
    read_labels,
    read_vigor,
)
from ciper.errors import DatasetError
from ciper.geo import LocalFrame, wrap_deg
from ciper.geodesic import offset_m

# Four chips of Chicago, 0.0003 degrees apart.
CHIPS = tuple(
    f"satellite_{lat}_{lon}.png" for lat in (41.88, 41.8803) for lon in (-87.65, -87.6497)
)
SEMI = f"{CHIPS[1]} 3.0 330.0 {CHIPS[2]} -300.0 -4.0 {CHIPS[3]} -298.0 332.0"


def _metres(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(N, 2) east and north from some latitudes and longitudes (N, 2) to others."""
    return offset_m(lat=here[:, 0], lon=here[:, 1], to_lat=there[:, 0], to_lon=there[:, 1])


def line(name: str, d0: object, d1: object, chip: str = CHIPS[0], semi: str = SEMI) -> str:
    return f"{name},41.880010,-87.650020,.jpg {chip} {d0} {d1} {semi}"


def write_city(
    root: Path,
    lines: list[str],
    *,
    city: str = "Chicago",
    chips: tuple[str, ...] = CHIPS,
    labels: Labels = "corrected",
    split: str = "same_area",
    has_images: bool = True,
) -> Path:
    """A city with test labels and, unless told, empty image folders; the path of its labels."""
    options = ProtocolOptions(labels=labels)
    path = label_path(root, city, split, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    (path.parent / "satellite_list.txt").write_text("\n".join(chips) + "\n")
    for folder in ("panorama", "satellite") if has_images else ():
        (root / city / folder).mkdir(parents=True, exist_ok=True)
    return path


def read(root: Path, split: str = "same_area", **chosen: object) -> Protocol:
    return read_vigor(root, split, replace(ProtocolOptions(), **chosen))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- poses


@pytest.mark.parametrize(
    ("d0", "d1", "east_m", "north_m"),
    [
        # The camera stands at row 320 + d0, column 320 - d1, and a pixel is 0.111262 m.
        ("100.0", "-50.0", 5.5631, -11.1262),
        ("100.0", "50.0", -5.5631, -11.1262),
        ("-100.0", "50.0", -5.5631, 11.1262),
        ("-100.0", "-50.0", 5.5631, 11.1262),
        ("-0.5", "0.25", -0.0278155, 0.055631),
        ("0.0", "-1e1", 1.11262, 0.0),
    ],
)
def test_where_the_camera_stands(
    tmp_path: Path, d0: str, d1: str, east_m: float, north_m: float
) -> None:
    write_city(tmp_path, [line("a", d0, d1)])
    (sample,) = read(tmp_path).samples
    assert (sample.x_m, sample.y_m) == pytest.approx((east_m, north_m), abs=1e-9)
    assert sample.pose == pytest.approx((east_m, north_m, 0.0), abs=1e-9)
    frame = LocalFrame(lat=41.88, lon=-87.65)
    lat, lon = sample.position
    there = [float(value) for value in frame.to_local(lat=lat, lon=lon)]
    assert there == pytest.approx([east_m, north_m], abs=1e-6)


def test_an_offset_of_zero_is_a_plain_zero(tmp_path: Path) -> None:
    write_city(tmp_path, [line("a", "0.0", "-0.0")])
    (sample,) = read(tmp_path).samples
    assert (str(sample.x_m), str(sample.y_m)) == ("0.0", "0.0")


def test_what_a_sample_says(tmp_path: Path) -> None:
    write_city(tmp_path, [line("a-_b", 1, 2)])
    (sample,) = read(tmp_path).samples
    assert sample.name == "Chicago/a-_b,41.880010,-87.650020,.jpg"
    assert sample.photo == tmp_path / "Chicago/panorama/a-_b,41.880010,-87.650020,.jpg"
    assert sample.camera == CameraOverrides(projection="equirectangular", hfov_deg=360.0)
    assert (sample.heading_deg, sample.turn_deg, sample.fov_deg) == (0.0, 0.0, 360.0)
    image = sample.image
    assert image.path == tmp_path / "Chicago/satellite/satellite_41.88_-87.65.png"
    assert (image.lat, image.lon, image.gsd, image.side_px) == (41.88, -87.65, 0.111262, 640)
    assert image.side_m == pytest.approx(71.20768)
    cut, told = sample.cut, sample.told
    assert (cut.x_m, cut.y_m, cut.up_deg) == (0.0, 0.0, 0.0)
    assert cut.side_m == image.side_m
    assert (told.heading_deg, told.heading_within_deg) == (0.0, 0.0)
    assert told.within_m == pytest.approx(21.362304)


def test_semi_positives_may_lie_outside_their_chips(tmp_path: Path) -> None:
    semi = SEMI.replace("330.0", "366.0")
    write_city(tmp_path, [line("a", 1, 2, semi=semi)])
    options = ProtocolOptions()
    rows = read_labels(
        label_path(tmp_path, "Chicago", "same_area", options), read_chip_list(tmp_path, "Chicago")
    )
    expected = [[1.0, 2.0], [3.0, 366.0], [-300.0, -4.0], [-298.0, 332.0]]
    assert rows.offsets_px.tolist() == [expected]
    assert rows.chips.tolist() == [[0, 1, 2, 3]]


def test_cameras_outside_what_is_told_are_counted(tmp_path: Path) -> None:
    write_city(tmp_path, [line("a", 192, -192), line("b", 0, 193), line("c", -193, 0)])
    (note,) = [note for note in read(tmp_path).notes if "told" in note]
    assert note.startswith("2 of 3 cameras of Chicago stand outside")


# ----------------------------------------------------------------------------------------- gallery


def test_the_gallery_holds_all_chips_of_the_cities(tmp_path: Path) -> None:
    """New York comes first; its chips shift the rows of Chicago's."""
    newyork = tuple(f"satellite_40.7{k}_-73.99.png" for k in range(1, 6))
    names = [newyork[k] for k in (4, 0, 2, 1)]
    offsets = " ".join(f"{name} 1.0 2.0" for name in names)
    write_city(
        tmp_path, [f"n,40.71,-73.99,.jpg {offsets}"], city="NewYork", chips=newyork
    )  # one line
    write_city(tmp_path, [line("a", 1, 2), line("b", 3, 4)])
    protocol = read(tmp_path)
    assert protocol.has_gallery and len(protocol.references) == 9
    assert protocol.true.tolist() == [4, 5, 5] and protocol.true.dtype == np.int64
    assert [row.tolist() for row in protocol.semi_positives] == [[0, 2, 1], [6, 7, 8], [6, 7, 8]]
    for sample, true in zip(protocol.samples, protocol.true, strict=True):
        assert protocol.references[true] is sample.image
    assert [image.gsd for image in protocol.references] == [0.113248] * 5 + [0.111262] * 4


def test_cross_area_reads_its_own_file_and_cities(tmp_path: Path) -> None:
    write_city(tmp_path, [line("same", 1, 2)])
    path = write_city(tmp_path, [line("cross", 1, 2)], split="cross_area")
    assert path.name == "pano_label_balanced__corrected.txt"
    protocol = read(tmp_path, "cross_area")
    assert [sample.name.split(",")[0] for sample in protocol.samples] == ["Chicago/cross"]
    assert any("SanFrancisco is not all in" in note for note in protocol.notes)
    assert not any("NewYork" in note for note in protocol.notes)
    with pytest.raises(DatasetError, match="none of NewYork, Seattle; expected splits__corrected/"):
        read(tmp_path, "cross_area", part="train")


def test_published_counts() -> None:
    assert published_counts("same_area", "test") == (52605, 90618)
    assert published_counts("same_area", "train") == (52609, 90618)
    assert published_counts("cross_area", "train") == (51520, 44055)
    assert published_counts("cross_area", "test") == (53694, 46563)
    assert sum(city.num_train + city.num_test for city in CITIES.values()) == 105214
    assert SPLIT_CITIES["same_area", "test"] == ("NewYork", "Seattle", "SanFrancisco", "Chicago")


def test_original_labels(tmp_path: Path) -> None:
    path = write_city(tmp_path, [line("a", 1, 2)], labels="original")
    assert path == tmp_path / "splits/Chicago/same_area_balanced_test.txt"
    protocol = read(tmp_path, labels="original")
    assert len(protocol.samples) == 1 and protocol.settings["labels"] == "original"
    with pytest.raises(DatasetError, match="use --labels original, or name the folder"):
        read(tmp_path)


def test_settings_name_all_that_was_chosen(tmp_path: Path) -> None:
    write_city(tmp_path, [line("a", 1, 2)])
    options = ProtocolOptions(fov_deg=90.0, heading_noise_deg=45.0, seed=3)
    assert read_protocol(f"vigor:{tmp_path}", options).settings == {
        "split": "same_area",
        "part": "test",
        "labels": "corrected",
        "cities": "Chicago",
        "fov_deg": "90",
        "heading_noise_deg": "45",
        "seed": "3",
    }


# ------------------------------------------------------------------------------- heading and sector


def test_heading_noise_turns_the_panorama(tmp_path: Path) -> None:
    write_city(tmp_path, [line(f"p{k}", 1, 2) for k in range(1000)])
    for noise_deg in (20.0, 45.0, 180.0):
        samples = read(tmp_path, heading_noise_deg=noise_deg, fov_deg=70.0).samples
        turns_deg = np.array([sample.turn_deg for sample in samples])
        assert np.abs(turns_deg).max() <= noise_deg
        # Uniform: ten bins of a hundred each, five standard deviations of 9.5.
        counts, _ = np.histogram(turns_deg, bins=10, range=(-noise_deg, noise_deg))
        assert counts.sum() == 1000 and np.abs(counts - 100).max() < 48
        headings_deg = [sample.heading_deg for sample in samples]
        np.testing.assert_array_equal(headings_deg, wrap_deg(turns_deg))
        assert {sample.told.heading_within_deg for sample in samples} == {noise_deg}
        assert {sample.told.heading_deg for sample in samples} == {0.0}
        assert {sample.fov_deg for sample in samples} == {70.0}


def test_a_photos_turn_depends_on_seed_and_name_alone(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    write_city(tmp_path, [line(name, 1, 2) for name in names])
    turns_deg = {each.name: each.turn_deg for each in read(tmp_path, heading_noise_deg=180).samples}
    write_city(tmp_path, [line(name, 5, 6) for name in ("d", "b")])
    for sample in read(tmp_path, heading_noise_deg=180).samples:
        assert sample.turn_deg == turns_deg[sample.name]
    for sample in read(tmp_path, heading_noise_deg=180, seed=1).samples:
        assert abs(sample.turn_deg - turns_deg[sample.name]) > 0.01
    assert len(set(turns_deg.values())) == 4
    # The same in every release: figures depend on it.
    pinned_deg = turns_deg["Chicago/a,41.880010,-87.650020,.jpg"]
    assert pinned_deg == pytest.approx(-35.49336653496145, abs=1e-9)


# --------------------------------------------------------------------------------------- bad labels


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (line("b", 1, 2).rsplit(" ", 1)[0], "line 2 has 12 words; expected a panorama and 4 times"),
        (line("b", 1, 2) + " 7", "line 2 has 14 words"),
        (line("b", "nan", 2), "line 2 has the offset 'nan'; expected pixels"),
        (line("b", 1, "inf"), "line 2 has the offset 'inf'"),
        (line("b", 1, 2, semi=SEMI.replace("-298.0", "12O")), "line 2 has the offset '12O'"),
        (line("b", 1, 2, "satellite_41.9_-87.65.png"), "line 2 names chip 'satellite_41.9_-87.65"),
        (
            line("b", 1, 2, CHIPS[0].upper()),
            "line 2 names chip 'SATELLITE.*satellite_list.txt writes it",
        ),
        (line("b", 1, 2, CHIPS[1]), "line 2 names a chip twice; expected four"),
        (line("a", 3, 4), "line 2 names 'a,41.*' and line 1 'a,41.*'; expected every image once"),
        (line("A", 3, 4), "line 2 names 'A,41.*' and line 1 'a,41.*whatever the case"),
        (line("b", 1, 2).replace("b,41.88", "b,40.88"), "line 2 puts 'b,40.*a chip 111 km away"),
        (line("b", 1, 2).replace("b,41.88", "b,x"), "line 2 names 'b,x.*expected ID,LAT,LON,.jpg"),
        (line("b", 1, 2).replace("b,41.88", "b,91.88"), "line 2 names 'b,91.*nowhere on Earth"),
        (line("../b", 1, 2), "line 2 names '../b.*expected ID"),
        ("", "line 2 has 0 words"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, second: str, message: str) -> None:
    path = write_city(tmp_path, [line("a", 1, 2), second, line("z", 1, 2)])
    with pytest.raises(DatasetError, match=message) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{path} line 2 ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("third", "message"),
    [
        ("satellite_41.88.png", "line 3 names 'satellite_41.88.png'; expected satellite_LAT_LON"),
        ("satellite_41.88_-87.65.jpg", "line 3 names .*expected satellite_LAT_LON.png"),
        ("satellite_41.88_-187.65.png", "line 3 names .*nowhere on Earth"),
        (CHIPS[0], "line 3 names '.*' and line 1 '.*'; expected every image once"),
    ],
)
def test_bad_chip_lists_are_named(tmp_path: Path, third: str, message: str) -> None:
    chips = (*CHIPS[:2], third, *CHIPS[2:])
    path = write_city(tmp_path, [line("a", 1, 2)], chips=chips)
    with pytest.raises(
        DatasetError, match=f"^{re.escape(str(path.parent))}/satellite_list.txt"
    ) as e:
        read(tmp_path)
    assert re.search(message, str(e.value))


def test_a_city_of_another_name_is_refused(tmp_path: Path) -> None:
    """Chicago's labels with Seattle's list."""
    write_city(tmp_path, [line("a", 1, 2)], chips=("satellite_47.6_-122.3.png",))
    with pytest.raises(DatasetError, match=r"line 1 names chip 'satellite_41.*satellite_list.txt"):
        read(tmp_path)


def test_files_that_are_missing_empty_or_no_text(tmp_path: Path) -> None:
    path = write_city(tmp_path, [line("a", 1, 2)])
    path.write_text("\n")
    with pytest.raises(DatasetError, match=r"__corrected.txt is empty"):
        read(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"cannot read .*__corrected.txt \(.*utf-8"):
        read(tmp_path)
    path.write_text(line("a", 1, 2))
    (path.parent / "satellite_list.txt").unlink()
    with pytest.raises(DatasetError, match=r"cannot read .*satellite_list.txt .*No such file"):
        read(tmp_path)


def test_ends_of_lines_do_not_matter(tmp_path: Path) -> None:
    """Published files end their lines in two ways, and the last line of some not at all."""
    path = write_city(tmp_path, [line("a", 1, 2), line("b", 3, 4)])
    plain = [(each.name, each.x_m) for each in read(tmp_path).samples]
    for text_path in (path, path.parent / "satellite_list.txt"):
        text_path.write_bytes(text_path.read_bytes().replace(b"\n", b"\r\n").rstrip())
    assert [(each.name, each.x_m) for each in read(tmp_path).samples] == plain


# ----------------------------------------------------------------------------------- partial roots


def test_cities_that_are_not_there_are_noted(tmp_path: Path) -> None:
    write_city(tmp_path, [line("a", 1, 2)])
    # Labels whose images are elsewhere are not read.
    write_city(tmp_path, ["no line"], city="Seattle", has_images=False)
    protocol = read(tmp_path)
    assert protocol.settings["cities"] == "Chicago" and len(protocol.references) == 4
    left_out = [note.split()[0] for note in protocol.notes if "is left out" in note]
    assert left_out == ["NewYork", "Seattle", "SanFrancisco"]
    assert protocol.notes[-1] == (
        "1 queries and 4 references instead of the published 52605 and 90618: "
        "figures are not those of the published split"
    )


def test_a_folder_of_images_that_is_missing(tmp_path: Path) -> None:
    write_city(tmp_path, [line("a", 1, 2)])
    (tmp_path / "Chicago/satellite").rmdir()
    with pytest.raises(DatasetError, match="Chicago/satellite is no folder; expected a city's"):
        read(tmp_path)


def test_a_root_without_any_city(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none of NewYork, Seattle, SanFrancisco, Chicago"):
        read(tmp_path)
    # Images of one city and labels of another are nothing.
    write_city(tmp_path, [line("a", 1, 2)], has_images=False)
    (tmp_path / "Seattle").mkdir()
    with pytest.raises(DatasetError, match="none of NewYork"):
        read(tmp_path)


# ---------------------------------------------------------------------------------------- geometry


def test_metres_are_those_of_the_local_frame() -> None:
    generator = np.random.default_rng(0)
    here = generator.uniform((-80.0, -179.0), (80.0, 179.0), (24, 2))
    there = here + generator.uniform(-5e-3, 5e-3, (24, 2))
    metres = _metres(here, there)
    for row in range(24):
        frame = LocalFrame(lat=here[row, 0], lon=here[row, 1])
        expected = frame.to_local(lat=there[row, 0], lon=there[row, 1])
        np.testing.assert_allclose(metres[row], np.ravel(expected), atol=1e-6)


def _placed(frame: LocalFrame, k: int, generator: np.random.Generator, flip: float) -> str:
    """A line whose panorama's name holds where its offsets put it, at 0.12 m/px."""
    d0, d1 = generator.uniform(-160.0, 160.0, 2)
    lat, lon = frame.to_geographic(x=-0.12 * d1, y=-0.12 * d0)
    return f"p{k},{float(lat):.9f},{float(lon):.9f},.jpg {CHIPS[0]} {d0} {flip * d1} {SEMI}"


def test_the_gsd_is_found_again(tmp_path: Path) -> None:
    frame = LocalFrame(lat=41.88, lon=-87.65)
    for flip, worst_m in ((1.0, 0.001), (-1.0, 100.0)):
        generator = np.random.default_rng(1)
        write_city(tmp_path, [_placed(frame, k, generator, flip) for k in range(50)])
        fit = fitted_gsd(read(tmp_path))["Chicago"]
        assert fit.num_panoramas == 50 and fit.rms_m <= fit.max_m <= worst_m
        # With an axis flipped nothing fits.
        assert (abs(fit.gsd - 0.12) < 1e-6) == (flip == 1.0)
        assert (fit.rms_m > 5.0) == (flip == -1.0)


def test_no_gsd_fits_panoramas_at_the_centre(tmp_path: Path) -> None:
    write_city(tmp_path, [line("a", 0, 0)])
    with pytest.raises(DatasetError, match="all 1 panoramas of Chicago stand at the centre"):
        fitted_gsd(read(tmp_path))


# --------------------------------------------------------------------------------------- real files


@pytest.fixture(scope="module")
def published() -> Protocol:
    return read(real_data() / "vigor")


def _check_published(protocol: Protocol, num_lines: dict[str, int]) -> None:
    found = Counter(sample.name.partition("/")[0] for sample in protocol.samples)
    assert found == num_lines
    for name, fit in fitted_gsd(protocol).items():
        assert fit.gsd == pytest.approx(CITIES[name].gsd, rel=1e-3)
        assert fit.rms_m <= 0.20 and fit.max_m <= 0.40
        assert fit.num_panoramas == num_lines[name]


def test_the_published_test_labels(published: Protocol) -> None:
    _check_published(published, {"NewYork": 13884, "Seattle": 11875, "Chicago": 12739})
    num_chips = Counter(image.path.parent.parent.name for image in published.references)
    assert num_chips == {name: city.num_chips for name, city in CITIES.items()}
    notes = "; ".join(published.notes)
    assert "SanFrancisco has no same_area_balanced_test__corrected.txt: its queries are" in notes
    assert "holds labels and no images" in notes
    assert "38498 queries and 90618 references instead of the published 52605 and 90618" in notes


def test_the_published_training_labels() -> None:
    started = time.process_time()
    protocol = read(real_data() / "vigor", part="train")
    # On a quiet machine less than two: 38,501 lines and 90,618 chips.
    assert time.process_time() - started < 6.0
    _check_published(protocol, {"NewYork": 13885, "Seattle": 11876, "Chicago": 12740})


def test_where_the_published_cameras_stand(published: Protocol) -> None:
    """Each 1000th at its place in the world; Seattle's reach far beyond the central half."""
    for sample in published.samples[::1000]:
        lat, lon = (float(text) for text in sample.name.split(",")[-3:-1])
        here = np.array([sample.position])
        assert np.linalg.norm(_metres(here, np.array([[lat, lon]]))) < 0.45
    assert not [note for note in published.notes if "told" in note]
    reach_px = {
        sample.name: max(abs(sample.x_m), abs(sample.y_m)) / sample.image.gsd
        for sample in published.samples
    }
    beyond = Counter(name.partition("/")[0] for name, reach in reach_px.items() if reach > 160.01)
    assert beyond == {"NewYork": 171, "Seattle": 2584, "Chicago": 641}
    assert max(reach_px.values()) == pytest.approx(183, abs=1)


def test_every_published_semi_positive_shows_its_place(published: Protocol) -> None:
    """Their offsets reach 366 px, but none of them lies a chip's side away."""
    centres = np.array([(image.lat, image.lon) for image in published.references])
    semi = np.array(published.semi_positives)
    assert semi.shape == (38498, 3)
    for column in range(3):
        places = np.array([sample.name.split(",")[-3:-1] for sample in published.samples], float)
        metres = _metres(centres[semi[:, column]], places)
        assert np.abs(metres).max() < 0.6 * 640 * 0.118141
