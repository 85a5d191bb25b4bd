"""What a photo's file says about its camera: EXIF, read and written, and XMP (`ciper.xmp`).

A file's position is reported, never used: whoever asks for a prior or a truth takes it from here
explicitly. Metadata that cannot be understood are listed in `PhotoMetadata.problems`, for the
caller to show; they never stop a photo from being read.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import IFDRational

from ciper.errors import PhotoError
from ciper.geo import wrap_deg
from ciper.xmp import finite_number, read_xmp

# Orientations 5 to 8 swap rows and columns (EXIF 2.32, tag 0x0112).
_SWAPPING_ORIENTATIONS = (5, 6, 7, 8)

# Decoding takes 4 bytes per pixel and the array 3 more: 0.8 GB at this size.
MAX_PHOTO_PX = 120_000_000

# What Pillow raises on a header, an offset, a count or a type that is damaged.
_EXIF_ERRORS = (
    SyntaxError,
    struct.error,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    OSError,
    RecursionError,
)


@dataclass(frozen=True)
class PhotoMetadata:
    """What the file says; None where it is silent.

    Attributes:
        heading_deg: direction of the photo's centre column, [0, 360), clockwise from north.
        heading_is_magnetic: that north is the magnetic one; true only where the file says so.
        lat: WGS84 latitude in degrees.
        lon: WGS84 longitude in degrees.
        projection: as in XMP, in small letters, e.g. "equirectangular", "cylindrical".
        hfov_deg: horizontal field of view of a panorama.
        vfov_top_deg: elevation of a panorama's upper edge.
        vfov_bottom_deg: elevation of its lower edge.
        pitch_deg: of a panorama's centre column, or of a drone's camera.
        roll_deg: likewise, clockwise.
        focal_35mm: focal length in millimetres on 35 mm film.
        height_m: of a drone above the place where it took off.
        problems: what could not be understood, one line each.
    """

    heading_deg: float | None = None
    heading_is_magnetic: bool = False
    lat: float | None = None
    lon: float | None = None
    projection: str | None = None
    hfov_deg: float | None = None
    vfov_top_deg: float | None = None
    vfov_bottom_deg: float | None = None
    pitch_deg: float | None = None
    roll_deg: float | None = None
    focal_35mm: float | None = None
    height_m: float | None = None
    problems: tuple[str, ...] = ()


def open_image(path: str | Path) -> Image.Image:
    """Open an image file without decoding it.

    Raises:
        PhotoError: missing, a folder, empty, not an image, or too many pixels to decode.
    """
    path = Path(path)
    _check_file(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 Mpx, which large panoramas have. It also warns of damaged EXIF,
            # which `read_metadata` lists.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    except UnidentifiedImageError as error:
        raise PhotoError(
            f"photo {path} is not an image that can be read; expected JPEG, PNG, TIFF or WebP"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise PhotoError(f"photo {path} cannot be opened: {error}; copy it again") from error
    if image.width * image.height > MAX_PHOTO_PX:
        image.close()
        raise _too_large(path, f"{image.width} x {image.height} px")
    return image


def _check_file(path: Path) -> None:
    """Refuse what is no file with something in it."""
    try:
        if not path.exists():
            raise PhotoError(f"photo {path} does not exist; check the path")
        if path.is_dir():
            raise PhotoError(f"photo {path} is a folder; name the photos in it")
        if path.stat().st_size == 0:
            raise PhotoError(f"photo {path} is empty (0 bytes); copy it again")
    except OSError as error:
        raise PhotoError(
            f"photo {path} cannot be opened ({error.strerror or error}); check its permissions"
        ) from error


def _too_large(path: Path, size: str) -> PhotoError:
    return PhotoError(
        f"photo {path} is too large ({size}); expected at most {MAX_PHOTO_PX // 1_000_000} million "
        "pixels: make it smaller"
    )


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where EXIF is silent or damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except _EXIF_ERRORS:  # which `read_metadata` lists
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def oriented_size_px(image: Image.Image) -> tuple[int, int]:
    """(height, width) after the EXIF orientation is applied."""
    is_swapped = orientation_of(image) in _SWAPPING_ORIENTATIONS
    return (image.width, image.height) if is_swapped else (image.height, image.width)


def read_metadata(photo: str | Path | Image.Image) -> PhotoMetadata:
    """Read a photo's EXIF and XMP.

    A heading in XMP belongs to the panorama, or the gimbal, and wins over EXIF's GPSImgDirection.

    Raises:
        PhotoError: the file is missing or not an image.
    """
    if not isinstance(photo, Image.Image):
        with open_image(photo) as image:
            return read_metadata(image)
    problems: list[str] = []
    found = _read_exif(photo, problems)
    found.update(read_xmp(photo, problems))
    return PhotoMetadata(**found, problems=tuple(problems))


# ------------------------------------------------------------------------------------------ EXIF


def _read_exif(image: Image.Image, problems: list[str]) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            gps, camera = _exif_tables(image)
        except _EXIF_ERRORS as error:
            problems.append(f"EXIF is damaged: {error}")
            return {}
    problems.extend(f"EXIF is damaged: {warning.message}" for warning in caught)
    found: dict[str, Any] = {}
    heading_deg = finite_number(gps.get(ExifTags.GPS.GPSImgDirection), "EXIF direction", problems)
    if heading_deg is not None:
        found["heading_deg"] = float(wrap_deg(heading_deg))
        reference = str(gps.get(ExifTags.GPS.GPSImgDirectionRef, "T")).strip("\0 ").upper()
        found["heading_is_magnetic"] = reference == "M"
    found.update(_read_position(gps, problems))
    focal_35mm = _focal_35mm(camera, problems)
    if focal_35mm is not None:
        found["focal_35mm"] = focal_35mm
    return found


def _exif_tables(image: Image.Image) -> tuple[Mapping[int, Any], Mapping[int, Any]]:
    """EXIF's tables of the position and of the camera."""
    if isinstance(image.info.get("exif"), bytes):
        # Opening the file has parsed it already, and swallowed the warnings.
        exif = Image.Exif()
        exif.load(image.info["exif"])
    else:
        exif = image.getexif()
    return exif.get_ifd(ExifTags.IFD.GPSInfo), exif.get_ifd(ExifTags.IFD.Exif)


def _read_position(gps: Mapping[int, Any], problems: list[str]) -> dict[str, float]:
    tags = ExifTags.GPS
    if tags.GPSLatitude not in gps or tags.GPSLongitude not in gps:
        return {}
    lat = _degrees(gps[tags.GPSLatitude], gps.get(tags.GPSLatitudeRef, "N"), problems)
    lon = _degrees(gps[tags.GPSLongitude], gps.get(tags.GPSLongitudeRef, "E"), problems)
    if lat is None or lon is None:
        return {}
    if abs(lat) > 90.0 or abs(lon) > 180.0:
        problems.append(f"EXIF position {lat}, {lon} is not on Earth")
        return {}
    return {"lat": lat, "lon": lon}


def _degrees(parts: Any, reference: Any, problems: list[str]) -> float | None:
    """Signed degrees from (degrees, minutes, seconds) and N, S, E or W."""
    numbers = [finite_number(part, "EXIF position", problems) for part in np.atleast_1d(parts)]
    if not numbers or len(numbers) > 3 or any(number is None for number in numbers):
        return None
    degrees = sum(
        number / 60.0**power for power, number in enumerate(numbers) if number is not None
    )
    return -degrees if str(reference).strip("\0 ").upper() in ("S", "W") else degrees


def _focal_35mm(exif: Mapping[int, Any], problems: list[str]) -> float | None:
    equivalent = finite_number(
        exif.get(ExifTags.Base.FocalLengthIn35mmFilm), "EXIF 35 mm", problems
    )
    if equivalent is None or equivalent <= 0.0:  # 0 means unknown (EXIF 2.32, tag 0xA405)
        return None
    # The tag holds whole millimetres. A full-frame camera tells the same length more finely.
    actual = finite_number(exif.get(ExifTags.Base.FocalLength), "EXIF focal length", problems)
    if actual is not None and abs(actual - equivalent) <= 0.5:
        return actual
    return equivalent


def photo_exif(
    *, heading_deg: float, lat: float, lon: float, hfov_deg: float | None = None
) -> Image.Exif:
    """EXIF of a photo that knows its true heading, its position and, for a pinhole, its lens.

    Args:
        heading_deg: clockwise from true north.
        lat: WGS84 latitude in degrees.
        lon: WGS84 longitude in degrees.
        hfov_deg: of a pinhole photo that is not higher than wide, written as the lens of a
            full-frame camera.
    """
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "ciper"
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[ExifTags.GPS.GPSVersionID] = b"\x02\x03\x00\x00"
    gps[ExifTags.GPS.GPSLatitudeRef] = "N" if lat >= 0.0 else "S"
    gps[ExifTags.GPS.GPSLatitude] = _sexagesimal(abs(lat))
    gps[ExifTags.GPS.GPSLongitudeRef] = "E" if lon >= 0.0 else "W"
    gps[ExifTags.GPS.GPSLongitude] = _sexagesimal(abs(lon))
    gps[ExifTags.GPS.GPSImgDirectionRef] = "T"
    gps[ExifTags.GPS.GPSImgDirection] = _rational(heading_deg % 360.0, 10_000)
    if hfov_deg is not None:
        focal_35mm = 18.0 / math.tan(math.radians(hfov_deg) / 2.0)
        camera = exif.get_ifd(ExifTags.IFD.Exif)
        camera[ExifTags.Base.FocalLength] = _rational(focal_35mm, 100_000)
        camera[ExifTags.Base.FocalLengthIn35mmFilm] = max(1, round(focal_35mm))
    return exif


def _rational(value: float, denominator: int) -> IFDRational:
    return IFDRational(round(value * denominator), denominator)


def _sexagesimal(degrees: float) -> tuple[IFDRational, IFDRational, IFDRational]:
    """Whole degrees, whole minutes and seconds to a millionth (30 micrometres on the ground)."""
    micro = round(degrees * 3600.0 * 1_000_000)
    minutes, micro_seconds = divmod(micro, 60_000_000)
    return (
        IFDRational(minutes // 60, 1),
        IFDRational(minutes % 60, 1),
        IFDRational(micro_seconds, 1_000_000),
    )
