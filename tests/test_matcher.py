"""The geometry of the decoder: planted poses are found, and fast paths equal slow ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from posterior_helpers import row_of_chips

from ciper.geo import heading_error_deg
from ciper.localize import posterior_of
from ciper.model.calibration import PosteriorShape
from ciper.model.decoder import (
    COARSE,
    FINE,
    PAIR_FREQUENCIES,
    Correlation,
    TemplateSpec,
    Windows,
)
from ciper.model.load import Calibration
from ciper.model.matcher import MatchConfig, best_poses, match
from ciper.model.network import GroundCode

Floats = NDArray[np.float64]
NUM_PAIRS = len(PAIR_FREQUENCIES)
CORRELATION = Correlation().eval()


def smooth_template(spec: TemplateSpec, seed: int, *, frequency: int | None = None) -> Floats:
    """A random polar template `(columns, rings, C)`, smooth in bearing.

    Args:
        spec: the level.
        seed: of the noise.
        frequency: keep the channel pairs of this angular frequency only.
    """
    rng = np.random.default_rng(seed)
    bearing = 2 * np.pi * (np.arange(spec.num_columns) + 0.5) / spec.num_columns
    waves = np.array([np.cos(k * bearing + a) for k in range(1, 6) for a in (0.0, np.pi / 2)])
    weights = rng.normal(size=(len(spec.ring_m), spec.num_channels, len(waves)))
    template = np.einsum("rcw,wn->nrc", weights, waves)
    if frequency is not None:
        is_kept = np.tile(np.array(PAIR_FREQUENCIES) == frequency, 2)
        template = template * is_kept
    return np.asarray(template)


def seen_from(
    template: Floats, spec: TemplateSpec, heading_deg: float, x: Floats, y: Floats
) -> Floats:
    """What a template says of points x east and y north of the camera: `(..., C)`.

    Written anew from the conventions, one complex number per channel pair: a pair of frequency f
    is a vector (north, east) that turns clockwise with f times the heading.
    """
    relative = np.arctan2(x, y) - np.deg2rad(heading_deg)
    column = (relative / (2 * np.pi) + 0.5) * spec.num_columns - 0.5
    rings = np.array(spec.ring_m)
    distance = np.hypot(x, y)
    ring = np.interp(distance, rings, np.arange(len(rings)))
    first, lower = np.floor(column).astype(int), np.floor(ring).astype(int)
    upper = np.minimum(lower + 1, len(rings) - 1)
    across, up = (column - first)[..., None], (ring - lower)[..., None]
    left, right = first % spec.num_columns, (first + 1) % spec.num_columns
    value = (1 - across) * ((1 - up) * template[left, lower] + up * template[left, upper])
    value = value + across * ((1 - up) * template[right, lower] + up * template[right, upper])
    value = value * (distance <= rings[-1] + (rings[-1] - rings[-2]) / 2)[..., None]
    pair = value[..., :NUM_PAIRS] + 1j * value[..., NUM_PAIRS:]
    turned = pair * np.exp(1j * np.deg2rad(heading_deg) * np.array(PAIR_FREQUENCIES))
    return np.concatenate([turned.real, turned.imag], axis=-1)


def slow_template(template: Floats, spec: TemplateSpec, heading_deg: float) -> Floats:
    """`(17, 17, C)`: means over 7 x 7 points of every cell."""
    offsets = (np.arange(17 * 7) + 0.5) / 7 - 8.5
    x, y = np.meshgrid(offsets * spec.cell_m, -offsets * spec.cell_m)
    points = seen_from(template, spec, heading_deg, x, y)
    return np.asarray(points.reshape(17, 7, 17, 7, -1).mean(axis=(1, 3)))


def planted_map(
    template: Floats, spec: TemplateSpec, num_cells: int, pose: tuple[float, float, float]
) -> Floats:
    """The aerial map `(C, cells, cells)` that a template predicts for a pose in its chip."""
    offset = (np.arange(num_cells) + 0.5 - num_cells / 2) * spec.cell_m
    x, y = np.meshgrid(offset - pose[0], -offset - pose[1])
    return np.moveaxis(seen_from(template, spec, pose[2], x, y), -1, 0)


def tensor(array: Floats) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


# ------------------------------------------------------------------------------ slow references


@torch.inference_mode()
def test_the_coarse_volume_is_the_slow_correlation() -> None:
    polar = np.stack([smooth_template(COARSE, seed) for seed in (0, 1)])
    aerial = np.random.default_rng(2).normal(size=(3, 16, 32, 32))
    templates = CORRELATION.coarse_templates(tensor(polar))
    volume = CORRELATION.coarse_volume(templates, tensor(aerial)).numpy()
    assert volume.shape == (2, 3, 32, 16, 16)
    scale = float(CORRELATION.coarse_log_scale.exp())
    for photo, chip, heading, row, column in (
        (0, 0, 0, 0, 0), (1, 2, 5, 15, 3), (0, 1, 13, 7, 15), (1, 0, 22, 9, 4), (0, 2, 31, 15, 15),
    ):  # fmt: skip
        slow = slow_template(polar[photo], COARSE, heading * 11.25)
        # The cell's middle is the middle of the template: 8 cells to each side.
        window = aerial[chip, :, row : row + 17, column : column + 17]
        expected = scale * np.einsum("ijc,cij->", slow, window)
        assert volume[photo, chip, heading, row, column] == pytest.approx(expected, rel=1e-3)


@torch.inference_mode()
def test_fine_windows_are_the_slow_correlation() -> None:
    polar = np.stack([smooth_template(FINE, seed) for seed in (3, 4)])
    aerial = np.random.default_rng(5).normal(size=(2, 16, 64, 64))
    cells = np.array([[0, 1, 16, 46, 0], [1, 0, 31, 20, 37], [0, 0, 46, 16, 127]])
    windows = Windows(*(torch.from_numpy(column.copy()) for column in cells.T))
    volume = CORRELATION.fine_volume(tensor(polar), tensor(aerial), windows).numpy()
    assert volume.shape == (3, 9, 7, 7)
    scale = float(CORRELATION.fine_log_scale.exp())
    for w, (photo, chip, row, column, heading) in enumerate(cells):
        for step, i, j in ((0, 0, 6), (4, 3, 3), (8, 6, 0), (3, 5, 1)):
            slow = slow_template(polar[photo], FINE, (heading + step - 4) * 2.8125)
            r, c = row + i - 3, column + j - 3
            window = aerial[chip, :, r - 8 : r + 9, c - 8 : c + 9]
            expected = scale * np.einsum("ijc,cij->", slow, window)
            assert volume[w, step, i, j] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("level", ["coarse", "fine"])
def test_skipping_zeros_changes_neither_templates_nor_gradients(level: str) -> None:
    resample = getattr(CORRELATION, f"to_{level}_cells")
    spec = COARSE if level == "coarse" else FINE
    polar = tensor(np.stack([smooth_template(spec, seed) for seed in (0, 1)])).requires_grad_()
    cells = resample(polar)
    flat = polar.permute(1, 2, 0, 3).flatten(0, 1).flatten(1)
    dense = (resample.matrix @ flat).view_as(cells)
    torch.testing.assert_close(cells, dense)
    weight = torch.randn(cells.shape, generator=torch.Generator().manual_seed(0))
    (quick,) = torch.autograd.grad((cells * weight).sum(), polar)
    (slow,) = torch.autograd.grad((dense * weight).sum(), polar)
    torch.testing.assert_close(quick, slow)
    # Lower precision takes the dense product.
    half = resample(polar.detach().bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - cells.detach()).abs().max() < 0.02 * cells.abs().max()


@torch.inference_mode()
def test_batched_equals_single() -> None:
    polar = tensor(np.stack([smooth_template(COARSE, seed) for seed in (0, 1, 2)]))
    aerial = tensor(np.random.default_rng(6).normal(size=(3, 16, 32, 32)))
    templates = CORRELATION.coarse_templates(polar)
    volume = CORRELATION.coarse_volume(templates, aerial)
    paired = CORRELATION.paired_volume(templates, aerial)
    strided = CORRELATION.coarse_volume(templates, aerial, stride=2)
    for i in range(3):
        single = CORRELATION.coarse_volume(
            CORRELATION.coarse_templates(polar[i : i + 1]), aerial[i : i + 1]
        )
        torch.testing.assert_close(single[0, 0], volume[i, i], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(single[0, 0], paired[i], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(strided, volume[..., ::2, ::2], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------- geometry

# One per quadrant of position and of heading: row, column, heading step; all on cell centres.
COARSE_POSES = [(3, 12, 3), (2, 4, 11), (12, 3, 19), (13, 11, 29)]


@pytest.mark.parametrize("frequency", [None, 0, 1, 2])
@pytest.mark.parametrize(("row", "column", "heading"), COARSE_POSES)
@torch.inference_mode()
def test_a_planted_coarse_pose_is_the_peak(
    row: int, column: int, heading: int, frequency: int | None
) -> None:
    template = smooth_template(COARSE, 7, frequency=frequency)
    x_m, y_m = (column + 0.5 - 8) * 4.0, (8 - row - 0.5) * 4.0
    aerial = planted_map(template, COARSE, 32, (x_m, y_m, heading * 11.25))
    templates = CORRELATION.coarse_templates(tensor(template[None]))
    volume = CORRELATION.coarse_volume(templates, tensor(aerial[None]))[0, 0].numpy()
    found = np.unravel_index(int(volume.argmax()), volume.shape)
    assert tuple(int(i) for i in found) == (heading, row, column)


@pytest.mark.parametrize("frequency", [None, 0, 1, 2])
@pytest.mark.parametrize("heading", [5, 47, 79, 121])
@torch.inference_mode()
def test_a_planted_fine_pose_is_the_peak(heading: int, frequency: int | None) -> None:
    template = smooth_template(FINE, 8, frequency=frequency)
    row, column = 25, 38
    x_m, y_m = (column + 0.5 - 32) * 2.0, (32 - row - 0.5) * 2.0
    aerial = planted_map(template, FINE, 64, (x_m, y_m, heading * 2.8125))
    centre = (row - 1, column + 2, (heading + 3) % 128)
    windows = Windows(*(torch.tensor([i]) for i in (0, 0, *centre)))
    volume = CORRELATION.fine_volume(tensor(template[None]), tensor(aerial[None]), windows)
    found = np.unravel_index(int(volume[0].argmax()), volume.shape[1:])
    assert tuple(int(i) for i in found) == (4 - 3, 3 + 1, 3 - 2)


# ------------------------------------------------------------------------------------------- match


def planted_match(pose: tuple[float, float, float], chip: int, **options: Any) -> Any:
    """Match a planted pose in one of three chips; the others hold noise."""
    coarse, fine = smooth_template(COARSE, 9), smooth_template(FINE, 10)
    rng = np.random.default_rng(11)
    coarse_maps = rng.normal(size=(3, 16, 32, 32))
    fine_maps = rng.normal(size=(3, 16, 64, 64))
    coarse_maps[chip] = planted_map(coarse, COARSE, 32, pose)
    fine_maps[chip] = planted_map(fine, FINE, 64, pose)
    num_views = options.pop("num_views", 1)
    code = GroundCode(
        descriptor=torch.zeros(num_views, 64),
        polar_coarse=tensor(coarse[None]).expand(num_views, -1, -1, -1),
        polar_fine=tensor(fine[None]).expand(num_views, -1, -1, -1),
        visible_share=torch.ones(num_views),
        is_plan=torch.zeros(num_views, dtype=torch.bool),
    )
    network: Any = SimpleNamespace(correlation=CORRELATION, refiner=None)
    return match(
        network, code, tensor(coarse_maps), lambda used: tensor(fine_maps[used]), **options
    )


@pytest.mark.parametrize(
    ("pose", "chip"),
    [
        ((17.3, 9.1, 33.0), 0),
        ((-21.7, 24.2, 127.4), 1),
        ((-5.2, -29.0, 231.9), 2),
        ((30.4, -12.8, 358.6), 1),
    ],
)
def test_a_planted_pose_becomes_the_answer(pose: tuple[float, float, float], chip: int) -> None:
    evidence = planted_match(pose, chip)
    posterior = posterior_of(
        evidence,
        row_of_chips(3),
        Calibration(wide=PosteriorShape(floor=0.001), narrow=PosteriorShape(floor=0.001)),
    )
    mode = posterior.mode
    assert mode.chip == chip
    assert mode.x_m - (chip - 1) * 64.0 == pytest.approx(pose[0], abs=1.0)
    assert mode.y_m == pytest.approx(pose[1], abs=1.0)
    assert abs(heading_error_deg(mode.heading_deg, pose[2])) < 2.0


def test_cells_without_imagery_are_forbidden() -> None:
    pose = (17.3, 9.1, 33.0)
    has_imagery = np.ones((3, 16, 16), dtype=bool)
    has_imagery[0] = False
    evidence = planted_match(pose, 0, has_imagery=has_imagery)
    assert 0 not in evidence.chip
    assert np.isneginf(evidence.coarse[0]).all()
    assert np.isfinite(evidence.coarse[1:]).all()
    posterior = posterior_of(evidence, row_of_chips(3), Calibration())
    assert posterior.place_prob[0].sum() == 0
    assert posterior.place_prob.sum() == pytest.approx(1.0)


def test_a_window_holds_nothing_where_imagery_ends() -> None:
    pose = (1.0, 1.0, 33.0)
    has_imagery = np.ones((3, 16, 16), dtype=bool)
    has_imagery[0, :, 8:] = False
    evidence = planted_match(pose, 0, has_imagery=has_imagery)
    posterior = posterior_of(evidence, row_of_chips(3), Calibration())
    assert posterior.place_prob[0, :, 16:].sum() == 0


def test_a_prior_chooses_windows_and_leaves_the_evidence_alone() -> None:
    pose = (17.3, 9.1, 33.0)
    plain = planted_match(pose, 0)
    prior = np.zeros((3, 32, 16, 16), dtype=np.float32)
    prior[0] = -1e6
    elsewhere = planted_match(pose, 0, log_prior=prior)
    assert 0 in plain.chip
    assert 0 not in elsewhere.chip
    np.testing.assert_array_equal(elsewhere.coarse, plain.coarse)


def test_equal_views_say_what_one_says() -> None:
    one, three = (planted_match((3.0, 4.0, 50.0), 1, num_views=n) for n in (1, 3))
    np.testing.assert_allclose(one.coarse, three.coarse, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(one.chip, three.chip)
    np.testing.assert_allclose(one.fine, three.fine, rtol=1e-4, atol=1e-3)


def test_windows_at_the_border_hold_nothing_outside() -> None:
    evidence = planted_match((31.0, 31.0, 10.0), 1)
    first = int(np.flatnonzero((evidence.row == 0) & (evidence.column == 15))[0])
    assert np.isneginf(evidence.fine[first, :, :2]).all()
    assert np.isneginf(evidence.fine[first, :, :, 4:]).all()
    assert np.isfinite(evidence.fine[first, :, 2:, :4]).all()


def test_best_poses_are_high_and_apart() -> None:
    volume = np.full((2, 32, 16, 16), -9.0, dtype=np.float32)
    volume[0, 0, 5, 5], volume[0, 0, 5, 6], volume[0, 31, 5, 5] = 9, 8, 7  # one peak, wrapping
    volume[0, 2, 5, 5], volume[0, 0, 7, 5], volume[1, 0, 5, 5] = 6, 5, 4
    volume[1, 9, 9, 9] = -np.inf
    chip, heading, row, column = best_poses(volume, MatchConfig(num_windows=4))
    found = list(zip(chip, heading, row, column, strict=True))
    assert found == [(0, 0, 5, 5), (0, 2, 5, 5), (0, 0, 7, 5), (1, 0, 5, 5)]
