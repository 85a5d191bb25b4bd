from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gallery_helpers import real_data
from released_helpers import SMALL, random_network, their_names, write_released
from torch import Tensor

from ciper.camera import Camera, Projection
from ciper.errors import CheckpointError
from ciper.model.pickles import load_pickle
from ciper.model.released import Origin, read_released

Tensors = dict[str, Tensor]


def test_sizes_are_read_off_the_tensors(tmp_path: Path) -> None:
    released = read_released(write_released(tmp_path / "model.pth"), side_m=71.04)
    assert released.config == SMALL
    assert released.epoch == 7
    network = random_network()
    assert released.weights.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(released.weights[name], value), name


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    half = {name: value.half() for name, value in their_names(random_network()).items()}
    released = read_released(write_released(tmp_path / "model.pth", half), side_m=71.04)
    assert {value.dtype for value in released.weights.values()} == {torch.float32}


def test_the_real_file(tmp_path: Path) -> None:
    """With its config.json, and without: the convention is the same."""
    source = real_data() / "released_checkpoint" / "tiny_p16" / "model.pth"
    config = read_released(source, side_m=64.0).config
    assert (config.vit.width, config.vit.depth, config.vit.patch_px) == (48, 3, 16)
    assert (config.canvas_height_px, config.canvas_width_px, config.chip_px) == (64, 256, 128)
    assert (config.decoder.num_queries, config.decoder.mlp_width) == (8, 2048)
    assert (config.descriptor_dim, config.gsd) == (40, 0.5)
    alone = tmp_path / "model.pth"
    alone.write_bytes(source.read_bytes())
    assert read_released(alone, side_m=64.0).config == config


def say(folder: Path, **said: Any) -> None:
    (folder / "config.json").write_text(json.dumps(said))


def test_a_config_beside_the_file_says_what_tensors_do_not(tmp_path: Path) -> None:
    path = write_released(tmp_path / "model.pth")
    say(tmp_path, num_heads=3, grd_img_size=[64, 64], dim_embed=48, anything="else")
    config = read_released(path, side_m=71.04).config
    assert config.vit.num_heads == 3
    assert (config.canvas_height_px, config.canvas_width_px) == (64, 64)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"dim_embed": 64},
            r"config\.json: dim_embed is 64, but the tensors of model\.pth have 48",
        ),
        ({"num_multimask_outputs": 64}, "num_multimask_outputs is 64, .* have 5"),
        ({"grd_img_size": [32, 64]}, r"grd_img_size is \[32, 64\].* of 4096 pixels"),
        ({"arl_img_size": [32, 72]}, "aerial patches are no square image"),
        ({"arl_img_size": "64"}, "arl_img_size is 64"),
        ({"num_heads": 0}, "num_heads is 0; expected a whole number"),
        ({"num_heads": 5}, "width 48 cannot be split among num_heads 5"),
        ({"grd_img_size": [4, 1024]}, r"model\.pth: an image of 4 x 1024 px cannot be cut"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    tmp_path: Path, said: dict[str, Any], message: str
) -> None:
    path = write_released(tmp_path / "model.pth")
    say(tmp_path, **said)
    with pytest.raises(CheckpointError, match=message):
        read_released(path, side_m=71.04)


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = write_released(tmp_path / "model.pth")
    for text in ("{", "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json: .* move it away"):
            read_released(path, side_m=71.04)


def without(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def changed(name: str, value: Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: value})


def shared(*names: str) -> Tensors:
    """Many times the same memory: a file that is small for what would become of it."""
    memory = torch.ones(10**6)
    return dict.fromkeys(names, memory)


HEAD, EMBED = "two_way_decoder.bbox_prediction_head.bias", "query_net.patch_embed.proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(HEAD), rf"lacks {HEAD}; expected the tensors"),
        (without(EMBED), rf"has no tensor {EMBED}"),
        (changed("query_net.extra", torch.ones(2)), r"has besides query_net\.extra;"),
        (changed("other", torch.ones(2)), "has besides other;"),
        (changed(HEAD, torch.ones(3)), rf"another shape {HEAD} \(3,\) instead of \(4,\)"),
        (changed(EMBED, torch.ones(3)), r"has shape \(3,\); expected 4 axes"),
        (changed(HEAD, torch.full((4,), torch.nan)), f"{HEAD} holds values that are not finite"),
        (changed(HEAD, torch.ones(4, dtype=torch.int64)), f"'{HEAD}' is a strided .* of int64"),
        (changed(HEAD, torch.ones(4).to(torch.float8_e5m2)), f"'{HEAD}' is a .* of float8_e5m2"),
        (changed(HEAD, torch.ones(4, device="meta")), f"'{HEAD}' is a strided meta tensor"),
        (changed(HEAD, torch.ones(4).to_sparse()), f"'{HEAD}' is a sparse_coo cpu tensor"),
        (changed(HEAD, torch.ones(1).expand(4)), f"'{HEAD}' has more numbers than the file"),
        (changed("query_net.x", torch.ones(1).expand(10**10)), "has more numbers than the file"),
        (lambda tensors: tensors.update(shared(HEAD, "other")), "'other' has more numbers"),
        (changed("query_net.pos_embed", torch.ones(1, 63, 48)), "60 ground patches are no image"),
        (changed("reference_net.pos_embed", torch.ones(1, 66, 48)), "63 aerial patches"),
        (changed("query_net.pos_embed", torch.ones(1, 2, 48)), "-1 ground patches"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    tensors = their_names(random_network())
    change(tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_released(write_released(tmp_path / "model.pth", tensors), side_m=71.04)
    assert "\n" not in str(caught.value)


def test_many_faults_stay_one_line(tmp_path: Path) -> None:
    tensors = their_names(random_network())
    lost = [name for name in tensors if "blocks.1.mlp" in name]
    for name in lost:
        del tensors[name]
    with pytest.raises(CheckpointError, match=f"lacks .* and {len(lost) - 3} more; expected"):
        read_released(write_released(tmp_path / "model.pth", tensors), side_m=71.04)


@pytest.mark.parametrize("held", [{"state": {}}, {"model": {}}, [1, 2], {"model": [1]}])
def test_a_file_without_weights_is_refused(tmp_path: Path, held: object) -> None:
    torch.save(held, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match='no weights under "model"'):
        read_released(tmp_path / "model.pth", side_m=71.04)


# ---------------------------------------------------------------------------------------- pickles


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.text,)


class Call:
    """Evaluates a text when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1 + 1",)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_runs_something_is_refused_by_name(
    tmp_path: Path, is_zip: bool, protocol: int
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "model.pth"
    for payload, name in (
        (Command(f"touch {mark}"), rf"{os.name}\.system"),
        (Call(), "eval"),
        (argparse.Namespace(lr=0.1), r"argparse\.Namespace"),
    ):
        torch.save(
            {"model": their_names(random_network()), "args": payload},
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=is_zip,
        )
        with pytest.raises(CheckpointError, match=rf"model\.pth: asks for \S*{name} when"):
            load_pickle(path)
    assert not mark.exists()


def test_a_plain_pickle_is_refused_by_name(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "model.pth"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({"model": Command(f"touch {mark}")}, protocol=protocol))
        with pytest.raises(CheckpointError, match=r"asks for \w+\.system when it is unpickled"):
            load_pickle(path)
    assert not mark.exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    whole = write_released(tmp_path / "whole.pth").read_bytes()
    path = tmp_path / "model.pth"
    with pytest.raises(CheckpointError, match=r"model\.pth: no such file"):
        load_pickle(path)
    for data in (b"", b"words", b"PK\x03\x04" + bytes(99), whole[: len(whole) // 2], whole[:-50]):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"model\.pth: is no") as caught:
            load_pickle(path)
        assert "\n" not in str(caught.value)


def test_what_an_origin_says_of_headings() -> None:
    assert not Origin("vigor", 71.04).says_heading
    assert Origin("kitti", 100.27).says_heading
    assert Origin("ford", 112.6).says_heading


@pytest.mark.parametrize(
    ("projection", "hfov_deg", "suited"),
    [
        ("equirectangular", 360.0, {"vigor"}),
        ("equirectangular", 180.0, set()),
        ("pinhole", 81.0, {"kitti", "ford"}),
        ("pinhole", 60.0, {"kitti", "ford"}),
        ("pinhole", 120.0, set()),
    ],
)
def test_which_photos_suit_which_data_set(
    projection: Projection, hfov_deg: float, suited: set[str]
) -> None:
    camera = Camera(projection, height_px=100, width_px=200, hfov_deg=hfov_deg)
    origins = (Origin("vigor", 71.04), Origin("kitti", 100.27), Origin("ford", 112.6))
    assert {origin.dataset for origin in origins if origin.suits(camera)} == suited
