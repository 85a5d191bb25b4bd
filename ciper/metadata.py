"""What a photo's file says about its camera: EXIF and XMP-GPano, read and written.

A file's position is reported, never used: whoever asks for a prior or a truth takes it from here
explicitly. Metadata that cannot be understood are listed in `PhotoMetadata.problems`, for the
caller to show; they never stop a photo from being read.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml.common import DefusedXmlException
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import IFDRational

from ciper.errors import PhotoError
from ciper.geo import wrap_deg

# Orientations 5 to 8 swap rows and columns (EXIF 2.32, tag 0x0112).
_SWAPPING_ORIENTATIONS = (5, 6, 7, 8)
_GPANO_NAMESPACE = "http://ns.google.com/photos/1.0/panorama/"

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
        pitch_deg: of a panorama's centre column.
        roll_deg: likewise, clockwise.
        focal_35mm: focal length in millimetres on 35 mm film.
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
    """Read a photo's EXIF and XMP-GPano.

    A heading in XMP-GPano belongs to the panorama and wins over EXIF's GPSImgDirection.

    Raises:
        PhotoError: the file is missing or not an image.
    """
    if not isinstance(photo, Image.Image):
        with open_image(photo) as image:
            return read_metadata(image)
    problems: list[str] = []
    found = _read_exif(photo, problems)
    found.update(_read_gpano(photo, problems))
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
    heading_deg = _number(gps.get(ExifTags.GPS.GPSImgDirection), "EXIF direction", problems)
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
    numbers = [_number(part, "EXIF position", problems) for part in np.atleast_1d(parts)]
    if not numbers or len(numbers) > 3 or any(number is None for number in numbers):
        return None
    degrees = sum(
        number / 60.0**power for power, number in enumerate(numbers) if number is not None
    )
    return -degrees if str(reference).strip("\0 ").upper() in ("S", "W") else degrees


def _focal_35mm(exif: Mapping[int, Any], problems: list[str]) -> float | None:
    equivalent = _number(exif.get(ExifTags.Base.FocalLengthIn35mmFilm), "EXIF 35 mm", problems)
    if equivalent is None or equivalent <= 0.0:  # 0 means unknown (EXIF 2.32, tag 0xA405)
        return None
    # The tag holds whole millimetres. A full-frame camera tells the same length more finely.
    actual = _number(exif.get(ExifTags.Base.FocalLength), "EXIF focal length", problems)
    if actual is not None and abs(actual - equivalent) <= 0.5:
        return actual
    return equivalent


def _number(value: Any, name: str, problems: list[str]) -> float | None:
    """A finite float, or None with a problem noted if there is something else."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        problems.append(f"{name} {value!r} is not a number")
        return None
    return number


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


# ------------------------------------------------------------------------------------- XMP-GPano


def _read_gpano(image: Image.Image, problems: list[str]) -> dict[str, Any]:
    """Fields of Google's Photo Sphere schema (developers.google.com/streetview/spherical-metadata).

    Angles come from ratios to the full sphere, so a panorama that was resized later is read right.
    """
    try:
        tags = dict(_leaves(image.getxmp()))
    except (ParseError, DefusedXmlException, ValueError, UnicodeError) as error:
        problems.append(f"XMP cannot be parsed ({error})")
        return {}
    except RecursionError:
        problems.append("XMP cannot be parsed (it is nested too deeply)")
        return {}
    projection = tags.get("ProjectionType")
    if projection is None:
        return {}
    found: dict[str, Any] = {"projection": str(projection).strip().lower()}
    if found["projection"] != "equirectangular":
        return found
    numbers = {
        name: _number(tags.get(name), f"XMP {name}", problems)
        for name in (*_CROP_TAGS, *_POSE_TAGS)
    }
    crop = _crop_ranges(numbers, problems)
    found.update(crop.angles)
    found.update(_strip_pose(numbers, crop.offset_deg))
    return found


_CROP_TAGS = (
    "FullPanoWidthPixels",
    "FullPanoHeightPixels",
    "CroppedAreaImageWidthPixels",
    "CroppedAreaImageHeightPixels",
    "CroppedAreaLeftPixels",
    "CroppedAreaTopPixels",
)
_POSE_TAGS = ("PoseHeadingDegrees", "PosePitchDegrees", "PoseRollDegrees")


def _leaves(node: Any) -> Iterator[tuple[str, str]]:
    """Names and texts of all XMP properties, however deep; attributes and elements alike."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            if isinstance(child, str):
                yield str(name), child
            else:
                yield from _leaves(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from _leaves(child)


@dataclass(frozen=True)
class _Crop:
    """Angular extent of a strip in its sphere, and the bearing of its middle in the sphere."""

    angles: dict[str, float]
    offset_deg: float


def _crop_ranges(numbers: Mapping[str, float | None], problems: list[str]) -> _Crop:
    values = [numbers[name] for name in _CROP_TAGS]
    if any(value is None for value in values):
        if any(value is not None for value in values):
            problems.append("XMP-GPano gives only a part of the panorama's extent; it is ignored")
        return _Crop({}, 0.0)
    full_w, full_h, width, height, left, top = (float(value or 0.0) for value in values)
    # Some writers round the strip a pixel beyond the sphere.
    is_sound = (
        full_w > 0
        and full_h > 0
        and 0 < width <= full_w + 1
        and 0 < height <= full_h + 1
        and 0 <= top <= full_h - height + 1
    )
    if not is_sound:
        problems.append(
            f"XMP-GPano's strip of {width:g} x {height:g} px at ({left:g}, {top:g}) does not fit "
            f"its sphere of {full_w:g} x {full_h:g} px; it is ignored"
        )
        return _Crop({}, 0.0)
    angles = {
        "hfov_deg": min(360.0, 360.0 * width / full_w),
        "vfov_top_deg": 90.0 - 180.0 * top / full_h,
        "vfov_bottom_deg": max(-90.0, 90.0 - 180.0 * (top + height) / full_h),
    }
    return _Crop(angles, 360.0 * ((left + width / 2.0) / full_w - 0.5))


def _strip_pose(numbers: Mapping[str, float | None], offset_deg: float) -> dict[str, Any]:
    """Heading, pitch and roll of the strip's middle.

    XMP-GPano gives the pose of the middle of the *full sphere*. A strip that lies `offset_deg` to
    its right looks along another axis of the same tilted sphere: turn the sphere's axes about its
    own vertical and take the angles of the result.
    """
    heading_deg, pitch_deg, roll_deg = (numbers[name] for name in _POSE_TAGS)
    pitch, roll = math.radians(pitch_deg or 0.0), math.radians(roll_deg or 0.0)
    offset = math.radians(offset_deg)
    axis_right = np.array(
        [math.cos(roll), math.sin(roll) * math.sin(pitch), -math.sin(roll) * math.cos(pitch)]
    )
    axis_forward = np.array([0.0, math.cos(pitch), math.sin(pitch)])
    strip_forward = math.cos(offset) * axis_forward + math.sin(offset) * axis_right
    strip_right = math.cos(offset) * axis_right - math.sin(offset) * axis_forward
    strip_up = np.cross(strip_right, strip_forward)
    pose: dict[str, Any] = {}
    if pitch_deg is not None or roll_deg is not None:
        pose["pitch_deg"] = math.degrees(math.asin(float(np.clip(strip_forward[2], -1.0, 1.0))))
        pose["roll_deg"] = math.degrees(math.atan2(-strip_right[2], strip_up[2]))
    if heading_deg is not None:
        turn_deg = math.degrees(math.atan2(strip_forward[0], strip_forward[1]))
        pose["heading_deg"] = float(wrap_deg(heading_deg + turn_deg))
        pose["heading_is_magnetic"] = False
    return pose


def gpano_xmp(
    *,
    heading_deg: float,
    size_px: tuple[int, int],
    hfov_deg: float = 360.0,
    vertical_range_deg: tuple[float, float] = (90.0, -90.0),
    tilt_deg: tuple[float, float] = (0.0, 0.0),
) -> bytes:
    """An XMP packet that makes viewers and `read_metadata` understand an equirectangular photo.

    Args:
        heading_deg: of the photo's centre column, clockwise from true north.
        size_px: (height, width) of the photo.
        hfov_deg: horizontal field of view, written to the nearest pixel of the full sphere.
        vertical_range_deg: elevations of the upper and the lower edge, likewise.
        tilt_deg: (pitch, roll).
    """
    height_px, width_px = size_px
    top_deg, bottom_deg = vertical_range_deg
    # The strip is centred in its sphere, so that the pose of both is the same.
    margin_px = round((width_px * 360.0 / hfov_deg - width_px) / 2.0)
    full_height_px = round(height_px * 180.0 / (top_deg - bottom_deg))
    fields = {
        "ProjectionType": "equirectangular",
        "UsePanoramaViewer": "True",
        "FullPanoWidthPixels": width_px + 2 * margin_px,
        "FullPanoHeightPixels": full_height_px,
        "CroppedAreaImageWidthPixels": width_px,
        "CroppedAreaImageHeightPixels": height_px,
        "CroppedAreaLeftPixels": margin_px,
        "CroppedAreaTopPixels": round((90.0 - top_deg) / 180.0 * full_height_px),
        "PoseHeadingDegrees": f"{heading_deg % 360.0:.6f}",
        "PosePitchDegrees": f"{tilt_deg[0]:.6f}",
        "PoseRollDegrees": f"{tilt_deg[1]:.6f}",
    }
    properties = "".join(
        f"\n   <GPano:{name}>{value}</GPano:{name}>" for name, value in fields.items()
    )
    packet = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        ' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
        f'  <rdf:Description rdf:about="" xmlns:GPano="{_GPANO_NAMESPACE}">{properties}\n'
        "  </rdf:Description>\n </rdf:RDF>\n</x:xmpmeta>\n"
        '<?xpacket end="w"?>'
    )
    return packet.encode("utf-8")
