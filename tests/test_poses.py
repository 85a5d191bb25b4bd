from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciper.data.poses import COLUMNS, PhotoPose, read_poses, write_poses
from ciper.errors import OutputError, PoseTableError

HEADER = "photo,lat,lon,heading_deg,projection,hfov_deg,pitch_deg,roll_deg,height_m\n"


def _table(folder: Path, text: str) -> Path:
    path = folder / "poses.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_full_and_sparse_rows(tmp_path: Path) -> None:
    path = _table(
        tmp_path,
        HEADER
        + "photos/a.jpg,60.17,24.94,-90,pinhole,81,1.5,-2,1.8\n"
        + '"photos/b, c.jpg",-33.8,151.2,,,,,,\n',
    )
    first, second = read_poses(path)
    assert first == PhotoPose(
        tmp_path / "photos/a.jpg", 60.17, 24.94, 270.0, "pinhole", 81.0, 1.5, -2.0, 1.8
    )
    assert second == PhotoPose(tmp_path / "photos/b, c.jpg", -33.8, 151.2)
    assert first.camera_overrides.hfov_deg == 81.0
    assert second.camera_overrides.projection is None


def test_columns_in_another_order_and_the_user_s_own(tmp_path: Path) -> None:
    text = (
        "\ufefflon,lat,remark,photo,vfov_bottom_deg,vfov_top_deg\r\n24,60,wet road,a.jpg,-30,45\r\n"
    )
    (row,) = read_poses(_table(tmp_path, text))
    assert row == PhotoPose(
        tmp_path / "a.jpg", 60.0, 24.0, vfov_top_deg=45.0, vfov_bottom_deg=-30.0
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (HEADER, "lists no photos"),
        ("photo,lat\na.jpg,1\n", "lacks the column 'lon'"),
        ("photo,lat,lon,heading\na.jpg,1,2,3\n", "did you mean 'heading_deg'"),
        ("photo,lat,lon,lat\na.jpg,1,2,3\n", "twice"),
        (HEADER + "a.jpg,nan,2,,,,,,\n", "line 2: latitude nan|line 2 has lat nan"),
        (HEADER + "a.jpg,1,2,,,,,,\nb.jpg,91,2,,,,,,\n", "line 3: latitude 91"),
        (HEADER + "a.jpg,1,200,,,,,,\n", "line 2: longitude 200"),
        (HEADER + "a.jpg,,2,,,,,,\n", "line 2 has no position"),
        (HEADER + "a.jpg,one,2,,,,,,\n", "line 2 has lat 'one'"),
        (HEADER + ",1,2,,,,,,\n", "line 2 names no photo"),
        (HEADER + "a.jpg,1,2,inf,,,,,\n", "line 2 has heading_deg inf"),
        (HEADER + "a.jpg,1,2,,fisheye,,,,\n", "line 2 has projection 'fisheye'"),
        (HEADER + "a.jpg,1,2,,,400,,,\n", "hfov_deg 400"),
        (HEADER + "a.jpg,1,2,,,0,,,\n", "hfov_deg 0"),
        (HEADER + "a.jpg,1,2,,,,95,,\n", "pitch_deg 95"),
        (
            HEADER + "a.jpg,1,2,,,,,,\n./a.jpg,1,2,,,,,,\n",
            "line 3 repeats photo './a.jpg' of line 2",
        ),
        (HEADER + "a.jpg,1,2\n", "line 2 does not have"),
        (HEADER + "a.jpg,1,2,,,,,,,,,\n", "line 2 does not have"),
        (HEADER + '"a.jpg,1,2,,,,,,\n', "not a CSV table"),
    ],
)
def test_malformed_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PoseTableError, match=message) as caught:
        read_poses(_table(tmp_path, text))
    assert "poses.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_text_and_missing(tmp_path: Path) -> None:
    (tmp_path / "poses.csv").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(PoseTableError, match="UTF-8"):
        read_poses(tmp_path / "poses.csv")
    with pytest.raises(PoseTableError, match="cannot read"):
        read_poses(tmp_path / "none.csv")


def test_writes_exactly_the_documented_columns(tmp_path: Path) -> None:
    path = tmp_path / "poses.csv"
    row = PhotoPose(tmp_path / "photos" / "a.jpg", 60.1698571234, 24.9, 12.5, "pinhole", 90.0)
    write_poses(path, [row])
    assert path.read_text() == HEADER + "photos/a.jpg,60.169857123,24.9,12.5,pinhole,90,,,\n"
    assert ",".join(COLUMNS) + "\n" == HEADER
    assert [file.name for file in tmp_path.iterdir()] == ["poses.csv"]


def test_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_poses(tmp_path / "none" / "poses.csv", [PhotoPose(Path("a.jpg"), 1.0, 2.0)])


ANGLES = st.none() | st.floats(-80, 80).map(lambda angle: round(angle, 6))
ROWS = st.builds(
    PhotoPose,
    photo=st.just(Path("photos/a.jpg")),
    lat=st.floats(-90, 90).map(lambda lat: round(lat, 9)),
    lon=st.floats(-180, 180).map(lambda lon: round(lon, 9)),
    heading_deg=st.none() | st.floats(0, 359.999).map(lambda angle: round(angle, 6)),
    projection=st.sampled_from([None, "pinhole", "equirectangular"]),
    hfov_deg=st.none() | st.floats(1, 360).map(lambda angle: round(angle, 6)),
    pitch_deg=ANGLES,
    roll_deg=ANGLES,
    height_m=ANGLES,
    vfov_top_deg=ANGLES,
    vfov_bottom_deg=ANGLES,
)


@settings(max_examples=40)
@given(row=ROWS)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, row: PhotoPose) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.csv"
    write_poses(path, [row])
    (found,) = read_poses(path)
    assert found.photo == Path("photos/a.jpg").absolute()
    assert {**vars(found), "photo": None} == {**vars(row), "photo": None}
