from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ciper import checkpoint
from ciper.checkpoint import find_weights, load_checkpoint, save_checkpoint
from ciper.errors import CheckpointError, OutputError

HEADER = {"step": 7, "config": {"width": 64, "name": "größe"}, "metrics": [0.5, None]}


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    return {
        "a.weight": base,
        "a.view": base[:2],
        "a.transposed": base.T,
        "b.half": base.to(torch.bfloat16),
        "b.count": torch.tensor(3),
        "b.empty": torch.zeros(0, 5),
        "b.mask": base > 0,
    }


def test_what_is_written_is_read(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "new" / "model.safetensors"
    save_checkpoint(path, state, HEADER)
    tensors, header = load_checkpoint(path)
    assert header == HEADER
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_second_save_replaces_the_first(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, {"x": torch.zeros(3)}, {"step": 1})
    save_checkpoint(path, {"x": torch.ones(3)}, {"step": 2})
    tensors, header = load_checkpoint(path)
    assert header == {"step": 2}
    assert torch.equal(tensors["x"], torch.ones(3))


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, {"x": torch.zeros(3)}, {"step": 1})

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match=r"cannot be written .*No space left.*free some space"):
        save_checkpoint(path, {"x": torch.ones(3)}, {"step": 2})
    assert load_checkpoint(path)[1] == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "model.safetensors", {"x": torch.zeros(1)}, {})


def test_a_header_that_is_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="header must be plain JSON"):
        save_checkpoint(tmp_path / "m.safetensors", {}, {"path": tmp_path})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_truncated_files_are_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, {"x": torch.zeros(100)}, HEADER)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"is not a complete safetensors file"):
        load_checkpoint(path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, {"x": torch.zeros(100)}, HEADER)
    content = bytearray(path.read_bytes())
    content[-37] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="do not match their checksum"):
        load_checkpoint(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="is not a checkpoint of CIPER"):
        load_checkpoint(path)
    for text, message in [("{", "is not JSON"), ("[1]", "expected an object")]:
        save_file({"x": torch.zeros(2)}, path, metadata={"ciper": text})
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)
    path.write_text("<html>404</html>")
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        load_checkpoint(path)


def test_weights_are_found_by_name_then_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "weights" / "tiny" / "model.safetensors"
    save_checkpoint(shipped, {}, {})
    monkeypatch.setattr(checkpoint, "_SHIPPED", tmp_path / "weights")
    own = tmp_path / "own.safetensors"
    save_checkpoint(own, {}, {})
    assert find_weights("tiny") == shipped
    assert find_weights(own) == own
    with pytest.raises(CheckpointError, match=r"^huge: neither a file nor .* one of: tiny\.$"):
        find_weights("huge")
