from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from gallery_helpers import real_data
from released_helpers import (
    SMALL,
    random_network,
    their_names,
    write_expected,
    write_released,
)
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from ciper.checkpoint import load_checkpoint
from ciper.cli import app
from ciper.convert import LARGEST_DIFFERENCE, OUTPUTS, convert, outputs_of
from ciper.errors import CheckpointError, ConfigError, OutputError
from ciper.model.load import Calibration, PaperModel, export_weights, load_model


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def converted(folder: Path, dataset: str = "kitti", gsd: float | None = None) -> PaperModel:
    out = folder / f"{dataset}.safetensors"
    convert(write_released(folder / "model.pth"), out, dataset, gsd=gsd)
    model = load_model(out, "cpu")
    assert isinstance(model, PaperModel)
    return model


def test_a_converted_model_is_the_released_network(tmp_path: Path) -> None:
    model, original = converted(tmp_path), random_network()
    for name, value in original.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], value), name
    assert model.model_name == "kitti"
    assert model.header["epoch"] == 7
    state, _ = load_checkpoint(tmp_path / "kitti.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("dataset", "gsd", "side_m", "says_heading"),
    [
        ("vigor", None, 71.04, False),
        ("vigor", 0.1, 64.0, False),
        ("kitti", None, 100.27, True),
        ("ford", None, 112.6, True),
        ("ford", 0.25, 128.0, True),
    ],
)
def test_the_data_set_says_how_large_a_chip_is(
    tmp_path: Path, dataset: str, gsd: float | None, side_m: float, says_heading: bool
) -> None:
    model = converted(tmp_path, dataset, gsd)
    assert model.chip_px == 48
    assert model.chip_m == pytest.approx(side_m)
    assert model.says_heading is says_heading
    assert model.wants_north is not says_heading
    assert model.origin is not None
    assert model.origin.dataset == dataset
    assert model.origin.side_m == pytest.approx(side_m)
    model.check_grid(chip_m=side_m, stride_m=side_m / 2)
    with pytest.raises(ConfigError, match="do not suit the model"):
        model.check_grid(chip_m=128.1, stride_m=64.05)


def test_the_same_weights_of_two_data_sets_are_two_models(tmp_path: Path) -> None:
    assert converted(tmp_path).model_hash != converted(tmp_path, "ford").model_hash


@pytest.mark.parametrize(
    ("dataset", "range_deg", "position_m", "heading_deg"),
    [
        # A Rayleigh's median is 1.1774 sigma, a half-normal's 0.6745; VIGOR's 4.79 m are 5.99 m.
        ("vigor", 180.0, 5.085, 6.0),
        ("kitti", 10.0, 5.470, 1.572),
        ("kitti", 180.0, 9.623, 6.642),
        ("ford", 10.0, 8.612, 0.934),
        ("ford", 180.0, 8.459, 0.919),
    ],
)
def test_spreads_are_the_published_errors(
    tmp_path: Path, dataset: str, range_deg: float, position_m: float, heading_deg: float
) -> None:
    out = tmp_path / "m.safetensors"
    convert(write_released(tmp_path / "m.pth"), out, dataset, heading_range_deg=range_deg)
    calibration = load_model(out, "cpu").calibration
    assert calibration.position_sigma_m == pytest.approx(position_m, abs=1e-3)
    assert calibration.heading_sigma_deg == pytest.approx(heading_deg, abs=1e-3)
    assert not calibration.is_fitted


def test_chips_that_were_turned_to_the_heading_are_said_to_be(tmp_path: Path) -> None:
    source, out = write_released(tmp_path / "m.pth"), tmp_path / "m.safetensors"
    result = run(source, out, "--dataset", "kitti")
    assert "say --heading-range 10" in result.stderr
    assert not any("north up" in limit for limit in load_model(out, "cpu").limits)
    result = run(source, out, "--dataset", "kitti", "--heading-range", 10)
    assert "warning" not in result.stderr
    limits = load_model(out, "cpu").limits
    assert any("knows only photos that look north to within 10 deg" in limit for limit in limits)
    with pytest.raises(ConfigError, match=r"--heading-range 10: vigor has no such .* expected 180"):
        convert(source, out, "vigor", heading_range_deg=10)
    with pytest.raises(ConfigError, match=r"--heading-range 45: ford .* expected 10, 180"):
        convert(source, out, "ford", heading_range_deg=45)


def test_an_input_is_not_overwritten(tmp_path: Path) -> None:
    source, expected = (
        write_released(tmp_path / "m.pth"),
        write_expected(tmp_path / "e.safetensors"),
    )
    link = tmp_path / "link.safetensors"
    link.symlink_to(expected)
    before = source.read_bytes(), expected.read_bytes()
    for out in (source, expected, link):
        with pytest.raises(OutputError, match="itself, which is read; expected another file"):
            convert(source, out, "vigor", verify=expected)
    assert (source.read_bytes(), expected.read_bytes()) == before
    convert(source, expected, "vigor")  # not read, so that it may be replaced


def test_an_export_keeps_the_origin(tmp_path: Path) -> None:
    converted(tmp_path, "vigor")
    calibration = Calibration(position_sigma_m=3.0)
    export_weights(tmp_path / "vigor.safetensors", tmp_path / "half.safetensors", calibration)
    model = load_model(tmp_path / "half.safetensors", "cpu")
    assert not model.says_heading
    assert model.calibration.position_sigma_m == 3.0


def test_batched_is_single(tmp_path: Path) -> None:
    network, generator = converted(tmp_path).network, torch.Generator().manual_seed(3)
    ground = torch.randn(4, 3, 32, 128, generator=generator)
    aerial = torch.randn(4, 3, 48, 48, generator=generator)
    together = outputs_of(network, ground, aerial)
    for i in range(4):
        alone = outputs_of(network, ground[i : i + 1], aerial[i : i + 1])
        for name in OUTPUTS:
            torch.testing.assert_close(alone[name][0], together[name][i], rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------- --verify


def test_the_real_file_computes_what_the_authors_network_computes(tmp_path: Path) -> None:
    folder = real_data() / "released_checkpoint" / "tiny_p16"
    out = tmp_path / "tiny.safetensors"
    expected = folder / "expected.safetensors"
    result = run(folder / "model.pth", out, "--dataset", "vigor", "--verify", expected)
    assert result.exit_code == 0, result.stderr
    told = dict(re.findall(r"(\w+): largest difference (\S+)", result.stdout))
    assert set(told) == set(OUTPUTS)
    assert all(float(value) < 1e-5 for value in told.values())
    model = load_model(out, "cpu")
    assert isinstance(model, PaperModel)
    held = load_file(expected)
    found = outputs_of(model.network, held["ground"], held["aerial"])
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], held[name], rtol=0, atol=LARGEST_DIFFERENCE)


def test_a_right_file_is_verified(tmp_path: Path) -> None:
    source, expected = (
        write_released(tmp_path / "m.pth"),
        write_expected(tmp_path / "e.safetensors"),
    )
    result = run(source, tmp_path / "out.safetensors", "--dataset", "ford", "--verify", expected)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("largest difference") == len(OUTPUTS)
    assert "chips of 112.6 m at 2.346 m/px" in result.stderr
    assert (tmp_path / "out.safetensors").is_file()


@pytest.mark.parametrize("name", ["aerial_pose_token", "pred_boxes"])
def test_a_difference_is_exit_1_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    source, expected = (
        write_released(tmp_path / "m.pth"),
        write_expected(tmp_path / "e.safetensors"),
    )
    held = load_file(expected)
    held[name].view(-1)[-1] += 2e-4
    save_file(held, expected)
    out = tmp_path / "out.safetensors"
    result = run(source, out, "--dataset", "vigor", "--verify", expected)
    assert result.exit_code == 1
    assert f"{name}: largest difference 2.00e-04" in result.stdout
    assert result.stderr == f"error: a difference is above 0.0001; {out} was not written\n"
    assert not out.exists()


def test_another_networks_outputs_differ(tmp_path: Path) -> None:
    expected = write_expected(tmp_path / "e.safetensors", random_network(seed=1))
    made = convert(
        write_released(tmp_path / "m.pth"), tmp_path / "o.safetensors", "vigor", verify=expected
    )
    assert not made.is_right
    assert min(made.differences.values()) > LARGEST_DIFFERENCE


def test_a_difference_that_is_no_number_is_too_large(tmp_path: Path) -> None:
    expected = write_expected(tmp_path / "e.safetensors")
    held = load_file(expected)
    held["pred_logits"][0, 0] = torch.nan
    save_file(held, expected)
    source, out = write_released(tmp_path / "m.pth"), tmp_path / "o.safetensors"
    assert not convert(source, out, "vigor", verify=expected).is_right


def test_expectations_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source, out = write_released(tmp_path / "m.pth"), tmp_path / "o.safetensors"
    expected = write_expected(tmp_path / "e.safetensors")
    held = load_file(expected)
    for changed, message in (
        ({k: v for k, v in held.items() if k != "pred_boxes"}, "lacks pred_boxes"),
        ({**held, "ground": held["ground"][..., :64].contiguous()}, r"expected \(B, 3, 32, 128\)"),
        ({**held, "aerial": held["aerial"][:2].contiguous()}, "aerial has shape"),
        ({**held, "pred_logits": held["pred_logits"][:, :4].contiguous()}, "pred_logits has shape"),
    ):
        save_file(changed, expected)
        with pytest.raises(CheckpointError, match=message):
            convert(source, out, "vigor", verify=expected)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        convert(source, out, "vigor", verify=source)
    assert not out.exists()


@pytest.mark.parametrize(
    ("dataset", "gsd", "message"),
    [
        ("mars", None, "--dataset 'mars' is unknown; expected one of vigor, kitti, ford"),
        ("vigor", 0.0, "--gsd 0 is no size of a pixel"),
        ("vigor", float("inf"), "--gsd inf is no size"),
    ],
)
def test_impossible_options(tmp_path: Path, dataset: str, gsd: float | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(tmp_path / "m.pth", tmp_path / "o.safetensors", dataset, gsd=gsd)


def test_errors_are_one_line_and_exit_2(tmp_path: Path) -> None:
    tensors = their_names(random_network())
    del tensors["query_net.norm.bias"]
    source = write_released(tmp_path / "m.pth", tensors)
    result = run(source, tmp_path / "o.safetensors", "--dataset", "vigor")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {source}: lacks query_net.norm.bias; expected the tensors of the authors' "
        "network.\n"
    )


def test_the_small_network_has_no_two_equal_sizes() -> None:
    """Else a size that is read off the wrong tensor would go unnoticed."""
    sizes = [
        SMALL.vit.width,
        SMALL.decoder.mlp_width,
        SMALL.descriptor_dim,
        SMALL.canvas_height_px * SMALL.canvas_width_px // SMALL.vit.patch_px**2,
        SMALL.chip_px**2 // SMALL.vit.patch_px**2,
    ]
    assert len(set(sizes)) == len(sizes)
