"""Whether labels agree with themselves: places in file names with offsets, headings with motion.

A sign, a unit or a file of another place that is wrong moves every figure and raises no error; here
it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ciper.data.listing import Finding, Level, examples
from ciper.data.protocol import Protocol, Sample
from ciper.data.vigor import CITIES, GsdFit, fitted_gsd
from ciper.geo import FloatArray, LocalFrame, bearing_deg, heading_error_deg

# Of VIGOR's corrected labels; the real ones leave 0.20 m and at most 0.40 m.
_MAX_RMS_M, _MAX_LEFT_M = 0.3, 1.0
_GSD_TOLERANCE = 1e-3
# The scale that one panorama tells: names are rounded to 0.1 m, offsets are some 10 m.
_GSD_NOISE = 0.02

_FRAME_S = 0.1  # KITTI's
_MAX_GAP = 5  # frames between neighbours
_MAX_SPEED = 50.0  # m/s
_MIN_STEP_M = 0.5  # shorter ones have no direction
_MAX_TURN_DEG = 5.0


def vigor_findings(protocol: Protocol, *, are_corrected: bool) -> list[Finding]:
    """Each city's gsd as the coordinates in the names tell it, against the published one."""
    fits = fitted_gsd(protocol)
    return [_gsd_finding(city, fit, are_corrected=are_corrected) for city, fit in fits.items()]


def _gsd_finding(city: str, fit: GsdFit, *, are_corrected: bool) -> Finding:
    published = CITIES[city].gsd
    off = fit.gsd / published - 1.0
    kind = "corrected" if are_corrected else "original"
    text = (
        f"fitted gsd {fit.gsd:.6f} m/px, published {published:.6f} ({off:+.2%}); {fit.rms_m:.2f} m "
        f"rms and {fit.max_m:.2f} m at most are left of {fit.num_panoramas:,} panoramas"
    )
    tolerance = _GSD_TOLERANCE + _GSD_NOISE / math.sqrt(fit.num_panoramas)
    is_right = abs(off) <= tolerance and fit.rms_m <= _MAX_RMS_M and fit.max_m <= _MAX_LEFT_M
    level: Level = "ok"
    if not is_right and are_corrected:
        level = "problem"
        text += "; offsets and names disagree: fetch splits__corrected again"
    elif not is_right:
        level = "note"
        text += "; they were made with another gsd: --labels corrected are the better ones"
    return Finding(level, f"{city} {kind} labels", text)


def kitti_findings(protocol: Protocol) -> list[Finding]:
    """Speed, and heading against motion, between neighbouring frames of each drive.

    Aerial images are centred on their frames' fixes, so that these are known.
    """
    drives: dict[str, list[Sample]] = {}
    for sample in protocol.samples:
        drives.setdefault(sample.image.path.parent.name, []).append(sample)
    steps = [_Steps.of(name, samples) for name, samples in drives.items()]
    driven = [drive for drive in steps if drive.is_driven]
    return [*_scatter_findings(steps), *_speed_findings(driven), *_motion_findings(driven)]


@dataclass(frozen=True, eq=False)
class _Steps:
    """The steps between neighbouring frames of a drive.

    Attributes:
        drive: its name.
        frames: (S,) names of the frames that they lead to.
        length_m: (S,).
        speed: (S,) m/s.
        turn_deg: (S,) heading less direction of motion, in [-180, 180).
    """

    drive: str
    frames: tuple[str, ...]
    length_m: FloatArray
    speed: FloatArray
    turn_deg: FloatArray

    @classmethod
    def of(cls, drive: str, samples: Sequence[Sample]) -> _Steps:
        ordered = sorted(samples, key=lambda sample: int(sample.image.path.stem))
        gap = np.diff([int(sample.image.path.stem) for sample in ordered])
        near = np.flatnonzero(gap <= _MAX_GAP)
        east_m, north_m = np.diff(_places_m(ordered), axis=0)[near].T
        headings_deg = np.array([sample.heading_deg for sample in ordered])[near]
        length_m = np.hypot(east_m, north_m)
        return cls(
            drive=drive,
            frames=tuple(ordered[i + 1].image.path.name for i in near),
            length_m=length_m,
            speed=length_m / (gap[near] * _FRAME_S),
            turn_deg=heading_error_deg(headings_deg, bearing_deg(east_m, north_m)),
        )

    @property
    def is_driven(self) -> bool:
        """Whether there are steps, and most are no longer than a car's."""
        return self.speed.size > 0 and float(np.median(self.speed)) <= _MAX_SPEED

    @property
    def median_turn_deg(self) -> float | None:
        """Median of the absolute turns over steps that have a direction, None without any."""
        turns_deg = np.abs(self.turn_deg[self.length_m >= _MIN_STEP_M])
        return float(np.median(turns_deg)) if turns_deg.size else None


def _places_m(samples: Sequence[Sample]) -> FloatArray:
    """(N, 2) metres east and north of the first one's fix."""
    frame = LocalFrame(lat=samples[0].image.lat, lon=samples[0].image.lon)
    lat, lon = np.array([(sample.image.lat, sample.image.lon) for sample in samples]).T
    return np.stack(frame.to_local(lat=lat, lon=lon), axis=-1)


def _scatter_findings(drives: Sequence[_Steps]) -> list[Finding]:
    """Drives whose frames lie anywhere: nothing can be said of their motion."""
    scattered = [drive for drive in drives if drive.speed.size and not drive.is_driven]
    if not scattered:
        return []
    names = examples([drive.drive for drive in scattered])
    text = (
        f"the frames of {names} lie farther apart than a car drives, most by "
        f"{np.median(np.concatenate([drive.length_m for drive in scattered])):.0f} m or more: a "
        "simulated drive, or else a mix of several; headings were not compared with the motion"
    )
    return [Finding("note", "fixes of the drives", text)]


def _speed_findings(drives: Sequence[_Steps]) -> list[Finding]:
    subject, found = "fixes of the drives", []
    for drive in drives:
        worst = int(np.argmax(drive.speed))
        if drive.speed[worst] > _MAX_SPEED:
            text = (
                f"{drive.drive}: {drive.length_m[worst]:.0f} m from the frame before to "
                f"{drive.frames[worst]}; expected below {_MAX_SPEED:g} m/s: is its oxts file "
                "another drive's? Unpack the drive again"
            )
            found.append(Finding("problem", subject, text))
    if drives and not found:
        speeds = np.concatenate([drive.speed for drive in drives])
        text = f"{speeds.size:,} steps in {len(drives)} drives, at most {speeds.max():.1f} m/s"
        found.append(Finding("ok", subject, text))
    return found


def _motion_findings(drives: Sequence[_Steps]) -> list[Finding]:
    subject, found = "headings of the drives", []
    medians = {
        drive.drive: median for drive in drives if (median := drive.median_turn_deg) is not None
    }
    for name, median_deg in medians.items():
        if median_deg > _MAX_TURN_DEG:
            text = (
                f"{name}: heading and direction of motion differ by {median_deg:.1f} deg (median); "
                f"expected at most {_MAX_TURN_DEG:g}: is the yaw counter-clockwise from east?"
            )
            found.append(Finding("problem", subject, text))
    if medians and not found:
        worst = max(medians, key=medians.__getitem__)
        text = (
            f"within {np.median(list(medians.values())):.2f} deg of the motion (median), at worst "
            f"{medians[worst]:.2f} deg in {worst}"
        )
        found.append(Finding("ok", subject, text))
    return found


def place_findings(protocol: Protocol) -> list[Finding]:
    """Whether cameras stand in their aerial images, and how far from the centre of their chips."""
    samples, subject = protocol.samples, "cameras"
    outside = [s for s in samples if max(abs(s.x_m), abs(s.y_m)) > s.image.side_m / 2]
    if outside:
        first = outside[0]
        text = (
            f"{len(outside):,} of {len(samples):,} stand outside of their aerial image, as "
            f"{first.name} does at {first.x_m:+.1f} m, {first.y_m:+.1f} m; expected within "
            f"{first.image.side_m / 2:.1f} m: are the labels of other images?"
        )
        return [Finding("problem", subject, text)]
    poses = np.array([(s.x_m - s.cut.x_m, s.y_m - s.cut.y_m) for s in samples])
    away_m = np.hypot(*poses.T)
    text = (
        f"{np.median(away_m):.1f} m from the centres of their chips (median), "
        f"{away_m.max():.1f} m at most"
    )
    return [Finding("ok", subject, text)]


def geometry_findings(protocol: Protocol, *, are_corrected: bool = True) -> list[Finding]:
    """What can be told of a data set's labels without opening an image.

    Args:
        protocol: of which each photo counts once.
        are_corrected: which of VIGOR's labels they are.
    """
    once = {sample.photo: sample for sample in protocol.samples}
    protocol = replace(protocol, samples=tuple(once.values()))
    if not once:
        return []
    found = place_findings(protocol)
    if protocol.dataset == "vigor":
        found += vigor_findings(protocol, are_corrected=are_corrected)
    elif protocol.dataset == "kitti":
        found += kitti_findings(protocol)
    return found
