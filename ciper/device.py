"""Which processor the network runs on, in which precision, and with how many threads."""

from __future__ import annotations

import os
import re
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from ciper.errors import DeviceError

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda", "mps")
# What a CPU must have to multiply in bfloat16; without it torch emulates, forty times slower.
BFLOAT16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def pick_device(name: str | None = None) -> str:
    """Check a device's name against this machine; None means cuda where there is one, else cpu.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1`` and so on, or ``mps``.

    Raises:
        DeviceError: The name is unknown or the machine has no such device.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    parts = re.fullmatch(rf"({'|'.join(DEVICES)})(?::(\d+))?", name)
    if parts is None:
        raise DeviceError(f"device {name!r} is unknown; expected one of {', '.join(DEVICES)}.")
    kind, number = parts.groups(default="0")
    num_present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }[kind]
    if int(number) >= num_present:
        raise DeviceError(
            f"device {name!r} is not there: this machine has {num_present} of kind {kind}; "
            "choose another, for example cpu."
        )
    return name


def fast_dtype(device: str | torch.device) -> torch.dtype:
    """What a device multiplies matrices in: bfloat16 where it can, else float32.

    Few laptops and older servers can, and torch leaves it to oneDNN. A version of torch that does
    not tell what its CPU is capable of computes in float32, which is right everywhere.
    """
    import torch

    if torch.device(device).type != "cpu":
        return torch.bfloat16
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    is_able = any(capabilities.get(name, False) for name in BFLOAT16_CAPABILITIES)
    is_fast = is_able and torch.backends.mkldnn.is_available()
    return torch.bfloat16 if is_fast else torch.float32


def mixed_precision(device: str | torch.device) -> AbstractContextManager[None]:
    """The context in which networks run: matrix products in the device's `fast_dtype`."""
    import torch

    is_lower = fast_dtype(device) == torch.bfloat16
    context: AbstractContextManager[None] = torch.autocast(
        torch.device(device).type, torch.bfloat16, enabled=is_lower
    )
    return context


def limit_threads(num_threads: int | None) -> None:
    """Let the numerical libraries use that many threads; None changes nothing.

    Call it before anything numerical is imported: most of them look once, when they are loaded.
    """
    if num_threads is None:
        return
    for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
        os.environ[f"{library}_NUM_THREADS"] = str(num_threads)
    if "numba" not in sys.modules:
        # Numba re-reads this one at every compilation and refuses a change.
        os.environ["NUMBA_NUM_THREADS"] = str(num_threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(num_threads)
