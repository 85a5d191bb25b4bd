"""A trained model, ready for use: weights, calibration, and photos and chips in, codes out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ciper.checkpoint import find_weights, load_checkpoint, save_checkpoint, weights_of
from ciper.config import from_dict, to_dict
from ciper.data.preprocess import CanvasSpec
from ciper.device import pick_device
from ciper.errors import CheckpointError, ConfigError
from ciper.gallery.shards import AerialCodes
from ciper.model.network import GroundCode, Network, NetworkConfig


@dataclass(frozen=True)
class Calibration:
    """What turns logits into probabilities; fitted on validation cities, never on test ones.

    `coarse_temperature`, `fine_temperature`, `unrefined_offset` and `floor` shape the posterior
    (see `Posterior.from_logits`). `confidence` and `in_gallery` are the weights of two logistic
    models on (1, `localize.confidence_features`).
    """

    coarse_temperature: float = 1.0
    fine_temperature: float = 1.0
    unrefined_offset: float = 0.0
    floor: float = 0.01
    confidence: tuple[float, ...] = (0.0, 1.0, 0.0, 0.0)
    in_gallery: tuple[float, ...] = (2.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode with its calibration.

    Attributes:
        network: the network.
        model_name: what people call the weights.
        model_hash: tells the network and its weights from others, see `weights_hash`.
        calibration: of its probabilities.
        device: where it runs.
        header: what the weights file says of itself.
    """

    network: Network
    model_name: str
    model_hash: str
    calibration: Calibration = field(default_factory=Calibration)
    device: str = "cpu"
    header: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chip_px(self) -> int:
        """Pixels along a chip's side."""
        return self.network.config.chip_px

    @property
    def gsd(self) -> float:
        """Metres per pixel of a chip."""
        return self.network.config.gsd

    @property
    def canvas(self) -> CanvasSpec:
        """The ground input's geometry."""
        config = self.network.config
        return CanvasSpec(
            config.canvas_height_px,
            config.canvas_width_px,
            config.elevation_top_deg,
            config.elevation_bottom_deg,
        )

    def check_grid(self, *, chip_m: float, stride_m: float) -> None:
        """Refuses grids that the posterior cannot answer for.

        A chip answers for its central half: with a larger stride places would be lost, with a
        smaller one every pose would count several times.

        Raises:
            ConfigError: chips or strides of other sizes.
        """
        wanted_m = self.chip_px * self.gsd
        if (chip_m, stride_m) != (wanted_m, wanted_m / 2):
            raise ConfigError(
                f"chips of {chip_m:g} m every {stride_m:g} m do not suit the model "
                f"{self.model_name!r}; expected chips of {wanted_m:g} m every {wanted_m / 2:g} m"
            )

    @torch.inference_mode()
    def encode(self, chips: NDArray[np.uint8], valid: NDArray[np.bool_]) -> AerialCodes:
        """Codes of chips `(B, H, W, 3)` with the mask of their imagery `(B, H, W)`."""
        with torch.autocast(self._device_type, torch.bfloat16):
            code = self.network.encode_aerial(self._tensor(chips), self._tensor(valid))
        codes = AerialCodes(*(_half(t) for t in (code.descriptors, code.coarse, code.fine)))
        codes.descriptors[~places_with_imagery(valid, codes.descriptors.shape[1])] = np.nan
        return codes

    @torch.inference_mode()
    def encode_photos(self, canvases: NDArray[np.uint8], visible: NDArray[np.bool_]) -> GroundCode:
        """Codes of canvases `(B, h, w, 3)` with what of them is visible `(B, h, w)`."""
        with torch.autocast(self._device_type, torch.bfloat16):
            return self.network.encode_ground(self._tensor(canvases), self._tensor(visible))

    @property
    def _device_type(self) -> str:
        return torch.device(self.device).type

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def places_with_imagery(valid: NDArray[np.bool_], num_places: int) -> NDArray[np.bool_]:
    """Which places of the chips' central halves show any imagery.

    Args:
        valid: `(B, H, W)` pixels with imagery.
        num_places: P, in rows from the north, as many as columns.

    Returns:
        `(B, P)`.
    """
    batch, height, width = valid.shape
    side = round(num_places**0.5)
    central = valid[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
    places = central.reshape(batch, side, height // 2 // side, side, width // 2 // side)
    has_any: NDArray[np.bool_] = places.any(axis=(2, 4)).reshape(batch, num_places)
    return has_any


def _half(tensor: torch.Tensor) -> NDArray[np.float16]:
    half: NDArray[np.float16] = tensor.to(torch.float16).cpu().numpy()
    return half


def load_model(model: str | Path = "ground", device: str | None = None) -> Model:
    """Loads shipped weights by name, or a weights or checkpoint file.

    Args:
        model: name of shipped weights, or a path.
        device: cpu, cuda or mps; None takes cuda where there is one.

    Raises:
        CheckpointError: there is no such file, or it is no checkpoint of ours.
        DeviceError: there is no such device.
    """
    path = find_weights(model)
    state, header = load_checkpoint(path)
    device = pick_device(device)
    try:
        config = from_dict(NetworkConfig, header["config"]["network"])
    except KeyError as error:
        raise CheckpointError(
            f"{path} has no {error} in its header; expected a checkpoint written by ciper train"
        ) from error
    network = Network(config)
    weights = weights_of(state)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"{path} does not fit the network that its header describes ({reason}); "
            "expected weights of this version of ciper: train again or take the shipped ones"
        ) from error
    name = path.parent.name if path.name == "model.safetensors" else path.stem
    return Model(
        network=network.to(device).eval(),
        model_name=name,
        model_hash=weights_hash(weights, header["config"]["network"]),
        calibration=from_dict(Calibration, header.get("calibration", {})),
        device=device,
        header=header,
    )


def weights_hash(weights: Mapping[str, torch.Tensor], network: Mapping[str, Any]) -> str:
    """SHA-256 of a network's configuration and tensors.

    Galleries remember it. The calibration has no part in it: who calibrates again keeps galleries.
    """
    digest = hashlib.sha256(json.dumps(network, sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def export_weights(checkpoint: Path, out: Path, calibration: Calibration) -> None:
    """Writes a training checkpoint's weights alone, as float16, with configuration and calibration.

    Args:
        checkpoint: of a training run.
        out: the file to write.
        calibration: fitted to these weights.
    """
    state, header = load_checkpoint(checkpoint)
    weights = {k: v.half() for k, v in state.items() if k.startswith("model.")}
    kept: dict[str, Any] = {k: header[k] for k in ("config", "step", "metrics") if k in header}
    save_checkpoint(out, weights, {**kept, "calibration": to_dict(calibration)})
