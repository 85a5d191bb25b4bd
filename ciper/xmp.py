"""What a photo's XMP says about its camera: panoramas (XMP-GPano) and drones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml.common import DefusedXmlException
from PIL import Image

from ciper.geo import wrap_deg

_GPANO_NAMESPACE = "http://ns.google.com/photos/1.0/panorama/"
_DRONE_NAMESPACE = "http://www.dji.com/drone-dji/1.0/"
_DRONE_TAGS = ("GimbalYawDegree", "GimbalPitchDegree", "GimbalRollDegree", "RelativeAltitude")


def read_xmp(image: Image.Image, problems: list[str]) -> dict[str, Any]:
    """Fields of `PhotoMetadata` that XMP tells; what is not understood is added to `problems`."""
    try:
        tags = dict(_leaves(image.getxmp()))
    except (ParseError, DefusedXmlException, ValueError, UnicodeError) as error:
        problems.append(f"XMP cannot be parsed ({error})")
        return {}
    except RecursionError:
        problems.append("XMP cannot be parsed (it is nested too deeply)")
        return {}
    return {**_read_drone(tags, problems), **_read_gpano(tags, problems)}


def finite_number(value: Any, name: str, problems: list[str]) -> float | None:
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


def _packet(namespace: str, prefix: str, fields: Mapping[str, Any]) -> bytes:
    properties = "".join(
        f"\n   <{prefix}:{name}>{value}</{prefix}:{name}>" for name, value in fields.items()
    )
    packet = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        ' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
        f'  <rdf:Description rdf:about="" xmlns:{prefix}="{namespace}">{properties}\n'
        "  </rdf:Description>\n </rdf:RDF>\n</x:xmpmeta>\n"
        '<?xpacket end="w"?>'
    )
    return packet.encode("utf-8")


# -------------------------------------------------------------------------------------- XMP-GPano


def _read_gpano(tags: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    """Fields of Google's Photo Sphere schema (developers.google.com/streetview/spherical-metadata).

    Angles come from ratios to the full sphere, so a panorama that was resized later is read right.
    """
    projection = tags.get("ProjectionType")
    if projection is None:
        return {}
    found: dict[str, Any] = {"projection": str(projection).strip().lower()}
    if found["projection"] != "equirectangular":
        return found
    numbers = {
        name: finite_number(tags.get(name), f"XMP {name}", problems)
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
    return _packet(_GPANO_NAMESPACE, "GPano", fields)


# ---------------------------------------------------------------------------------------- drones


def _read_drone(tags: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    """Where a drone's gimbal looked and how high it flew: fields of DJI's XMP.

    Angles are those of the manuals' photo data list (Mavic 3E: north-east-down, in the order yaw,
    pitch, roll): yaw clockwise from north, pitch -90 straight down. The height is that above the
    place where it took off.
    """
    yaw_deg, pitch_deg, roll_deg, height_m = (
        finite_number(tags.get(name), f"XMP {name}", problems) for name in _DRONE_TAGS
    )
    if pitch_deg is None:
        return {}
    found: dict[str, Any] = {"pitch_deg": min(max(pitch_deg, -90.0), 90.0)}
    # Beyond straight down some write a gimbal as turned over: then yaw is not the image's up.
    if yaw_deg is not None and abs(roll_deg or 0.0) <= 90.0:
        found["heading_deg"] = float(wrap_deg(yaw_deg))
        found["heading_is_magnetic"] = False
    if height_m is not None and height_m > 0.0:
        found["height_m"] = height_m
    elif height_m is not None:
        problems.append(f"XMP RelativeAltitude {height_m:g} is not above the place of take-off")
    return found


def drone_xmp(*, heading_deg: float, pitch_deg: float, height_m: float | None) -> bytes:
    """An XMP packet of a drone's photo.

    Args:
        heading_deg: of the gimbal, clockwise from true north.
        pitch_deg: of the gimbal, -90 straight down.
        height_m: above the ground; None to say nothing of it.
    """
    fields = {
        "GimbalYawDegree": f"{(heading_deg + 180.0) % 360.0 - 180.0:+.2f}",
        "GimbalPitchDegree": f"{pitch_deg:+.2f}",
    }
    if height_m is not None:
        fields["RelativeAltitude"] = f"{height_m:+.2f}"
    return _packet(_DRONE_NAMESPACE, "drone-dji", fields)
