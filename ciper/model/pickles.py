"""Tensors out of a foreign `.pth` file: nothing in it is ever executed.

`torch.load` with `weights_only=True` rebuilds tensors and plain containers. A pickle that asks for
anything else is refused, and the message names what it asks for.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ciper.errors import CheckpointError

# What a pickle of tensors and containers asks for.
_HARMLESS = ("torch", "collections", "_codecs")
# What torch, zipfile and pickletools raise over files that were cut short or changed.
_DAMAGE = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ASKED_FOR = re.compile(r"\b(?:GLOBAL|class) ([\w.]+)")


def load_pickle(path: Path) -> Any:
    """What a `.pth` file holds: tensors on the CPU and plain containers.

    Raises:
        CheckpointError: the file is missing or damaged, or its pickle asks for something else than
            tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; name a .pth checkpoint.")
    try:
        with warnings.catch_warnings():
            # torch warns of newer pickle protocols, and refuses them at once.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from error
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path}: is no complete .pth checkpoint ({reason}); fetch it again."
        ) from error


def check_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuses tensors that are no plain weights, or that a small file makes large.

    A pickle may hold sparse and nested tensors, tensors without data, and views that repeat a few
    numbers for ever: what would be done with them fails somewhere, or takes all memory.

    Raises:
        CheckpointError: one is not dense, not on the CPU, of an unusual type, or has more numbers
            than the file.
    """
    num_needed, num_held = 0, {}
    for name, value in tensors.items():
        is_dense = value.layout == torch.strided and not value.is_nested
        if not is_dense or value.device.type != "cpu" or value.dtype not in FLOATING:
            kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
            raise CheckpointError(
                f"{path}: {name!r} is a {kind} {value.device.type} tensor of "
                f"{str(value.dtype).removeprefix('torch.')}; expected dense ones of floating "
                "numbers: ask its author for a clean file."
            )
        storage = value.untyped_storage()
        num_held[storage.data_ptr()] = storage.nbytes()
        num_needed += value.numel() * value.element_size()
        if num_needed > sum(num_held.values()):
            raise CheckpointError(
                f"{path}: {name!r} has more numbers than the file holds, shape "
                f"{tuple(value.shape)}; expected every number once: ask its author for a clean "
                "file."
            )


def _refusal(path: Path, message: str) -> str:
    told = _ASKED_FOR.search(message)
    name = told.group(1).rstrip(".") if told else next(_foreign_names(path), None)
    if name is None:
        return f"{path}: is no pickle of tensors; expected a .pth file that torch.save wrote."
    return (
        f"{path}: asks for {name} when it is unpickled, which could run any program; expected "
        "tensors and plain values only. Ask its author for a clean file."
    )


def _foreign_names(path: Path) -> Iterator[str]:
    """What a pickle asks for besides tensors, read without executing it."""
    texts = [""]
    try:
        data = _pickle_of(path)
        stream = io.BytesIO(data)
        # The older format is a row of pickles; what follows the last one is no pickle.
        while stream.tell() < len(data):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    name = str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    name = ".".join(texts[-2:])
                else:
                    texts += [argument] if isinstance(argument, str) else []
                    continue
                if name.partition(".")[0] not in _HARMLESS:
                    yield name
    except _DAMAGE:
        return


def _pickle_of(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return archive.read(names[0]) if names else b""
