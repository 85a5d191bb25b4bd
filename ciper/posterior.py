"""The posterior over camera poses: the one object that everything downstream reads.

It is a piecewise constant density over the central halves of R chips. Coarse cells (a 32nd of a
chip's side: 4 m of 128 m; 11.25 deg) carry mass everywhere; around the best poses fine windows
(half of that, 2.8125 deg) take over the mass of the coarse cells that they cover. The probability
that the camera is in none of the chips is an outcome of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper.geo import LocalFrame, Pose, wrap_deg, wrap_signed_deg
from ciper.logits import logsumexp
from ciper.pose_grid import (
    CELLS_PER_CHIP,
    COARSE_M,
    FINE_STEP_DEG,
    HEADING_STEP_DEG,
    NUM_COARSE,
    NUM_FINE,
    NUM_HEADINGS,
    window_steps,
)
from ciper.refinement import Refinement, is_first, place_masses, take_covered

Float = NDArray[np.floating[Any]]

# A Gaussian's mass within one standard deviation.
GAUSSIAN_WITHIN_SIGMA = math.erf(0.5**0.5)
# Half of the arc that holds as much of a uniform heading.
UNKNOWN_SPREAD_DEG = 180.0 * GAUSSIAN_WITHIN_SIGMA
# Half a fine step: the widest in which coarse and fine headings have whole cells.
GRAIN_DEG = FINE_STEP_DEG / 2


@dataclass(frozen=True)
class Places:
    """Where the chips are: centres `lat`, `lon` (R,) and `x_m`, `y_m` (R,) in `frame`.

    `frame` is one plane for all chips; about a chip's own centre it may be turned against true
    north (cities far apart), so positions enter and leave through the frame of their chip.
    `coarse_m` is the side of a coarse cell, a 32nd of a chip's side.
    """

    frame: LocalFrame
    lat: Float
    lon: Float
    x_m: Float
    y_m: Float
    coarse_m: float = COARSE_M

    @classmethod
    def around(cls, lat: Float, lon: Float, *, chip_m: float = CELLS_PER_CHIP * COARSE_M) -> Places:
        """Places in a local frame at the middle of chips whose sides are `chip_m` long."""
        # Counted from the first chip: a city may lie on both sides of the 180th meridian.
        east = float(np.mean(wrap_signed_deg(lon - lon[0])))
        frame = LocalFrame(lat=float(np.mean(lat)), lon=float(wrap_signed_deg(lon[0] + east)))
        x_m, y_m = frame.to_local(lat=lat, lon=lon)
        return cls(frame, lat, lon, x_m, y_m, chip_m / CELLS_PER_CHIP)

    @property
    def fine_m(self) -> float:
        """Side of a fine cell, or place."""
        return self.coarse_m / 2

    @property
    def half_m(self) -> float:
        """From a chip's centre to the edge of its central half."""
        return self.coarse_m * NUM_COARSE / 2

    def to_local(self, *, lat: float, lon: float) -> tuple[float, float]:
        """Metres in `frame` of a geographic point, exact about the nearest chip."""
        x_m, y_m = self.frame.to_local(lat=lat, lon=lon)
        chip = int(np.argmin(np.hypot(self.x_m - x_m, self.y_m - y_m)))
        dx, dy = self._chip_frame(chip).to_local(lat=lat, lon=lon)
        return float(self.x_m[chip] + dx), float(self.y_m[chip] + dy)

    def pose(self, hypothesis: Hypothesis) -> Pose:
        """A hypothesis on the globe; its heading is against true north at its chip."""
        chip = hypothesis.chip
        return self._chip_frame(chip).pose(
            x=hypothesis.x_m - float(self.x_m[chip]),
            y=hypothesis.y_m - float(self.y_m[chip]),
            heading_deg=hypothesis.heading_deg,
        )

    def _chip_frame(self, chip: int) -> LocalFrame:
        return LocalFrame(lat=float(self.lat[chip]), lon=float(self.lon[chip]))


@dataclass(frozen=True)
class Hypothesis:
    """One mode: position in the posterior's frame, heading, its window's mass, and its chip.

    Where nothing is known of headings the mass is that of the window's places in all headings.
    """

    x_m: float
    y_m: float
    heading_deg: float
    prob: float
    chip: int


@dataclass(frozen=True)
class Posterior:
    """A probability over the poses of R chips and "not in this gallery".

    coarse: `(R, 32, 16, 16)` mass of coarse cells that no window took over.
    refinement: the fine windows.
    outside_prob: mass of "not in this gallery"; the other masses sum to 1 (they are conditional on
        the camera being in the gallery).
    says_heading: False where the evidence knows nothing of headings; what the masses say of them
        is then the prior alone.
    heading_scale: what the spread of the heading's masses is multiplied with to be stated.
    """

    places: Places
    coarse: Float
    refinement: Refinement
    outside_prob: float = 0.0
    says_heading: bool = True
    heading_scale: float = 1.0

    @classmethod
    def from_logits(
        cls,
        places: Places,
        coarse: Float,
        refinement: Refinement,
        *,
        coarse_temperature: float = 1.0,
        fine_temperature: float = 1.0,
        unrefined_offset: float = 0.0,
        floor: float = 0.0,
    ) -> Posterior:
        """Normalises logits; `refinement.log_prob` holds logits here.

        A window's logits replace those of the coarse cells that it covers. What the fine level
        would add to a cell that was not refined is taken to be the median of what it added to the
        windows (most of them are wrong places too), plus `unrefined_offset`: a window that the
        fine level confirms gains on everything else. `floor` mixes in a uniform density: the
        probability that the evidence misleads.
        """
        r = refinement
        peak = float(coarse.max())
        prob = np.exp((coarse - peak) / np.float32(coarse_temperature), dtype=np.float32)
        covered = take_covered(prob, r)
        fine = r.log_prob.astype(np.float64) / fine_temperature
        with np.errstate(divide="ignore", invalid="ignore"):
            added = logsumexp(fine, axis=(1, 2, 3)) - np.log(covered)
            unrefined = float(np.median(added[np.isfinite(added)])) + unrefined_offset
            fine = np.where(is_first(r), fine, -np.inf) - unrefined
            # Beside sharp windows all other cells may have no mass that float32 can hold.
            unseen = np.log(prob.sum(dtype=np.float64))
        total = float(np.logaddexp(unseen, logsumexp(fine)))
        prob *= np.float32((1 - floor) * np.exp(-total))
        if floor > 0:
            is_possible = np.isfinite(coarse)
            prob += is_possible * np.float32(floor / max(1, is_possible.sum()))
        return cls(places, prob, replace(r, log_prob=fine - total + np.log1p(-floor)))

    def times(
        self,
        log_position: Callable[[Float, Float], Float],
        log_heading: Callable[[Float, float], Float],
    ) -> Posterior:
        """The product with two factors, renormalised.

        Args:
            log_position: log factor at positions x_m, y_m.
            log_heading: log factor at headings, given the width of their cells (degrees).
        """
        x, y = self.coarse_xy
        heading = np.arange(NUM_HEADINGS) * HEADING_STEP_DEG
        factor = log_position(x, y)[:, None] + log_heading(heading, HEADING_STEP_DEG)[:, None, None]
        fx, fy = self.fine_xy
        fine = self.refinement.log_prob + log_position(fx, fy)[:, None]
        turn = log_heading(self.refinement.heading_deg, FINE_STEP_DEG)
        fine = fine + turn[:, :, None, None]
        # The largest mass becomes 1 before the factors leave the logarithm.
        with np.errstate(divide="ignore"):
            peak = max(float((np.log(self.coarse) + factor).max()), float(fine.max()))
        coarse = self.coarse * np.exp(factor - peak)
        total = float(coarse.sum(dtype=np.float64) + np.exp(fine - peak).sum())
        refinement = replace(self.refinement, log_prob=fine - peak - np.log(total))
        return replace(self, coarse=coarse / total, refinement=refinement)

    def with_outside(self, outside_prob: float) -> Posterior:
        """The same masses in the gallery, with another probability of "not in this gallery"."""
        other = replace(self, outside_prob=outside_prob)
        # Nothing that was computed on first use depends on it.
        for name in ("coarse_xy", "place_xy", "fine_xy", "place_prob", "hypotheses"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        return other

    @cached_property
    def coarse_xy(self) -> tuple[Float, Float]:
        """Centres of the coarse cells in the frame: x and y `(R, 16, 16)`."""
        return self._cell_xy(NUM_COARSE, self.places.coarse_m)

    @cached_property
    def place_xy(self) -> tuple[Float, Float]:
        """Centres of the places (fine cells) in the frame: x and y `(R, 32, 32)`."""
        return self._cell_xy(NUM_FINE, self.places.fine_m)

    @cached_property
    def fine_xy(self) -> tuple[Float, Float]:
        """Centres of the windows' cells in the frame: x and y `(W, 6, 6)`."""
        r, fine_m = self.refinement, self.places.fine_m
        x = (r.columns - NUM_FINE / 2 + 0.5) * fine_m + self.places.x_m[r.chip][:, None]
        y = (NUM_FINE / 2 - 0.5 - r.rows) * fine_m + self.places.y_m[r.chip][:, None]
        shape = (len(x), 6, 6)
        return np.broadcast_to(x[:, None], shape), np.broadcast_to(y[:, :, None], shape)

    @cached_property
    def place_prob(self) -> Float:
        """Mass of every place, headings summed: `(R, 32, 32)`."""
        coarse = self.coarse.sum(1, dtype=np.float64) / 4
        prob: Float = coarse.repeat(2, axis=1).repeat(2, axis=2)
        r = self.refinement
        mass = np.exp(r.log_prob).sum(1)
        inside = (r.rows >= 0) & (r.rows < NUM_FINE)
        inside_columns = (r.columns >= 0) & (r.columns < NUM_FINE)
        w, i, j = np.nonzero(inside[:, :, None] & inside_columns[:, None, :])
        np.add.at(prob, (r.chip[w], r.rows[w, i], r.columns[w, j]), mass[w, i, j])
        return prob

    @cached_property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """The windows' modes, most probable first, at sub-cell precision."""
        found = [self._mode_of_window(w, mass) for w, mass in enumerate(self._window_masses())]
        return tuple(sorted((h for h in found if h.prob > 0), key=lambda h: -h.prob))

    @property
    def mode(self) -> Hypothesis:
        """The most probable hypothesis: the answer."""
        return self.hypotheses[0]

    def prob_within(self, radius_m: float, x_m: float, y_m: float) -> float:
        """Mass of the circle of `radius_m` about a point, given that it is in the gallery."""
        return float(self.place_prob[self._distance(x_m, y_m) <= radius_m].sum())

    def radius_m(self, level: float) -> float:
        """Radius of the circle about the mode that holds `level` of the mass in the gallery."""
        distance = self._distance(self.mode.x_m, self.mode.y_m).ravel()
        order = np.argsort(distance)
        mass = np.cumsum(self.place_prob.ravel()[order])
        index = min(int(np.searchsorted(mass, level * mass[-1])), len(order) - 1)
        return float(max(distance[order][index], self.places.fine_m / 2))

    def highest_density_masses(self, x_m: float, y_m: float) -> tuple[float, float]:
        """Mass of all places denser than the one at a point, and of all at least as dense.

        Highest-density regions up to the first hold nothing of the point's place, those from the
        second on all of it; between them they take a growing share of it. Outside the chips'
        central parts both are 1.
        """
        place = self.place_at(x_m, y_m)
        if place is None:
            return 1.0, 1.0
        density = self.place_prob[place]
        prob = self.place_prob.ravel()
        denser = float(prob[prob > density].sum())
        return denser, denser + float(prob[prob == density].sum())

    def place_at(self, x_m: float, y_m: float) -> tuple[int, int, int] | None:
        """Chip, row and column of the place that holds a point."""
        dx, dy = x_m - self.places.x_m, y_m - self.places.y_m
        chip = int(np.argmin(np.maximum(np.abs(dx), np.abs(dy))))
        column = int(np.floor(dx[chip] / self.places.fine_m + NUM_FINE / 2))
        row = int(np.floor(NUM_FINE / 2 - dy[chip] / self.places.fine_m))
        # The local frame of a whole city bends by millimetres: a place's edge is no border.
        column, row = (int(np.clip(i, 0, 31)) if -1 <= i <= 32 else i for i in (column, row))
        is_inside = 0 <= row < NUM_FINE and 0 <= column < NUM_FINE
        return (chip, row, column) if is_inside else None

    def log_density(self, x_m: float, y_m: float) -> float:
        """Log density per square metre at a point; -inf outside the chips."""
        place, area_m2 = self.place_at(x_m, y_m), self.places.fine_m**2
        with np.errstate(divide="ignore"):
            return -np.inf if place is None else float(np.log(self.place_prob[place] / area_m2))

    @cached_property
    def heading_sigma_deg(self) -> float:
        """Half of the shortest arc that holds 68.3 % of the mass, see `scaled_spread`.

        Infinite where nothing is said of headings.

        Of a Gaussian that is the standard deviation. A circular standard deviation would call a
        heading that is right to half a degree uncertain by 14 degrees, because of the 3 % that a
        calibrated posterior may keep for everything else.
        """
        if not self.says_heading:
            return np.inf
        coarse = self.coarse.sum((0, 2, 3), dtype=np.float64)
        fine = np.exp(self.refinement.log_prob).sum((2, 3), dtype=np.float64)
        per_coarse = round(HEADING_STEP_DEG / GRAIN_DEG)
        mass = np.roll(np.repeat(coarse / per_coarse, per_coarse), -per_coarse // 2)
        first = np.rint(self.refinement.heading_deg / GRAIN_DEG).astype(np.int64)
        for grain in (first - 1, first):
            np.add.at(mass, grain % len(mass), fine / 2)
        half_deg = shortest_arc(mass, GAUSSIAN_WITHIN_SIGMA) / 2 * GRAIN_DEG
        return scaled_spread(half_deg, self.heading_scale)

    def sample(self, num_samples: int, rng: np.random.Generator) -> Float:
        """Draws poses `(num_samples, 3)`: x_m, y_m, heading_deg, uniform within their cells."""
        coarse, fine = self.coarse.ravel(), np.exp(self.refinement.log_prob).ravel()
        weight = np.concatenate([coarse, fine]).astype(np.float64)
        index = rng.choice(len(weight), num_samples, p=weight / weight.sum())
        is_fine = index >= len(coarse)
        chip, heading, row, column = np.unravel_index(
            np.where(is_fine, 0, index), self.coarse.shape
        )
        window, step, i, j = np.unravel_index(
            np.where(is_fine, index - len(coarse), 0), self.refinement.log_prob.shape
        )
        cx, cy = self.coarse_xy
        fx, fy = self.fine_xy
        pose: Float = np.where(
            is_fine,
            [fx[window, i, j], fy[window, i, j], self.refinement.heading_deg[window, step]],
            [cx[chip, row, column], cy[chip, row, column], heading * HEADING_STEP_DEG],
        )
        width = np.where(
            is_fine,
            [[self.places.fine_m], [self.places.fine_m], [FINE_STEP_DEG]],
            [[self.places.coarse_m], [self.places.coarse_m], [HEADING_STEP_DEG]],
        )
        pose = (pose + (rng.random(pose.shape) - 0.5) * width).T
        pose[:, 2] %= 360.0
        return pose

    def _cell_xy(self, num_cells: int, cell_m: float) -> tuple[Float, Float]:
        offset = (np.arange(num_cells) + 0.5 - num_cells / 2) * cell_m
        shape = (len(self.places.x_m), num_cells, num_cells)
        x = self.places.x_m[:, None, None] + offset
        y = self.places.y_m[:, None, None] - offset[:, None]
        return np.broadcast_to(x, shape), np.broadcast_to(y, shape)

    def _distance(self, x_m: float, y_m: float) -> Float:
        x, y = self.place_xy
        return np.asarray(np.hypot(x - x_m, y - y_m))

    def _window_masses(self) -> list[float]:
        r = self.refinement
        if self.says_heading:
            masses = np.exp(r.log_prob).sum((1, 2, 3))
        else:
            masses = place_masses(r, self.place_prob)
        return [float(mass) for mass in masses]

    def _mode_of_window(self, window: int, mass: float) -> Hypothesis:
        """The mean over the 5 x 5 cells around the window's densest one, and over its headings."""
        r = self.refinement
        prob = np.exp(r.log_prob[window])
        _, i, j = np.unravel_index(int(prob.argmax()), prob.shape)
        near = (slice(None), slice(max(i - 2, 0), i + 3), slice(max(j - 2, 0), j + 3))
        weight = prob[near] / max(prob[near].sum(), 1e-300)
        x, y = self.fine_xy
        step = window_steps(r.heading[window])
        return Hypothesis(
            x_m=float((weight.sum((0, 1)) * x[window, i, near[2]]).sum()),
            y_m=float((weight.sum((0, 2)) * y[window, near[1], j]).sum()),
            heading_deg=float(wrap_deg((weight.sum((1, 2)) * step).sum() * FINE_STEP_DEG)),
            prob=mass,
            chip=int(r.chip[window]),
        )


def scaled_spread(half_deg: float, scale: float) -> float:
    """A spread as it is stated: scaled if it is small, and as it is if all headings are as likely.

    The scale's logarithm fades evenly from a spread of 0 to that of no knowledge, so that a heading
    that nobody knows is never called known.
    """
    fading = max(1.0 - half_deg / UNKNOWN_SPREAD_DEG, 0.0)
    return float(min(half_deg * scale**fading, 180.0))


def needed_scale(half_deg: float, error_deg: float) -> float:
    """The scale under which `scaled_spread` is an error; NaN where no scale changes it much."""
    fading = 1.0 - half_deg / UNKNOWN_SPREAD_DEG
    if fading < 0.05:
        return np.nan
    return float((error_deg / half_deg) ** (1.0 / fading))


def shortest_arc(mass: Float, share: float) -> float:
    """Length, in cells, of the shortest arc that holds a share of the mass `(N,)` on a circle.

    Mass is spread evenly over each cell, so that such an arc begins or ends where a cell does.
    """
    wanted, edges = share * mass.sum(), np.arange(2 * len(mass) + 1)
    held = np.concatenate([[0.0], np.cumsum(np.tile(mass, 2))])
    begins, ends = edges[: len(mass)], edges[len(mass) :]
    onwards = np.interp(held[begins] + wanted, held, edges) - begins
    backwards = ends - np.interp(held[ends] - wanted, held, edges)
    return float(min(onwards.min(), backwards.min()))
