"""Images read shrunk, and what a cache keeps of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ciper.data.image_cache import ImageCache, SizePx
from ciper.errors import OutputError, PhotoError


def write_gradient(path: Path, size_px: SizePx = (64, 96)) -> None:
    """Red grows to the right, green downwards."""
    rows, columns = np.mgrid[0.5 : size_px[0], 0.5 : size_px[1]]
    red, green = columns / size_px[1] * 255, rows / size_px[0] * 255
    pixels = np.stack([red, green, 0 * red + 60], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=95, subsampling=0)


def half(size_px: SizePx) -> SizePx:
    return size_px[0] // 2, size_px[1] // 2


def as_it_is(size_px: SizePx) -> SizePx:
    return size_px


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("is_kept", [False, True])
def test_images_are_shrunk_about_their_middle(name: str, is_kept: bool, tmp_path: Path) -> None:
    write_gradient(tmp_path / name)
    cache = ImageCache(tmp_path / "cache" if is_kept else None)
    for _ in range(2):
        read = cache.read(tmp_path / name, half)
        assert read.file_px == (64, 96)
        assert read.pixels.shape == (32, 48, 3)
        for row, column in ((3, 5), (20, 40)):
            expected = [(column + 0.5) / 48 * 255, (row + 0.5) / 32 * 255, 60]
            assert read.pixels[row, column].tolist() == pytest.approx(expected, abs=4.0)


def test_a_jpeg_is_decoded_no_further_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gradient(tmp_path / "a.jpg", (512, 1024))
    asked = []
    resize = Image.Image.resize

    def spy(image: Image.Image, *arguments: object, **options: object) -> Image.Image:
        asked.append(image.size)
        return resize(image, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", spy)
    read = ImageCache(None).read(tmp_path / "a.jpg", lambda _: (100, 256))
    assert read.pixels.shape == (100, 256, 3)
    # Of 1024 x 512 the quarter, which is not below 256 x 100.
    assert asked == [(256, 128)]


def test_what_is_kept_is_read_in_place_of_the_file(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    write_gradient(data / "a.png")
    cache = ImageCache(folder)
    cache.read(data / "a.png", half)
    (kept,) = folder.rglob("*.jpg")
    assert list(data.iterdir()) == [data / "a.png"]
    Image.new("RGB", (48, 32), (1, 2, 3)).save(kept, quality=95)
    assert cache.read(data / "a.png", half).pixels.max() <= 4
    # Another size, a file that was changed, and another file are read themselves.
    assert cache.read(data / "a.png", as_it_is).pixels.max() > 240
    os.utime(data / "a.png", ns=(1, 1))
    assert cache.read(data / "a.png", half).pixels.max() > 240
    (data / "a.png").rename(data / "b.png")
    assert cache.read(data / "b.png", half).pixels.max() > 240
    assert len(list(folder.rglob("*.jpg"))) == 4
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_damaged_file_of_the_cache_is_made_again(content: bytes | None, tmp_path: Path) -> None:
    write_gradient(tmp_path / "a.png")
    cache = ImageCache(tmp_path / "cache")
    before = cache.read(tmp_path / "a.png", half).pixels
    (kept,) = (tmp_path / "cache").rglob("*.jpg")
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert np.array_equal(cache.read(tmp_path / "a.png", half).pixels, before)
    assert kept.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"no image at all", "is not an image"),
        ("half", "is damaged or cut short"),
    ],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_damaged_files_are_named(
    content: bytes | str | None, message: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content == "half":
        write_gradient(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(PhotoError, match=rf"{name}.* {message}"):
        ImageCache(tmp_path / "cache").read(path, half)
    assert not list((tmp_path / "cache").rglob("*.jpg"))


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    Image.new("RGBA", (8, 8), (10, 20, 30, 255)).save(tmp_path / "clear.png")
    cache = ImageCache(None)
    assert cache.read(tmp_path / "grey.png", half).pixels[0, 0].tolist() == [77, 77, 77]
    assert cache.read(tmp_path / "clear.png", half).pixels[0, 0].tolist() == [10, 20, 30]


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file.*name another real.cache"):
        ImageCache(tmp_path / "file")
    write_gradient(tmp_path / "a.png")
    cache = ImageCache(tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    with pytest.raises(OutputError, match="cannot write"):
        cache.read(tmp_path / "a.png", half)
