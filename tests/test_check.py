from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from dataset_helpers import (
    DRIVE,
    FORD_DRIVE,
    FRAMES,
    OTHER_DRIVE,
    edit_lines,
    image_bytes,
    tree,
    write_ford,
    write_kitti,
    write_lines,
    write_oxts,
    write_vigor,
)
from PIL import Image
from typer.testing import CliRunner, Result

from ciper.cli import app
from ciper.data import check
from ciper.data.check import Checked, CheckOptions, check_data
from ciper.data.datasets import Dataset, Part, ProtocolOptions, read_protocol
from ciper.data.label_geometry import place_findings
from ciper.data.listing import Finding
from ciper.data.roots import published_count
from ciper.errors import ConfigError, DatasetError, PoseTableError

WRITERS = {"vigor": write_vigor, "kitti": write_kitti, "ford": write_ford}
TRAIN = "splits__corrected/Chicago/same_area_balanced_train__corrected.txt"
TEST = "splits__corrected/Chicago/same_area_balanced_test__corrected.txt"
ALL_THERE = "all {} files that labels name are there"
FEW = CheckOptions(num_samples=1)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


def problems(checked: Checked) -> list[Finding]:
    return [finding for finding in checked.findings if finding.level == "problem"]


def only_problem(spec: str, options: CheckOptions = FEW) -> Finding:
    (finding,) = problems(check_data(spec, options))
    return finding


def text_of(checked: Checked, subject: str, level: str = "ok") -> str:
    (text,) = [f.text for f in checked.findings if (f.subject, f.level) == (subject, level)]
    return text


# ------------------------------------------------------------------------------------- whole roots


@pytest.mark.parametrize("dataset", WRITERS)
def test_a_sound_root_has_no_problem_and_is_not_written_to(dataset: str, tmp_path: Path) -> None:
    root = WRITERS[dataset](tmp_path / "root")
    before = tree(root)
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    sheet = tmp_path / "sheet.png"
    done = run(f"{dataset}:{root}", "--deep", "--out", sheet, "--samples", 2)
    assert done.exit_code == 0, done.output
    assert tree(root) == before
    with Image.open(sheet) as picture:
        assert picture.width == 1650
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines[:-1]} <= {"ok", "note"}
    assert lines[-1].startswith("0 problems, ")


def test_what_is_said_of_vigor(tmp_path: Path) -> None:
    checked = check_data(f"vigor:{write_vigor(tmp_path)}")
    train = text_of(checked, "same_area train corrected")
    assert train == "2 queries among 4 references (published: 52,609)"
    assert text_of(checked, "cameras").startswith("15.0 m from the centres")
    assert "0.111262" in text_of(checked, "Chicago corrected labels")
    notes = [finding.text for finding in checked.findings if finding.level == "note"]
    assert any("SanFrancisco" in note and "left out" in note for note in notes)
    absent = text_of(checked, "label files", "note")
    assert "cross_area train corrected: splits__corrected/NewYork/pano_label_balanced" in absent
    assert {s.name.partition("/")[0] for s in checked.samples} == {"Chicago"}
    assert len(checked.samples) == 4


def test_what_is_said_of_kitti(tmp_path: Path) -> None:
    checked = check_data(f"kitti:{write_kitti(tmp_path)}", CheckOptions(num_samples=3))
    assert text_of(checked, "train") == "4 queries (published: 19,655)"
    assert text_of(checked, "test2") == "6 queries (published: 7,542)"
    assert text_of(checked, "oxts files") == ALL_THERE.format(12)
    # 1.2 m in 0.1 s.
    assert text_of(checked, "fixes of the drives") == "10 steps in 2 drives, at most 12.0 m/s"
    assert text_of(checked, "headings of the drives").startswith("within 0.0")
    assert len(checked.samples) == 3
    # Which samples depends on the seed and their names.
    again = check_data(f"kitti:{tmp_path}", CheckOptions(num_samples=3))
    other = check_data(f"kitti:{tmp_path}", CheckOptions(num_samples=3, seed=1))
    assert checked.samples == again.samples
    assert {s.name for s in checked.samples} != {s.name for s in other.samples}


def test_what_is_said_of_ford(tmp_path: Path) -> None:
    checked = check_data(f"ford:{write_ford(tmp_path)}")
    assert text_of(checked, "log1 test") == "2 queries (published: 2,100)"
    assert "log1 train: 2017-10-26/V2/Log1" in text_of(checked, "label files", "note")


def test_one_split_and_one_kind_of_labels(tmp_path: Path) -> None:
    root = write_vigor(tmp_path)
    checked = check_data(f"vigor:{root}", CheckOptions(split="same_area", labels="corrected"))
    assert not [f for f in checked.findings if f.subject == "label files"]
    original = only_problem(f"vigor:{root}", CheckOptions(labels="original"))
    assert original.subject == "label files" and "splits/NewYork" in original.text


@pytest.mark.parametrize(
    ("dataset", "split", "part", "count"),
    [
        ("vigor", "same_area", "train", 52_609),
        ("vigor", "same_area", "test", 52_605),
        ("vigor", "cross_area", "train", 51_520),
        ("vigor", "cross_area", "test", 53_694),
        ("kitti", "test1", "train", 19_655),
        ("kitti", "test1", "test", 3_773),
        ("kitti", "test2", "test", 7_542),
        ("ford", "log1", "train", 4_000),
        ("ford", "log1", "test", 2_100),
        ("ford", "log2", "train", 10_350),
        ("ford", "log2", "test", 3_727),
    ],
)
def test_published_counts(dataset: Dataset, split: str, part: Part, count: int) -> None:
    assert published_count(dataset, ProtocolOptions(split, part)) == count


def test_a_whole_split_is_said_to_be_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "published_count", lambda *_: 6)
    checked = check_data(f"kitti:{write_kitti(tmp_path)}", FEW)
    assert text_of(checked, "test2") == "6 queries, as published"
    assert text_of(checked, "train") == "4 queries (published: 6)"


# ------------------------------------------------------------------------------------ what is wrong


def test_missing_misnamed_and_damaged_files_of_vigor(tmp_path: Path) -> None:
    root = write_vigor(tmp_path)
    panoramas = sorted((root / "Chicago/panorama").iterdir())
    chips = sorted((root / "Chicago/satellite").iterdir())
    panoramas[0].unlink()
    panoramas[1].rename(panoramas[1].with_suffix(".JPG"))
    panoramas[2].write_bytes(b"")
    chips[0].write_bytes(chips[0].read_bytes()[:900])
    (root / "Chicago/satellite/stray.png").touch()
    checked = check_data(f"vigor:{root}", CheckOptions(is_deep=True, num_samples=4))
    texts = [finding.text for finding in problems(checked)]
    missing = f"1 of 4 files are missing: {panoramas[0]} ({root / TRAIN} line 1)"
    assert any(missing in text for text in texts)
    assert any(f"found {panoramas[1].stem}.JPG for {panoramas[1]}" in text for text in texts)
    assert any(f"{panoramas[2]} is empty (0 bytes)" in text for text in texts)
    assert any(f"1 of 4 looked into are damaged: {chips[0]} is cut short" in text for text in texts)
    # Labels are read all the same.
    assert text_of(checked, "same_area train corrected").startswith("2 queries")
    assert "1 files that no label names" in text_of(checked, "Chicago chips", "note")


def test_an_error_in_one_label_file_leaves_the_others(tmp_path: Path) -> None:
    root = write_vigor(tmp_path)
    edit_lines(root / TEST, 2, ".png ", ".png 0 ")
    checked = check_data(f"vigor:{root}")
    (wrong,) = problems(checked)
    assert wrong.subject == "same_area test corrected" and f"{TEST} line 2" in wrong.text
    assert text_of(checked, "same_area train corrected").startswith("2 queries")
    # The files that the bad line names are known all the same.
    assert Finding("ok", "Chicago panoramas", ALL_THERE.format(4)) in checked.findings
    assert Finding("ok", "Chicago chips", ALL_THERE.format(4)) in checked.findings


def test_offsets_with_a_wrong_sign_do_not_fit_the_names(tmp_path: Path) -> None:
    root = write_vigor(tmp_path)
    for path in (root / TRAIN, root / TEST):
        lines = [line.split() for line in path.read_text().splitlines()]
        for words in lines:
            words[3] = str(-float(words[3]))
        write_lines(path, [" ".join(words) for words in lines])
    wrong = only_problem(f"vigor:{root}")
    assert wrong.subject == "Chicago corrected labels"
    assert "fetch splits__corrected again" in wrong.text


def test_original_labels_that_do_not_fit_are_a_note(tmp_path: Path) -> None:
    root = write_vigor(tmp_path)
    (root / "splits").mkdir()
    (root / "splits__corrected/Chicago").rename(root / "splits/Chicago")
    for name in ("train", "test"):
        path = root / f"splits/Chicago/same_area_balanced_{name}__corrected.txt"
        lines = [line.split() for line in path.read_text().splitlines()]
        for words in lines:
            words[2:4] = [str(1.1 * float(word)) for word in words[2:4]]
        write_lines(path.with_name(f"same_area_balanced_{name}.txt"), [" ".join(w) for w in lines])
        path.unlink()
    checked = check_data(f"vigor:{root}")
    assert not problems(checked)
    note = text_of(checked, "Chicago original labels", "note")
    assert "(-9." in note and "--labels corrected" in note


def test_a_camera_outside_of_its_aerial_image(tmp_path: Path) -> None:
    # The offsets of the first chip in pixels; 320 are its edge.
    root = write_vigor(tmp_path)
    protocol = read_protocol(f"vigor:{root}", ProtocolOptions(labels="corrected"))
    first, second = protocol.samples
    away = replace(first, x_m=0.111262 * 321)
    (wrong,) = place_findings(replace(protocol, samples=(away, second)))
    assert wrong.level == "problem"
    assert wrong.text.startswith(f"1 of 2 stand outside of their aerial image, as {first.name}")
    on_it = replace(first, x_m=0.111262 * 319)
    (right,) = place_findings(replace(protocol, samples=(on_it, second)))
    assert right.level == "ok"


def test_photos_that_are_trained_on_and_tested_on(tmp_path: Path) -> None:
    root = write_vigor(tmp_path)
    write_lines(root / TEST, (root / TRAIN).read_text().splitlines()[:1])
    wrong = only_problem(f"vigor:{root}")
    assert wrong.subject == "same_area"
    assert wrong.text.startswith("1 photos are both trained on and tested on: ")


def test_kitti_frames_that_are_missing_in_a_drive(tmp_path: Path) -> None:
    root = write_kitti(tmp_path)
    name = f"raw/2011_09_26/{DRIVE}/image_02/data/0000000001.png"
    (root / name).unlink()
    (root / f"satellite/2011_09_26/{DRIVE}/0000000002.png").unlink()
    checked = check_data(f"kitti:{root}", FEW)
    assert {f.subject for f in problems(checked)} == {"train", "photos", "aerial images"}
    photos = next(f for f in problems(checked) if f.subject == "photos")
    where = f"{root / 'train_files.txt'} line 2"
    assert f"1 of 12 files are missing: {root / name} ({where})" in photos.text


def test_a_kitti_drive_that_is_absent_is_a_note(tmp_path: Path) -> None:
    root = write_kitti(tmp_path)
    for folder in ("raw", "satellite"):
        (root / folder / f"2011_09_26/{OTHER_DRIVE}").rename(tmp_path / f"away_{folder}")
    frames = [f"2011_09_26/{drive}/0000000000.png 0 0 0" for drive in (DRIVE, OTHER_DRIVE)]
    write_lines(root / "test2_files.txt", frames)
    checked = check_data(f"kitti:{root}", CheckOptions(1, split="test2"))
    assert all("absent" not in finding.text for finding in problems(checked))
    assert any("drives are absent" in f.text for f in checked.findings if f.level == "note")
    assert Finding("ok", "photos", ALL_THERE.format(FRAMES)) in checked.findings


def test_an_oxts_file_of_another_place(tmp_path: Path) -> None:
    root = write_kitti(tmp_path)
    write_oxts(root / f"raw/2011_09_26/{OTHER_DRIVE}/oxts/data/0000000003.txt", 900.0)
    wrong = only_problem(f"kitti:{root}")
    assert wrong.subject == "fixes of the drives"
    assert f"{OTHER_DRIVE}: 898 m from the frame before to 0000000003.png" in wrong.text


def test_a_yaw_in_the_wrong_sense(tmp_path: Path) -> None:
    root = write_kitti(tmp_path)
    for i in range(FRAMES):
        path = root / f"raw/2011_09_26/{DRIVE}/oxts/data/{i:010d}.txt"
        write_oxts(path, 1.2 * i, heading_deg=60.0)
    wrong = only_problem(f"kitti:{root}")
    assert wrong.subject == "headings of the drives"
    assert wrong.text.startswith(f"{DRIVE}: heading and direction of motion differ by 30.0 deg")


def test_frames_that_lie_anywhere_are_no_drive(tmp_path: Path) -> None:
    root = write_kitti(tmp_path)
    for i in range(FRAMES):
        path = root / f"raw/2011_09_26/{DRIVE}/oxts/data/{i:010d}.txt"
        write_oxts(path, 200.0 * (i % 2) + i, heading_deg=250.0)
    checked = check_data(f"kitti:{root}", FEW)
    assert not problems(checked)
    assert DRIVE in text_of(checked, "fixes of the drives", "note")
    assert "in 1 drives" in text_of(checked, "fixes of the drives")


def test_a_ford_photo_that_is_missing(tmp_path: Path) -> None:
    root = write_ford(tmp_path)
    photo = root / FORD_DRIVE / "2017-08-04-V2-Log1-FL/151.png"
    photo.unlink()
    checked = check_data(f"ford:{root}")
    assert {finding.subject for finding in problems(checked)} == {"log1 test", "photos"}
    assert f"1 of 2 files are missing: {photo}" in problems(checked)[1].text


# ----------------------------------------------------------------------------------- not that root


@pytest.mark.parametrize(
    ("dataset", "given", "meant"),
    [
        ("vigor", "root/Chicago", "a child of the root; did you mean vigor:{root}?"),
        ("vigor", "root/splits__corrected", "a child of the root; did you mean vigor:{root}?"),
        ("vigor", ".", "a parent of the root; did you mean vigor:{root}?"),
        ("kitti", "root/raw/2011_09_26", "a child of the root; did you mean kitti:{root}?"),
        ("kitti", ".", "a parent of the root; did you mean kitti:{root}?"),
        ("ford", "root/2017-08-04/V2/Log1", "a child of the root; did you mean ford:{root}?"),
    ],
)
def test_a_root_that_is_too_high_or_too_low(
    tmp_path: Path, dataset: str, given: str, meant: str
) -> None:
    root = WRITERS[dataset](tmp_path / "root")
    wrong = only_problem(f"{dataset}:{tmp_path / given}")
    assert wrong.subject == "root" and meant.format(root=root) in wrong.text


def test_the_root_of_another_data_set(tmp_path: Path) -> None:
    root = write_kitti(tmp_path)
    assert f"did you mean kitti:{root}?" in only_problem(f"ford:{root}").text
    with pytest.raises(ConfigError, match=r"did you mean kitti:"):
        check_data(str(root))


def test_empty_misnamed_and_locked_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is empty; expected raw, satellite" in only_problem(f"kitti:{tmp_path}").text
    (tmp_path / "notes.txt").touch()
    assert "holds notes.txt; expected" in only_problem(f"kitti:{tmp_path}").text
    (tmp_path / "chicago").mkdir()
    assert "holds chicago for Chicago; rename" in only_problem(f"vigor:{tmp_path}").text

    def locked(path: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", locked)
    assert "cannot be listed (Permission denied)" in only_problem(f"ford:{tmp_path}").text


def test_specs_that_name_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'cvusa:x' names no data set; expected vigor:ROOT"):
        check_data("cvusa:x")
    with pytest.raises(DatasetError, match="is no folder"):
        check_data(f"vigor:{tmp_path / 'absent'}")
    with pytest.raises(ConfigError, match="--split test1: vigor has none such"):
        check_data(f"vigor:{tmp_path}", CheckOptions(split="test1"))


# ------------------------------------------------------------------------------------------ tables


def write_table(folder: Path, lines: list[str]) -> Path:
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(image_bytes(64, 48, "JPEG", (40 * i, 9, 9)))
    path = folder / "poses.csv"
    write_lines(path, ["photo,lat,lon,heading_deg,projection,hfov_deg", *lines])
    return path


def test_a_sound_table(tmp_path: Path) -> None:
    path = write_table(tmp_path, [f"{i}.jpg,60,{i},90,pinhole,75" for i in range(3)])
    checked = check_data(str(path), CheckOptions(is_deep=True))
    assert [finding.level for finding in checked.findings] == ["ok"] * 4
    assert text_of(checked, "table") == "3 lines"
    assert "3 opened: 64 x 48 px (3)" in [finding.text for finding in checked.findings]


def test_what_is_wrong_with_a_table(tmp_path: Path) -> None:
    path = write_table(
        tmp_path,
        ["0.jpg,60,25,90,,", "1.jpg,60,25,90,,", "2.jpg,60,26,,pinhole,200", "3.jpg,60,27,,,"],
    )
    (tmp_path / "1.jpg").write_bytes((tmp_path / "0.jpg").read_bytes())
    checked = check_data(str(path))
    missing, camera = problems(checked)
    assert "1 of 4 files are missing" in missing.text and "3.jpg" in missing.text
    assert camera.subject == "cameras" and "cannot span 200.0 degrees" in camera.text
    assert "2 of 4 lines have none" in text_of(checked, "headings", "note")
    assert "0.jpg = 1.jpg" in text_of(checked, "poses", "note")
    assert "under several names: 0.jpg = 1.jpg" in text_of(checked, "photos", "note")


def test_a_photo_whose_link_leads_nowhere(tmp_path: Path) -> None:
    path = write_table(tmp_path, [f"{i}.jpg,60,{i},90,pinhole,75" for i in range(4)])
    (tmp_path / "3.jpg").symlink_to(tmp_path / "away.jpg")
    texts = [finding.text for finding in problems(check_data(str(path)))]
    assert all("3.jpg" in text for text in texts)
    assert any("cannot be read: " in text and "No such file" in text for text in texts)


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PoseTableError, match="line 2"):
        check_data(str(write_table(tmp_path, ["0.jpg,60,x,90,,"])))


# ------------------------------------------------------------------------------------ command line


def test_the_exit_status_says_whether_something_is_in_the_way(tmp_path: Path) -> None:
    root = write_vigor(tmp_path)
    next((root / "Chicago/panorama").iterdir()).unlink()
    done = run(f"vigor:{root}")
    assert done.exit_code == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("problem ")]
    assert done.stdout.splitlines()[-1].startswith("1 problem, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cvusa:x"], "names no data set"),
        (["vigor:ROOT", "--labels", "best"], "--labels best: expected corrected or original"),
        (["vigor:ROOT", "--protocol", "grid"], "--protocol grid: expected highlyaccurate or ciper"),
        (["vigor:ROOT", "--out", "sheet.jpg"], "sheet.jpg is not a PNG"),
    ],
)
def test_errors_that_stop_it_have_status_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run(*[argument.replace("ROOT", str(tmp_path)) for argument in arguments])
    assert done.exit_code == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_table_has_no_sheet(tmp_path: Path) -> None:
    path = write_table(tmp_path, ["0.jpg,60,25,90,pinhole,75"])
    done = run(path, "--out", tmp_path / "sheet.png")
    assert done.exit_code == 0
    assert "was not written: no label with a chip was read" in done.stderr
    assert not (tmp_path / "sheet.png").exists()


# ------------------------------------------------------------------------------------- real labels


@pytest.mark.skipif("CIPER_REAL_DATA" not in os.environ, reason="$CIPER_REAL_DATA is unset")
@pytest.mark.slow
def test_the_real_labels_of_vigor_fit_the_published_gsd() -> None:
    root = Path(os.environ["CIPER_REAL_DATA"]) / "vigor"
    checked = check_data(f"vigor:{root}")
    for city, gsd in (("NewYork", 0.113248), ("Seattle", 0.100817), ("Chicago", 0.111262)):
        text = text_of(checked, f"{city} corrected labels")
        assert f"published {gsd} (+0.03%)" in text
    assert [finding.subject for finding in problems(checked)] == ["images"]
