"""Template matching: the photo, turned to every heading, is slid over every chip.

The score of a pose is the normalised cross-correlation of what photo and chip both show, times the
part of the photo that the chip shows at all. All positions come from one inverse Fourier transform
for each chip and heading; the chips' transforms are computed once. The local energies by which the
correlation is normalised change slowly with the position, so they are taken in pixels four times
as wide: that saves most of the transforms and moves scores by less than 0.01.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ciper.classical import ClassicalAnswer, check_gallery, check_plan, in_threads, not_prepared
from ciper.classical.correlation import (
    Floats,
    Grid,
    Spectra,
    edges,
    high_passed,
    score_surfaces,
    templates_of,
    vertex,
)
from ciper.errors import ConfigError
from ciper.geo import wrap_deg

# Headings around a coarse peak, in steps of the coarse ones: beyond half a step, so that the best
# of them has neighbours.
_FINE_STEPS = (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75)
# Lower scores are rounding.
_MIN_SCORE = 1e-4
# Chips are correlated with this many headings at a time, which fit into a processor's cache.
_BATCH = 6


@dataclass(frozen=True)
class TemplateConfig:
    """Settings of template matching.

    Attributes:
        gsd: metres per pixel at which photo and chips are compared.
        num_rotations: headings of the search; its best chips are then refined.
        features: "edges" compares gradients with their angle doubled, so that an edge counts alike
            whichever of its sides is brighter; "grey" compares grey levels less their local mean.
        min_overlap: the least part of the photo that a chip must show.
        num_refined: chips whose headings are refined.
        num_threads: that share the chips.
    """

    gsd: float = 1.2
    num_rotations: int = 36
    features: Literal["edges", "grey"] = "edges"
    min_overlap: float = 0.5
    num_refined: int = 16
    num_threads: int = 1

    def __post_init__(self) -> None:
        if not (self.gsd > 0 and self.num_rotations >= 4 and 0 < self.min_overlap <= 1):
            raise ConfigError(
                f"gsd {self.gsd}, num_rotations {self.num_rotations}, min_overlap "
                f"{self.min_overlap}; expected a gsd above 0, four rotations, overlap in (0, 1]"
            )
        if self.features not in ("edges", "grey"):
            raise ConfigError(f"features {self.features!r}; expected 'edges' or 'grey'")
        if self.num_refined < 1 or self.num_threads < 1:
            raise ConfigError(
                f"num_refined {self.num_refined}, num_threads {self.num_threads}; expected 1 or "
                "more of both"
            )


@dataclass(frozen=True)
class _Peak:
    """The best pose on one chip.

    Attributes:
        score: of it.
        turn: index of its heading among those tried, with a fraction where refined.
        right_px: the camera's offset from the chip's centre in common pixels.
        down_px: likewise.
    """

    score: float
    turn: float
    right_px: float
    down_px: float


class TemplateMatching:
    """Finds plan views by normalised cross-correlation with every chip at every heading.

    Chips are searched for cameras within 0.28 of their side from the centre along both axes. At the
    default settings a chip of 128 m takes 0.2 MB of memory.
    """

    def __init__(self, config: TemplateConfig | None = None) -> None:
        """Settings alone; see `prepare`."""
        self.config = config or TemplateConfig()
        self._grid: Grid | None = None
        self._chips: list[Spectra] = []

    def prepare(self, chips: NDArray[np.uint8], is_valid: NDArray[np.bool_], gsd: float) -> None:
        """Transform the chips, see `ciper.classical.Method`.

        Raises:
            ConfigError: what is given is no gallery.
        """
        check_gallery(chips, is_valid, gsd)
        grid = Grid.of(chips.shape[1], gsd, self.config.gsd)

        def transform(index: int) -> Spectra:
            features, mask = self._features(grid, chips[index], is_valid[index])
            return Spectra.of(grid.pad(features)[None], grid.pad(mask)[None])[0]

        self._chips = in_threads(transform, len(chips), self.config.num_threads)
        self._grid = grid

    def locate(self, plan: NDArray[np.uint8], is_visible: NDArray[np.bool_]) -> ClassicalAnswer:
        """Search one photo, see `ciper.classical.Method`; scores are in [0, 1].

        Raises:
            ConfigError: nothing was prepared, or the shapes do not fit.
        """
        if self._grid is None:
            raise not_prepared()
        grid = self._grid
        check_plan(plan, is_visible, grid.full_px)
        features, mask = self._features(grid, plan, is_visible)
        photo = np.concatenate([features, mask[None]])
        step_deg = 360.0 / self.config.num_rotations
        whole_turns = np.arange(self.config.num_rotations, dtype=np.float64)
        templates = templates_of(grid, photo, whole_turns * step_deg)
        peaks = in_threads(
            lambda chip: self._peak(grid, self._chips[chip], templates),
            len(self._chips),
            self.config.num_threads,
        )
        scores = np.array([peak.score for peak in peaks])
        ranked = np.argsort(-scores, kind="stable")[: self.config.num_refined]
        ranked = ranked[scores[ranked] > 0]
        if not len(ranked):
            return ClassicalAnswer.nothing(len(scores))
        refined = self._refine(grid, photo, ranked, [peaks[chip] for chip in ranked])
        scores[ranked] = [peak.score for peak in refined]
        chip, best = max(zip(ranked.tolist(), refined, strict=True), key=lambda one: one[1].score)
        return ClassicalAnswer(
            chip=chip,
            x_m=best.right_px * grid.gsd,
            y_m=-best.down_px * grid.gsd,
            heading_deg=float(wrap_deg(best.turn * step_deg)),
            score=best.score,
            scores=scores,
        )

    def _refine(
        self, grid: Grid, photo: Floats, chips: NDArray[np.int64], peaks: list[_Peak]
    ) -> list[_Peak]:
        """The peaks of some chips at headings and places between those searched."""
        turns = np.array([peak.turn for peak in peaks])[:, None] + np.array(_FINE_STEPS)
        unique, which = np.unique(turns % self.config.num_rotations, return_inverse=True)
        templates = templates_of(grid, photo, unique * 360.0 / self.config.num_rotations)
        which = which.reshape(turns.shape)

        def refine(index: int) -> _Peak:
            surfaces = score_surfaces(
                grid, self._chips[chips[index]], templates[which[index]], self.config.min_overlap
            )
            return _refined_peak(surfaces, turns[index], grid.reach_px)

        return in_threads(refine, len(chips), self.config.num_threads)

    def _peak(self, grid: Grid, chip: Spectra, templates: Spectra) -> _Peak:
        best = _Peak(0.0, 0.0, 0.0, 0.0)
        for start in range(0, len(templates.area), _BATCH):
            surfaces = score_surfaces(
                grid, chip, templates[start : start + _BATCH], self.config.min_overlap
            )
            turn, place = divmod(int(surfaces.argmax()), grid.num_lags**2)
            row, column = divmod(place, grid.num_lags)
            score = float(surfaces[turn, row, column])
            if score > max(best.score, _MIN_SCORE):
                best = _Peak(score, start + turn, column - grid.reach_px, row - grid.reach_px)
        return best

    def _features(
        self, grid: Grid, image: NDArray[np.uint8], is_valid: NDArray[np.bool_]
    ) -> tuple[Floats, Floats]:
        """(C, size, size) and mask (size, size) of a chip or plan view."""
        grey, mask = grid.reduce(image, is_valid)
        extract = edges if self.config.features == "edges" else high_passed
        return extract(grey, mask, grid.gsd), mask


def _refined_peak(surfaces: Floats, turns: NDArray[np.float64], reach_px: int) -> _Peak:
    """The summit among neighbouring headings, by parabolas through its neighbours."""
    heights = surfaces.max(axis=(1, 2))
    best = int(heights.argmax())
    row, column = divmod(int(surfaces[best].argmax()), surfaces.shape[2])
    turn = best + _vertex_at(heights, best)
    return _Peak(
        score=float(heights[best]),
        turn=float(np.interp(turn, np.arange(len(turns)), turns)),
        right_px=float(column - reach_px + _vertex_at(surfaces[best, row], column)),
        down_px=float(row - reach_px + _vertex_at(surfaces[best, :, column], row)),
    )


def _vertex_at(values: Floats, index: int) -> float:
    """How far beside one of the values their peak lies; 0 at either end."""
    if not 0 < index < len(values) - 1:
        return 0.0
    return vertex(*values[index - 1 : index + 2].astype(np.float64))
