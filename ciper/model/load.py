"""Weights files to models, and checkpoints to weights files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ciper.checkpoint import find_weights, load_checkpoint, save_checkpoint, weights_of
from ciper.config import from_dict, to_dict
from ciper.device import pick_device
from ciper.errors import CheckpointError, ConfigError
from ciper.model.calibration import Calibration
from ciper.model.model import CiperModel, Model, places_with_imagery
from ciper.model.network import Network, NetworkConfig
from ciper.model.paper import PaperConfig, PaperNetwork
from ciper.model.paper_model import PaperModel
from ciper.model.released import Origin

__all__ = [
    "Calibration",
    "CiperModel",
    "Model",
    "PaperModel",
    "export_weights",
    "load_model",
    "places_with_imagery",
    "weights_hash",
]


def load_model(model: str | Path = "ground", device: str | None = None) -> Model:
    """Loads shipped weights by name, or a weights or checkpoint file, of either network.

    Args:
        model: name of shipped weights, or a path.
        device: cpu, cuda or mps; None takes cuda where there is one.

    Raises:
        CheckpointError: there is no such file, or it is no checkpoint of this version of ours.
        DeviceError: there is no such device.
    """
    path = find_weights(model)
    state, header = load_checkpoint(path)
    device = pick_device(device)
    weights = weights_of(state)
    name = path.parent.name if path.name == "model.safetensors" else path.stem
    calibration = _calibration(path, header)
    try:
        is_paper = header["config"].get("model", "ciper") == "paper"
        make = _paper_model if is_paper else _ciper_model
        made = make(header, weights, name, device)
    except ConfigError as error:
        raise CheckpointError(
            f"{path} describes a network of another version of ciper ({error}); train again or "
            "take the shipped weights"
        ) from error
    except KeyError as error:
        raise CheckpointError(
            f"{path} has no {error} in its header; expected a checkpoint written by ciper train"
        ) from error
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"{path} does not fit the network that its header describes ({reason}); "
            "expected weights of this version of ciper: train again or take the shipped ones"
        ) from error
    return replace(made, calibration=calibration)


def _calibration(path: Path, header: Mapping[str, Any]) -> Calibration:
    """What the header says; without a word nothing is fitted."""
    if "calibration" not in header:
        return Calibration(is_fitted=False)
    try:
        return from_dict(Calibration, header["calibration"])
    except ConfigError as error:
        raise CheckpointError(
            f"{path} was calibrated by another version of ciper ({error}); calibrate again with "
            "this version (ciper calibrate)"
        ) from error


def _ciper_model(
    header: Mapping[str, Any], weights: Mapping[str, torch.Tensor], name: str, device: str
) -> Model:
    described = header["config"]["network"]
    network = Network(from_dict(NetworkConfig, described))
    _fill(network, weights, device)
    return CiperModel(
        network=network,
        model_name=name,
        model_hash=weights_hash(weights, described),
        device=device,
        header=header,
    )


def _paper_model(
    header: Mapping[str, Any], weights: Mapping[str, torch.Tensor], name: str, device: str
) -> Model:
    described, origin = header["config"]["paper"], header.get("origin")
    network = PaperNetwork(from_dict(PaperConfig, described))
    _fill(network, weights, device)
    return PaperModel(
        network=network,
        model_name=name,
        # What a file was trained on decides what its photos and chips are cut to.
        model_hash=weights_hash(weights, {"paper": described, "origin": origin}),
        device=device,
        header=header,
        origin=None if origin is None else from_dict(Origin, origin),
    )


def _fill(network: nn.Module, weights: Mapping[str, torch.Tensor], device: str) -> None:
    network.load_state_dict(weights)
    network.to(device).eval()


def weights_hash(weights: Mapping[str, torch.Tensor], network: Mapping[str, Any]) -> str:
    """SHA-256 of a network's configuration and tensors.

    Galleries remember it. What chips are encoded without has no part in it: who calibrates again,
    or trains a plan head alone, keeps galleries.
    """
    digest = hashlib.sha256(json.dumps(_of_chips(network), sort_keys=True).encode())
    for name in sorted(weights):
        if name.startswith("plan."):
            continue
        digest.update(name.encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _of_chips(network: Mapping[str, Any]) -> dict[str, Any]:
    """What of a network's description chips are encoded by; the same for older files.

    Two tokens were all that there was before files said how many there are.
    """
    described = {name: value for name, value in network.items() if name != "has_plan_head"}
    encoder = described.get("encoder")
    if isinstance(encoder, Mapping) and encoder.get("num_tokens") == 2:
        described["encoder"] = {k: v for k, v in encoder.items() if k != "num_tokens"}
    return described


def export_weights(checkpoint: Path, out: Path, calibration: Calibration) -> None:
    """Writes a checkpoint's weights alone, as float16, with configuration and calibration.

    Args:
        checkpoint: of a training run.
        out: the file to write.
        calibration: fitted to these weights.
    """
    state, header = load_checkpoint(checkpoint)
    weights = {f"model.{name}": value.half() for name, value in weights_of(state).items()}
    names = ("config", "origin", "step", "metrics")
    kept: dict[str, Any] = {k: header[k] for k in names if k in header}
    save_checkpoint(out, weights, {**kept, "calibration": to_dict(calibration)})
