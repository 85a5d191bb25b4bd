"""One picture per answer: the photo, the place from above with its probability, and the city."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle
from numpy.typing import NDArray
from PIL import Image

from ciper.camera import Camera
from ciper.data.plan_view import ground_outline_m
from ciper.data.poses import PhotoPose
from ciper.drawing import (
    ANSWER,
    DPI,
    FAINT,
    HALO,
    INK,
    MISSING,
    NUM_DECADES,
    OTHER,
    OUTLINE,
    PAPER,
    TRUTH,
    WARNING,
    draw_arrow,
    draw_north_arrow,
    draw_scale_bar,
    frame_map,
    heat_rgba,
    save_figure,
)
from ciper.errors import GalleryError, OutputError, RasterError
from ciper.gallery.store import Gallery
from ciper.geo import LocalFrame, Pose, forward, right, wrap_signed_deg
from ciper.localize import Localization, Localizer
from ciper.pose_grid import NUM_FINE
from ciper.posterior import Posterior

Float = NDArray[np.floating[Any]]
Rgb = NDArray[np.uint8]

VIEW_M = 200.0
VIEW_PX = 800
HEAT_M = 0.5
CLOSE_UP_M = 40.0
CLOSE_BELOW_M = 6.0  # an answer whose 50 % radius is shorter is also shown larger
MIN_LABELLED_M = 7.0
# Beyond this the overview has no imagery: reading a whole county for a thumbnail takes too long.
MAX_OVERVIEW_M = 3000.0
OVERVIEW_BINS = 160
MAX_PHOTO_PX = 1400
MAX_ROWS = 10  # of the table of hypotheses: more would run into the legend
COMPASS = ("N", "NE", "E", "SE", "S", "SW", "W", "NW")
UNKNOWN_SIGMA_DEG = 100.0  # a uniform heading has a spread of 123 deg


def answer_picture(
    localization: Localization,
    localizer: Localizer,
    photo_pixels: Rgb,
    path: str | Path,
    *,
    top: int = 5,
    truth: Pose | PhotoPose | None = None,
) -> None:
    """Draw an answer as a PNG that appears at once or not at all.

    Args:
        localization: the answer.
        localizer: that gave it; its gallery's rasters are read for the background.
        photo_pixels: (H, W, 3) the photo.
        path: the file to write; its folder is made if absent.
        top: how many hypotheses to show.
        truth: where the camera was, to be marked.

    Raises:
        OutputError: the path does not end in .png or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise OutputError(f"picture {path} is not a PNG; expected a name that ends in .png")
    scene = _Scene.of(localization, localizer.gallery, top=top, truth=truth)
    figure = Figure(figsize=(15.0, 9.0), dpi=DPI, facecolor=PAPER)
    _draw_title(figure, scene)
    _draw_aerial(figure.add_axes((0.022, 0.035, 0.51, 0.85)), scene)
    _draw_photo(figure.add_axes((0.553, 0.522, 0.425, 0.345)), scene, photo_pixels)
    _draw_overview(figure.add_axes((0.553, 0.035, 0.243, 0.405)), scene)
    _draw_hypotheses(figure.add_axes((0.812, 0.035, 0.166, 0.405)), scene)
    save_figure(figure, path)


# ------------------------------------------------------------------------------------------ scene


@dataclass(frozen=True)
class _Spot:
    """A pose in metres about the answer; an unknown heading is None."""

    x_m: float
    y_m: float
    heading_deg: float | None

    @property
    def distance_m(self) -> float:
        return math.hypot(self.x_m, self.y_m)


@dataclass(frozen=True)
class _Scene:
    """What there is to draw: the answer, and other poses in metres about it."""

    found: Localization
    gallery: Gallery
    hypotheses: tuple[_Spot, ...]
    truth: _Spot | None

    @property
    def heading_deg(self) -> float | None:
        """Of the answer; None if the model knows nothing of headings."""
        return self.found.pose.heading_deg if self.found.says_heading else None

    @classmethod
    def of(
        cls, found: Localization, gallery: Gallery, *, top: int, truth: Pose | PhotoPose | None
    ) -> _Scene:
        frame = LocalFrame(lat=found.pose.lat, lon=found.pose.lon)

        def spot(pose: Pose | PhotoPose, heading_deg: float | None) -> _Spot:
            x_m, y_m = frame.to_local(lat=pose.lat, lon=pose.lon)
            return _Spot(float(x_m), float(y_m), heading_deg)

        poses = [found.hypothesis_pose(h) for h in found.posterior.hypotheses[:top]]
        spots = tuple(spot(p, p.heading_deg if found.says_heading else None) for p in poses)
        return cls(found, gallery, spots, None if truth is None else spot(truth, truth.heading_deg))

    @property
    def posterior(self) -> Posterior:
        return self.found.posterior

    def imagery(self, *, x_m: float, y_m: float, size_m: float, size_px: int) -> Rgb | str:
        """A square about a place given in metres from the answer, or why there is none."""
        frame = LocalFrame(lat=self.found.pose.lat, lon=self.found.pose.lon)
        lat, lon = frame.to_geographic(x=x_m, y=y_m)
        try:
            rgb, is_valid = self.gallery.read_area(
                lat=float(lat), lon=float(lon), size_px=size_px, gsd=size_m / size_px
            )
        except (GalleryError, RasterError):
            return "imagery no longer where it was indexed"
        # A little paler and darker than it is, so that the probability stands out.
        grey = rgb.mean(axis=2, keepdims=True)
        rgb = np.asarray((0.65 * rgb + 0.35 * grey) * 0.92, dtype=np.uint8)
        rgb[~is_valid] = [int(MISSING[i : i + 2], 16) for i in (1, 3, 5)]
        return rgb


# ------------------------------------------------------------------------------------------- parts


def _draw_title(figure: Figure, scene: _Scene) -> None:
    found, posterior = scene.found, scene.posterior
    place = format_position(found.pose)
    if found.is_in_gallery:
        heading = "" if scene.heading_deg is None else f"   heading {scene.heading_deg:.1f}°"
        title, color = f"{place}{heading}", INK
        spread = (
            f"50 % within {posterior.radius_m(0.5):.1f} m,  90 % within "
            f"{posterior.radius_m(0.9):.1f} m,  {_heading_text(scene)}"
        )
    else:
        title, color = "Not in this gallery", WARNING
        spread = (
            f"probability that it is {1 - posterior.outside_prob:.0%};  "
            f"the best guess would be {place}"
        )
    figure.text(0.022, 0.945, title, fontsize=23, weight="bold", color=color, va="center")
    line = f"{spread};  confidence {found.stated_confidence}"
    if scene.truth is not None:
        line += f";  {_error_text(scene)}"
    figure.text(0.022, 0.905, line, fontsize=12.5, color=FAINT, va="center")


def _heading_text(scene: _Scene) -> str:
    sigma_deg = scene.posterior.heading_sigma_deg
    is_known = scene.heading_deg is not None and sigma_deg < UNKNOWN_SIGMA_DEG
    return f"heading ± {sigma_deg:.1f}°" if is_known else "heading unknown"


def format_position(pose: Pose) -> str:
    """Latitude and longitude with the letters of their hemispheres."""
    north, east = "NS"[pose.lat < 0], "EW"[pose.lon < 0]
    return f"{abs(pose.lat):.6f}° {north}, {abs(pose.lon):.6f}° {east}"


def _error_text(scene: _Scene) -> str:
    assert scene.truth is not None
    text = f"off by {scene.truth.distance_m:.1f} m"
    if scene.truth.heading_deg is None or scene.heading_deg is None:
        return text
    turn = float(wrap_signed_deg(scene.heading_deg - scene.truth.heading_deg))
    return f"{text} and {abs(turn):.1f}°"


def _draw_aerial(ax: Axes, scene: _Scene) -> None:
    half = VIEW_M / 2
    extent = (-half, half, -half, half)
    frame_map(ax, extent)
    image = scene.imagery(x_m=0.0, y_m=0.0, size_m=VIEW_M, size_px=VIEW_PX)
    _draw_imagery(ax, image, extent)
    ax.imshow(_heat_about_answer(scene.posterior), extent=extent, interpolation="bilinear")
    if scene.found.is_in_gallery:
        for level, style in ((0.5, "-"), (0.9, (0, (5, 3)))):
            radius = scene.posterior.radius_m(level)
            label = f"{level:.0%}" if MIN_LABELLED_M < radius < 0.48 * VIEW_M else ""
            _circle(ax, radius, style, label)
    _draw_field_of_view(ax, scene)
    for number, spot in reversed(list(enumerate(scene.hypotheses, start=1))):
        if max(abs(spot.x_m), abs(spot.y_m)) < half:
            _draw_spot(ax, spot, label=str(number), is_main=number == 1)
    if scene.truth is not None:
        _draw_truth(ax, scene.truth, half)
    if not scene.found.is_in_gallery:
        _draw_refusal(ax, half)
    draw_scale_bar(ax, -half, -half, VIEW_M)
    draw_north_arrow(ax, half, half, VIEW_M)
    if scene.found.is_in_gallery and scene.posterior.radius_m(0.5) < CLOSE_BELOW_M:
        _draw_close_up(ax, scene)


def _draw_close_up(ax: Axes, scene: _Scene) -> None:
    """The middle of the view, larger: marks on the map hide a sharp answer's probability."""
    half, whole = CLOSE_UP_M / 2, VIEW_M / 2
    extent = (-half, half, -half, half)
    inset = ax.inset_axes((0.685, 0.012, 0.303, 0.303))
    frame_map(inset, extent)
    for side in inset.spines.values():
        side.set_color("#ffffff")
        side.set_linewidth(2.5)
    _draw_imagery(inset, scene.imagery(x_m=0.0, y_m=0.0, size_m=CLOSE_UP_M, size_px=300), extent)
    heat = _heat_about_answer(scene.posterior)
    inset.imshow(heat, extent=(-whole, whole, -whole, whole), interpolation="nearest")
    inset.set_xlim(-half, half)
    inset.set_ylim(-half, half)
    for level, style in ((0.5, "-"), (0.9, (0, (5, 3)))):
        _circle(inset, scene.posterior.radius_m(level), style)
    for spot, color in (
        (scene.truth, TRUTH),
        (_Spot(0.0, 0.0, scene.heading_deg), ANSWER),
    ):
        if spot is not None and spot.distance_m < half:
            _arrow(inset, spot, 5.0, color=color, width=1.8)
            inset.plot(spot.x_m, spot.y_m, "o", ms=5, mfc=color, mec=OUTLINE, mew=1.0)
    draw_scale_bar(inset, -half, -half, CLOSE_UP_M)


def _draw_imagery(ax: Axes, image: Rgb | str, extent: tuple[float, float, float, float]) -> None:
    if isinstance(image, str):
        middle = (extent[0] + extent[1]) / 2
        y = extent[2] + 0.04 * (extent[3] - extent[2])
        ax.text(middle, y, image, ha="center", color=FAINT, fontsize=11, style="italic")
    else:
        ax.imshow(image, extent=extent, interpolation="bilinear")


def _heat_about_answer(posterior: Posterior) -> Float:
    """RGBA (400, 400, 4) of the density in the view, north up.

    The places lie anywhere in it; their edges are right to half a pixel.
    """
    num = round(VIEW_M / HEAT_M)
    mode, places, fine_m = posterior.mode, posterior.places, posterior.places.fine_m
    offset = (np.arange(num) + 0.5) * HEAT_M - VIEW_M / 2
    prob = np.zeros((num, num))
    reach = VIEW_M / 2 + places.half_m
    dx, dy = places.x_m - mode.x_m, places.y_m - mode.y_m
    for chip in np.flatnonzero((np.abs(dx) < reach) & (np.abs(dy) < reach)):
        columns = np.floor((offset - dx[chip]) / fine_m + NUM_FINE / 2).astype(int)
        rows = np.floor(NUM_FINE / 2 - (offset[::-1] - dy[chip]) / fine_m).astype(int)
        i = np.flatnonzero((rows >= 0) & (rows < NUM_FINE))
        j = np.flatnonzero((columns >= 0) & (columns < NUM_FINE))
        prob[np.ix_(i, j)] = posterior.place_prob[chip][np.ix_(rows[i], columns[j])]
    return heat_rgba(prob, float(posterior.place_prob.max()))


def _circle(ax: Axes, radius_m: float, style: Any, label: str = "") -> None:
    for color, width in ((OUTLINE, 3.2), (ANSWER, 1.6)):
        ax.add_patch(Circle((0, 0), radius_m, fill=False, ec=color, lw=width, ls=style))
    ax.text(0, -radius_m, label, color=ANSWER, fontsize=9.5, ha="center", va="top",
            path_effects=HALO, weight="bold", clip_on=True)  # fmt: skip


def _draw_field_of_view(ax: Axes, scene: _Scene) -> None:
    """Between which bearings a photo looks, or what ground it shows from above."""
    camera, heading_deg = scene.found.camera, scene.heading_deg
    if heading_deg is None or camera.is_full_circle or not scene.found.is_in_gallery:
        return
    if camera.looks_down:
        if camera.height_m is not None:
            across, along = ground_outline_m(camera).T
            outline = np.outer(across, right(heading_deg)) + np.outer(along, forward(heading_deg))
            ax.add_patch(Polygon(outline, fill=False, ec=ANSWER, lw=1.3, path_effects=HALO))
        return
    for side in (-0.5, 0.5):
        tip = 38.0 * forward(heading_deg + side * camera.hfov_deg)
        ax.plot([0, tip[0]], [0, tip[1]], color=ANSWER, lw=1.3, path_effects=HALO)


def _draw_spot(ax: Axes, spot: _Spot, *, label: str, is_main: bool) -> None:
    """A numbered disc with an arrow along the heading."""
    size, length = (9.0, 20.0) if is_main else (7.5, 11.0)
    _arrow(ax, spot, length, color=ANSWER if is_main else OTHER, width=3.4 if is_main else 1.8)
    ax.plot(spot.x_m, spot.y_m, "o", ms=2 * size, mfc=ANSWER if is_main else OTHER,
            mec=OUTLINE, mew=1.2)  # fmt: skip
    ax.text(spot.x_m, spot.y_m, label, ha="center", va="center_baseline", color=INK,
            fontsize=1.15 * size, weight="bold")  # fmt: skip


def _arrow(ax: Axes, spot: _Spot, length_m: float, *, color: str, width: float) -> None:
    if spot.heading_deg is not None:
        draw_arrow(ax, spot.x_m, spot.y_m, spot.heading_deg, length_m=length_m, color=color,
                   width=width)  # fmt: skip


def _draw_refusal(ax: Axes, half: float) -> None:
    """A red frame and a line: what is drawn here is no answer."""
    for side in ax.spines.values():
        side.set_color(WARNING)
        side.set_linewidth(4.0)
    ax.text(-0.95 * half, 0.93 * half, "best guess only: probably not in this gallery", fontsize=13,
            color="#ffffff", weight="bold", va="center", bbox={"facecolor": WARNING, "pad": 7,
            "edgecolor": "none"})  # fmt: skip


def _draw_truth(ax: Axes, truth: _Spot, half: float) -> None:
    """A green ring, so that an answer on the spot stays readable within it."""
    far = max(abs(truth.x_m), abs(truth.y_m))
    if far < half:
        _arrow(ax, truth, 15.0, color=TRUTH, width=2.0)
        for color, width in ((OUTLINE, 6.0), (TRUTH, 3.2)):
            ax.plot(truth.x_m, truth.y_m, "o", ms=25, mfc="none", mec=color, mew=width)
        return
    # Out of sight: an arrow on the border towards it.
    x_m, y_m = truth.x_m / far * half, truth.y_m / far * half
    style = {"color": TRUTH, "arrowstyle": "-|>", "lw": 3, "path_effects": HALO}
    ax.annotate("", (x_m, y_m), (0.88 * x_m, 0.88 * y_m), arrowprops=style)
    ax.text(0.83 * x_m, 0.83 * y_m, f"truth\n{truth.distance_m:.0f} m", color=TRUTH, ha="center",
            va="center", fontsize=11, weight="bold", path_effects=HALO)  # fmt: skip


def _draw_photo(ax: Axes, scene: _Scene, pixels: Rgb) -> None:
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_PHOTO_PX, MAX_PHOTO_PX))
    height, width = pixels.shape[:2]
    ax.imshow(np.asarray(image), extent=(0.0, width, height, 0.0), interpolation="bilinear")
    ax.set_anchor("NW")
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_color("#b8bcc0")
    camera = scene.found.camera
    kind = "panorama" if camera.projection == "equirectangular" else "photo"
    told = f"{camera.hfov_deg:.0f}° wide" + (" (assumed)" if camera.is_assumed else "")
    name = Path(scene.found.photo).name
    ax.set_title(f"{name}   {kind}, {told}", loc="left", fontsize=11, color=FAINT, pad=5)
    if scene.found.is_in_gallery and scene.heading_deg is not None:
        for bearing, label in enumerate(COMPASS):
            column = _column_of(camera, 45.0 * bearing - scene.heading_deg)
            if column is not None:
                _compass_mark(ax, column, height, label)


def _column_of(camera: Camera, bearing_deg: float) -> float | None:
    """Column of a level direction, bearing from the heading; None if it is not in the photo."""
    bearing = float(wrap_signed_deg(bearing_deg))
    if camera.looks_down or abs(bearing) > camera.hfov_deg / 2:
        return None
    if camera.projection == "equirectangular":
        return (bearing / camera.hfov_deg + 0.5) * camera.width_px
    return camera.width_px / 2 + camera.focal_px * math.tan(math.radians(bearing))


def _compass_mark(ax: Axes, column: float, height: int, label: str) -> None:
    is_cardinal = len(label) == 1
    ax.plot([column, column], [0, height * (0.045 if is_cardinal else 0.025)], color="#ffffff",
            lw=1.8, path_effects=HALO)  # fmt: skip
    ax.text(column, height * 0.055, label, color="#ffffff", ha="center", va="top",
            fontsize=11 if is_cardinal else 8, weight="bold", path_effects=HALO,
            clip_on=True)  # fmt: skip


def _draw_overview(ax: Axes, scene: _Scene) -> None:
    """The whole gallery, in metres about the answer."""
    posterior, mode = scene.posterior, scene.posterior.mode
    chips = scene.gallery.chips
    x, y = posterior.places.frame.to_local(lat=chips.lat, lon=chips.lon)
    x, y = x - mode.x_m, y - mode.y_m
    half_chip = posterior.places.half_m
    middle = ((x.min() + x.max()) / 2, (y.min() + y.max()) / 2)
    size = max(np.ptp(x), np.ptp(y)) + 2.5 * half_chip
    extent = (middle[0] - size / 2, middle[0] + size / 2,
              middle[1] - size / 2, middle[1] + size / 2)  # fmt: skip
    frame_map(ax, extent)
    if size <= MAX_OVERVIEW_M:
        image = scene.imagery(x_m=middle[0], y_m=middle[1], size_m=size, size_px=400)
        _draw_imagery(ax, image, extent)
    else:
        covered = np.histogram2d(y, x, OVERVIEW_BINS, [extent[2:], extent[:2]])[0] > 0
        ax.imshow(np.where(covered, 1.0, np.nan)[::-1], extent=extent, cmap="Greys", vmin=0, vmax=3,
                  interpolation="nearest")  # fmt: skip
    ax.imshow(_heat_of_gallery(posterior, extent), extent=extent, interpolation="nearest")
    ax.add_patch(Rectangle((-VIEW_M / 2, -VIEW_M / 2), VIEW_M, VIEW_M, fill=False, ec="#ffffff",
                           lw=1.8, path_effects=HALO))  # fmt: skip
    if scene.truth is not None:
        for color, width in ((OUTLINE, 4.5), (TRUTH, 2.5)):
            ax.plot(scene.truth.x_m, scene.truth.y_m, "o", ms=13, mfc="none", mec=color, mew=width)
    draw_scale_bar(ax, extent[0], extent[2], size)
    ax.set_title(f"The whole gallery, {len(chips)} chips", loc="left", fontsize=11, color=FAINT)


def _heat_of_gallery(posterior: Posterior, extent: Sequence[float]) -> Float:
    """RGBA of the densest place in each of the overview's bins, north up."""
    x, y = posterior.place_xy
    bin_m = (extent[1] - extent[0]) / OVERVIEW_BINS
    columns = np.floor((x - posterior.mode.x_m - extent[0]) / bin_m).astype(int)
    rows = np.floor((extent[3] - y + posterior.mode.y_m) / bin_m).astype(int)
    densest = np.zeros((OVERVIEW_BINS, OVERVIEW_BINS))
    is_inside = (np.minimum(rows, columns) >= 0) & (np.maximum(rows, columns) < OVERVIEW_BINS)
    np.maximum.at(densest, (rows[is_inside], columns[is_inside]), posterior.place_prob[is_inside])
    return heat_rgba(densest, float(densest.max()))


def _draw_hypotheses(ax: Axes, scene: _Scene) -> None:
    ax.set_axis_off()
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    columns = (0.05, 0.34, 0.66, 1.0)
    for x, text in zip(columns, ("", "probability", "heading", "away"), strict=True):
        ax.text(x, 1.0, text, ha="right", va="bottom", fontsize=9.5, color=FAINT)
    num, num_shown = len(scene.hypotheses), _num_rows(len(scene.hypotheses))
    if num > num_shown:
        ax.text(columns[0], 0.93 - 0.072 * num_shown, f"... and {num - num_shown} more",
                ha="left", va="center", fontsize=10.5, color=FAINT)  # fmt: skip
    rows = zip(scene.posterior.hypotheses, scene.hypotheses[:num_shown], strict=False)
    for i, (hypothesis, spot) in enumerate(rows):
        heading = "" if spot.heading_deg is None else f"{spot.heading_deg:.0f}°"
        texts = (f"{i + 1}", _percent(hypothesis.prob), heading,
                 f"{spot.distance_m:.0f} m" if i else "")  # fmt: skip
        for x, text in zip(columns, texts, strict=True):
            ax.text(x, 0.93 - 0.072 * i, text, ha="right", va="center", fontsize=11.5, color=INK,
                    weight="bold" if i == 0 or text == f"{i + 1}" else "normal")  # fmt: skip
    _draw_legend(ax, has_truth=scene.truth is not None)


def _num_rows(num_hypotheses: int) -> int:
    """Hypotheses in the table, whose last row says how many there are besides."""
    return num_hypotheses if num_hypotheses <= MAX_ROWS else MAX_ROWS - 1


def _percent(prob: float) -> str:
    return f"{prob:.1%}" if prob >= 0.001 else "< 0.1%"


def _draw_legend(ax: Axes, *, has_truth: bool) -> None:
    gradient = heat_rgba(np.logspace(-NUM_DECADES, 0, 128)[None], 1.0)
    gradient[..., 3] = np.linspace(0.15, 1.0, 128)
    ax.imshow(gradient, extent=(0.0, 1.0, 0.055, 0.095), aspect="auto", transform=ax.transData)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ticks = ((0.0, "1/10 000", "left"), (0.5, "1/100", "center"), (1.0, "peak", "right"))
    for x, text, align in ticks:
        ax.text(x, 0.04, text, ha=align, va="top", fontsize=9, color=FAINT)
    ax.text(0.0, 0.11, "probability density", va="bottom", fontsize=9.5, color=FAINT)
    if has_truth:
        for color, width in ((OUTLINE, 4.5), (TRUTH, 2.5)):
            ax.plot(0.05, 0.205, "o", ms=13, mfc="none", mec=color, mew=width, clip_on=False)
        ax.text(0.14, 0.205, "truth", va="center", fontsize=10, color=FAINT)
