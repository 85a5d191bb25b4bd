from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from ciper.device import fast_dtype, limit_threads, mixed_precision, pick_device
from ciper.errors import DeviceError


def test_the_cpu_is_always_there() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device() == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "cpu:-1"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=r"is unknown; expected one of cpu, cuda, mps"):
        pick_device(name)


@pytest.mark.parametrize("name", ["cuda:99", "mps:1", "cpu:1"])
def test_absent_devices_are_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=r"is not there: this machine has \d+ of kind"):
        pick_device(name)


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx2": True, "avx512_f": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": False}, torch.float32),
    ],
)
def test_products_are_taken_in_what_the_processor_is_fast_in(
    capabilities: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fast_dtype("cpu") == dtype
    one = torch.ones(2, 2)
    with mixed_precision("cpu"):
        assert (one @ one).dtype == dtype
    assert (one @ one).dtype == torch.float32
    assert fast_dtype("cuda:1") == fast_dtype(torch.device("mps")) == torch.bfloat16


def test_a_torch_that_does_not_tell_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fast_dtype("cpu") == torch.float32


def test_threads_are_limited_in_libraries_that_are_loaded_later() -> None:
    code = (
        "from ciper.device import limit_threads; limit_threads(1); import torch, json, os;"
        "print(json.dumps([torch.get_num_threads(), os.environ['NUMBA_NUM_THREADS']]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(answer.stdout) == [1, "1"]


def test_threads_are_limited_in_a_torch_that_is_loaded_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "NUMBA"):
        monkeypatch.setenv(f"{library}_NUM_THREADS", "2")
    before = torch.get_num_threads()
    try:
        limit_threads(None)
        assert torch.get_num_threads() == before
        assert os.environ["OMP_NUM_THREADS"] == "2"
        limit_threads(1)
        assert torch.get_num_threads() == 1
        assert os.environ["OMP_NUM_THREADS"] == "1"
    finally:
        torch.set_num_threads(before)
