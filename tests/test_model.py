from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from model_helpers import TINY

from ciper.checkpoint import load_checkpoint, save_checkpoint
from ciper.errors import CheckpointError, ConfigError
from ciper.model.calibration import PosteriorShape
from ciper.model.encoder import Stem, fold_pixels, metre_encoding, ray_encoding
from ciper.model.load import Calibration, export_weights, load_model, places_with_imagery
from ciper.model.network import Network, NetworkConfig, normalise


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(1)
    return Network(TINY).eval()


def photos(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    canvas = torch.randint(0, 256, (num, 128, 512, 3), generator=generator, dtype=torch.uint8)
    return canvas, torch.ones(num, 128, 512, dtype=torch.bool)


def chips(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    chip = torch.randint(0, 256, (num, 256, 256, 3), generator=generator, dtype=torch.uint8)
    return chip, torch.ones(num, 256, 256, dtype=torch.bool)


@torch.inference_mode()
def test_shapes_and_unit_descriptors(network: Network) -> None:
    ground = network.encode_ground(*photos(2))
    assert ground.descriptor.shape == (2, 64)
    assert ground.polar_coarse.shape == (2, 64, 9, 16)
    assert ground.polar_fine.shape == (2, 128, 8, 16)
    aerial = network.encode_aerial(*chips(2))
    assert aerial.descriptors.shape == (2, 64, 64)
    assert aerial.coarse.shape == (2, 16, 32, 32)
    assert aerial.fine.shape == (2, 16, 64, 64)
    for descriptors in (ground.descriptor, aerial.descriptors):
        torch.testing.assert_close(descriptors.norm(dim=-1), torch.ones(descriptors.shape[:-1]))


@torch.inference_mode()
def test_batched_equals_single(network: Network) -> None:
    canvas, is_visible = photos(2)
    chip, is_valid = chips(2)
    together = network.encode_ground(canvas, is_visible), network.encode_aerial(chip, is_valid)
    for i in range(2):
        one = slice(i, i + 1)
        ground = network.encode_ground(canvas[one], is_visible[one])
        aerial = network.encode_aerial(chip[one], is_valid[one])
        torch.testing.assert_close(ground.polar_coarse[0], together[0].polar_coarse[i])
        torch.testing.assert_close(ground.polar_fine[0], together[0].polar_fine[i])
        torch.testing.assert_close(aerial.fine[0], together[1].fine[i])
        torch.testing.assert_close(aerial.descriptors[0], together[1].descriptors[i])


@torch.inference_mode()
def test_what_is_not_seen_does_not_matter(network: Network) -> None:
    canvas, is_visible = photos(1)
    is_visible[:, :, :256] = False
    other = canvas.clone()
    other[:, :, :256] = 255 - other[:, :, :256]
    one, two = (network.encode_ground(c, is_visible) for c in (canvas, other))
    torch.testing.assert_close(one.polar_coarse, two.polar_coarse)
    # The left half of the bearings is empty in the templates.
    assert one.polar_coarse[:, :32].abs().max() == 0
    assert one.polar_coarse[:, 32:].abs().max() > 0


@torch.inference_mode()
def test_a_rolled_panorama_has_rolled_stem_features() -> None:
    torch.manual_seed(4)
    stem = Stem(TINY.encoder, wraps=True)
    for parameter in stem.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # the residual branch starts at zero
    canvas = torch.randn(1, 128, 512, 4)
    plain, rolled = stem(canvas), stem(canvas.roll(16 * 5, dims=2))
    for before, after, columns in zip(plain, rolled, (4 * 5, 2 * 5, 5), strict=True):
        torch.testing.assert_close(before.roll(columns, dims=2), after, rtol=1e-4, atol=1e-4)
    # A chip has edges: there a roll is seen.
    flat = Stem(TINY.encoder, wraps=False)
    flat.load_state_dict(stem.state_dict())
    assert not torch.allclose(flat(canvas)[0].roll(20, dims=2), flat(canvas.roll(80, dims=2))[0])


def test_pixels_fold_in_reading_order() -> None:
    image = torch.arange(16.0).reshape(1, 4, 4, 1)
    folded = fold_pixels(image, 2)
    assert folded[0, 0, 0].tolist() == [0, 1, 4, 5]
    assert folded[0, 0, 1].tolist() == [2, 3, 6, 7]
    assert folded[0, 1, 0].tolist() == [8, 9, 12, 13]


def test_metre_encoding_by_hand() -> None:
    encoding = metre_encoding(4, 2, 8.0, num_waves=2)  # wavelengths 8 m and 256 m
    assert encoding.shape == (4, 2, 8)
    # Upper left patch: 4 m west, 12 m north. Channels: sine of (east, north) per wave, then cosine.
    expected = [np.sin(2 * np.pi * metres / wave) for wave in (8, 256) for metres in (-4, 12)]
    np.testing.assert_allclose(encoding[0, 0, :4], expected, atol=1e-5)
    # Lower right: 4 m east, 12 m south.
    expected = [np.cos(2 * np.pi * metres / wave) for wave in (8, 256) for metres in (4, -12)]
    np.testing.assert_allclose(encoding[3, 1, 4:], expected, atol=1e-5)


def test_ray_encoding_by_hand() -> None:
    encoding = ray_encoding(2, 4, elevation_top_deg=45.0, elevation_bottom_deg=-45.0, num_waves=1)
    assert encoding.shape == (2, 4, 4)
    # Upper left patch: bearing -135, elevation 22.5 degrees.
    angles = np.deg2rad([-135.0, 22.5])
    np.testing.assert_allclose(encoding[0, 0], [*np.sin(angles), *np.cos(angles)], atol=1e-6)
    # Lower, second from the right: bearing 45, elevation -22.5.
    angles = np.deg2rad([45.0, -22.5])
    np.testing.assert_allclose(encoding[1, 2], [*np.sin(angles), *np.cos(angles)], atol=1e-6)


def test_the_ray_encoding_is_circular() -> None:
    encoding = ray_encoding(1, 512, elevation_top_deg=45.0, elevation_bottom_deg=-45.0)[0]
    steps = (encoding - encoding.roll(1, dims=0)).norm(dim=1)
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-3, atol=1e-4)


def test_invalid_pixels_are_zero() -> None:
    image = torch.full((1, 2, 2, 3), 200, dtype=torch.uint8)
    is_valid = torch.tensor([[[True, False], [False, True]]])
    x = normalise(image, is_valid)
    assert x[0, 0, 1].tolist() == [0, 0, 0, 0]
    assert x[0, 0, 0, 3] == 1
    assert x[0, 0, 0, 0] == pytest.approx((200 / 255 - 0.485) / 0.229)


# -------------------------------------------------------------------------------------- weights


def test_weights_load_and_encode(tiny_weights: Path) -> None:
    model = load_model(tiny_weights, "cpu")
    assert (model.model_name, model.chip_px, model.gsd) == ("tiny", 256, 0.5)
    assert (model.canvas.height_px, model.canvas.width_px) == (128, 512)
    valid = np.ones((2, 256, 256), dtype=bool)
    valid[1, :, :80] = False
    codes = model.encode(np.full((2, 256, 256, 3), 90, dtype=np.uint8), valid)
    assert codes.descriptors.dtype == codes.fine.dtype == np.float16
    is_missing = np.isnan(codes.descriptors[..., 0]).reshape(2, 8, 8)
    # The first of the second chip's columns of places reaches from pixel 64 to 80.
    assert not is_missing[0].any()
    assert is_missing[1].all(axis=0).tolist() == [True] + [False] * 7


def test_places_with_imagery_are_in_reading_order() -> None:
    valid = np.zeros((1, 256, 256), dtype=bool)
    valid[0, 64 + 16 * 2 + 3, 64 + 16 * 5 + 1] = True
    assert np.flatnonzero(places_with_imagery(valid, 64)[0]).tolist() == [2 * 8 + 5]


def test_exported_weights_are_smaller_and_say_the_same(tiny_weights: Path, tmp_path: Path) -> None:
    calibration = Calibration(
        wide=PosteriorShape(coarse_temperature=1.5), confidence=(0.1, 0.2, 0.3, 0.4, 0.5)
    )
    out = tmp_path / "small" / "model.safetensors"
    export_weights(tiny_weights, out, calibration)
    assert out.stat().st_size < 0.6 * tiny_weights.stat().st_size
    model = load_model(out, "cpu")
    assert model.calibration == calibration
    assert model.model_name == "small"
    assert model.model_hash != load_model(tiny_weights, "cpu").model_hash


def test_weights_without_a_calibration_are_not_calibrated(tiny_weights: Path) -> None:
    model = load_model(tiny_weights, "cpu")
    assert model.calibration == Calibration(is_fitted=False)
    assert len(model.limits) == 1
    assert "the model 'tiny' is not calibrated" in model.limits[0]
    assert model.limits != load_model("ground", "cpu").limits == ()


@pytest.mark.parametrize(
    "calibration",
    [
        {"confidence": [0.1, 0.2, 0.3, 0.4]},
        {"coarse_temperature": 1.3, "fine_temperature": 0.8},
        {"position_sigma_m": 0.0},
        {"similarity_scale": -1.0},
    ],
)
def test_calibrations_of_other_versions_are_refused(
    tiny_weights: Path, tmp_path: Path, calibration: dict[str, object]
) -> None:
    state, header = load_checkpoint(tiny_weights)
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, state, {**header, "calibration": calibration})
    message = rf"a\.safetensors was calibrated by another .*{next(iter(calibration))}.* again with"
    with pytest.raises(CheckpointError, match=message):
        load_model(path, "cpu")


def test_networks_of_other_versions_are_refused(tiny_weights: Path, tmp_path: Path) -> None:
    state, header = load_checkpoint(tiny_weights)
    network = {**header["config"]["network"], "wheels": 4}
    save_checkpoint(tmp_path / "a.safetensors", state, {"config": {"network": network}})
    with pytest.raises(CheckpointError, match=r"a\.safetensors describes .*wheels is not"):
        load_model(tmp_path / "a.safetensors", "cpu")


def test_a_printed_size_is_the_size(tiny_weights: Path) -> None:
    """Messages print six digits; what they advise must be taken."""
    model = load_model(tiny_weights, "cpu")
    for chip_m in (128.0, 128.001, 127.9993):
        model.check_grid(chip_m=chip_m, stride_m=chip_m / 2)
    for chip_m, stride_m in ((128.01, 64.0), (128.0, 63.99), (64.0, 32.0)):
        with pytest.raises(ConfigError, match=r"expected chips of 128 m every 64 m"):
            model.check_grid(chip_m=chip_m, stride_m=stride_m)


def test_weights_that_are_not_ours_are_refused(tiny_weights: Path, tmp_path: Path) -> None:
    state, header = load_checkpoint(tiny_weights)
    save_checkpoint(tmp_path / "a.safetensors", state, {"step": 3})
    with pytest.raises(CheckpointError, match="expected a checkpoint written by ciper train"):
        load_model(tmp_path / "a.safetensors", "cpu")
    del state["model.encoder.norm.weight"]
    save_checkpoint(tmp_path / "b.safetensors", state, header)
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_model(tmp_path / "b.safetensors", "cpu")
    with pytest.raises(CheckpointError, match="neither a file nor shipped weights"):
        load_model("no-such-weights", "cpu")


def test_the_default_network_fits_its_budget() -> None:
    num = sum(value.numel() for value in Network(NetworkConfig()).state_dict().values())
    assert 2 * num < 20e6  # bytes as float16
