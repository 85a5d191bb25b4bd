"""Samples whose images show where the camera stands and a landmark, and tiny roots of data sets."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ciper.camera import CameraOverrides
from ciper.data.augment import AugmentConfig
from ciper.data.batches import Drawing
from ciper.data.image_cache import ImageCache
from ciper.data.pair_views import NetworkInput, PairKind, PairViews
from ciper.data.pairs import Damage, Places, RealPairs
from ciper.data.preprocess import CanvasSpec
from ciper.data.protocol import AerialImage, Cut, Sample, Told
from ciper.geo import forward, right

GREY = 90
# The landmark as the camera sees it: so far ahead, and so far to the right.
AHEAD_M, ASIDE_M = 14.0, 4.0
BEARING_DEG = math.degrees(math.atan2(ASIDE_M, AHEAD_M))
PINHOLE_PX, FOCAL_PX, PRINCIPAL_PX = (96, 320), 186.0, (157.0, 44.0)
PLAIN = AugmentConfig(colour=0.0, grey_share=0.0)


def paint_aerial(image: AerialImage, x_m: float, y_m: float, heading_deg: float) -> None:
    """An aerial image with a red square at the camera and a green one at its landmark."""
    pixels = np.full((image.side_px, image.side_px, 3), GREY, np.uint8)
    camera = np.array([x_m, y_m])
    landmark = camera + AHEAD_M * forward(heading_deg) + ASIDE_M * right(heading_deg)
    for (east, north), colour in ((camera, (255, 0, 0)), (landmark, (0, 255, 0))):
        column = round(image.side_px / 2 + east / image.gsd)
        row = round(image.side_px / 2 - north / image.gsd)
        pixels[row - 3 : row + 3, column - 3 : column + 3] = colour
    Image.fromarray(pixels).save(image.path)


def paint_photo(path: Path, size_px: tuple[int, int], column: float) -> None:
    """A photo with a green stripe about a column."""
    pixels = np.full((*size_px, 3), GREY, np.uint8)
    pixels[:, round(column) - 3 : round(column) + 3] = (0, 255, 0)
    Image.fromarray(pixels).save(path, quality=95, subsampling=0)


def panorama_sample(folder: Path, x_m: float, y_m: float, heading_deg: float = 0.0) -> Sample:
    """As VIGOR has them: a panorama of 1024 x 512 px, a chip of 320 px, 71.04 m."""
    image = AerialImage(folder / "pano_aerial.png", 41.9, -87.6, 0.222, 320)
    paint_aerial(image, x_m, y_m, heading_deg)
    paint_photo(folder / "pano.jpg", (512, 1024), (BEARING_DEG / 360 + 0.5) * 1024)
    return Sample(
        name="Chicago/pano",
        photo=folder / "pano.jpg",
        camera=CameraOverrides(projection="equirectangular", hfov_deg=360.0),
        x_m=x_m,
        y_m=y_m,
        heading_deg=heading_deg,
        image=image,
        cut=Cut(0.0, 0.0, 0.0, image.side_m),
        told=Told(0.0, 0.0, image.side_m / 4),
    )


def pinhole_sample(folder: Path, x_m: float, y_m: float, heading_deg: float) -> Sample:
    """As KITTI has them: a photo of 320 x 96 px, an aerial image of 640 px, 250.7 m."""
    image = AerialImage(folder / "frame_aerial.png", 49.0, 8.4, 0.39166, 640)
    paint_aerial(image, x_m, y_m, heading_deg)
    column = PRINCIPAL_PX[0] + FOCAL_PX * ASIDE_M / AHEAD_M
    paint_photo(folder / "frame.png", PINHOLE_PX, column)
    return Sample(
        name="date/drive/frame.png",
        photo=folder / "frame.png",
        camera=CameraOverrides("pinhole", focal_px=FOCAL_PX, principal_px=PRINCIPAL_PX),
        x_m=x_m,
        y_m=y_m,
        heading_deg=heading_deg,
        image=image,
        cut=Cut(x_m, y_m, 0.0, 100.27),
        told=Told(90.0, 10.0, 23.2),
    )


def views(
    kind: PairKind, *, cache: Path | None = None, augment: AugmentConfig = PLAIN, chip_px: int = 256
) -> PairViews:
    """Of canvases of 128 x 512, and chips of 128 m or of the published metres."""
    side_m = 128.0 if kind == "random" else 100.27
    return PairViews(
        images=ImageCache(cache),
        wanted=NetworkInput(chip_px, side_m / chip_px, CanvasSpec()),
        kind=kind,
        reading="highlyaccurate",
        augment=augment,
    )


def centroid(image: NDArray[np.uint8], channel: int) -> tuple[float, float]:
    """(u, v) of what is red (0) or green (1) in an image of grey and these; it must be there."""
    own = image[..., channel].astype(float) - image[..., 1 - channel]
    weight = np.clip(own - 20.0, 0.0, None)
    assert weight.sum() > 0
    rows, columns = np.mgrid[0.5 : image.shape[0], 0.5 : image.shape[1]]
    return float((columns * weight).sum() / weight.sum()), float(
        (rows * weight).sum() / weight.sum()
    )


def place(chip: NDArray[np.uint8], channel: int, side_m: float) -> NDArray[np.float64]:
    """Metres right and up of the chip's centre of what is red (0) or green (1)."""
    u, v = centroid(chip, channel)
    size = len(chip)
    return np.array([u - size / 2, size / 2 - v]) * side_m / size


def many_samples(folder: Path, count: int, apart_deg: float = 0.001) -> tuple[Sample, ...]:
    """Panoramas in a row from south to north, each with files of its own."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    samples = []
    for index in range(count):
        photo, chip = folder / f"p{index}.jpg", folder / f"a{index}.png"
        Image.fromarray(rng.integers(0, 255, (64, 128, 3), dtype=np.uint8)).save(photo)
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(chip)
        image = AerialImage(chip, 41.9 + index * apart_deg, -87.6, 1.11, 64)
        samples.append(
            Sample(
                name=f"Chicago/p{index}",
                photo=photo,
                camera=CameraOverrides(projection="equirectangular", hfov_deg=360.0),
                x_m=float(index),
                y_m=-2.0,
                heading_deg=0.0,
                image=image,
                cut=Cut(0.0, 0.0, 0.0, image.side_m),
                told=Told(0.0, 20.0, image.side_m / 4),
            )
        )
    return tuple(samples)


def pairs_of(
    samples: tuple[Sample, ...],
    *,
    seed: int = 0,
    made: PairViews | None = None,
    neighbour_share: float = 0.0,
    part: tuple[int, int] = (0, 1),
) -> RealPairs:
    """Random pairs of samples as VIGOR's."""
    return RealPairs(
        samples,
        Places.of(samples, "vigor"),
        made or views("random"),
        Damage(len(samples)),
        Drawing(seed, neighbour_share, part),
    )


def spoil(path: Path) -> None:
    """Cuts a file in the middle."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# ------------------------------------------------------------------------------------------ roots


def write_vigor_root(root: Path, count: int = 6) -> Path:
    """Chicago's training half, 1.1 km between two panoramas; images smaller than published."""
    samples = many_samples(root / "made", count)
    photos, chips = root / "Chicago" / "panorama", root / "Chicago" / "satellite"
    labels = root / "splits__corrected" / "Chicago"
    for folder in (photos, chips, labels):
        folder.mkdir(parents=True)
    lines, names = [], []
    for index, sample in enumerate(samples):
        lat = 41.805 + 0.01 * index
        name, photo = f"satellite_{lat:.4f}_-87.6.png", f"id{index},{lat:.4f},-87.6,.jpg"
        sample.image.path.rename(chips / name)
        sample.photo.rename(photos / photo)
        names.append(name)
        lines.append(f"{photo} {name} {40.0 + index} -30.0")
    (root / "made").rmdir()
    semi = []
    for index in range(count):
        first = min(max(index - 1, 0), count - 4)
        others = [names[k] for k in range(first, first + 4) if k != index]
        semi.append(" ".join(f"{name} 100.0 200.0" for name in others))
    (labels / "satellite_list.txt").write_text("\n".join(names) + "\n")
    text = "\n".join(f"{line} {rest}" for line, rest in zip(lines, semi, strict=True))
    (labels / "same_area_balanced_train__corrected.txt").write_text(text + "\n")
    return root


def write_kitti_root(root: Path, count: int = 4) -> Path:
    """Frames of one drive, 20 m apart; images smaller than published."""
    drive = "2011_09_26/2011_09_26_drive_0002_sync"
    photos = root / "raw" / drive / "image_02" / "data"
    oxts = root / "raw" / drive / "oxts" / "data"
    chips = root / "satellite" / drive
    for folder in (photos, oxts, chips):
        folder.mkdir(parents=True)
    frames = []
    for index in range(count):
        stem = f"{index:010d}"
        paint_photo(photos / f"{stem}.png", PINHOLE_PX, 100.0)
        image = AerialImage(chips / f"{stem}.png", 49.0, 8.4, 0.78332, 320)
        paint_aerial(image, 0.0, 0.0, 0.0)
        fields = [49.0 + index * 0.0002, 8.4, 110.0, 0.0, 0.0, 0.3 * index, *[0.0] * 24]
        (oxts / f"{stem}.txt").write_text(" ".join(map(str, fields)))
        frames.append(f"{drive}/{stem}.png")
    (root / "train_files.txt").write_text("\n".join(frames) + "\n")
    return root


def turned_sample(sample: Sample, within_deg: float) -> Sample:
    """The sample with another noise of its heading."""
    return replace(sample, told=replace(sample.told, heading_within_deg=within_deg))
