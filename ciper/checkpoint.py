"""Weights on disk: a safetensors file whose metadata carries a JSON header.

One file holds everything that is needed to use or to continue a model: tensors, and under the
metadata key ``ciper`` whatever the writer put into the header (configuration, step, metrics). A
checksum over the tensors makes a flipped bit an error instead of a wrong answer. Nothing in such a
file is ever executed, unlike a pickle.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciper.errors import CheckpointError, OutputError
from ciper.files import written_whole

if TYPE_CHECKING:
    from torch import Tensor

_HEADER_KEY = "ciper"
_CHECKSUM_KEY = "crc32"
_SHIPPED = Path(__file__).parent / "weights"
_FILE_NAME = "model.safetensors"


def save_checkpoint(
    path: str | Path, state: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write tensors and a header; a reader sees the old file or the new one, nothing between.

    Args:
        path: The file; its folder is made if absent.
        state: Tensors by name, on any device; views of one storage are written one by one.
        header: Anything that JSON can hold.

    Raises:
        CheckpointError: The header is not JSON.
        OutputError: The file cannot be written, for example because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save

    path = Path(path)
    try:
        text = json.dumps(dict(header))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header must be plain JSON values: {error}.") from error
    tensors = _on_cpu(state)
    metadata = {"format": "pt", _HEADER_KEY: text, _CHECKSUM_KEY: _checksum(tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as unfinished:
            # Not save_file: its files can be read by their owner alone.
            unfinished.write_bytes(save(tensors, metadata=metadata))
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path}: cannot be written ({error}); free some space or name another place."
        ) from error


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote: tensors on the CPU, and the header.

    Raises:
        CheckpointError: The file is missing, is not a checkpoint of CIPER, is cut short, or its
            tensors do not match their checksum.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; name a .safetensors checkpoint.")
    tensors = read_safetensors(path)
    metadata = read_metadata(path)
    header = _parse_header(path, metadata)
    if metadata.get(_CHECKSUM_KEY) != _checksum(tensors):
        raise CheckpointError(
            f"{path}: the tensors do not match their checksum; fetch or write it again."
        )
    return tensors, header


def is_checkpoint(path: Path) -> bool:
    """Whether a file is one of ours; other safetensors files lack our header.

    Raises:
        CheckpointError: It should be a safetensors file and is none.
    """
    return path.suffix == ".safetensors" and _HEADER_KEY in read_metadata(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of any safetensors file.

    Raises:
        CheckpointError: It is missing, no such file or cut short.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """What any safetensors file says besides; raises as `read_safetensors`."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: is not a complete safetensors file ({error}); fetch or write it again."
        ) from error


def weights_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's weights out of a checkpoint's tensors, as float32.

    A run may keep them twice, as they are trained (``model.*``) and as their moving average
    (``ema.*``): the average is what is validated, exported and used.
    """
    has_average = any(name.startswith("ema.") for name in state)
    return part_of(state, "ema" if has_average else "model")


def part_of(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors under ``part.``, without that prefix; floating ones as float32."""
    return {
        name.removeprefix(f"{part}."): value.float() if value.is_floating_point() else value
        for name, value in state.items()
        if name.startswith(f"{part}.")
    }


def find_weights(name_or_path: str | Path) -> Path:
    """The file of weights that come with the package (``ground``) or that lie at a path.

    Raises:
        CheckpointError: There is neither; the message lists the names that would do.
    """
    shipped = _SHIPPED / name_or_path / _FILE_NAME
    for candidate in (shipped, Path(name_or_path)):
        if candidate.is_file():
            return candidate
    names = shipped_names()
    raise CheckpointError(
        f"{name_or_path}: neither a file nor shipped weights; name a .safetensors file or one of: "
        f"{', '.join(names) or 'none are shipped'}."
    )


def shipped_names() -> list[str]:
    """The names of the weights that come with the package."""
    return sorted(found.parent.name for found in _SHIPPED.glob(f"*/{_FILE_NAME}"))


def knows_level_photos(header: Mapping[str, Any]) -> bool:
    """Whether weights can know photos of streets: not if all learned from rasters, seen from above.

    Args:
        header: of a checkpoint or of exported weights.
    """
    config = header.get("config", {})
    has_rasters = bool(config.get("data", {}).get("rasters"))
    return not has_rasters or config.get("train", {}).get("trained", "all") == "plan"


def _parse_header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if _HEADER_KEY not in metadata:
        raise CheckpointError(
            f"{path}: has no header under {_HEADER_KEY!r}, so it is not a checkpoint of CIPER; "
            "foreign weights must be converted first."
        )
    try:
        header = json.loads(metadata[_HEADER_KEY])
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: its header is not JSON ({error}).") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is {header!r}; expected an object.")
    return header


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as safetensors asks for."""
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over names and bytes, in order of the names: a guard against accidents, not malice."""
    import torch

    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        # A flat view as bytes works for every dtype, also those that numpy does not have.
        flat = tensors[name].contiguous().reshape(-1)
        if flat.numel():
            value = zlib.crc32(flat.view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
