"""Data sets of a few tiny files, laid out and labelled as the published ones."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from ciper.data.vigor import CITIES
from ciper.geo import LocalFrame, forward

# Metres east and north of the positive's centre, in all four quadrants.
QUADRANTS_M = ((12.0, 9.0), (12.0, -9.0), (-12.0, -9.0), (-12.0, 9.0))
DRIVE, OTHER_DRIVE = "2011_09_26_drive_0001_sync", "2011_09_26_drive_0005_sync"
FRAMES, TESTED = 6, 2
KITTI_HEADING_DEG, STEP_M = 30.0, 1.2
FORD_DRIVE = "2017-08-04/V2/Log1"


def image_bytes(width: int, height: int, kind: str, colour: tuple[int, int, int]) -> bytes:
    """A plain image as a file's content."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, kind)
    return buffer.getvalue()


def write_vigor(root: Path, city: str = "Chicago") -> Path:
    """A city of four chips and four panoramas, two of which are trained on; returns the root."""
    frame, gsd = LocalFrame(lat=41.88, lon=-87.63), CITIES[city].gsd
    centres = [(x, y) for x in (0.0, 36.0) for y in (0.0, 36.0)]
    chips = []
    for x, y in centres:
        lat, lon = frame.to_geographic(x=x, y=y)
        chips.append(f"satellite_{float(lat):.9f}_{float(lon):.9f}.png")
    lines, panoramas = [], []
    for i, (x, y) in enumerate(QUADRANTS_M):
        lat, lon = frame.to_geographic(x=x, y=y)
        panoramas.append(f"id{i},{float(lat):.7f},{float(lon):.7f},.jpg")
        offsets = [
            f"{chip} {-(y - cy) / gsd:.3f} {-(x - cx) / gsd:.3f}"
            for chip, (cx, cy) in zip(chips, centres, strict=True)
        ]
        lines.append(" ".join([panoramas[-1], *offsets]))
    _fill(root / city / "satellite", chips, image_bytes(640, 640, "PNG", (40, 90, 40)))
    _fill(root / city / "panorama", panoramas, image_bytes(64, 32, "JPEG", (90, 120, 200)))
    labels = root / "splits__corrected" / city
    write_lines(labels / "satellite_list.txt", chips)
    write_lines(labels / "same_area_balanced_train__corrected.txt", lines[:2])
    write_lines(labels / "same_area_balanced_test__corrected.txt", lines[2:])
    return root


def write_kitti(root: Path) -> Path:
    """Two drives straight ahead, of one of which the last frames are tested; returns the root."""
    names = [f"{i:010d}.png" for i in range(FRAMES)]
    for drive in (DRIVE, OTHER_DRIVE):
        place = f"2011_09_26/{drive}"
        _fill(
            root / "raw" / place / "image_02" / "data",
            names,
            image_bytes(124, 37, "PNG", (90, 120, 200)),
        )
        _fill(root / "satellite" / place, names, image_bytes(1280, 1280, "PNG", (40, 90, 40)))
        for i in range(FRAMES):
            write_oxts(root / "raw" / place / "oxts" / "data" / f"{i:010d}.txt", i * STEP_M)
    listed = [f"2011_09_26/{DRIVE}/{name}" for name in names]
    others = [f"2011_09_26/{OTHER_DRIVE}/{name}" for name in names]
    write_lines(root / "train_files.txt", listed[:-TESTED])
    write_lines(root / "test1_files.txt", [f"{name} 0.6 0.3 0.9" for name in listed[-TESTED:]])
    write_lines(root / "test2_files.txt", [f"{name} -0.5 0.1 -0.2" for name in others])
    return root


def write_oxts(path: Path, ahead_m: float, heading_deg: float = KITTI_HEADING_DEG) -> None:
    """The fix of a vehicle so far along the drive's direction, with any heading."""
    x, y = ahead_m * forward(KITTI_HEADING_DEG)
    lat, lon = LocalFrame(lat=49.01, lon=8.4).to_geographic(x=x, y=y)
    fields = [f"{float(lat):.10f}", f"{float(lon):.10f}", "110.0", "0.0", "0.0"]
    fields += [str(math.radians(90.0 - heading_deg)), *["0.0"] * 24]
    write_lines(path, [" ".join(fields)])


def write_ford(root: Path) -> Path:
    """The test drive of a log, of two photos on one aerial image; returns the root."""
    folder, chip = root / FORD_DRIVE, ("42.3000", "-83.210")
    names = ["150", "151"]
    _fill(
        folder / "2017-08-04-V2-Log1-FL",
        [f"{name}.png" for name in names],
        image_bytes(166, 86, "PNG", (90, 120, 200)),
    )
    _fill(
        folder / "SatelliteMaps_18",
        [f"{'_'.join(chip)}.png"],
        image_bytes(1280, 1280, "PNG", (40, 90, 40)),
    )
    place = f"42.3001 -83.2101 {' '.join(chip)}"
    write_lines(
        folder / "grd_sat_quaternion_latlon_test.txt",
        [f"{name}.txt 1.0 0.0 0.0 0.0 {place} 0.5 -0.5 0.1" for name in names],
    )
    write_lines(
        root / "Calibration-V2" / "V2" / "cameraFrontLeft_body.yaml",
        [
            "transform:",
            "  rotation: {w: 0.5, x: 0.5, y: 0.5, z: 0.5}",
            "  translation: {x: 2.0, y: -0.5, z: -1.2}",
        ],
    )
    return root


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def edit_lines(path: Path, line: int, old: str, new: str) -> None:
    """Change one line, counted from 1, of a text file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new)
    write_lines(path, lines)


def _fill(folder: Path, names: list[str], content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(content)


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all that lies below a folder."""
    stats = {str(path.relative_to(root)): path.stat() for path in sorted(root.rglob("*"))}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def pixels(width: int, height: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Noise (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
